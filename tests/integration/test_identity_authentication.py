"""Who comes in: good credentials fast and everywhere, bad ones all alike, and both while the database is away."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.configuration import Configuration, GatewayConfiguration
from burnish.core.errors import BurnishError, NotFound, Unauthenticated, Unavailable
from burnish.infra.database import Database, utcnow
from burnish.platform.identity import Principal, audit, authentication, service, store
from burnish.platform.identity.authentication import Authenticator
from burnish.platform.identity.refusals import Refusals
from burnish.platform.identity.schemas import MintedKey, NewKeyRequest
from tests.support.identity import ROOT, People


@pytest.fixture
async def people(database: Database, monkeypatch: pytest.MonkeyPatch) -> People:
    monkeypatch.setattr(audit, "REFUSALS", Refusals())
    found = People(database)
    await found.begin("ml", "other")
    return found


def bearer(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def bad_keys(people: People) -> dict[str, str]:
    """One key for each thing that can be wrong with one."""
    ada = await people.user("ada", "engineer", "ml")
    good, revoked, expired = [str((await people.key(ada)).key) for _ in range(3)]
    disabled = str((await people.key(await people.user("bob", "viewer", "ml"))).key)
    async with people.database.write() as session:
        rows = {row.prefix: row for row in await store.api_keys(session, None, None, None, 50)}
        rows[revoked.split("_")[1]].revoked_at = utcnow()
        rows[expired.split("_")[1]].expires_at = utcnow() - timedelta(seconds=1)
        await service.disable(session, ROOT, "bob", service.USER)
    return {
        "wrong": good[:-1] + ("A" if good[-1] != "A" else "B"), "unknown": "bk_0123456789ab_" + "x" * 43,
        "revoked": revoked, "expired": expired, "disabled": disabled, "malformed": "hello", "short": good[:-1],
        "long": good + "A", "prefix alone": good[:16], "upper": good.upper(), "empty": "", "long text": "x" * 8000,
        "odd": "bk_é\0\ud800", "spaces": f" {good[3:]}",
    }  # fmt: skip


async def test_whatever_is_wrong_with_a_key_the_answer_and_the_work_are_the_same(people: People) -> None:
    """By the digests computed, and by the statements sent to the database: not by a clock."""
    work: dict[str, tuple[int, int, str]] = {}
    engine = people.database._readers.sync_engine
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda _c, _u, statement, *_: statements.append(statement))
    authenticator = people.authenticator()
    for name, key in (await bad_keys(people)).items():
        before, statements[:] = people.digests.computed, []
        with pytest.raises(Unauthenticated) as refused:
            await authenticator.authenticate(bearer(key), method="GET")
        selects = [one for one in statements if one.lstrip().upper().startswith("SELECT")]
        work[name] = (people.digests.computed - before, len(selects), str(refused.value.body()))
    assert len(set(work.values())) == 1, work
    assert work["unknown"][:2] == (1, 1)


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Basic YTpi"}, {"authorization": "bk_0123456789ab_x"}, {"authorization": ""}, {"authorization": "Bearer"},
     {"cookie": "burnish_session=nonsense"}, {"burnish-caller": "eyJhbGciOiJub25lIn0.e30."}, {"x-api-key": "a"}],
)  # fmt: skip
async def test_what_is_no_credential_is_none(people: People, headers: dict[str, str]) -> None:
    with pytest.raises(Unauthenticated):
        await people.authenticator().authenticate(headers, method="GET")


async def test_a_key_seen_lately_costs_the_database_nothing(people: People) -> None:
    key = (await people.key(await people.user("ada", "engineer", "ml"))).key
    authenticator = people.authenticator()
    first = await authenticator.authenticate(bearer(key), method="GET")
    people.database.read = _fails  # type: ignore[assignment,method-assign]
    for _ in range(1000):
        assert await authenticator.authenticate(bearer(key), method="POST") == first


def _fails() -> object:
    raise AssertionError("asked")


def _is_away() -> object:
    raise Unavailable("the database is away")


@asynccontextmanager
async def _found_away() -> AsyncIterator[AsyncSession]:
    await asyncio.sleep(0.2)  # until it is noticed
    raise Unavailable("the database is away")
    yield


async def test_a_storm_of_one_key_asks_the_database_once(people: People) -> None:
    key = (await people.key(await people.user("ada", "engineer", "ml"))).key
    authenticator, plain = people.authenticator(), people.database.read
    asked = 0

    def counted() -> object:
        nonlocal asked
        asked += 1
        return plain()

    people.database.read = counted  # type: ignore[assignment,method-assign]
    found = await asyncio.gather(*(authenticator.authenticate(bearer(key), method="GET") for _ in range(200)))
    assert len(set(found)) == 1
    assert asked == 2, "the key, and what its owner may do"


async def within(seconds: float, ask: Callable[[], Awaitable[object]], error: type[BurnishError]) -> float:
    """Return after how many seconds ``ask`` raises this error."""
    began = time.monotonic()
    while True:
        try:
            await ask()
        except error:
            return time.monotonic() - began
        assert time.monotonic() - began < seconds, "not in time"
        await asyncio.sleep(0.01)


async def test_a_change_holds_in_every_process_within_a_second(people: People) -> None:
    """Two processes on PostgreSQL, told by NOTIFY; on SQLite there is one."""
    other = Database(people.database.url) if people.database.dialect == "postgresql" else people.database
    await people.database.start()
    if other is not people.database:
        await other.start()
    try:
        here, there = people.authenticator(), Authenticator(other, people.digests)
        ada = await people.user("ada", "engineer", "ml")
        key = await people.key(ada)

        async def ask() -> Principal:
            return await there.authenticate(bearer(key.key), method="GET")

        deadline = time.monotonic() + 5  # until the other process listens, a notice may be missed
        while (await ask()).roles != {"engineer"}:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        await here.authenticate(bearer(key.key), method="GET")
        await asyncio.sleep(0.3)
        await ask()
        async with people.database.write() as session:
            row = await store.binding_of(session, "ada", "ml", "engineer")
            assert row is not None
            await service.take(session, Principal("boss", "ml", frozenset({"administrator"})), row.id)
        assert await within(1, ask, NotFound) < 1
        await people.user("ada", "viewer", "ml")
        deadline = time.monotonic() + 1
        while True:
            try:
                assert (await ask()).roles == {"viewer"}
                break
            except NotFound:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
        async with people.database.write() as session:
            await people.credentials.revoke(session, ROOT, key.id)
        assert await within(1, ask, Unauthenticated) < 1
        with pytest.raises(Unauthenticated):
            await here.authenticate(bearer(key.key), method="GET")
    finally:
        if other is not people.database:
            await other.dispose()


async def test_while_the_database_is_away_keys_seen_lately_work_and_others_are_told_at_once(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, unseen = [str((await people.key(await people.user(name, "engineer", "ml"))).key) for name in ("ada", "bob")]
    stale = [900.0]

    def configured() -> Configuration:
        return Configuration(gateway=GatewayConfiguration(authenticated_stale_seconds=stale[0]))

    authenticator = Authenticator(people.database, people.digests, configuration=configured)
    first = await authenticator.authenticate(bearer(known), method="GET")
    plain = people.database.read

    people.database.read = _found_away  # type: ignore[method-assign]
    monkeypatch.setattr(authentication, "FRESH_SECONDS", 0.0)
    began = time.monotonic()
    assert await authenticator.authenticate(bearer(known), method="GET") == first
    for key in (unseen, "bk_0123456789ab_" + "x" * 43, "nonsense"):
        with pytest.raises(Unavailable) as away:
            await authenticator.authenticate(bearer(key), method="GET")
        assert away.value.retry_after
    for _ in range(100):
        assert await authenticator.authenticate(bearer(known), method="GET") == first
    assert time.monotonic() - began < 2
    with pytest.raises(Unavailable):  # another project was not asked for lately
        await authenticator.authenticate({**bearer(known), "burnish-project": "other"}, method="GET")
    stale[0] = 0.0
    with pytest.raises(Unavailable):
        await authenticator.authenticate(bearer(known), method="GET")
    people.database.read = plain  # type: ignore[method-assign]
    deadline = time.monotonic() + 10
    while True:
        try:
            assert (await authenticator.authenticate(bearer(unseen), method="GET")).subject == "bob"
            break
        except Unavailable:
            assert time.monotonic() < deadline, "it is back"
            await asyncio.sleep(0.05)
    await authenticator.stop()


async def test_a_revoked_key_does_not_go_on_because_the_database_is_slow(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: honouring what was known when a look-up is late, or fails, although somebody told of a change."""
    monkeypatch.setattr(authentication, "_LOOKUP_SECONDS", 0.2)
    monkeypatch.setattr(authentication, "_AWAY_SECONDS", 0.0)
    ada = await people.user("ada", "engineer", "ml")
    revoked, kept = await people.key(ada), await people.key(ada)
    authenticator, plain = people.authenticator(), people.database.read
    for key in (revoked, kept):
        await authenticator.authenticate(bearer(key.key), method="GET")
    async with people.database.write() as session:
        await people.credentials.revoke(session, ROOT, revoked.id)
    go_on, fails = asyncio.Event(), True

    @asynccontextmanager
    async def slow() -> AsyncIterator[AsyncSession]:
        await go_on.wait()
        if fails:
            raise Unavailable("the database is busy")
        async with plain() as session:
            yield session

    async def refused(*keys: MintedKey) -> None:
        for key in keys:
            with pytest.raises(Unavailable):
                await authenticator.authenticate(bearer(key.key), method="GET")

    people.database.read = slow  # type: ignore[method-assign]
    await refused(revoked, kept)  # it is late; of the other as well nobody knows what has changed
    go_on.set()
    await refused(revoked, kept)  # it fails
    with monkeypatch.context() as away:
        away.setattr(Database, "away", True)
        for key in (revoked, kept):
            assert (await authenticator.authenticate(bearer(key.key), method="GET")).subject == "ada"
    await refused(revoked)
    fails = False
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(bearer(revoked.key), method="GET")
    assert (await authenticator.authenticate(bearer(kept.key), method="GET")).subject == "ada"
    await authenticator.stop()


