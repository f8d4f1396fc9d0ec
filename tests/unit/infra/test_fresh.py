"""What was found not long ago is told again, and of many who ask at once one looks."""

import asyncio

import pytest

from burnish.infra.fresh import Fresh


class Looks:
    """Counts how often it looks; fails where it is told to."""

    def __init__(self) -> None:
        self.taken = 0
        self.fails = False
        self.may_end = asyncio.Event()

    async def __call__(self) -> int:
        self.taken += 1
        await self.may_end.wait()
        if self.fails:
            raise OSError("it is away")
        return self.taken


async def test_of_many_who_ask_at_once_one_looks_and_it_is_told_again_for_a_while() -> None:
    look = Looks()
    fresh = Fresh(look, 60.0, "look")
    first = asyncio.create_task(fresh.get())
    await asyncio.sleep(0)
    first.cancel()  # who goes away does not end it for the others
    others = [asyncio.create_task(fresh.get()) for _ in range(50)]
    await asyncio.sleep(0)
    look.may_end.set()
    assert set(await asyncio.gather(*others)) == {1}
    assert await fresh.get() == 1
    assert first.cancelled()


async def test_what_is_old_is_looked_at_again() -> None:
    look = Looks()
    look.may_end.set()
    fresh = Fresh(look, 0.0, "look")
    assert [await fresh.get(), await fresh.get()] == [1, 2]


async def test_a_look_that_failed_is_told_and_taken_again() -> None:
    look = Looks()
    look.fails = True
    fresh = Fresh(look, 60.0, "look")
    waiting = [asyncio.create_task(fresh.get()) for _ in range(2)]
    await asyncio.sleep(0)
    look.may_end.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(one) for one in found] == ["it is away"] * 2
    look.fails = False
    assert await fresh.get() == 2
    with pytest.raises(OSError, match="away"):
        await waiting[0]
