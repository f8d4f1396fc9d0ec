"""How often a caller may ask: token buckets and day quotas, in this process or shared by several through Redis.

Invariants: in any window of ``t`` seconds a bucket lets no more than ``burst + rate * t`` requests through; a request
that one bucket refuses is charged to none; a bucket never depends on what other keys do, save through the bucket that
they share (their project's). A changed limit holds for the next request: what a bucket has left stays, up to the new burst.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from burnish.infra.redis import Redis, RedisGone, Script
from burnish.infra.signals import LIMITS_LOCAL

log = logging.getLogger(__name__)

DAY_SECONDS = 86_400
WAIT_SECONDS = 0.025
"""How long a request waits for Redis; then it is counted by this process alone. A Redis that is well, on a machine that
is not, may take some milliseconds; what is counted here although Redis counts it too is counted wrong."""
_TELL_SECONDS = 60.0
"""Between two words in the log on requests that were counted by this process alone."""
_BATCH = 256
_HELD = 100_000
"""Buckets kept before those that are full are forgotten."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """One limit and whom it is counted for."""

    limit: str
    """Where it is set: ``gateway.per_key``."""
    key: str
    """Whom it counts: ``gateway.per_key:key_01...``."""
    size: int
    """Requests that may come at once; of a quota, a day."""
    rate: float | None
    """Requests a second that it fills by; None: a quota, which fills at midnight (UTC)."""


@dataclass(slots=True)
class Verdict:
    """What the buckets of one request say together."""

    allowed: bool
    bucket: Bucket
    """The one that refuses, longest first; else the one with the least left."""
    remaining: int
    reset: float
    """Seconds until that bucket is full."""
    wait: float = 0.0
    """Of a refusal: seconds until it lets the next one through."""


class Limiter(Protocol):
    """Where buckets are kept."""

    async def take(self, buckets: Sequence[Bucket]) -> Verdict:
        """Take one token of every bucket, or of none if one is empty.

        Raises:
            RedisGone: they cannot be asked now.
        """


class MemoryLimiter:
    """Buckets of this process alone; they are forgotten when it ends."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._held: dict[str, tuple[float, float]] = {}
        """By key: what is left of a bucket, or spent of a quota, and when that was so."""
        self._tidy_at = _HELD

    async def take(self, buckets: Sequence[Bucket]) -> Verdict:
        """Take one token of each, or none."""
        now = self._clock()
        levels = [self._level(bucket, now) for bucket in buckets]
        lowest = min(levels)
        least = levels.index(lowest)
        if lowest < 1:
            waits = [
                (_wait(one, level, now), one, level) for one, level in zip(buckets, levels, strict=True) if level < 1
            ]
            wait, refusing, level = max(waits, key=lambda one: one[0])
            return Verdict(False, refusing, 0, _full(refusing, level, now), wait)
        for bucket, level in zip(buckets, levels, strict=True):
            self._held[bucket.key] = (level - 1 if bucket.rate is not None else bucket.size - level + 1, now)
        if len(self._held) > self._tidy_at:
            self._tidy(now)
        left = lowest - 1
        return Verdict(True, buckets[least], int(left), _full(buckets[least], left, now))

    def learn(self, verdict: Verdict) -> None:
        """Take over what another limiter said of a bucket, to count on from there should that one go."""
        bucket, now = verdict.bucket, self._clock()
        if bucket.rate is None:
            self._held[bucket.key] = (bucket.size - verdict.remaining, now)
        else:
            self._held[bucket.key] = (bucket.size - verdict.reset * bucket.rate, now)
        if len(self._held) > self._tidy_at:
            self._tidy(now)

    def _level(self, bucket: Bucket, now: float) -> float:
        held = self._held.get(bucket.key)
        if held is None:
            return float(bucket.size)
        amount, at = held
        if bucket.rate is None:
            return bucket.size - amount if at // DAY_SECONDS == now // DAY_SECONDS else float(bucket.size)
        if now < at:  # the clock was set back: fill from its new time on, not only once it is where it was
            self._held[bucket.key] = (amount, now)
        return min(float(bucket.size), amount + max(0.0, now - at) * bucket.rate)

    def _tidy(self, now: float) -> None:
        """Forget what nobody asked of for a day."""
        self._held = {key: held for key, held in self._held.items() if abs(now - held[1]) < DAY_SECONDS}
        self._tidy_at = max(_HELD, 2 * len(self._held))