async def test_a_known_key_is_looked_up_again_while_requests_go_on_with_it(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for it, one look-up runs at a time, and what it finds counts at once."""
    key = await people.key(await people.user("ada", "engineer", "ml"))
    authenticator = people.authenticator()
    first = await authenticator.authenticate(bearer(key.key), method="GET")
    monkeypatch.setattr(authentication, "_AHEAD_SECONDS", 60.0)
    plain, begun, go_on = people.database.read, asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def waits() -> AsyncIterator[AsyncSession]:
        begun.set()
        await go_on.wait()
        async with plain() as session:
            yield session

    people.database.read = waits  # type: ignore[method-assign]
    for _ in range(5):
        async with asyncio.timeout(0.5):
            assert await authenticator.authenticate(bearer(key.key), method="GET") == first
    await asyncio.wait_for(begun.wait(), 5)
    assert len(authenticator._running) == 1
    async with people.database.write() as session:  # and tells nobody
        row = await store.key(session, key.id)
        assert row is not None
        row.revoked_at = utcnow()
    go_on.set()
    assert await within(2, lambda: authenticator.authenticate(bearer(key.key), method="GET"), Unauthenticated) < 2


async def test_a_look_up_from_before_a_change_is_not_believed_after_it(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await people.key(await people.user("ada", "engineer", "ml"))
    authenticator = people.authenticator()
    await authenticator.authenticate(bearer(key.key), method="GET")
    monkeypatch.setattr(authentication, "_AHEAD_SECONDS", 60.0)
    look_up, found, go_on = authenticator._look_up, asyncio.Event(), asyncio.Event()

    async def late(digest: str, project: str | None, token: str) -> authentication._Answer:
        answer = await look_up(digest, project, token)
        found.set()
        await go_on.wait()
        return answer

    monkeypatch.setattr(authenticator, "_look_up", late)
    await authenticator.authenticate(bearer(key.key), method="GET")
    await asyncio.wait_for(found.wait(), 5)
    before = authenticator._topic.version
    async with people.database.write() as session:
        await people.credentials.revoke(session, ROOT, key.id)
    async with asyncio.timeout(5):
        while authenticator._topic.version == before:
            await asyncio.sleep(0.01)
    asking = asyncio.create_task(authenticator.authenticate(bearer(key.key), method="GET"))
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(Unauthenticated):
        await asking


async def test_an_expiring_key_ends_on_time_without_asking(people: People) -> None:
    ada = await people.user("ada", "engineer", "ml")
    key = await people.key(ada, NewKeyRequest(days=2 / 86_400))
    authenticator = people.authenticator()
    await authenticator.authenticate(bearer(key.key), method="GET")
    people.database.read = _fails  # type: ignore[assignment,method-assign]
    assert await within(4, lambda: authenticator.authenticate(bearer(key.key), method="GET"), Unauthenticated) < 4


async def test_when_keys_were_used_is_written_in_batches_and_kept_while_that_cannot_be(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await people.key(await people.user("ada", "engineer", "ml"))
    authenticator = people.authenticator()
    await authenticator.start()
    assert authenticator.alive
    for _ in range(20):
        await authenticator.authenticate(bearer(key.key), method="GET")
    async with people.database.read() as session:
        before = await store.key(session, key.id)
    assert before is not None
    assert before.last_used_at is None
    with monkeypatch.context() as away:
        away.setattr(people.database, "write", _is_away)
        await authenticator.write_uses()
    await authenticator.stop()
    async with people.database.read() as session:
        after = await store.key(session, key.id)
    assert after is not None
    assert after.last_used_at is not None
    assert abs(after.last_used_at - utcnow()) < timedelta(seconds=30)


async def test_failed_logins_are_entries_without_the_key(people: People) -> None:
    authenticator = people.authenticator()
    await authenticator.start()
    for name, key in (await bad_keys(people)).items():
        with pytest.raises(Unauthenticated):
            await authenticator.authenticate(bearer(key), method="GET")
        assert name
    await authenticator.stop()
    async with people.database.read() as session:
        rows = await store.audit_page(session, {"action": "login:failed"}, None, 50)
    told = {row.actor: row.details for row in rows}
    async with people.database.read() as session:
        there_are = {row.prefix for row in await store.api_keys(session, None, None, None, 50)}
    assert "unknown" in told
    assert told.keys() <= {"unknown"} | there_are, "of what is made up nothing is written down"
    assert len(told) > 1


async def test_a_flood_of_made_up_keys_keeps_nobody_out(people: People) -> None:
    """Breaks with: one queue of look-ups for all, or one memory in which strangers push out who is known."""
    key = (await people.key(await people.user("ada", "engineer", "ml"))).key
    authenticator = people.authenticator()
    await authenticator.authenticate(bearer(key), method="GET")

    async def stranger(number: int) -> None:
        with pytest.raises((Unauthenticated, Unavailable)):
            await authenticator.authenticate(bearer(f"bk_{number:012d}_" + "x" * 43), method="GET")

    flood = [asyncio.create_task(stranger(number)) for number in range(3000)]
    slowest = 0.0
    while not all(task.done() for task in flood):
        began = time.monotonic()
        found = await authenticator.authenticate(bearer(key), method="GET")
        slowest = max(slowest, time.monotonic() - began)
        assert found.subject == "ada"
        await asyncio.sleep(0.01)
    await asyncio.gather(*flood)
    await authenticator.stop()
    assert slowest < 1
    assert len(authenticator._refused) <= 1000


async def test_what_was_read_before_a_change_is_not_kept_after_it(people: People) -> None:
    """Breaks with: noting the version of the topic when the answer is there, not when it was asked for."""
    key = await people.key(await people.user("ada", "engineer", "ml"))
    authenticator, plain, go, asked = people.authenticator(), people.database.read, asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def held() -> AsyncIterator[AsyncSession]:
        async with plain() as session:
            yield session
        asked.set()
        await go.wait()

    people.database.read = held  # type: ignore[method-assign]
    slow = asyncio.create_task(authenticator.authenticate(bearer(key.key), method="GET"))
    await asked.wait()
    people.database.read = plain  # type: ignore[method-assign]
    async with people.database.write() as session:
        await people.credentials.revoke(session, ROOT, key.id)
    go.set()
    for asking in (slow, authenticator.authenticate(bearer(key.key), method="GET")):
        with pytest.raises(Unauthenticated):
            await asking
