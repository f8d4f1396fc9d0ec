"""Looks at instances that bring no news: what they cost the database, and that whatever is news is written."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.configuration import IntegratorConfiguration
from burnish.core.errors import Unavailable
from burnish.core.protocol import Description, Health
from burnish.core.states import InstanceState
from burnish.infra.database import Database
from burnish.platform.integrator import store
from burnish.platform.integrator.health import Sight
from burnish.platform.integrator.judging import Judge, Look
from burnish.platform.integrator.probing import Prober
from burnish.platform.integrator.tables import ComponentTable
from burnish.platform.integrator.together import Rows, SignsOfLife
from tests.support.asgi_server import served
from tests.support.integrating import FAST, component, embedded_row, world
from tests.support.waiting import until

HEALTH = Health(load=0.5, warm=("m",))
WELL = Look(Sight.OK, None, None, HEALTH)
DESCRIPTION = Description(component_type="x", version="1")


@pytest.fixture
async def units(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every unit of work from now on."""
    begun: list[str] = []

    def counted(name: str) -> Callable[[], AbstractAsyncContextManager[AsyncSession]]:
        plain = getattr(database, name)

        def opened() -> AbstractAsyncContextManager[AsyncSession]:
            begun.append(name)
            return plain()  # type: ignore[no-any-return]

        return opened

    for name in ("read", "write"):
        monkeypatch.setattr(database, name, counted(name))
    return begun


async def _well(database: Database, count: int = 1) -> list[ComponentTable]:
    """Make instances that have been well for long."""
    async with database.write() as session:
        rows = []
        for n in range(count):
            row = await embedded_row(session, f"x-{n}")
            row.health, row.successes = HEALTH.model_dump(mode="json"), 1000
            row.protocol_version = "1"
            row.expires_at = row.beat_until = await store.now(session) + FAST["lease_seconds"]
            await store.change_state(session, row, InstanceState.HEALTHY)
            rows.append(row)
        await session.flush()
        return rows


def _news(row: ComponentTable, now: float, **columns: Any) -> ComponentTable:
    for name, value in columns.items():
        setattr(row, name, value(now) if callable(value) else value)
    return row


@pytest.mark.parametrize(
    ("look", "columns"),
    [
        (Look(Sight.BROKEN, None, None, HEALTH), {}),
        (Look(Sight.LATE, None, None, HEALTH), {}),
        (Look(Sight.DEGRADED, None, None, HEALTH.model_copy(update={"status": "degraded"})), {}),
        (Look(Sight.OK, None, DESCRIPTION, HEALTH), {}),
        (Look(Sight.OK, None, None, HEALTH.model_copy(update={"load": 0.7})), {}),
        (Look(Sight.OK, None, None, HEALTH.model_copy(update={"warm": ()})), {}),
        (WELL, {"health": None}),
        (WELL, {"status": "degraded"}),
        (WELL, {"status": "draining", "drain_until": lambda now: now + 5}),
        (WELL, {"drain_until": lambda now: now + 5}),
        (WELL, {"failures": 1}),
        (WELL, {"successes": 1}),
        (WELL, {"alerted": True}),
        (WELL, {"problem": "its calls fail"}),
        (WELL, {"problem_kind": "stopped"}),
        (WELL, {"moved_at": lambda now: now - 5}),
        (WELL, {"evidence": lambda now: {"p": {"at": now, "calls": 10, "errors": 9, "answered": True}}}),
        (WELL, {"expires_at": lambda now: now + 3600}),
        (WELL, {"state_since": lambda now: now + 3600}),
    ],
)
async def test_what_is_news_is_no_nothing(database: Database, look: Look, columns: dict[str, Any]) -> None:
    """Breaks with: a change of an instance that is never written because its look was taken for one that tells nothing."""
    settings = IntegratorConfiguration(**FAST)
    judge = Judge(lambda: settings)
    (row,) = await _well(database)
    async with database.read() as session:
        now = await store.now(session)
    assert judge.tells_nothing_new(row, WELL, now)
    assert not judge.tells_nothing_new(_news(row, now, **columns), look, now)


async def test_a_look_that_tells_nothing_new_would_have_written_nothing_but_the_lease(database: Database) -> None:
    """Breaks with: a shorter way that forgets what the whole one does."""
    settings = IntegratorConfiguration(**FAST)
    judge = Judge(lambda: settings)
    await _well(database)
    async with database.write() as session:
        row = await store.find(session, "x-0", lock=True)
        assert row is not None
        before = _columns(row)
        await judge.apply(session, row, WELL)
        assert {name for name, value in _columns(row).items() if before[name] != value} <= {
            "expires_at",
            "last_heartbeat",
        }


def _columns(row: ComponentTable) -> dict[str, Any]:
    return {attribute.key: getattr(row, attribute.key) for attribute in ComponentTable.__mapper__.column_attrs if attribute.key != "description"}  # fmt: skip


async def test_rows_that_are_asked_for_together_are_read_together(database: Database, units: list[str]) -> None:
    made = await _well(database, 40)
    rows = Rows(database)
    units.clear()
    found = await asyncio.gather(*(rows.get(row.id) for row in made), rows.get(made[0].id), rows.get("0" * 32))
    assert units == ["read"]
    assert [one.component_id for one, _ in found[:-1] if one is not None] == [f"x-{n}" for n in [*range(40), 0]]
    assert found[-1][0] is None
    assert (await rows.get(made[3].id))[1] >= found[3][1]


