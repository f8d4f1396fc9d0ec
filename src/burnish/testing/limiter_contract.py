"""What everything that keeps buckets promises, as one suite.

``await check(limiter)`` for each of :data:`CONTRACT`, on a limiter of its own or with keys of its own. Time is real:
sizes and rates are chosen so that a slow machine makes a check weaker, never wrong. Plain asserts; no pytest needed.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from secrets import token_hex

from burnish.platform.gateway.limits import Bucket, Limiter


def _bucket(size: int, rate: float | None, limit: str = "a limit") -> Bucket:
    return Bucket(limit, token_hex(8), size, rate)


async def lets_a_burst_through_and_no_more(limiter: Limiter) -> None:
    """A bucket that hardly fills lets its size through."""
    bucket = _bucket(5, 0.001)
    verdicts = [await limiter.take([bucket]) for _ in range(7)]
    assert [one.allowed for one in verdicts] == [True] * 5 + [False] * 2
    assert [one.remaining for one in verdicts] == [4, 3, 2, 1, 0, 0, 0]
    assert 900 < verdicts[-1].wait <= 1000, "until the next one"
    assert 4900 < verdicts[-1].reset <= 5000, "a refusal, too, says when it is full"
    assert 4900 < verdicts[4].reset <= 5000, "until it is full"


async def fills_at_its_rate(limiter: Limiter) -> None:
    """Over any time no more pass than the size and what has come in since."""
    bucket = _bucket(3, 50)
    began, passed = time.monotonic(), 0
    while time.monotonic() - began < 0.4:
        passed += (await limiter.take([bucket])).allowed
        await asyncio.sleep(0)
    seconds = time.monotonic() - began
    assert passed <= 3 + 50 * seconds + 1, f"{passed} in {seconds}"
    assert passed >= 10, "it fills"


async def waits_for_as_long_as_it_says(limiter: Limiter) -> None:
    """Who comes back after the time that a refusal names is let through."""
    bucket = _bucket(1, 20)
    assert (await limiter.take([bucket])).allowed
    refused = await limiter.take([bucket])
    assert not refused.allowed
    assert 0 < refused.wait <= 0.05
    await asyncio.sleep(refused.wait + 0.005)
    assert (await limiter.take([bucket])).allowed


async def takes_of_all_or_of_none(limiter: Limiter) -> None:
    """A request that one bucket refuses costs the others nothing."""
    own, shared = _bucket(1, 0.001, "own"), _bucket(3, 0.001, "shared")
    assert (await limiter.take([own, shared])).allowed
    for _ in range(5):
        refused = await limiter.take([own, shared])
        assert not refused.allowed
        assert refused.bucket.limit == "own"
    assert [(await limiter.take([shared])).allowed for _ in range(3)] == [True, True, False]


async def names_the_one_that_refuses_longest(limiter: Limiter) -> None:
    """With several empty, the one that decides when to come back."""
    soon, late = _bucket(1, 10, "soon"), _bucket(1, 0.1, "late")
    await limiter.take([soon, late])
    refused = await limiter.take([soon, late])
    assert refused.bucket.limit == "late"
    assert 9 < refused.wait <= 10


async def keys_do_not_know_each_other(limiter: Limiter) -> None:
    """One that is exhausted takes nothing from another."""
    greedy, modest = _bucket(2, 0.001), _bucket(2, 0.001)
    for _ in range(20):
        await limiter.take([greedy])
    assert [(await limiter.take([modest])).allowed for _ in range(3)] == [True, True, False]


async def a_quota_holds_for_a_day(limiter: Limiter) -> None:
    """It fills at midnight, and not before."""
    quota = _bucket(3, None)
    verdicts = [await limiter.take([quota]) for _ in range(5)]
    left = 86_400 - time.time() % 86_400
    assert [one.allowed for one in verdicts] in ([True] * 3 + [False] * 2, [True] * 5), "all five at midnight only"
    assert abs(verdicts[-1].reset - left) < 5 or left > 86_395


async def a_changed_size_holds_at_once(limiter: Limiter) -> None:
    """What was spent stays spent; the next request comes under the new limit, raised or lowered."""
    quota = _bucket(2, None)
    for _ in range(2):
        assert (await limiter.take([quota])).allowed
    assert not (await limiter.take([quota])).allowed
    raised = Bucket(quota.limit, quota.key, 4, None)
    assert [(await limiter.take([raised])).allowed for _ in range(3)] == [True, True, False]
    bucket = _bucket(100, 0.001)
    await limiter.take([bucket])
    lowered = Bucket(bucket.limit, bucket.key, 2, 0.001)
    assert [(await limiter.take([lowered])).allowed for _ in range(3)] == [True, True, False]
    slow = _bucket(1, 0.001)
    assert [(await limiter.take([slow])).allowed for _ in range(2)] == [True, False]
    quick = Bucket(slow.limit, slow.key, 1, 1000)
    await asyncio.sleep(0.01)
    assert (await limiter.take([quick])).allowed, "a raised rate frees who was refused"


async def many_at_once_are_counted_one_by_one(limiter: Limiter) -> None:
    """Requests side by side share a bucket exactly."""
    bucket = _bucket(50, 0.001)
    verdicts = await asyncio.gather(*(limiter.take([bucket]) for _ in range(200)))
    assert sum(one.allowed for one in verdicts) == 50


CONTRACT: tuple[Callable[[Limiter], Awaitable[None]], ...] = (
    lets_a_burst_through_and_no_more,
    fills_at_its_rate,
    waits_for_as_long_as_it_says,
    takes_of_all_or_of_none,
    names_the_one_that_refuses_longest,
    keys_do_not_know_each_other,
    a_quota_holds_for_a_day,
    a_changed_size_holds_at_once,
    many_at_once_are_counted_one_by_one,
)
