"""The principal of a request, and the signed token that carries it between processes."""

import time
from dataclasses import dataclass, field

import jwt
from starlette.requests import Request

from burnish.core.errors import Unauthenticated

SCOPE_KEY = "burnish.principal"
_ALGORITHM = "HS256"
_LEEWAY_SECONDS = 30
"""How far the clocks of two servers may be apart."""


@dataclass(frozen=True)
class Principal:
    """Who calls, and for which project."""

    subject: str
    project_id: str = "default"
    roles: frozenset[str] = field(default_factory=frozenset)


LOCAL = Principal("local", "default", frozenset({"administrator"}))
"""Everyone, while authentication is off (loopback only)."""


async def current_principal(request: Request) -> Principal:
    """Return the principal that the gateway, or a component's own check of the caller token, put into the scope.

    Raises:
        Unauthenticated: the request reached a handler without having passed either.
    """
    principal = request.scope.get(SCOPE_KEY)
    if not isinstance(principal, Principal):
        raise Unauthenticated("the request carries no caller", hint="send it through the gateway")
    return principal


@dataclass(frozen=True)
class _Signed:
    token: str
    until: float
    """On the monotonic clock: re-used until then."""
    offset: float
    """Wall clock less monotonic clock: when the wall clock is set anew, another token is signed."""


class CallerTokens:
    """Signs and verifies caller tokens with a key that only Burnish's own processes hold."""

    def __init__(self, key: bytes) -> None:
        if len(key) < 32:
            raise ValueError("the key of caller tokens needs at least 32 bytes")
        self._key = key
        self._cache: dict[tuple[Principal, str], _Signed] = {}

    def sign(self, principal: Principal, audience: str, ttl: float = 60) -> str:
        """Return a token for ``audience`` (a component type), valid for ``ttl`` seconds; re-used for half of that."""
        now, age = time.time(), time.monotonic()
        found = self._cache.get((principal, audience))
        if found is not None and age < found.until and abs(now - age - found.offset) < _LEEWAY_SECONDS / 2:
            return found.token
        claims = {
            "sub": principal.subject, "prj": principal.project_id, "rol": sorted(principal.roles),
            "aud": audience, "iat": int(now), "exp": int(now + ttl),
        }  # fmt: skip
        token = jwt.encode(claims, self._key, algorithm=_ALGORITHM)
        if len(self._cache) > 1000:
            self._cache.clear()
        self._cache[(principal, audience)] = _Signed(token, age + ttl / 2, now - age)
        return token

    def verify(self, token: str, audience: str) -> Principal:
        """Return the principal of a token.

        Raises:
            Unauthenticated: it is not ours, has expired, or is meant for another audience.
        """
        try:
            claims = jwt.decode(
                token, self._key, algorithms=[_ALGORITHM], audience=audience, leeway=_LEEWAY_SECONDS,
                # one signed "in the future" is ours all the same: the clock was set back, or another server's is ahead
                options={"require": ["exp", "aud", "sub"], "verify_iat": False},
            )  # fmt: skip
        except jwt.PyJWTError as error:
            raise Unauthenticated(f"the caller token is not valid: {error}", hint="call through the gateway") from error
        return Principal(str(claims["sub"]), str(claims["prj"]), frozenset(claims["rol"]))
