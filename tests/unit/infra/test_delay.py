import asyncio
import time

from burnish.infra.delay import Delay


class One:
    def __init__(self, told: list["One"]) -> None:
        self.told = told
        self.at = 0.0

    def due(self) -> None:
        self.at = time.monotonic()
        self.told.append(self)


async def test_whoever_waits_is_told_in_order_and_not_before() -> None:
    delay, told = Delay(0.05), list[One]()
    ones = [One(told) for _ in range(6)]
    began = []
    for one in ones:
        began.append(time.monotonic())
        delay.start(one)
        await asyncio.sleep(0.01)
    delay.stop(ones[4])
    while len(told) < 5:
        await asyncio.sleep(0.005)
    assert told == [*ones[:4], ones[5]]
    assert all(one.at - start >= 0.049 for one, start in zip(ones, began, strict=True) if one is not ones[4])


async def test_stopped_twice_or_never_begun_is_nothing() -> None:
    delay, told = Delay(0.02), list[One]()
    one = One(told)
    delay.stop(one)
    delay.start(one)
    delay.stop(one)
    delay.stop(one)
    other = One(told)
    delay.start(other)
    while not told:
        await asyncio.sleep(0.005)
    assert told == [other]


async def test_one_that_begins_again_when_it_is_told() -> None:
    delay, told = Delay(0.02), list[One]()

    class Again(One):
        def due(self) -> None:
            super().due()
            if len(told) < 3:
                delay.start(self)

    delay.start(Again(told))
    while len(told) < 3:
        await asyncio.sleep(0.005)


def test_another_loop_begins_anew() -> None:
    delay, told = Delay(0.02), list[One]()

    async def begin() -> None:
        delay.start(One(told))

    async def wait() -> None:
        delay.start(mine)
        while not told:
            await asyncio.sleep(0.005)

    mine = One(told)
    asyncio.run(begin())
    asyncio.run(wait())
    assert told == [mine]
