"""The principal of a request, and the signed token that carries it between processes."""

import base64
import hashlib
import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from starlette.requests import Request

from burnish.core.errors import Unauthenticated
from burnish.core.permissions import PLATFORM_WIDE, permissions_of
from burnish.core.protocol import INSTANCE_CLAIM
from burnish.platform.identity.keys import derived

SCOPE_KEY = "burnish.principal"
_ALGORITHM = "EdDSA"
_LEEWAY_SECONDS = 30
"""How far the clocks of two servers may be apart."""
_REMEMBERED = 1000
_SIGNED = 10_000
"""Tokens that are kept to be sent again: one for each caller and instance."""


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
    counted_as: str | None = field(default=None, compare=False)
    """Of a session that a key opened: that key, whose limits it shares. Known where the session was looked up, and
    nowhere else: no token carries it."""

    @property
    def counted(self) -> str | None:
        """The id under which the requests of this credential are counted against limits."""
        return self.counted_as or self.credential

    def may(self, permission: str) -> bool:
        """Tell whether this caller has a permission."""
        allowed = permissions_of(self.everywhere) if permission in PLATFORM_WIDE else self._here
        return permission in allowed and (self.scopes is None or permission in self.scopes)

    @cached_property
    def _here(self) -> frozenset[str]:
        return permissions_of(self.roles | self.everywhere)

    def may_everywhere(self, permission: str) -> bool:
        """Tell whether this caller has a permission in every project."""
        return permission in permissions_of(self.everywhere) and (self.scopes is None or permission in self.scopes)

    def permissions(self) -> frozenset[str]:
        """Return everything that this caller may do in this project."""
        found = permissions_of(self.roles - self.everywhere) - PLATFORM_WIDE | permissions_of(self.everywhere)
        return found if self.scopes is None else found & self.scopes

    def acting(self, *permissions: str) -> "Principal":
        """Return the same subject and project as Burnish's own processes carry them, to give a component work.

        Args:
            permissions: beyond that, those that the submitter was found to have when the work was submitted, and
                that it needs now.
        """
        roles = frozenset({"platform", "administrator"} if permissions else {"platform"})
        return Principal(self.subject, self.project_id, roles, frozenset({"component:work", *permissions}))


LOCAL = Principal("local", "default", frozenset({"administrator"}), everywhere=frozenset({"administrator"}))
"""Everyone, while authentication is off (loopback only)."""

ANONYMOUS = Principal("anonymous")
"""Whoever shows no credential, on a route that needs none."""


async def current_principal(request: Request) -> Principal:
    """Return the principal that the gateway, or a component's own check of the caller token, put into the scope.

    Raises:
        Unauthenticated: the request reached a handler without having passed either.
    """
    return principal_in(request.scope)


def principal_in(scope: Mapping[str, Any]) -> Principal:
    """Return the principal of an ASGI scope.

    Raises:
        Unauthenticated: there is none.
    """
    principal = scope.get(SCOPE_KEY)
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


class CallerVerifier:
    """Verifies caller tokens by public keys alone: for processes that never sign."""

    def __init__(self, jwks: Mapping[str, Any]) -> None:
        """Take the keys of ``GET /platform/identity/jwks``.

        Raises:
            ValueError: there is no Ed25519 key among them.
        """
        found = [jwt.PyJWK(dict(key)) for key in jwks.get("keys", ()) if key.get("kty") == "OKP"]
        self._keys = {str(key.key_id): key.key for key in found}
        if not self._keys:
            raise ValueError("there is no Ed25519 key in the key set")
        self._verified: dict[tuple[str, str], tuple[Principal, str | None, float]] = {}

    def verify(self, token: str, audience: str, instances: Collection[str] | None = None) -> Principal:
        """Return the principal of a token.

        Args:
            token: as it was sent.
            audience: the component type of whoever verifies it.
            instances: the ids under which whoever verifies it is registered: a token that names another instance was
                sent to that one, and is passed on here. None: not known.

        Raises:
            Unauthenticated: it is not ours, has expired, or is meant for another audience or instance.
        """
        known = self._verified.get((token, audience))
        if known is None or time.time() >= known[2]:
            try:
                claims = self._claims(token, audience)
                instance = claims.get(INSTANCE_CLAIM)
                known = _principal_of(claims), None if instance is None else str(instance), float(claims["exp"])
            except (jwt.PyJWTError, KeyError, TypeError, ValueError) as error:
                raise Unauthenticated(
                    f"the caller token is not valid: {error}", hint="call through the gateway"
                ) from error
            if len(self._verified) >= _REMEMBERED:
                self._verified.clear()
            self._verified[(token, audience)] = known
        principal, instance, _ = known
        if instance is not None and instances is not None and instance not in instances:
            raise Unauthenticated(
                "the caller token is not valid: it was sent to another instance", hint="call through the gateway"
            )
        return principal

    def _claims(self, token: str, audience: str) -> dict[str, Any]:
        key = self._keys.get(str(jwt.get_unverified_header(token).get("kid")))
        if key is None:
            raise jwt.InvalidKeyError("it is signed with a key that is not known here")
        return dict(jwt.decode(
            token, key, algorithms=[_ALGORITHM], audience=audience, leeway=_LEEWAY_SECONDS,
            # one signed "in the future" is ours all the same: the clock was set back, or another server's is ahead
            options={"require": ["exp", "aud", "sub"], "verify_iat": False},
        ))  # fmt: skip


