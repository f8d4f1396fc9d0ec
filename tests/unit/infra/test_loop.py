"""A loop in the background is seen to live and to die, is waited for when it is stopped, and outlives a turn that fails."""

import asyncio
import logging
from collections.abc import Callable

import pytest

from burnish.core.errors import Conflict, Unavailable
from burnish.infra.database import Topic
from burnish.infra.loop import Loop, Periodic


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


class Work:
    """Counts how often it was begun and ended; takes its time to end."""

    def __init__(self) -> None:
        self.begun = self.ended = 0

    async def __call__(self) -> None:
        self.begun += 1
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            self.ended += 1


async def test_a_stop_waits_until_it_has_ended() -> None:
    work = Work()
    loop = Loop(work, "work")
    assert not loop.alive
    await loop.start()
    await until(lambda: work.begun == 1)
    assert loop.alive
    await loop.stop()
    assert (work.ended, loop.alive) == (1, False)


async def test_started_twice_it_runs_once_and_after_a_stop_again() -> None:
    work = Work()
    loop = Loop(work, "work")
    await loop.stop()  # before any start
    await loop.start()
    await until(lambda: work.begun == 1)
    await loop.start()
    await asyncio.sleep(0)
    assert work.begun == 1
    await loop.stop()
    await loop.stop()
    assert (work.begun, work.ended) == (1, 1)
    await loop.start()
    await until(lambda: work.begun == 2)
    await loop.stop()
    assert (work.ended, loop.alive) == (2, False)


async def test_one_that_dies_says_so_and_can_be_started_again(caplog: pytest.LogCaptureFixture) -> None:
    lives = 0

    async def dies() -> None:
        nonlocal lives
        lives += 1
        raise ZeroDivisionError("nobody thought of this")

    loop = Loop(dies, "the loop")
    await loop.start()
    await until(lambda: "the loop died" in caplog.text)
    assert not loop.alive
    assert "ZeroDivisionError: nobody thought of this" in caplog.text
    await loop.start()
    await until(lambda: lives == 2)
    await loop.stop()


async def test_whoever_stops_waiting_for_the_end_is_not_held_up() -> None:
    """A stop that is itself cut off leaves the loop cancelled, and raises as it should."""
    held = asyncio.Event()

    async def lingers() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await held.wait()

    loop = Loop(lingers, "lingers")
    await loop.start()
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await loop.stop()
    assert loop.alive
    held.set()
    await until(lambda: not loop.alive)


async def test_a_turn_that_fails_is_logged_and_the_next_one_comes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("burnish.infra.loop._PAUSE_SECONDS", 0.0)
    errors: list[Exception] = [
        ZeroDivisionError("of ours"),
        Unavailable("away for 1 s"),
        Unavailable("away for 2 s"),
        Conflict("another"),
    ]
    done = 0

    async def turn() -> None:
        nonlocal done
        if errors:
            raise errors.pop(0)
        done += 1

    loop = Periodic(turn, 0.0, "the loop")
    with caplog.at_level(logging.INFO):
        await loop.start()
        await until(lambda: done == 2)
        assert loop.alive
        await loop.stop()
    assert loop.beats >= 6
    said = [(one.levelname, one.getMessage(), one.exc_info is not None) for one in caplog.records]
    assert said == [
        ("ERROR", "the loop: a turn failed", True), ("WARNING", "the loop: away for 1 s", False),
        ("WARNING", "the loop: another", False),
    ], "expected trouble once for as long as it lasts"  # fmt: skip
    assert "ZeroDivisionError: of ours" in caplog.text


async def test_a_notice_brings_the_next_turn_at_once() -> None:
    topic, turns = Topic(), 0

    async def turn() -> None:
        nonlocal turns
        turns += 1
        if turns == 1:
            topic.notify()  # it came while a turn was taken: not missed

    loop = Periodic(turn, 3600.0, "the loop", topic)
    await loop.start()
    await until(lambda: turns == 2)
    topic.notify()
    await until(lambda: turns == 3)
    await loop.stop()


async def test_notices_make_no_busy_loop_of_turns_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.infra.loop._PAUSE_SECONDS", 3600.0)
    topic, turns = Topic(), 0

    async def turn() -> None:
        nonlocal turns
        turns += 1
        topic.notify()
        raise Unavailable("away")

    loop = Periodic(turn, 0.0, "the loop", topic)
    await loop.start()
    await until(lambda: turns == 1)
    for _ in range(20):
        await asyncio.sleep(0)
    assert turns == 1
    await loop.stop()


async def test_a_turn_taken_by_hand_tells_how_it_went() -> None:
    good = False

    async def turn() -> None:
        if not good:
            raise Unavailable("away")

    loop = Periodic(turn, 1.0, "the loop")
    assert not await loop.take_turn()
    good = True
    assert await loop.take_turn()
