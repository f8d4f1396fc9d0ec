"""Token buckets: the contract in memory, and what holds for any sequence of requests."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.core.configuration import Configuration, GatewayConfiguration, Rate
from burnish.infra.redis import RedisGone
from burnish.platform.gateway.limits import DAY_SECONDS, Bucket, Limiter, MemoryLimiter, SharedLimiter, Verdict
from burnish.platform.gateway.rates import Rates, headers_of, refusal
from burnish.platform.identity import LOCAL, Principal
from burnish.testing.limiter_contract import CONTRACT


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
async def test_memory_keeps_the_contract(check: Callable[[Limiter], Awaitable[None]]) -> None:
    await check(MemoryLimiter())


@dataclass
class Clock:
    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


GAPS = st.lists(st.one_of(st.just(0.0), st.floats(0, 3)), min_size=1, max_size=120)


@given(gaps=GAPS, size=st.integers(1, 30), rate=st.floats(0.01, 100))
async def test_no_window_holds_more_than_burst_and_rate(gaps: list[float], size: int, rate: float) -> None:
    """Breaks with: a level that is not capped, or a refusal that moves the clock of the bucket."""
    clock = Clock()
    limiter, bucket = MemoryLimiter(clock), Bucket("a", "k", size, rate)
    passed: list[float] = []
    for gap in gaps:
        clock.now += gap
        if (await limiter.take([bucket])).allowed:
            passed.append(clock.now)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            assert last - first + 1 <= size + rate * (passed[last] - passed[first]) + 1e-3


@given(gaps=GAPS, size=st.integers(1, 30), rate=st.floats(0.01, 100))
async def test_nobody_is_refused_who_keeps_to_the_rate(gaps: list[float], size: int, rate: float) -> None:
    """What a refusal says is true: a token is there when it says, and not earlier."""
    clock = Clock()
    limiter, bucket = MemoryLimiter(clock), Bucket("a", "k", size, rate)
    for gap in gaps:
        clock.now += gap
        verdict = await limiter.take([bucket])
        if not verdict.allowed:
            clock.now += verdict.wait * 0.9
            assert not (await limiter.take([bucket])).allowed
            clock.now += verdict.wait * 0.1 + 1e-5
            assert (await limiter.take([bucket])).allowed


@given(
    turns=st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 0.5)), max_size=150),
    size=st.integers(1, 10),
    rate=st.floats(0.1, 20),
)
async def test_a_key_gets_what_it_would_get_alone(turns: list[tuple[str, float]], size: int, rate: float) -> None:
    """Fairness between keys: the others change nothing, however greedy they are."""
    clock = Clock()
    together = MemoryLimiter(clock)
    alone = {key: MemoryLimiter(clock) for key in "abc"}
    for key, gap in turns:
        clock.now += gap
        bucket = Bucket("gateway.per_key", key, size, rate)
        assert (await together.take([bucket])).allowed == (await alone[key].take([bucket])).allowed


async def test_a_clock_that_is_set_back_gives_nothing_away() -> None:
    clock = Clock()
    limiter, bucket = MemoryLimiter(clock), Bucket("a", "k", 2, 1.0)
    assert [(await limiter.take([bucket])).allowed for _ in range(3)] == [True, True, False]
    clock.now -= 100
    assert not (await limiter.take([bucket])).allowed


async def test_a_clock_that_is_set_back_keeps_nobody_waiting_longer() -> None:
    """Breaks with: a bucket that fills only once the clock is where it was."""
    clock = Clock()
    limiter, bucket = MemoryLimiter(clock), Bucket("a", "k", 2, 1.0)
    for _ in range(3):
        await limiter.take([bucket])
    clock.now -= 3600
    verdict = await limiter.take([bucket])
    assert not verdict.allowed
    assert verdict.wait == pytest.approx(1)
    assert verdict.reset == pytest.approx(2), "until it is full"
    clock.now += 1.001
    assert (await limiter.take([bucket])).allowed


async def test_a_quota_fills_at_midnight() -> None:
    clock = Clock(20_000 * DAY_SECONDS + DAY_SECONDS - 10.0)
    limiter, quota = MemoryLimiter(clock), Bucket("q", "p", 2, None)
    assert [(await limiter.take([quota])).allowed for _ in range(3)] == [True, True, False]
    assert (await limiter.take([quota])).reset == pytest.approx(10)
    clock.now += 9.9
    assert not (await limiter.take([quota])).allowed
    clock.now += 0.2
    assert [(await limiter.take([quota])).allowed for _ in range(3)] == [True, True, False]


async def test_buckets_are_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.platform.gateway.limits._HELD", 10)
    clock = Clock()
    limiter = MemoryLimiter(clock)
    for number in range(100):
        clock.now += DAY_SECONDS / 2
        await limiter.take([Bucket("a", f"k{number}", 2, 1.0)])
    assert len(limiter._held) <= 21


def configured(**gateway: object) -> Configuration:
    return Configuration(gateway=GatewayConfiguration.model_validate(gateway))


KEY = Principal("user_1", "red", credential="key_1")


async def test_a_request_comes_under_its_key_its_project_and_its_route() -> None:
    current = configured(
        per_key={"requests_per_second": 1, "burst": 3},
        per_project={"requests_per_second": 1, "burst": 5},
        per_route={"/platform/jobs/{job_id}": {"requests_per_second": 1, "burst": 2}},
        requests_per_day={"red": 6},
    )
    rates = Rates(MemoryLimiter(Clock()), lambda: current)

    async def asked(caller: Principal, path: str) -> str:
        verdict = await rates.check(caller, path)
        assert verdict is not None
        return "" if verdict.allowed else verdict.bucket.limit

    assert [await asked(KEY, f"/platform/jobs/{i}") for i in range(3)] == ["", "", "gateway.per_route./platform/jobs/{job_id}"]  # fmt: skip
    assert [await asked(KEY, "/platform/jobs/a/logs") for _ in range(2)] == ["", "gateway.per_key"]
    other = Principal("user_2", "red", credential="key_2")
    assert [await asked(other, "/x") for _ in range(3)] == ["", "", "gateway.per_project"]
    elsewhere = Principal("user_3", "blue", credential="key_3")
    assert [await asked(elsewhere, "/x") for _ in range(4)] == ["", "", "", "gateway.per_key"]


async def test_no_path_under_a_routes_template_escapes_its_limit() -> None:
    """Breaks with: a line feed in a path, which ends what a pattern matches."""
    current = configured(per_route={"/platform/echo/{path:path}": {"requests_per_second": 1, "burst": 2}})
    rates = Rates(MemoryLimiter(Clock()), lambda: current)
    verdicts = [await rates.check(KEY, f"/platform/echo/{path}") for path in ("a", "a/b", "a\n/b")]
    assert [verdict is not None and verdict.allowed for verdict in verdicts] == [True, True, False]


async def test_keys_projects_and_routes_have_quotas_a_day() -> None:
    """Breaks with: a quota that one key uses up for another, or that a refused request is charged to."""
    nothing = {"requests_per_second": 0}
    current = configured(
        per_key={**nothing, "requests_per_day": 4}, per_project={**nothing, "requests_per_day": 7},
        per_route={"/v1/models": {**nothing, "requests_per_day": 1}}, requests_per_day={"blue": 2, "green": 0},
    )  # fmt: skip
    clock = Clock(20_000 * DAY_SECONDS + 5.0)
    rates = Rates(MemoryLimiter(clock), lambda: current)

    async def asked(caller: Principal, path: str = "/x") -> str:
        verdict = await rates.check(caller, path)
        assert verdict is not None
        assert verdict.allowed or verdict.reset <= DAY_SECONDS
        return "" if verdict.allowed else str(refusal(verdict).where)

    by_key, by_project = "gateway.per_key.requests_per_day", "gateway.per_project.requests_per_day"
    by_route = "gateway.per_route./v1/models.requests_per_day"
    other = Principal("user_2", "red", credential="key_2")
    for _ in range(2):
        assert [await asked(KEY, "/v1/models") for _ in range(3)] == ["", by_route, by_route]
        assert [await asked(KEY) for _ in range(4)] == ["", "", "", by_key]
        assert [await asked(other) for _ in range(4)] == ["", "", "", by_project]
        blue = Principal("user_3", "blue", credential="key_3")
        assert [await asked(blue) for _ in range(3)] == ["", "", "gateway.requests_per_day.blue"]
        green = Principal("user_4", "green", credential="key_4")
        assert [await asked(green) for _ in range(5)] == ["", "", "", "", by_key], "its project has none"
        assert [await rates.check(Principal("local", "green"), "/x") for _ in range(9)] == [None] * 9
        clock.now += DAY_SECONDS  # all begin anew


async def test_a_session_counts_as_the_key_that_opened_it() -> None:
    """Breaks with: a bucket, and a day's quota, for each login with the same key."""
    current = configured(
        per_key={"requests_per_second": 0, "requests_per_day": 4},
        per_route={"/v1/models": {"requests_per_second": 1, "burst": 2}},
    )
    rates = Rates(MemoryLimiter(Clock()), lambda: current)
    sessions = [replace(KEY, credential=f"ses_{number}", counted_as=KEY.credential) for number in range(3)]
    passed = []
    for caller in (KEY, *sessions):
        verdict = await rates.check(caller, "/v1/models")
        passed.append(verdict is not None and verdict.allowed)
    assert passed == [True, True, False, False], "a route's limit"
    passed = []
    for caller in (*sessions, KEY, replace(KEY, credential="ses_4")):
        verdict = await rates.check(caller, "/x")
        passed.append(verdict is not None and verdict.allowed)
    assert passed == [True, True, False, False, True], "the quota of a day; a login by the provider counts for itself"


