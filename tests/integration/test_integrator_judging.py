"""What is judged of instances over rows alone: clocks, outages, and rows that several would take away at once."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.configuration import IntegratorConfiguration
from burnish.core.errors import Conflict
from burnish.core.protocol import Health
from burnish.core.states import InstanceState
from burnish.infra import event_log
from burnish.infra.database import Database
from burnish.infra.reconcile import Reconciler, Turn, _Ended
from burnish.platform.identity import LOCAL
from burnish.platform.identity.principal import SCOPE_KEY
from burnish.platform.integrator import api, judging, service, store
from burnish.platform.integrator.health import Sight
from burnish.platform.integrator.judging import Judge, Look
from burnish.platform.integrator.tables import ComponentTable
from burnish.platform.jobs.component_app import install_problems
from tests.support.integrating import FAST, TYPE, World, component, embedded_row, wait_for, world
from tests.support.tiny_component import component_processes


def _judge(settled: list[bool], **rules: Any) -> Judge:
    settings = IntegratorConfiguration(**FAST | rules)
    return Judge(lambda: settings, settled=lambda: settled[0])


async def test_a_clock_that_is_set_back_keeps_nothing_dead_alive(database: Database) -> None:
    """Breaks with: times ahead of the clock that hold until the clock gets there."""
    judge, lease = _judge([True]), FAST["lease_seconds"]
    async with database.write() as session:
        row = await embedded_row(session, "x-1")
        await store.change_state(session, row, InstanceState.HEALTHY)
        now = await store.now(session)
        row.expires_at = row.beat_until = now + 3600 + lease
        row.state_since = row.restart_asked_at = now + 3600
        row.evidence = {"p": {"at": now + 3600, "calls": 9, "errors": 0, "answered": True}}
        await judge.apply(session, row, Look(Sight.NOT_LOOKED))
        assert row.status == InstanceState.HEALTHY
        assert max(row.expires_at, row.beat_until) < now + 2 * lease
        assert max(row.state_since or 0, row.restart_asked_at) < now + 2
        row.expires_at = row.beat_until = now - 0.1  # a lease later
        await judge.apply(session, row, Look(Sight.NOT_LOOKED))
        assert row.status == InstanceState.LOST, "what was answered in another time proves nothing"


async def test_what_an_instance_waits_for_is_not_told_as_its_problem(database: Database) -> None:
    """Breaks with: other people's jobs in what everybody may read; a row of before the bounds that ends each turn."""
    judge = _judge([True])
    queue = Health(waiting_for="waits for 1 cpu; job_of_red holds 2")
    async with database.write() as session:
        row = await embedded_row(session, "x-1")
        row.health = {"warm": ["n" * 300] * 2000, "waiting_for": "w" * 5000, "running_jobs": -1}
        await store.change_state(session, row, InstanceState.UNHEALTHY)
        await judge.apply(session, row, Look(Sight.OK, None, None, queue))
        assert row.status != InstanceState.HEALTHY
        assert row.problem is not None
        assert "job_of_red" not in row.problem
        assert row.health == queue.model_dump(mode="json")
        await judge.apply(
            session, row, Look(Sight.DEGRADED, None, None, queue.model_copy(update={"status": "degraded"}))
        )
        assert (row.status, row.problem) == (InstanceState.DEGRADED, "it says so itself")
        said = await event_log.read(session, subject="x-1")
    assert "job_of_red" not in str([*said, row.actions])


async def test_after_an_outage_of_the_database_nothing_is_moved_or_forgotten_for_a_lease(database: Database) -> None:
    """Breaks with: an outage that counts as silence."""
    settled, moved = [False], list[str]()
    judge = _judge(settled, forget_lost_seconds=30.0)

    async def on_lost(session: AsyncSession, node: str, reason: str) -> bool:
        moved.append(node)
        return True

    judge.on_lost.append(on_lost)
    async with database.write() as session:
        row = await embedded_row(session, "x-1")
        await store.change_state(session, row, InstanceState.LOST)
        row.expires_at = row.beat_until = row.state_since = await store.now(session) - 60
        await judge.apply(session, row, Look(Sight.NOT_LOOKED))
        assert moved == []
        assert await store.find(session, "x-1") is not None
        settled[0] = True
        await judge.apply(session, row, Look(Sight.NOT_LOOKED))
        assert moved == ["n"]
        await judge.apply(session, row, Look(Sight.NOT_LOOKED))
        assert await store.find(session, "x-1") is None