async def test_one_who_gives_up_spoils_nothing_for_the_others(database: Database) -> None:
    """Breaks with: a cancelled turn that cancels the reading of all."""
    made = await _well(database, 2)
    rows = Rows(database)
    gone, stays = (asyncio.create_task(rows.get(row.id)) for row in made)
    await asyncio.sleep(0)
    gone.cancel()
    assert (await stays)[0] is not None
    assert gone.cancelled()


async def test_a_database_that_is_away_is_told_to_everyone_who_asked(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await _well(database, 2)
    rows = Rows(database)
    with monkeypatch.context() as patched:
        patched.setattr(database, "read", _is_away)
        told = await asyncio.gather(*(rows.get(row.id) for row in made), return_exceptions=True)
    assert [type(one) for one in told] == [Unavailable, Unavailable]
    assert (await rows.get(made[0].id))[0] is not None


def _is_away() -> Any:
    raise Unavailable("the database is away")


async def test_signs_of_life_are_written_together(database: Database, units: list[str]) -> None:
    """Also: not for another incarnation, and not for one that was deregistered."""
    made = await _well(database, 30)
    async with database.write() as session:
        row = await store.find(session, "x-7", lock=True)
        assert row is not None
        row.drain_until = await store.now(session) + 5
    signs = SignsOfLife(database)
    units.clear()
    for row in made:
        signs.note(row.component_id, row.generation + (row.component_id == "x-3"), 500.0)
    await until(lambda: not signs._writing)
    assert units == ["write"]
    async with database.read() as session:
        now = await store.now(session)
        longer = {row.component_id for row in made if ((await _fresh(session, row)).expires_at or 0) > now + 400}
    assert longer == {row.component_id for row in made} - {"x-3", "x-7"}


async def test_signs_of_life_are_written_at_the_end_and_lost_with_the_database(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: an end that forgets them; an outage that ends what writes them for good."""
    (row,) = await _well(database)
    signs = SignsOfLife(database)
    with monkeypatch.context() as patched:
        patched.setattr(database, "write", _is_away)
        signs.note(row.component_id, row.generation, 500.0)
        await until(lambda: not signs._writing)
    signs.note(row.component_id, row.generation, 500.0)
    await signs.stop()
    async with database.read() as session:
        assert ((await _fresh(session, row)).expires_at or 0) > await store.now(session) + 400


async def test_what_came_this_moment_is_known_after_a_refresh(database_url: str, home: Path) -> None:
    """Written by a process whose notice does not arrive. Breaks with: a reading that had begun before, taken for a new one."""
    other = Database(database_url)
    try:
        async with world(database_url, home) as here:
            for name in ("x-1", "x-2", "x-3"):
                async with other.write() as session:
                    row = await embedded_row(session, name)
                    row.embedded, row.api_endpoint = False, "http://127.0.0.1:1"
                assert name not in here.integrator.instances
                await here.integrator.refresh()
                assert name in here.integrator.instances
    finally:
        await other.dispose()


async def test_who_is_well_has_its_lease_renewed_and_nothing_else(
    database_url: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real instance, looked at over HTTP. Breaks with: a look that writes the whole row each time, or no lease at all."""
    applied: list[str] = []
    plain = Judge.apply

    async def noted(self: Judge, session: AsyncSession, row: ComponentTable, look: Look, *, beat: bool = False) -> None:
        applied.append(row.component_id)
        await plain(self, session, row, look, beat=beat)

    monkeypatch.setattr(Judge, "apply", noted)
    async with served(component()) as url, world(database_url, home) as here:
        await here.register("far-1", url)
        await here.until_known("far-1")

        async def row() -> ComponentTable:
            async with here.database.read() as session:
                found = await store.find(session, "far-1")
            assert found is not None
            return found

        while (await row()).successes < IntegratorConfiguration().successes_until_healthy:
            await asyncio.sleep(0.02)
        applied.clear()
        before = (await row()).expires_at or 0.0
        async with asyncio.timeout(15):
            while ((await row()).expires_at or 0.0) <= before:
                await asyncio.sleep(0.05)
        assert "far-1" not in applied
        assert (await row()).status == InstanceState.HEALTHY


async def test_a_fleet_that_began_at_once_is_not_looked_at_in_step(database: Database) -> None:
    settings = IntegratorConfiguration(**FAST)
    prober = Prober(database, None, lambda: settings, Judge(lambda: settings), None)  # type: ignore[arg-type]
    described = {prober._next(Look(Sight.OK, None, DESCRIPTION, HEALTH), 0) for _ in range(20)}
    usual = settings.probe_seconds
    assert all(usual / 2 <= one <= usual for one in described)
    assert max(described) - min(described) > usual / 20
    assert {prober._next(WELL, 0) for _ in range(20)} == {usual}


async def _fresh(session: AsyncSession, row: ComponentTable) -> ComponentTable:
    found = await store.by_key(session, row.id)
    assert found is not None
    return found
