"""Health over time and the ladder of recovery, on both databases."""

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.configuration import IntegratorConfiguration
from burnish.core.protocol import Registration
from burnish.core.states import InstanceState
from burnish.infra.database import Database, utcnow
from burnish.platform.integrator import service, store
from burnish.platform.integrator.health import Sight
from burnish.platform.integrator.judging import Judge, Look
from tests.support.integrating import FAST, TYPE, World, component, embedded_row, wait_for, world
from tests.support.tiny_component import component_processes


async def die(found: World) -> None:
    """End a process's loops as SIGKILL would: nobody is told."""
    for loop in found.integrator._loops:
        await loop.stop()
    found.integrator._loops = []
    if found.integrator._reconciler is not None:
        await found.integrator._reconciler.stop()
    await found.database.dispose()


async def test_late_answers_keep_it_alive_for_as_long_as_it_takes(database_url: str, home: Path) -> None:
    with component_processes("a") as (a,):
        async with world(database_url, home, lease_seconds=2.0, probe_timeout_seconds=0.2) as found:
            await found.register("a", a.url)
            await found.until_known("a")
            a.control(health_delay=0.8)
            late = await found.until("a", lambda one: one.status == "degraded")
            seen = set()
            end = time.monotonic() + 4.5
            while time.monotonic() < end:
                now = await found.view("a")
                assert now is not None
                seen.add(str(now.status))
                await asyncio.sleep(0.1)
            assert seen == {"degraded"}, "for more than two leases"
            assert late.problem_kind in ("silent", "late")
            assert (await found.call())["name"] == "a", "and it is called"
            a.control(health_delay=0)
            await found.until("a", lambda one: one.status == "healthy")


async def test_a_frozen_one_keeps_its_state_until_its_lease_ends(database_url: str, home: Path) -> None:
    with component_processes("a") as (a,):
        async with world(database_url, home, lease_seconds=3.0, probe_timeout_seconds=0.2) as found:
            await found.register("a", a.url)
            await found.until_known("a")
            a.signal(signal.SIGSTOP)
            await found.until("a", lambda one: one.status == "degraded" and one.failures > 2)
            for _ in range(4):  # its own heartbeats speak for it
                async with found.database.write() as session:
                    await service.heartbeat(session, "a", lease_seconds=3.0)
                await asyncio.sleep(0.9)
            view = await found.view("a")
            assert view is not None
            assert view.status == "degraded"
            lost = await found.until("a", lambda one: one.status == "lost")
            assert "something listens there" in (lost.problem or "")
            a.signal(signal.SIGCONT)
            await found.until("a", lambda one: one.status == "healthy")


async def test_a_shorter_time_between_health_checks_is_obeyed_at_once(database_url: str, home: Path) -> None:
    """Breaks with: an interval that each instance's last check chose for the next."""
    with component_processes("a") as (a,):
        async with world(database_url, home, lease_seconds=300.0) as found:
            await found.register("a", a.url)
            await found.until_known("a")
            found.rules["probe_seconds"] = 200.0

            async def until_asked_again() -> float:
                async with found.database.read() as session:
                    row = await store.find(session, "a")
                    assert row is not None
                    return (row.due_at or 0.0) - await store.now(session)

            while await until_asked_again() < 100:
                await asyncio.sleep(0.02)
            a.control(degraded=1)
            found.rules["probe_seconds"] = 0.5
            await found.until("a", lambda one: one.status == "degraded", 5)


async def test_it_says_itself_that_it_is_not_well(database_url: str, home: Path) -> None:
    with component_processes("a") as (a,):
        async with world(database_url, home) as found:
            await found.register("a", a.url)
            await found.until_known("a")
            a.control(degraded=1)
            await found.until("a", lambda one: one.status == "degraded" and one.failures == 0)


