"""What components offered is remembered, on both databases: by processes that come and go."""

import asyncio
from collections.abc import Callable, Mapping

import pytest

from burnish.core.protocol import KindOffer
from burnish.infra.database import Database
from burnish.platform.workflow import offers
from burnish.platform.workflow.offers import KnownOffers

SCHEMA = {"type": "object"}


class Offering:
    """An integrator that knows what a test says."""

    def __init__(self, *types: str) -> None:
        self.types = set(types)
        self.summary = "one"

    def kinds(self) -> Mapping[tuple[str, str], KindOffer]:
        work = KindOffer(name="work", summary=self.summary, spec_schema=SCHEMA, result_schema=SCHEMA)
        return {(one, "work"): work for one in self.types}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offers, "_AWAY_AFTER_SECONDS", 0.05)
    monkeypatch.setattr(offers, "_LOOK_SECONDS", 0.02)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


async def test_what_is_gone_is_known_with_the_time_since_when(database: Database) -> None:
    offering = Offering("ours", "theirs")
    known = KnownOffers(database, offering)
    await known.start()
    assert set(known.kinds()) == {("ours", "work"), ("theirs", "work")}
    assert known.away() == {}
    offering.types.remove("theirs")
    await until(lambda: "theirs" in known._away)
    since = known.away()["theirs"]
    assert set(known.kinds()) == {("ours", "work"), ("theirs", "work")}
    await known.stop()

    later = KnownOffers(database, offering)  # another process, or this one started again
    await later.start()
    assert later.away() == {"theirs": since}
    assert later.kinds()["theirs", "work"].summary == "one"
    offering.types.add("theirs")
    offering.summary = "two"
    assert later.away() == {}, "at once, whatever the rows say"
    assert later.kinds()["theirs", "work"].summary == "two"
    await until(lambda: later._away == {})
    offering.types.clear()
    await until(lambda: set(later._away) == {"ours", "theirs"})
    assert later.away()["theirs"] > since
    assert later.kinds()["theirs", "work"].summary == "two"
    assert later.alive
    await later.stop()
    assert not later.alive


async def test_several_processes_write_the_same(database: Database) -> None:
    offering = Offering(*(f"type_{n}" for n in range(20)))
    several = [KnownOffers(database, offering) for _ in range(4)]
    await asyncio.gather(*(one.start() for one in several))
    offering.types.clear()
    await until(lambda: all(len(one._away) == 20 for one in several))
    assert len({one.away()["type_3"] for one in several}) == 1
    for one in several:
        await one.stop()


async def test_a_blink_is_no_absence(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offers, "_AWAY_AFTER_SECONDS", 60.0)
    offering = Offering("theirs")
    known = KnownOffers(database, offering)
    await known.look()
    offering.types.clear()
    await known.look()
    assert known._away == {}
    assert set(known.away()) == {"theirs"}, "whoever asks now cannot be served now"
    offering.types.add("theirs")
    await known.look()
    assert known.away() == {}