def _wait(bucket: Bucket, level: float, now: float) -> float:
    return DAY_SECONDS - now % DAY_SECONDS if bucket.rate is None else (1 - level) / bucket.rate


def _full(bucket: Bucket, level: float, now: float) -> float:
    return DAY_SECONDS - now % DAY_SECONDS if bucket.rate is None else (bucket.size - level) / bucket.rate


_TAKE = Script("""
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local day = math.floor(now / 86400)
local midnight = (day + 1) * 86400 - now
local answers, key, argument = {}, 0, 1
for request = 1, tonumber(ARGV[1]) do
  local count = tonumber(ARGV[argument + 1])
  argument = argument + 1
  local levels, least, refusing, longest = {}, 1, 0, -1
  for i = 1, count do
    local size, rate = tonumber(ARGV[argument + 2 * i - 1]), tonumber(ARGV[argument + 2 * i])
    local held, level = redis.call('GET', KEYS[key + i]), size
    if held then
      local amount, at = struct.unpack('<dd', held)
      if rate >= 0 then
        level = math.min(size, amount + math.max(0, now - at) * rate)
      elseif math.floor(at / 86400) == day then
        level = size - amount
      end
    end
    levels[i] = level
    if level < levels[least] then least = i end
    if level < 1 then
      local wait = midnight
      if rate >= 0 then wait = (1 - level) / rate end
      if wait > longest then refusing, longest = i, wait end
    end
  end
  if refusing > 0 then
    local size, rate = tonumber(ARGV[argument + 2 * refusing - 1]), tonumber(ARGV[argument + 2 * refusing])
    local full = midnight
    if rate >= 0 then full = (size - levels[refusing]) / rate end
    answers[request] = {0, refusing, 0, math.ceil(full * 1000), math.ceil(longest * 1000)}
  else
    for i = 1, count do
      local size, rate = tonumber(ARGV[argument + 2 * i - 1]), tonumber(ARGV[argument + 2 * i])
      if rate >= 0 then
        local full = math.ceil(size / rate * 1000) + 1000
        redis.call('SET', KEYS[key + i], struct.pack('<dd', levels[i] - 1, now), 'PX', math.min(full, 172800000))
      else
        redis.call('SET', KEYS[key + i], struct.pack('<dd', size - levels[i] + 1, now), 'EX', 172800)
      end
    end
    local size, rate = tonumber(ARGV[argument + 2 * least - 1]), tonumber(ARGV[argument + 2 * least])
    local left, reset = levels[least] - 1, midnight
    if rate >= 0 then reset = (size - left) / rate end
    answers[request] = {1, least, math.floor(left), math.ceil(reset * 1000), 0}
  end
  key, argument = key + count, argument + 2 * count
end
return answers
""")


@dataclass(slots=True)
class _Asked:
    buckets: Sequence[Bucket]
    answer: asyncio.Future[Verdict]