async def test_the_last_of_a_lost_node_stays_until_its_work_is_moved(database: Database) -> None:
    """Breaks with: a row that is deleted and with it the only thing that says that the node is lost."""
    async with database.write() as session:
        for name in ("x-1", "x-2"):
            await store.change_state(session, await embedded_row(session, name), InstanceState.LOST)
        await service.deregister(session, "x-1")
        with pytest.raises(Conflict, match="last that is known of the node n"):
            await service.deregister(session, "x-2")
        row = await store.find(session, "x-2")
        assert row is not None
        row.moved_at = await store.now(session)
        await service.deregister(session, "x-2")
        assert await store.find(session, "x-2") is None


async def _both(database: Database, *removals: Callable[[AsyncSession], Awaitable[object]]) -> list[object]:
    """Remove in two units of work at once: neither commits before both have done their part, or wait for each other."""
    done: list[int] = []

    async def remove(how: Callable[[AsyncSession], Awaitable[object]]) -> None:
        async with database.write() as session:
            await how(session)
            done.append(1)
            with suppress(TimeoutError):
                await asyncio.wait_for(_until(lambda: len(done) == 2), 0.5)

    return list(await asyncio.gather(*(remove(one) for one in removals), return_exceptions=True))


async def _until(wanted: Callable[[], bool]) -> None:
    while not wanted():
        await asyncio.sleep(0.01)


async def test_of_a_nodes_last_rows_that_are_removed_at_once_one_stays(database: Database) -> None:
    """Breaks with: two units of work that each see the other's row, and together leave none."""
    async with database.write() as session:
        for name in ("x-1", "x-2"):
            await store.change_state(session, await embedded_row(session, name), InstanceState.LOST)
    outcomes = await _both(
        database, lambda s: service.deregister(s, "x-1"), lambda s: service.deregister(s, "x-2")
    )  # fmt: skip
    assert sorted(type(one).__name__ for one in outcomes) == ["Conflict", "NoneType"], outcomes
    async with database.read() as session:
        assert await store.count(session) == 1


async def test_the_last_row_of_a_node_is_not_forgotten_while_the_other_is_deleted(database: Database) -> None:
    judge = _judge([True], forget_lost_seconds=30.0)
    async with database.write() as session:
        for name in ("x-1", "x-2"):
            row = await embedded_row(session, name)
            await store.change_state(session, row, InstanceState.LOST)
            row.expires_at = row.beat_until = row.state_since = await store.now(session) - 60

    async def forget(session: AsyncSession) -> None:
        row = await store.find(session, "x-2", lock=True)
        assert row is not None
        await judge.apply(session, row, Look(Sight.NOT_LOOKED))

    outcomes = await _both(database, lambda s: service.deregister(s, "x-1"), forget)
    assert [one for one in outcomes if one is not None and not isinstance(one, Conflict)] == []
    async with database.read() as session:
        assert await store.count(session) == 1
    for _ in range(2):  # it speaks for its node now: first its work is moved, if it has not been, then it is forgotten
        async with database.write() as session:
            left = list((await session.execute(select(ComponentTable.component_id))).scalars())
            row = await store.find(session, left[0]) if left else None
            if row is not None:
                await judge.apply(session, row, Look(Sight.NOT_LOOKED))
                assert row.moved_at is not None
    async with database.read() as session:
        assert await store.count(session) == 0