async def test_a_lost_nodes_work_is_moved_once_and_again_while_it_is_not_time(database_url: str, home: Path) -> None:
    if database_url.startswith("sqlite"):
        pytest.skip("on SQLite there is one server")
    (home / "other").mkdir()
    moved: list[tuple[str, str]] = []

    async def on_lost(session: AsyncSession, node: str, reason: str) -> bool:
        moved.append((node, reason))
        return len(moved) > 2

    other = World(database_url, home / "other", node="other", lease_seconds=1.0)
    other.integrator.embed(TYPE, component())
    other.integrator.embed("another", component_of("another"))
    await other.integrator.start()
    async with world(database_url, home, lease_seconds=1.0, lost_until_moved_seconds=1.0) as found:
        found.integrator.on_lost.append(on_lost)
        await asyncio.sleep(1.2)
        mine = f"{TYPE}-other-1"
        assert (await found.until(mine, lambda one: one.status == "healthy")).node == "other"
        died = time.monotonic()
        await die(other)
        await found.until(mine, lambda one: one.status == "lost")
        first, second = await found.view("another-other-1"), await found.view(mine)
        assert first is not None
        assert second is not None
        done = await found.until("another-other-1", lambda one: "move_work" in [a.action for a in one.actions or ()])
        print(f"moved {time.monotonic() - died:.1f} s after the end")
        assert {node for node, _ in moved} == {"other"}
        assert len(moved) == 3, "asked again until it was time, and then no more"
        await asyncio.sleep(1)
        assert len(moved) == 3
        assert "every instance on other" in (done.actions or ())[-1].cause


def component_of(component_type: str) -> FastAPI:
    app = FastAPI()

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok"}

    @app.get("/describe")
    async def describe() -> dict[str, Any]:
        return {"component_type": component_type, "version": "1"}

    return app


async def test_a_node_with_one_living_process_is_not_lost(database_url: str, home: Path) -> None:
    async with world(database_url, home) as found, found.database.write() as session:
        for name, status in (("x-1", "lost"), ("x-2", "healthy")):
            row = await embedded_row(session, name)
            await store.change_state(session, row, InstanceState(status))
            row.state_since = 0.0
        one = await store.find(session, "x-1")
        assert one is not None
        assert not await store.speaks_for_silent_node(session, one, 1.0)
        two = await store.find(session, "x-2")
        assert two is not None
        await store.change_state(session, two, InstanceState.LOST)
        assert not await store.speaks_for_silent_node(session, one, 1.0), "not for long enough"
        two.state_since = 0.0
        assert await store.speaks_for_silent_node(session, one, 1.0)
        assert not await store.speaks_for_silent_node(session, two, 1.0), "one row speaks for the node"


async def test_what_is_supervised_is_asked_to_be_restarted_and_registering_answers_it(database: Database) -> None:
    """Breaks with: a third party's key that has any process of ours restarted, by metadata that it registers."""
    rules = IntegratorConfiguration(**FAST)
    judge, supervised = Judge(lambda: rules), {"supervisor": "up-1", "pid": 7}
    before = utcnow()
    async with database.write() as session:
        ours = await embedded_row(session, "x-1")
        ours.metadata_ = dict(supervised)
        registration = Registration(
            component_id="theirs", component_type="x", name="x", version="1", metadata=dict(supervised),
            health_endpoint="http://127.0.0.1:9/health", api_endpoint="http://127.0.0.1:9",
        )  # fmt: skip
        theirs = await service.register(session, registration)
        for row in (ours, theirs):
            await store.change_state(session, row, InstanceState.HEALTHY)
            for _ in range(4):
                await judge.apply(session, row, Look(Sight.REFUSED, "nothing listens there"))
        assert ours.restart_requested_at is not None
        assert ours.restart_requested_at >= before
        assert (ours.restarts, ours.status) == (1, InstanceState.UNHEALTHY)
        assert "restart_requested" in [one["action"] for one in ours.actions or ()]
        assert (theirs.restarts, theirs.status, theirs.restart_requested_at) == (0, InstanceState.UNHEALTHY, None)
        generation = ours.generation
        back = await embedded_row(session, "x-1")
        for _ in range(2):
            await judge.apply(session, back, Look(Sight.OK), beat=True)
        assert (back.status, back.restart_requested_at) == (InstanceState.HEALTHY, None)
        assert back.generation == generation + 1


async def test_an_instance_inside_a_process_beats_and_a_second_of_its_id_takes_its_place(
    database_url: str, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = World(database_url, home, lease_seconds=1.0)
    found.integrator.embed(TYPE, component())
    await found.integrator.start()
    try:
        mine = f"{TYPE}-here-1"
        first = await found.until(mine, lambda one: one.status == "healthy")
        await found.until(mine, lambda one: one.last_heartbeat != first.last_heartbeat)
        async with found.database.write() as session:
            await store.remove(session, mine)
        await found.until(mine, lambda one: one.status == "healthy")
        async with found.database.write() as session:
            row = await store.find(session, mine, lock=True)
            assert row is not None
            row.generation += 1
        await wait_for(lambda: "another process has registered" in caplog.text)
    finally:
        await found.integrator.stop()
        await found.database.dispose()