class RedisLimiter:
    """Buckets that several gateways share. The time is Redis's.

    One script takes all buckets of a request; requests that come while it runs go together in the next round trip.
    None waits longer than ``wait`` for an answer, and while one is late nobody waits at all.
    """

    def __init__(self, redis: Redis, *, wait: float = WAIT_SECONDS, prefix: str = "burnish:limit:") -> None:
        self._redis = redis
        self._wait = wait
        self._prefix = prefix
        self._queue: list[_Asked] = []
        self._asking: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._late = False

    async def take(self, buckets: Sequence[Bucket]) -> Verdict:
        """Take one token of each, or none.

        Raises:
            RedisGone: Redis is not there, or late.
        """
        if self._late or not self._redis.available:
            raise RedisGone("Redis does not answer", retry_after=1)
        asked = _Asked(buckets, asyncio.get_running_loop().create_future())
        self._queue.append(asked)
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name="limits")
        return await asked.answer

    async def _ask(self) -> None:
        """Send what waits, again and again until nothing does."""
        batch: list[_Asked] = []
        error = RedisGone("Redis was not asked", retry_after=1)
        try:
            while self._queue:
                batch, self._queue = self._queue[:_BATCH], self._queue[_BATCH:]
                self._expect(batch)
                verdicts = await self._run(batch)
                for asked, verdict in zip(batch, verdicts, strict=True):
                    if not asked.answer.done():
                        asked.answer.set_result(verdict)
        except RedisGone as gone:
            error = gone
        finally:
            self._refuse([*batch, *self._queue], error)
            self._queue, self._asking, self._late = [], None, False
            if self._timer is not None:
                self._timer.cancel()

    def _expect(self, batch: list[_Asked]) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
        self._late = False
        self._timer = loop.call_later(self._wait, self._expire, batch, loop.time())

    async def _run(self, batch: list[_Asked]) -> list[Verdict]:
        keys = [self._prefix + bucket.key for asked in batch for bucket in asked.buckets]
        arguments: list[int | float] = [len(batch)]
        for asked in batch:
            arguments.append(len(asked.buckets))
            for bucket in asked.buckets:
                arguments += (bucket.size, -1 if bucket.rate is None else bucket.rate)
        found: list[list[int]] = await self._redis.run(_TAKE, keys, arguments)
        try:
            return [
                Verdict(bool(allowed), asked.buckets[index - 1], left, full / 1000, wait / 1000)
                for asked, (allowed, index, left, full, wait) in zip(batch, found, strict=True)
            ]
        except (TypeError, ValueError, IndexError) as error:
            raise RedisGone("Redis answered something that is no answer", retry_after=1) from error

    def _expire(self, batch: list[_Asked], since: float) -> None:
        """Let go whom Redis keeps waiting. Time in which this process did not run does not count."""
        loop = asyncio.get_running_loop()
        if loop.time() - since > 2 * self._wait:  # the answer may be there, unread: one more turn
            self._timer = loop.call_later(self._wait / 2, self._expire, batch, loop.time())
            return
        self._late = True
        self._refuse([*batch, *self._queue], RedisGone("Redis is late", retry_after=1))
        self._queue = []

    @staticmethod
    def _refuse(asked: list[_Asked], error: RedisGone) -> None:
        for one in asked:
            if not one.answer.done():
                one.answer.set_exception(error)


class SharedLimiter:
    """Buckets in Redis while it answers, else in this process, at once, from what Redis said last.

    What is counted here alone is told in the log when it begins, and its number when Redis answers again; both at most
    once a minute.
    """

    def __init__(self, shared: Limiter, local: MemoryLimiter) -> None:
        self._shared = shared
        self._local = local
        self._alone = 0
        """Requests that this process counted alone since it last said so."""
        self._told_at = -math.inf
        self._telling = False

    async def take(self, buckets: Sequence[Bucket]) -> Verdict:
        """Take one token of each, or none."""
        try:
            verdict = await self._shared.take(buckets)
        except RedisGone as gone:
            LIMITS_LOCAL.inc()
            self._count(gone)
            return await self._local.take(buckets)
        self._local.learn(verdict)
        if self._alone:
            self._again()
        return verdict

    def _count(self, gone: RedisGone) -> None:
        self._alone += 1
        if not self._telling and time.monotonic() - self._told_at >= _TELL_SECONDS:
            self._telling, self._told_at = True, time.monotonic()
            log.warning("requests are counted by this process alone: %s", gone.message)

    def _again(self) -> None:
        if self._telling:
            log.warning("Redis answers again: %d requests were counted by this process alone", self._alone)
            self._alone, self._telling = 0, False
