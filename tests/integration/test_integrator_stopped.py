"""Instances whose process somebody ends: the list says so, and nobody is alarmed."""

import asyncio
import re
from pathlib import Path

import pytest

from burnish.app import create_app
from burnish.core.configuration import IntegratorConfiguration
from burnish.core.settings import Settings
from burnish.core.states import InstanceState
from burnish.infra import event_log
from burnish.infra.asgi import Message
from burnish.infra.database import Database
from burnish.platform.integrator import service, store
from burnish.platform.integrator.health import Sight
from burnish.platform.integrator.judging import Judge, Look, sign_off
from burnish.platform.integrator.tables import ComponentTable
from tests.support.integrating import FAST, TYPE, component, embedded_row, wait_for, world

SAID = re.compile(r"it was stopped on purpose at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC")
REFUSED = Look(Sight.REFUSED, "nothing listens there")
BEAT = Look(Sight.OK)


def _judge() -> Judge:
    settings = IntegratorConfiguration(**FAST)
    return Judge(lambda: settings)


def _actions(row: ComponentTable) -> list[str]:
    return [one["action"] for one in row.actions or ()]


async def test_what_was_stopped_says_when_for_as_long_as_it_is_listed(database: Database) -> None:
    """Breaks with: an instance that is listed as lost, and nobody knows whether that is a fault."""
    judge = _judge()
    async with database.write() as session:
        row = await embedded_row(session, "x-1")
        await store.change_state(session, row, InstanceState.HEALTHY)
        await sign_off(session, row)
        said = str(row.problem)
        assert SAID.fullmatch(said)
        for look in (BEAT, REFUSED, REFUSED, REFUSED, REFUSED, REFUSED, REFUSED, BEAT):  # it answers what is in flight
            await judge.apply(session, row, look, beat=look is BEAT)
            assert (row.status, row.problem, row.problem_kind) == (InstanceState.DRAINING, said, "stopped")
        row.expires_at = row.beat_until = await store.now(session) - 1
        for _ in range(6):
            await judge.apply(session, row, REFUSED)
            assert (row.status, row.problem, row.problem_kind) == (InstanceState.LOST, said, "stopped")
        assert _actions(row) == []
        assert not row.alerted
    async with database.read() as session:
        found = await event_log.read(session, subject="x-1")
        events = [one.data for one in found]
        assert [(one["state"], one["reason"]) for one in events[-2:]] == [("draining", said), ("lost", said)]
        view = service.view_of(await service.get(session, "x-1"))
        assert (view.problem, view.problem_kind) == (said, "stopped")


async def test_an_alert_ends_with_what_it_is_about(database: Database) -> None:
    """Breaks with: an alert of an instance that somebody has taken away, which nobody can end."""
    judge = _judge()
    async with database.write() as session:
        row = await embedded_row(session, "x-1")
        await store.change_state(session, row, InstanceState.HEALTHY)
        for _ in range(4):
            await judge.apply(session, row, REFUSED)
        assert row.alerted
        await sign_off(session, row)
        await sign_off(session, row)
        assert not row.alerted
        assert _actions(row) == ["alert", "route_around", "alert_ended"]


async def test_one_that_is_started_again_is_as_any_other(database: Database) -> None:
    judge = _judge()
    async with database.write() as session:
        await sign_off(session, await embedded_row(session, "x-1"))
        row = await embedded_row(session, "x-1")
        assert (row.status, row.problem) == (InstanceState.STARTING, None)
        for _ in range(2):
            await judge.apply(session, row, BEAT, beat=True)
        assert (row.status, row.problem) == (InstanceState.HEALTHY, None)
        for _ in range(4):
            await judge.apply(session, row, REFUSED)
        assert (row.problem, row.alerted) == ("nothing listens there", True)


async def test_a_process_that_ends_calls_its_own_components_until_then(database_url: str, home: Path) -> None:
    """Breaks with: a request in flight that fails because its own process has said that it ends."""
    async with world(database_url, home) as found:
        mine = f"{TYPE}-here-1"
        found.integrator.embed(TYPE, component())
        await found.integrator.stop()
        await found.integrator.start()
        await found.until_known(mine)
        await found.integrator._own.sign_off()
        await found.until(mine, lambda one: one.status == InstanceState.DRAINING)
        await found.integrator._following.reread()
        await wait_for(lambda: found.integrator.instances[mine].problem is not None)
        assert (await found.call("GET", "/health"))["status"] == "ok"
        await found.integrator._own.beat()
        view = await found.view(mine)
        assert view is not None
        assert (view.status, view.problem_kind) == (InstanceState.DRAINING, "stopped")


@pytest.mark.parametrize("how", ["finish", "drain"])
async def test_a_process_that_is_told_to_end_says_so_before_it_has_answered_what_is_in_flight(
    home: Path, how: str
) -> None:
    """Breaks with: listeners that are closed for as long as that takes, and an alert that nobody answers there."""
    app = create_app(Settings(home=home, node="here"))
    asked, said = asyncio.Queue[Message](), asyncio.Queue[Message]()
    life = asyncio.create_task(app({"type": "lifespan"}, asked.get, said.put))
    asked.put_nowait({"type": "lifespan.startup"})
    assert (await said.get())["type"] == "lifespan.startup.complete"
    process = app.state.process
    await (app.finish() if how == "finish" else process.drain())
    async with process.database.read() as session:
        listed = await store.known(session)
    assert {one.status for one in listed} == {"draining"}
    assert all(one.problem and SAID.fullmatch(one.problem) for one in listed)
    asked.put_nowait({"type": "lifespan.shutdown"})
    await life
