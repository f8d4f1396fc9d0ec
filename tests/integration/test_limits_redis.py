"""Limits that several gateways share in one Redis, and what happens when it is gone."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import pytest

from burnish.infra import event_log
from burnish.infra.database import Database
from burnish.infra.redis import Redis, RedisGone, Script
from burnish.platform.gateway.limits import Bucket, Limiter, MemoryLimiter, RedisLimiter, SharedLimiter
from burnish.platform.gateway.sharing import SUBJECT, Buckets
from burnish.testing.limiter_contract import CONTRACT
from tests.support.proxy import Proxy
from tests.support.redis import RedisServer, running_redis
from tests.support.waiting import until

PATIENT = 1.0
"""Where a test counts exactly, a busy machine must not make it count locally."""


@pytest.fixture
def own_redis(redis_server: RedisServer) -> Iterator[RedisServer]:
    """A Redis of this test's own, to kill and freeze (the session's tells whether there is one at all)."""
    with running_redis() as server:
        yield server


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    found = Redis(redis_server.url, patience=PATIENT)
    await found.start()
    yield found
    await found.stop()


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
async def test_redis_keeps_the_contract(check: Callable[[Limiter], Awaitable[None]], redis: Redis) -> None:
    await check(RedisLimiter(redis, wait=PATIENT))


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
async def test_without_redis_the_contract_holds_locally(check: Callable[[Limiter], Awaitable[None]]) -> None:
    redis = Redis("redis://127.0.0.1:1/0")
    await redis.start()
    await check(SharedLimiter(RedisLimiter(redis), MemoryLimiter()))
    await redis.stop()


async def test_two_gateways_share_a_bucket(redis_server: RedisServer) -> None:
    """Together they let through what one would. Breaks with: a bucket for each."""
    async with AsyncExitStack() as stack:
        limiters = []
        for _ in range(2):
            redis = Redis(redis_server.url, patience=PATIENT)
            await redis.start()
            stack.push_async_callback(redis.stop)
            limiters.append(RedisLimiter(redis, wait=PATIENT))
        bucket = Bucket("gateway.per_key", f"shared {time.time_ns()}", 40, 20)
        began, passed = time.monotonic(), [0, 0]

        async def ask(which: int) -> None:
            while time.monotonic() - began < 1:
                allowed = (await limiters[which].take([bucket])).allowed
                passed[which] += allowed
                await asyncio.sleep(0.001)

        await asyncio.gather(*(ask(which) for which in (0, 1) for _ in range(5)))
        seconds = time.monotonic() - began
        assert 40 + 20 * 0.8 <= sum(passed) <= 40 + 20 * seconds + 1
        assert min(passed) >= 5, "neither takes all"


async def test_a_script_is_sent_again_when_redis_forgot_it(redis: Redis, redis_server: RedisServer) -> None:
    script = Script("return 7")
    assert await redis.run(script, [], []) == 7
    assert redis_server.ask("SCRIPT FLUSH").startswith("+OK")
    assert await redis.run(script, [], []) == 7


async def test_killed_and_back(own_redis: RedisServer, database: Database) -> None:
    """The requests go on at once, one event says so, and one that it is over."""
    buckets = Buckets(database, own_redis.url, node="here")
    await buckets.start()
    bucket = Bucket("gateway.per_key", "k", 1_000_000, 1000)
    slowest, local = 0.0, 0
    before = shared_size(own_redis)
    await buckets.limiter.take([bucket])
    assert shared_size(own_redis) == before + 1
    own_redis.stop()
    for _ in range(300):
        began = time.monotonic()
        verdict = await buckets.limiter.take([bucket])
        slowest = max(slowest, time.monotonic() - began)
        local += verdict.remaining > 999_000
        await asyncio.sleep(0.001)
    assert local == 300
    assert slowest < 0.2, "a dead Redis refuses at once"
    assert await told(database, 1) == ["limits fell back"]
    own_redis.start()
    await until(lambda: buckets.limiter._shared._redis.available)  # type: ignore[attr-defined]
    await buckets.limiter.take([bucket])
    assert await told(database, 2) == ["limits fell back", "limits are shared"]
    assert shared_size(own_redis) >= 1
    await buckets.stop()


async def test_frozen_and_thawed(own_redis: RedisServer, database: Database) -> None:
    """Nothing refuses: only the clock tells. Few requests wait, and those for milliseconds."""
    buckets = Buckets(database, own_redis.url, node="here")
    await buckets.start()
    bucket = Bucket("gateway.per_key", "k", 1_000_000, 1000)
    await buckets.limiter.take([bucket])
    own_redis.freeze()
    waits = []
    began = time.monotonic()
    while time.monotonic() - began < 1:
        asked = time.monotonic()
        await buckets.limiter.take([bucket])
        waits.append(time.monotonic() - asked)
        await asyncio.sleep(0.001)
    waits.sort()
    assert waits[-1] < 0.1, "it waits for milliseconds"
    assert waits[int(len(waits) * 0.95)] < 0.003, "hardly any waits at all"
    assert await told(database, 1) == ["limits fell back"]
    own_redis.thaw()
    await until(lambda: buckets.limiter._shared._redis.available)  # type: ignore[attr-defined]
    assert await told(database, 2) == ["limits fell back", "limits are shared"]
    await buckets.stop()


async def test_a_start_without_redis(database: Database) -> None:
    buckets = Buckets(database, "redis://127.0.0.1:1/0", node="here")
    await buckets.start()
    assert (await buckets.limiter.take([Bucket("a", "k", 1, 1)])).allowed
    assert await told(database, 1) == ["limits fell back"]
    await buckets.stop()


@pytest.mark.parametrize("answer", ["+OK\r\n", ":x\r\n", "*1\r\n:1\r\n", "*1\r\n*5\r\n:1\r\n:9\r\n:1\r\n:1\r\n:1\r\n",
                                    "$-7\r\n", "-LOADING\r\n", "\x80\xff\r\n"])  # fmt: skip
async def test_an_answer_that_is_none_counts_as_gone(
    answer: str, own_redis: RedisServer, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests are counted here, nothing dies of it, and it is over with the disturbance. Breaks with: an answer that is
    unpacked as if only Redis could send one; one that counts as there for answering anything at all."""
    with Proxy(("127.0.0.1", own_redis.port)) as proxy:
        buckets = Buckets(database, f"redis://127.0.0.1:{proxy.port}/0", node="here")
        await buckets.start()
        bucket = Bucket("gateway.per_key", "k", 1_000_000, 1000)
        assert (await buckets.limiter.take([bucket])).allowed
        proxy.set(f"answer {answer.encode('latin-1').hex()}")
        for _ in range(20):
            assert (await buckets.limiter.take([bucket])).allowed
            await asyncio.sleep(0.01)
        if answer != "+OK\r\n":  # that is what the question whether it is there is to be answered with
            await until(lambda: not buckets.limiter._shared._redis.available)  # type: ignore[attr-defined]
        proxy.set("pass")
        await until(lambda: buckets.limiter._shared._redis.available)  # type: ignore[attr-defined]
        before = shared_size(own_redis)
        assert (await buckets.limiter.take([Bucket("gateway.per_key", "other", 10, 1)])).allowed
        assert shared_size(own_redis) == before + 1
        await buckets.stop()
    gc.collect()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_what_refuses_writes_is_gone(own_redis: RedisServer) -> None:
    """A replica, or one that is full: it answers, but not to us, and it does not come back each second."""
    redis = Redis(own_redis.url)
    changes: list[bool] = []
    redis.subscribe(lambda available, _: changes.append(available))
    await redis.start()
    assert redis.available
    own_redis.ask("REPLICAOF 127.0.0.1 1")
    await until(lambda: not redis.available)
    await asyncio.sleep(0.5)
    assert changes == [True, False]
    with pytest.raises(RedisGone):
        await redis.run(Script("return 1"), [], [])
    own_redis.ask("REPLICAOF NO ONE")
    await until(lambda: redis.available)
    await redis.stop()


def shared_size(server: RedisServer) -> int:
    """Return how many buckets are there."""
    keys = server.ask("KEYS burnish:limit:*")
    return int(keys.splitlines()[0].lstrip("*"))


async def told(database: Database, count: int) -> list[str]:
    """Return the events once there are so many."""
    deadline = time.monotonic() + 10
    while True:
        async with database.read() as session:
            found = [str(event.data["action"]) for event in (await event_log.read(session, subject=SUBJECT))]
        if len(found) >= count:
            return found
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.02)
