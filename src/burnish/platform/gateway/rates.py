"""Which limits a request comes under, and the answer to one that has reached a limit."""

import math
import re
from collections.abc import Iterator

from burnish.core.configuration import Configuration, Current, Rate
from burnish.core.errors import RateLimited
from burnish.infra import signals
from burnish.platform.gateway.limits import Bucket, Limiter, MemoryLimiter, Verdict
from burnish.platform.identity import Principal

_KEPT = 10_000
_CONFIGURATION = "/platform/configuration"
_RESERVED = "gateway.reserved"
_RESERVED_BURST, _RESERVED_RATE = 10, 1.0


class Rates:
    """Counts requests by key, project and route, under the limits that are configured at that moment.

    A key is a credential, and what is done in a session that a key opened counts as that key's: who logs in again has no
    more. With authentication off there is none, and the limits of projects and their routes hold.
    """

    def __init__(self, limiter: Limiter, configuration: Current) -> None:
        self._limiter = limiter
        self._configuration = configuration
        self._of: Configuration | None = None
        self._routes: tuple[tuple[str, re.Pattern[str], Rate], ...] = ()
        self._plans: dict[tuple[str | None, str, str | None], tuple[Bucket, ...]] = {}
        self._reserved = MemoryLimiter()

    async def check(self, caller: Principal, path: str) -> Verdict | None:
        """Count a request; None if nothing limits it. Whether it may pass is in the verdict: see :func:`refusal`.

        Whoever may change the configuration always has a few requests for it, so that no limit locks out who can lift it.
        """
        configuration = self._configuration()
        if configuration is not self._of:
            self._follow(configuration)
        route = self._route_of(path) if self._routes else None
        buckets = self._plans.get((caller.counted, caller.project_id, route))
        if buckets is None:
            buckets = self._plan(caller, route, configuration)
        if not buckets:
            return None
        verdict = await self._limiter.take(buckets)
        if verdict.allowed or not _mends(caller, path):
            return verdict
        bucket = Bucket(_RESERVED, caller.counted or caller.project_id, _RESERVED_BURST, _RESERVED_RATE)
        reserved = await self._reserved.take([bucket])
        return reserved if reserved.allowed else verdict

    async def check_address(self, address: str) -> Verdict | None:
        """Count a request without a credential, by where it comes from."""
        rate = self._configuration().gateway.anonymous.per_address
        buckets = tuple(_buckets("gateway.anonymous.per_address", address, rate))
        return await self._limiter.take(buckets) if buckets else None

    async def check_stranger(self, address: str) -> Verdict | None:
        """Count a request whose credential has to be looked up, by where it comes from."""
        rate = self._configuration().gateway.anonymous.unknown_keys
        buckets = tuple(_buckets("gateway.anonymous.unknown_keys", address, rate))
        return await self._limiter.take(buckets) if buckets else None

    def _follow(self, configuration: Configuration) -> None:
        self._of = configuration
        self._plans = {}
        self._routes = tuple(
            (template, _pattern(template), rate) for template, rate in configuration.gateway.per_route.items()
        )

    def _route_of(self, path: str) -> str | None:
        return next((template for template, pattern, _ in self._routes if pattern.fullmatch(path)), None)

    def _plan(self, caller: Principal, route: str | None, configuration: Configuration) -> tuple[Bucket, ...]:
        gateway, project, key = configuration.gateway, caller.project_id, caller.counted
        buckets: list[Bucket] = []
        if key is not None:
            buckets += _buckets("gateway.per_key", key, gateway.per_key)
        rate, own = gateway.per_project, gateway.requests_per_day.get(project)
        if own is not None:
            rate = rate.model_copy(update={"requests_per_day": 0})
        buckets += _buckets("gateway.per_project", project, rate)
        if route is not None:
            buckets += _buckets(f"gateway.per_route.{route}", key or project, gateway.per_route[route])
        if own:
            limit = f"gateway.requests_per_day.{project}"
            buckets.append(Bucket(limit, limit, own, None))
        if len(self._plans) > _KEPT:
            self._plans.clear()
        plan = tuple(buckets)
        self._plans[key, project, route] = plan
        return plan


def refusal(verdict: Verdict) -> RateLimited:
    """Return the error of a request that a bucket refused, and count it."""
    bucket = verdict.bucket
    signals.LIMITED.labels(bucket.limit).inc()
    amount = (
        f"{bucket.size} requests a day" if bucket.rate is None
        else f"{bucket.rate:g} requests a second on average and {bucket.size} at once"
    )  # fmt: skip
    return RateLimited(
        f"the limit {bucket.limit} is reached: it allows {amount}",
        where=bucket.limit,
        hint=f"it is set by {bucket.limit} in the configuration; who may change that can always do so",
        retry_after=max(0.001, verdict.wait),
    )


def headers_of(verdict: Verdict) -> list[tuple[bytes, bytes]]:
    """Return where a client stands: size of the tightest bucket, what is left, seconds until it is full again."""
    return [
        (b"x-ratelimit-limit", b"%d" % verdict.bucket.size),
        (b"x-ratelimit-remaining", b"%d" % verdict.remaining),
        (b"x-ratelimit-reset", b"%d" % math.ceil(verdict.reset)),
    ]


def _mends(caller: Principal, path: str) -> bool:
    """Tell whether a request may be one that changes a limit."""
    return path.startswith(_CONFIGURATION) and caller.may("configuration:write")


def _buckets(limit: str, whose: str, rate: Rate) -> Iterator[Bucket]:
    """Yield what counts under a limit: a token bucket and a quota, without those that are lifted."""
    if rate.requests_per_second > 0:
        yield Bucket(limit, f"{limit}:{whose}", rate.burst, rate.requests_per_second)
    if rate.requests_per_day > 0:
        quota = f"{limit}.requests_per_day"
        yield Bucket(quota, f"{quota}:{whose}", rate.requests_per_day, None)


def _pattern(template: str) -> re.Pattern[str]:
    """Return what matches the paths of a route's template: ``{name}`` stands for one segment, ``{path:path}`` for all."""
    parts = re.split(r"(\{[^}]*\})", template.rstrip("/") or "/")
    return re.compile("".join(_part(one) for one in parts) + "/?", re.DOTALL)


def _part(text: str) -> str:
    if not text.startswith("{"):
        return re.escape(text)
    return ".+" if text.endswith(":path}") else "[^/]+"