class CallerTokens(CallerVerifier):
    """Signs and verifies caller tokens with a key that only Burnish's own processes hold."""

    def __init__(self, key: bytes) -> None:
        if len(key) < 32:
            raise ValueError("the key of caller tokens needs at least 32 bytes")
        self._private = Ed25519PrivateKey.from_private_bytes(derived(key, b"burnish caller tokens"))
        self._jwk = _jwk_of(self._private.public_key())
        self._cache: dict[tuple[Principal, str, str | None], _Signed] = {}
        super().__init__(self.public_jwks())

    def public_jwks(self) -> dict[str, list[dict[str, str]]]:
        """Return the public key as a JSON Web Key Set (RFC 7517, RFC 8037)."""
        return {"keys": [dict(self._jwk)]}

    def sign(self, principal: Principal, audience: str, ttl: float = 60, *, instance: str | None = None) -> str:
        """Return a token for ``audience`` (a component type), valid for ``ttl`` seconds; re-used for half of that.

        With the id of an ``instance`` no other one believes it.
        """
        now, age = time.time(), time.monotonic()
        found = self._cache.get((principal, audience, instance))
        if found is not None and age < found.until and abs(now - age - found.offset) < _LEEWAY_SECONDS / 2:
            return found.token
        claims = {**_claims_of(principal), "aud": audience, "iat": int(now), "exp": int(now + ttl)}
        if instance is not None:
            claims[INSTANCE_CLAIM] = instance
        token = jwt.encode(claims, self._private, algorithm=_ALGORITHM, headers={"kid": self._jwk["kid"]})
        if len(self._cache) >= _SIGNED:
            self._cache.clear()
        self._cache[(principal, audience, instance)] = _Signed(token, age + ttl / 2, now - age)
        return token


def _claims_of(principal: Principal) -> dict[str, Any]:
    return {
        "sub": principal.subject, "prj": principal.project_id, "rol": sorted(principal.roles),
        "evw": sorted(principal.everywhere), "scp": None if principal.scopes is None else sorted(principal.scopes),
        "crd": principal.credential, "cmp": None if principal.component is None else list(principal.component),
    }  # fmt: skip


def _principal_of(claims: Mapping[str, Any]) -> Principal:
    bare = Principal(
        str(claims["sub"]), str(claims["prj"]), frozenset(claims["rol"]),
        scopes=None if claims["scp"] is None else frozenset(claims["scp"]), everywhere=frozenset(claims["evw"]),
        credential=claims["crd"],
    )  # fmt: skip
    if claims["cmp"] is None:
        return bare
    component_id, component_type = claims["cmp"]
    return replace(bare, component=(str(component_id), str(component_type)))


def _jwk_of(public: Ed25519PublicKey) -> dict[str, str]:
    raw = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
    needed = {"crv": "Ed25519", "kty": "OKP", "x": _base64url(raw)}
    thumbprint = hashlib.sha256(json.dumps(needed, sort_keys=True, separators=(",", ":")).encode()).digest()  # RFC 7638
    return {**needed, "alg": _ALGORITHM, "use": "sig", "kid": _base64url(thumbprint)}


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
