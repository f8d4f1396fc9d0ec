"""Calls over real processes that are slowed, killed, frozen and come back."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from burnish.core.errors import Unavailable
from burnish.infra.http import Request
from burnish.platform.identity import LOCAL
from burnish.platform.integrator import Integrator
from tests.support.integrating import TYPE, World, load, wait_for, world
from tests.support.tiny_component import ComponentProcess, component_processes

SECOND = 1.0
"""A changed setting is obeyed within it."""


async def two(world: World, *processes: ComponentProcess) -> None:
    for one in processes:
        await world.register(one.name, one.url)
    await world.until_known(*(one.name for one in processes))


async def test_the_share_of_one_that_is_slowed_falls(database_url: str, home: Path) -> None:
    with component_processes("a", "b") as (a, b):
        async with world(database_url, home) as found:
            await two(found, a, b)
            for one in (a, b):
                one.control(delay=0.01)
            async with load(found.call) as even:
                await wait_for(lambda: even.calls > 300)
            b.control(delay=0.1)
            async with load(found.call) as slowed:
                await wait_for(lambda: slowed.calls > 300)
    assert not even.failures + slowed.failures
    assert 0.2 < even.share("b") < 0.8, even
    assert slowed.share("b") < even.share("b") / 2, slowed


async def test_shares_follow_weights_that_are_changed_under_load(database_url: str, home: Path) -> None:
    """Breaks with: weights that are read once, or that only decide between instances which were just registered."""
    with component_processes("a", "b") as (a, b):
        async with world(database_url, home) as found:
            await two(found, a, b)
            for one in (a, b):
                one.control(delay=0.005)

            async def share(**weights: float) -> float:
                """Set weights; return what ``b`` gets of the calls once they are obeyed."""
                found.rules["weights"] = weights
                known = found.integrator
                await wait_for(lambda: all(known.instances[one].weight == weights[one] for one in weights), SECOND)
                deadline = time.monotonic() + 60
                while True:
                    async with load(found.call, workers=4, pause=0.0) as calls:
                        await wait_for(lambda: calls.calls > 200)
                    assert not calls.failures
                    if not all(weights.values()) or alike(known):
                        return calls.share("b")
                    # One slow answer counts for ten seconds, and for more than weights do: that is another test's.
                    assert time.monotonic() < deadline

            def alike(known: Integrator) -> bool:
                took = [known._routing.latency(one, time.monotonic()) or 0.0 for one in known.instances]
                return max(took) < 3 * min(took)

            assert 0.2 < await share(a=1, b=1) < 0.8
            assert await share(a=1, b=0.1) < 0.2
            assert await share(a=1, b=0) == 0
            assert await share(a=0.1, b=1) > 0.8


async def test_a_killed_one_costs_no_idempotent_call(database_url: str, home: Path) -> None:
    with component_processes("a", "b") as (a, b):
        async with world(database_url, home) as found:
            await two(found, a, b)
            for one in (a, b):
                one.control(delay=0.05)
            async with (
                load(found.call, workers=16, pause=0.0) as calls,
                load(lambda: found.call("POST"), workers=4) as posts,
            ):
                await wait_for(lambda: calls.calls > 200)
                b.kill()
                killed = time.monotonic()
                seen = calls.calls
                await wait_for(lambda: calls.calls > seen + 200)
                gone = await found.until("b", lambda one: one.status == "unhealthy")
                print(f"unhealthy {time.monotonic() - killed:.1f} s after the kill; slowest call {calls.slowest:.2f} s")
                b.start()
                await found.until_known("b")
                before = calls.answers["b"]
                await wait_for(lambda: calls.answers["b"] > before + 20)
    assert not calls.failures, calls.failures[:3]
    assert calls.slowest < 2
    assert len(posts.failures) <= 4, "a post that was under way is not repeated"
    assert gone.problem_kind == "refused"
    assert [one.action for one in gone.actions or ()][-2:] in (["alert", "route_around"], ["route_around", "alert"])


async def test_a_frozen_one_is_routed_around_within_the_deadline_and_its_return_is_noticed(
    database_url: str, home: Path
) -> None:
    with component_processes("a", "b") as (a, b):
        async with world(database_url, home, lease_seconds=60.0) as found:
            await two(found, a, b)
            async with load(found.call) as calls:
                await wait_for(lambda: calls.calls > 100)
                b.signal(signal.SIGSTOP)
                frozen = await found.until("b", lambda one: one.status == "degraded")
                seen = calls.calls
                await wait_for(lambda: calls.calls > seen + 200)
                b.signal(signal.SIGCONT)
                resumed = time.monotonic()
                before = calls.answers["b"]
                await wait_for(lambda: calls.answers["b"] > before + 20)
                print(f"calls again {time.monotonic() - resumed:.1f} s after its return; slowest {calls.slowest:.2f} s")
    assert not calls.failures, calls.failures[:3]
    assert calls.slowest < 4
    assert frozen.problem_kind == "silent"


async def test_one_that_is_slow_and_one_that_is_frozen_are_asked_in_turn(database_url: str, home: Path) -> None:
    """Each is given up for the other, and the one that was only slow is asked again: what a lock of a frozen server costs.

    Breaks with: the last that nobody had asked is waited for to the deadline, whatever becomes of the others.
    """
    with component_processes("a", "b") as (a, b):
        async with world(database_url, home, probe_seconds=60.0) as found:
            await two(found, a, b)
            a.control(delay=20)
            b.signal(signal.SIGSTOP)
            began = time.monotonic()
            call = asyncio.create_task(found.call(timeout=30))
            await wait_for(lambda: found.integrator._routing.latency("a", time.monotonic()) is not None)
            a.control(delay=0)
            answer = await call
            took = time.monotonic() - began
            b.signal(signal.SIGCONT)
    assert answer["name"] == "a"
    print(f"answered after {took:.1f} s")
    assert took < 10, "not the deadline of 30 s"


@pytest.mark.parametrize("how", [{"status": 500}, {"torn": 1}, {"endless": 1}], ids=["status", "torn", "endless"])
async def test_failing_answers_are_passed_on_and_their_instance_left_out(
    database_url: str, home: Path, how: dict[str, int]
) -> None:
    """Breaks with: an answer that counts as good once its head is there."""
    with component_processes("a", "b") as (a, b):
        async with world(database_url, home) as found:
            await two(found, a, b)
            b.control(**how)
            async with load(found.call) as calls:
                await wait_for(lambda: calls.calls > 300)
                ill = await found.until("b", lambda one: one.status == "degraded")
    assert ill.problem == "its calls fail"
    assert 0 < len(calls.failures) < 60, "they are the client's to see, but few: it is left out"


async def test_without_anybody_the_answer_says_so_and_a_stream_is_not_repeated_once_begun(
    database_url: str, home: Path
) -> None:
    with component_processes("a", "b") as (a, b):
        async with world(database_url, home) as found:
            await two(found, a, b)
            begun = asyncio.Event()

            async def chunks() -> AsyncIterator[bytes]:
                yield b"x" * 1000
                begun.set()
                await asyncio.sleep(0.3)
                yield b"y" * 1000

            async def upload() -> int:
                request = Request("PUT", "/work", {}, chunks(), deadline=time.time() + 10)
                async with found.integrator.send(TYPE, request, LOCAL.acting()) as response:
                    await response.read()
                    return response.status

            assert await upload() == 200
            a.kill()
            b.kill()
            begun.clear()
            for one in ("a", "b"):
                await found.until(one, lambda seen: seen.failures > 0)
            with pytest.raises(Unavailable):
                await upload()
            assert not begun.is_set(), "nothing of it was sent to anybody"
            await found.until("a", lambda one: one.status == "unhealthy")
            await found.until("b", lambda one: one.status == "unhealthy")
            await found.until_known("a", "b", status="unhealthy")
            with pytest.raises(Unavailable, match="a is unhealthy"):
                await found.call()