async def test_without_a_credential_there_is_no_limit_by_key() -> None:
    current = configured(
        per_key={"requests_per_second": 1, "burst": 1}, per_project={"requests_per_second": 1, "burst": 4}
    )
    rates = Rates(MemoryLimiter(Clock()), lambda: current)
    verdicts = [await rates.check(LOCAL, "/x") for _ in range(5)]
    assert [one is not None and one.allowed for one in verdicts] == [True] * 4 + [False]


async def test_a_change_holds_for_the_next_request() -> None:
    current = configured(per_key={"requests_per_second": 1, "burst": 1})
    rates = Rates(MemoryLimiter(Clock()), lambda: current)
    assert [(await taken(rates)), (await taken(rates))] == [True, False]
    current = configured(per_key={"requests_per_second": 0}, per_project={"requests_per_second": 0})
    assert await rates.check(KEY, "/x") is None, "lifted"
    current = configured(per_key={"requests_per_second": 1, "burst": 1})
    assert not await taken(rates)


async def taken(rates: Rates) -> bool:
    verdict = await rates.check(KEY, "/x")
    assert verdict is not None
    return verdict.allowed


async def test_a_refusal_says_which_limit_and_where_it_is_set() -> None:
    current = configured(per_key=Rate(requests_per_second=0.5, burst=1))
    rates = Rates(MemoryLimiter(Clock()), lambda: current)
    await rates.check(KEY, "/x")
    verdict = await rates.check(KEY, "/x")
    assert verdict is not None
    error = refusal(verdict)
    assert error.status == 429
    assert error.retry_after == pytest.approx(2)
    assert error.where == "gateway.per_key"
    assert "0.5 requests a second" in error.message
    assert dict(headers_of(verdict)) == {
        b"x-ratelimit-limit": b"1", b"x-ratelimit-remaining": b"0", b"x-ratelimit-reset": b"2"
    }  # fmt: skip