async def test_what_waits_for_a_node_is_moved_once_its_processes_have_stopped(
    database_url: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: a node that signed off and is waited for like one that fell silent."""
    if database_url.startswith("sqlite"):
        pytest.skip("on SQLite there is one server")
    monkeypatch.setattr(judging, "STOPPED_UNTIL_MOVED_SECONDS", 0.5)
    (home / "other").mkdir()
    moved: list[tuple[str, str]] = []

    async def on_stopped(session: AsyncSession, node: str, component_type: str, reason: str) -> int:
        moved.append((node, component_type))
        return int(len(moved) == 1)

    other = World(database_url, home / "other", node="other", lease_seconds=30.0)
    other.integrator.embed(TYPE, component())
    await other.integrator.start()
    async with world(database_url, home, lease_seconds=1.0, probe_seconds=0.2) as found:
        found.integrator.on_stopped.append(on_stopped)
        mine = f"{TYPE}-other-1"
        await found.until(mine, lambda one: one.status == "healthy")
        await other.integrator.stop()
        await other.database.dispose()
        done = await found.until(mine, lambda one: "move_queued" in [a.action for a in one.actions or ()])
        assert done.status == "draining"
        assert moved[0] == ("other", TYPE)
        assert (done.actions or ())[-1].cause == f"no process on other offers {TYPE} any more"
        await wait_for(lambda: len(moved) > 2)
        again = await found.view(mine)
        assert again is not None
        assert [a.action for a in again.actions or ()].count("move_queued") == 1, "nothing was left to move"


async def test_what_is_started_again_in_place_is_not_taken_for_stopped(database: Database) -> None:
    """Breaks with: a restart by a supervisor, or one that takes a moment, that costs a node what waits for it."""
    async with database.write() as session:
        row = await embedded_row(session, "x-1")
        await store.change_state(session, row, InstanceState.HEALTHY)
        assert not await store.speaks_for_stopped_type(session, row, 10.0), "it is there"
        await store.change_state(session, row, InstanceState.DRAINING)
        assert not await store.speaks_for_stopped_type(session, row, 10.0), "it may come back at once"
        row.state_since = await store.now(session) - 11
        assert await store.speaks_for_stopped_type(session, row, 10.0)
        second = await embedded_row(session, "x-2")
        assert not await store.speaks_for_stopped_type(session, row, 10.0), "another process of the node offers it"
        await store.change_state(session, second, InstanceState.LOST)
        second.state_since = row.state_since
        assert await store.speaks_for_stopped_type(session, row, 10.0)
        assert not await store.speaks_for_stopped_type(session, second, 10.0), "one row speaks for them"
        row.metadata_ = {"supervisor": "up-1"}
        assert not await store.speaks_for_stopped_type(session, row, 10.0), "its supervisor starts it again"


async def test_a_clock_that_is_set_back_neither_keeps_nor_ends_a_drain(
    database_url: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: an end of the drain that lies as far ahead as the clock was set back."""
    monkeypatch.setattr(service, "DRAIN_SECONDS", 1.0)
    with component_processes("a") as (a,):
        async with world(database_url, home) as found:
            await found.register("a", a.url)
            await found.until_known("a")
            began = time.monotonic()
            async with found.database.write() as session:
                await service.deregister(session, "a")
                row = await store.find(session, "a", lock=True)
                assert row is not None
                assert row.drain_until is not None
                row.drain_until += 3600
            view = await found.view("a")
            while view is not None:
                assert view.status == "draining"
                assert time.monotonic() - began < 10
                await asyncio.sleep(0.02)
                view = await found.view("a")
            assert time.monotonic() - began > 0.9, "calls that run had their time"


async def test_what_was_stopped_is_no_alert(database: Database) -> None:
    """Breaks with: a process that was ended on purpose and is told of as one that fails."""
    judge = _judge([True])
    async with database.write() as session:
        row = await embedded_row(session, "x-1")
        await store.change_state(session, row, InstanceState.HEALTHY)
        await store.change_state(session, row, InstanceState.DRAINING, "its server stops")
        row.expires_at = row.beat_until = await store.now(session) - 1
        for _ in range(6):
            await judge.apply(session, row, Look(Sight.REFUSED, "nothing listens there"))
        assert (row.status, row.alerted) == (InstanceState.LOST, False)
        assert "alert" not in [one["action"] for one in row.actions or ()]


@pytest.mark.postgres
async def test_whoever_locks_several_rows_does_it_in_one_order(postgres_url: str) -> None:
    """The renewer, the give-back, heartbeats and a start of a second server at once, over rows in any order.

    Breaks with: PostgreSQL that ends one of two units of work which wait for each other.
    """
    database = Database(postgres_url)
    names = [f"x-{n}" for n in range(60)]
    async with database.write() as session:
        for name in names:
            await embedded_row(session, name)
        keys = list((await session.execute(select(ComponentTable.id))).scalars())
    first, second = (
        Reconciler(database, ComponentTable, _no_turn, name=name, lease_seconds=0.3) for name in ("one", "two")
    )
    renewer = first._renewer
    assert renewer is not None
    token, until = "one#1", time.monotonic() + 3
    mixed = random.Random(1).sample(keys, len(keys))
    renewer.start()

    async def lease_and_give_back() -> None:
        while time.monotonic() < until:
            for key in mixed:
                renewer.hold(key, token)
            async with database.write() as session:
                await store.lock(session, names)
                far = await store.now(session) + 30
                await session.execute(update(ComponentTable).values(lease_owner=token, lease_until=far))
            await asyncio.sleep(0.05)
            async with database.write() as session:
                await first._give_back(session, [_Ended(key, token, 0, 0.0) for key in mixed])

    async def beat() -> None:
        while time.monotonic() < until:
            async with database.write() as session:
                await store.lock(session, names)

    async def start() -> None:
        while time.monotonic() < until:
            await second._make_due(ComponentTable.due_at.is_not(None))
            await asyncio.sleep(0.01)

    async def suspect() -> None:
        while time.monotonic() < until:
            async with database.write() as session:
                await store.suspect(session, names)

    try:
        await asyncio.gather(lease_and_give_back(), lease_and_give_back(), beat(), start(), suspect())
    finally:
        await asyncio.to_thread(renewer.stop)
        await database.dispose()
    assert await _deadlocks(postgres_url) == 0


async def _deadlocks(url: str) -> int:
    """Return how many there were: PostgreSQL counts those of a session at its end at the latest."""
    others = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    counted = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    database = Database(url)
    try:
        async with asyncio.timeout(10):
            while True:
                async with database.read() as session:
                    if not (await session.execute(others)).scalar_one():
                        return int((await session.execute(counted)).scalar_one())
                await asyncio.sleep(0.05)
    finally:
        await database.dispose()


async def _no_turn(turn: Turn) -> float | None:
    return None


async def test_an_older_incarnation_does_not_deregister_a_later_one(database: Database) -> None:
    app = FastAPI()
    install_problems(app)
    app.include_router(api.router(database))

    async def as_administrator(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, SCOPE_KEY: LOCAL}, receive, send)

    body = {
        "component_id": "a", "component_type": "x", "name": "a", "health_endpoint": "http://127.0.0.1:9/health",
        "api_endpoint": "http://127.0.0.1:9",
    }  # fmt: skip
    transport = httpx.ASGITransport(as_administrator)
    async with httpx.AsyncClient(transport=transport, base_url="http://test/platform/components") as client:
        for version in ("1", "2"):
            answer = await client.post("/register", json=body | {"version": version})
        refused = await client.delete("/a", headers={"burnish-generation": "1"})
        assert refused.status_code == 409
        assert (await client.get("/a")).json()["status"] == "starting"
        assert (await client.delete("/a", headers={"burnish-generation": "-1"})).status_code == 422
        ours = {"burnish-generation": answer.headers["burnish-generation"]}
        assert (await client.delete("/a", headers=ours)).status_code == 204
