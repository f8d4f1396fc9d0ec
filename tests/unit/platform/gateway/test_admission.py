"""Who gets in when there is more than one process can do."""

import asyncio
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.core.configuration import Configuration, GatewayConfiguration
from burnish.core.errors import MalformedRequest, RateLimited
from burnish.platform.gateway.admission import Admission, Overloaded, Priority, Stopping, priority_of


def admission(places: int, share: float = 0.5, wait: float = 0.05) -> Admission:
    current = Configuration(gateway=GatewayConfiguration(max_in_flight=places, batch_share=share))
    return Admission(lambda: current, wait=wait)


async def test_batch_is_refused_first() -> None:
    full = admission(4)
    await full.enter("batch")
    await full.enter("batch")
    with pytest.raises(Overloaded, match="batch") as refused:
        await full.enter("batch")
    assert (refused.value.status, refused.value.retry_after) == (503, 1)
    await full.enter("interactive")
    await full.enter("interactive")
    with pytest.raises(Overloaded, match="interactive"):
        await full.enter("interactive")
    await full.enter("control")
    assert full.in_flight == 5


async def test_one_caller_has_its_share_and_gets_it_back() -> None:
    full = admission(4, wait=5)
    await full.enter("interactive", "a")
    await full.enter("batch", "a")
    with pytest.raises(RateLimited, match="2 requests of yours"):
        await full.enter("interactive", "a")
    await full.enter("control", "a")
    await full.enter("interactive", "b")
    await full.enter("interactive", "b")
    waits = asyncio.create_task(full.enter("interactive", "c"))
    await asyncio.sleep(0)
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    waits = asyncio.create_task(full.enter("interactive", "c"))
    await asyncio.sleep(0)
    full.leave("batch", "a")
    await waits
    full.leave("control", "a")
    for who in "abbc":
        full.leave("interactive", who)
    assert (full.in_flight, full._held) == (0, {})


async def test_interactive_waits_for_a_place_and_batch_does_not_take_it() -> None:
    full = admission(1, share=1.0, wait=5)
    await full.enter("interactive")
    waiting = asyncio.create_task(full.enter("interactive"))
    await asyncio.sleep(0)
    full.leave("interactive")
    with pytest.raises(Overloaded):
        await full.enter("batch")
    await waiting
    assert full.in_flight == 1


async def test_who_gives_up_waiting_leaves_no_trace() -> None:
    full = admission(1, wait=5)
    await full.enter("interactive")
    waiting = asyncio.create_task(full.enter("interactive"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    full.leave("interactive")
    assert full.in_flight == 0
    handed = admission(1, wait=5)
    await handed.enter("interactive")
    waiting = asyncio.create_task(handed.enter("interactive"))
    await asyncio.sleep(0)
    handed.leave("interactive")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert handed.in_flight == 0, "a place that was handed over to who has left is free again"


async def test_few_wait() -> None:
    full = admission(8, wait=5)
    for _ in range(8):
        await full.enter("interactive")
    waiting = [asyncio.create_task(full.enter("interactive")) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await full.enter("interactive")
    for _ in range(2):
        full.leave("interactive")
    await asyncio.gather(*waiting)
    assert full.in_flight == 8


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["interactive", "batch", "control"]), st.booleans(), st.integers(0, 4)), max_size=60
    ),
    places=st.integers(1, 6),
)
async def test_places_are_neither_lost_nor_made(steps: list[tuple[Priority, bool, int]], places: int) -> None:
    """Whatever comes, goes and gives up: never more than the places, and all of them are free at the end."""
    gate = admission(places, wait=0.001)
    inside: list[Priority] = []
    tasks: list[tuple[Priority, asyncio.Task[None]]] = []
    for priority, cancelled, leaving in steps:
        task = asyncio.create_task(gate.enter(priority))
        tasks.append((priority, task))
        await asyncio.sleep(0)
        if cancelled:
            task.cancel()
        await asyncio.sleep(0)
        for _ in range(leaving):
            found = next((i for i, (_, one) in enumerate(tasks) if one.done() and _well(one)), None)
            if found is not None:
                gate.leave(tasks.pop(found)[0])
        busy = sum(gate._in_flight[one] for one in ("interactive", "batch"))
        assert busy <= places
    await asyncio.gather(*(task for _, task in tasks), return_exceptions=True)
    inside = [priority for priority, task in tasks if _well(task)]
    assert gate.in_flight == len(inside)
    for priority in inside:
        gate.leave(priority)
    assert gate.in_flight == 0
    assert await gate.drained(0.1)


def _well(task: "asyncio.Task[None]") -> bool:
    return not task.cancelled() and task.exception() is None


async def test_draining() -> None:
    gate = admission(4)
    await gate.enter("interactive")
    gate.stop()
    for priority in ("interactive", "batch", "control"):
        with pytest.raises(Stopping):
            await gate.enter(priority)
    assert not await gate.drained(0.01)
    draining = asyncio.create_task(gate.drained(5))
    await asyncio.sleep(0)
    gate.leave("interactive")
    assert await draining


@pytest.mark.parametrize(
    ("method", "path", "headers", "upload", "expected"),
    [
        ("GET", "/platform/jobs", {}, False, "interactive"),
        ("POST", "/v1/chat/completions", {}, False, "interactive"),
        ("POST", "/v1/chat/completions", {"burnish-priority": "batch"}, False, "batch"),
        ("POST", "/platform/workflows/run", {}, False, "batch"),
        ("POST", "/platform/workflows/run", {"burnish-priority": "interactive"}, False, "interactive"),
        ("POST", "/platform/datasets", {}, True, "batch"),
        ("GET", "/platform/health", {"burnish-priority": "batch"}, False, "control"),
        ("POST", "/platform/components/register", {}, False, "control"),
        ("GET", "/platform/components", {}, False, "interactive"),
    ],
)
def test_priorities(method: str, path: str, headers: Mapping[str, str], upload: bool, expected: Priority) -> None:
    assert priority_of(method, path, headers, upload=upload) == expected


def test_a_priority_that_is_none() -> None:
    with pytest.raises(MalformedRequest, match="urgent"):
        priority_of("GET", "/x", {"burnish-priority": "urgent"}, upload=False)