ADMINISTRATOR = Principal(
    "ada", "red", frozenset({"administrator"}), everywhere=frozenset({"administrator"}), credential="key_1"
)


async def test_no_limit_keeps_out_who_can_lift_it() -> None:
    """Breaks with: a limit of one request a quarter of an hour, which then holds for its own rollback too."""
    current = configured(per_key={"requests_per_second": 0.001, "burst": 1})
    rates = Rates(MemoryLimiter(Clock()), lambda: current)

    async def passes(caller: Principal, path: str) -> bool:
        verdict = await rates.check(caller, path)
        assert verdict is not None
        return verdict.allowed

    assert [await passes(ADMINISTRATOR, "/x") for _ in range(2)] == [True, False]
    back = "/platform/configuration/rollback"
    let_in = [await passes(ADMINISTRATOR, back) for _ in range(30)]
    assert let_in[:10] == [True] * 10
    assert not all(let_in), "a few, not any number"
    assert [await passes(KEY, back) for _ in range(2)] == [False] * 2, "who may not change it has no such place"
    assert not await passes(ADMINISTRATOR, "/x")


class SometimesLate:
    """Shared buckets that are late when they are told to be, and count all the same."""

    def __init__(self, clock: Clock) -> None:
        self.limiter = MemoryLimiter(clock)
        self.late = False

    async def take(self, buckets: Sequence[Bucket]) -> Verdict:
        verdict = await self.limiter.take(buckets)
        if self.late:
            raise RedisGone("Redis is late")
        return verdict


async def test_what_is_counted_here_alone_goes_on_from_what_redis_said_and_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Breaks with: a bucket that is full again each time that Redis is late."""
    clock = Clock()
    redis = SometimesLate(clock)
    shared, bucket = SharedLimiter(redis, MemoryLimiter(clock)), Bucket("a", "k", 5, 0.01)
    quota = Bucket("q", "p", 3, None)
    left, of_the_day = [], []
    for late in (False, True, False, True, True, False):
        redis.late = late
        verdict, day = await shared.take([bucket]), await shared.take([quota])
        left.append(verdict.remaining if verdict.allowed else None)
        of_the_day.append(day.remaining if day.allowed else None)
    assert left == [4, 3, 2, 1, 0, None]
    assert of_the_day == [2, 1, 0, None, None, None]
    told = [record.message for record in caplog.records]
    assert told == [
        "requests are counted by this process alone: Redis is late",
        "Redis answers again: 2 requests were counted by this process alone",
    ], "the next word comes after a minute"
