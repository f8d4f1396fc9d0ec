"""The principal of a request, and the signed token that carries it between processes."""

import time
from dataclasses import dataclass, field

import jwt
from starlette.requests import Request

from burnish.core.errors import Unauthenticated
from burnish.core.permissions import PLATFORM_WIDE, permissions_of

SCOPE_KEY = "burnish.principal"
_ALGORITHM = "HS256"
_LEEWAY_SECONDS = 30
"""How far the clocks of two servers may be apart."""


@dataclass(frozen=True)
class Principal:
    """Who calls, for which project, and what they may do there."""

    subject: str
    """Id of a user or service account; ``local`` with authentication off."""
    project_id: str = "default"
    roles: frozenset[str] = field(default_factory=frozenset)
    """Those that the subject has in this project, by bindings to it or to all."""
    scopes: frozenset[str] | None = None
    """The permissions that the credential is limited to; None: all of the roles'."""
    everywhere: frozenset[str] = field(default_factory=frozenset)
    """Those of the roles that are bound to every project."""
    credential: str | None = None
    """Id of the key or session that was shown."""
    component: tuple[str, str] | None = None
    """For the credential of an instance: the one component_id and component_type that it may register."""

    def may(self, permission: str) -> bool:
        """Tell whether this caller has a permission."""
        roles = self.everywhere if permission in PLATFORM_WIDE else self.roles | self.everywhere
        return permission in permissions_of(roles) and (self.scopes is None or permission in self.scopes)

    def acting(self) -> "Principal":
        """Return the same subject and project as Burnish's own processes carry them, to give a component work."""
        return Principal(self.subject, self.project_id, frozenset({"platform"}))


LOCAL = Principal("local", "default", frozenset({"administrator"}), everywhere=frozenset({"administrator"}))
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
