"""Login by an OpenID Connect provider: the authorization code flow with PKCE, state and nonce.

Authlib builds the messages and checks the claims of the id token (OpenID Connect Core 1.0, 3.1.3.7); they travel over
the house's own transport. Nothing here knows the database or who a user is to us.
"""

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri, prepare_token_request
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry
from pydantic import BaseModel, ConfigDict, ValidationError

from burnish.core.configuration import Current, OidcConfiguration, defaults
from burnish.core.errors import BurnishError, DeadlineExceeded, NotFound, Unauthenticated, Unavailable
from burnish.infra.http import Request, Transport, Unreachable
from burnish.infra.http_client import HttpTransport

log = logging.getLogger(__name__)

Resolve = Callable[[str], Awaitable[str]]
"""Returns the value that a reference ``secret://name`` stands for."""

LEEWAY_SECONDS = 60
"""How far the provider's clock and ours may be apart."""
KEPT_SECONDS = 3600.0
"""How long a discovery document and keys are used before they are read again."""
ANSWER_SECONDS = 10.0
ANSWER_BYTES = 1 << 20
ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"}
)
"""Signatures that only the holder of a private key can make; with a shared secret anybody who has it could."""
_ADDRESS = ("email", "email_verified")
"""What is said of an address holds for this one: both are from the same document."""


class Metadata(BaseModel):
    """What a provider's discovery document says, as far as we use it."""

    model_config = ConfigDict(frozen=True)

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    id_token_signing_alg_values_supported: tuple[str, ...] = ("RS256",)
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)


@dataclass(frozen=True)
class Attempt:
    """A login on its way; whoever begins it keeps it until the provider sends the browser back."""

    url: str
    """Where the browser goes."""
    state: str
    nonce: str
    verifier: str
    redirect_uri: str
    issuer: str
    """Who is to vouch: another provider's answer to it is no answer."""


@dataclass(frozen=True)
class Identity:
    """Whom the provider says that it is."""

    issuer: str
    subject: str
    email: str | None = None
    email_verified: bool = False
    """Whether the provider says that it has seen to it that the address is theirs."""
    name: str | None = None
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Known:
    """What was read of a provider, and when."""

    metadata: Metadata
    keys: KeySet
    at: float


class Provider:
    """The configured provider. What it publishes is read at the first login and kept; its keys are read again for one unknown."""

    def __init__(self, configuration: Current = defaults, resolve: Resolve | None = None) -> None:
        self._configuration = configuration
        self._resolve = resolve
        self._known: dict[str, _Known] = {}
        self._transports: dict[str, Transport] = {}

    @property
    def issuer(self) -> str | None:
        """The issuer's URL; None: no provider is configured."""
        return self._configuration().identity.oidc.issuer

    async def close(self) -> None:
        """Close the connections."""
        transports, self._transports = self._transports, {}
        for transport in transports.values():
            await transport.close()

    async def begin(self, redirect_uri: str) -> Attempt:
        """Return a fresh login; the browser is sent to its ``url``.

        Raises:
            NotFound: no provider is configured.
            Unavailable: it does not answer, or its answer is not to be trusted.
        """
        settings = self._settings()
        known = await self._read(settings)
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        url = prepare_grant_uri(
            known.metadata.authorization_endpoint, settings.client_id, "code", redirect_uri, list(settings.scopes), state,
            nonce=nonce, code_challenge=create_s256_code_challenge(verifier), code_challenge_method="S256",
        )  # fmt: skip
        return Attempt(str(url), state, nonce, verifier, redirect_uri, known.metadata.issuer)

    async def finish(self, attempt: Attempt, code: str) -> Identity:
        """Turn the provider's code into the identity that it vouches for.

        Raises:
            Unauthenticated: the code or the id token is not valid.
            NotFound: no provider is configured any more.
            Unavailable: the provider does not answer, or does not know us.
        """
        settings = self._settings()
        known = await self._read(settings)
        if attempt.issuer != known.metadata.issuer:
            raise Unauthenticated("the login provider was changed meanwhile", where="state", hint="log in again")
        token = await self._token(settings, known.metadata, attempt, code)
        claims = await self._claims(settings, known, token, attempt.nonce)
        if claims.get("email") is None or (settings.roles_claim and _at(claims, settings.roles_claim) is None):
            more = await self._userinfo(known.metadata, token, str(claims["sub"]))
            address = {name: (more if claims.get("email") is None else claims).get(name) for name in _ADDRESS}
            claims = {**more, **claims, **address}
        return _identity(settings, known.metadata.issuer, claims)

    def _settings(self) -> OidcConfiguration:
        settings = self._configuration().identity.oidc
        if settings.issuer is None:
            raise NotFound(
                "no login provider is configured", where="identity.oidc.issuer",
                hint="log in with a key, or have an administrator set identity.oidc.issuer",
            )  # fmt: skip
        return settings

    # What the provider publishes

    async def _read(self, settings: OidcConfiguration) -> _Known:
        issuer = str(settings.issuer)
        known = self._known.get(issuer)
        if known is not None and time.monotonic() - known.at < KEPT_SECONDS:
            return known
        try:
            metadata = await self._discover(issuer)
            fresh = _Known(metadata, await self._keys(metadata), time.monotonic())
        except Unavailable:
            if known is None:
                raise
            log.warning("the login provider %s does not answer; what it said before is used", issuer)
            return known
        self._known = {issuer: fresh}
        return fresh

    async def _discover(self, issuer: str) -> Metadata:
        _check_endpoint(issuer, "identity.oidc.issuer")
        status, document = await self._ask("GET", issuer.rstrip("/") + "/.well-known/openid-configuration")
        try:
            if status != 200:
                raise ValueError(f"status {status}")
            metadata = Metadata.model_validate(document)
        except (ValidationError, ValueError) as error:
            raise _distrusted(issuer, f"has no discovery document that can be used ({_short(error)})") from error
        if not ALGORITHMS.intersection(metadata.id_token_signing_alg_values_supported):
            raise _distrusted(issuer, f"signs id tokens by none of {', '.join(sorted(ALGORITHMS))}")
        if metadata.issuer.rstrip("/") != issuer.rstrip("/"):
            raise _distrusted(issuer, f"says that it is {metadata.issuer[:200]!r}")
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint"):
            if (url := getattr(metadata, name)) is not None:
                _check_endpoint(url, name)
        return metadata

    async def _keys(self, metadata: Metadata) -> KeySet:
        status, document = await self._ask("GET", metadata.jwks_uri)
        try:
            if status != 200:
                raise ValueError(f"status {status}")
            return KeySet.import_key_set(document)  # type: ignore[arg-type]  # checked by what follows
        except (JoseError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise _distrusted(metadata.issuer, f"publishes no keys that can be used ({_short(error)})") from error

    # The code, the tokens

    async def _token(
        self, settings: OidcConfiguration, metadata: Metadata, attempt: Attempt, code: str
    ) -> Mapping[str, Any]:
        body = prepare_token_request(
            "authorization_code", redirect_uri=attempt.redirect_uri, code=code, code_verifier=attempt.verifier
        )
        headers = {"content-type": "application/x-www-form-urlencoded"}
        secret = await self._secret(settings)
        methods = metadata.token_endpoint_auth_methods_supported
        form = "client_secret_post" in methods and "client_secret_basic" not in methods
        method = "none" if secret is None else "client_secret_post" if form else "client_secret_basic"
        _, headers, body = ClientAuth(settings.client_id, secret, method).prepare(
            "POST", metadata.token_endpoint, headers, body
        )
        status, answer = await self._ask("POST", metadata.token_endpoint, headers, str(body).encode())
        if status == 200 and isinstance(answer.get("id_token"), str):
            return answer
        reason = str(answer.get("error", f"status {status}"))[:100]
        if reason in {"invalid_client", "unauthorized_client"} or status == 401:
            raise Unavailable(
                f"the login provider does not accept Burnish as its client {settings.client_id!r} ({reason})",
                where=metadata.token_endpoint, hint="check identity.oidc.client_id and identity.oidc.client_secret",
            )  # fmt: skip
        if status >= 500:
            raise _away(metadata.token_endpoint, f"it answered {status}")
        raise Unauthenticated(
            f"the login provider does not accept the code ({reason})",
            where="code",
            hint="log in again: a code is good once",
        )

    async def _secret(self, settings: OidcConfiguration) -> str | None:
        if settings.client_secret is None:
            return None
        if self._resolve is None:
            raise Unavailable(
                "this process cannot read secrets", where="identity.oidc.client_secret",
                hint="log in through a server that runs the platform",
            )  # fmt: skip
        return await self._resolve(settings.client_secret)

    async def _claims(
        self, settings: OidcConfiguration, known: _Known, token: Mapping[str, Any], nonce: str
    ) -> Mapping[str, Any]:
        try:
            try:
                decoded = _decoded(token["id_token"], known)
            except InvalidKeyIdError:  # the provider has changed its keys
                known = _Known(known.metadata, await self._keys(known.metadata), time.monotonic())
                self._known = {str(settings.issuer): known}
                decoded = _decoded(token["id_token"], known)
            claims = CodeIDToken(
                decoded.claims, decoded.header,
                {"iss": {"essential": True, "value": known.metadata.issuer}, "aud": {"essential": True, "value": settings.client_id}},
                {"nonce": nonce, "client_id": settings.client_id, "access_token": token.get("access_token")},
            )  # fmt: skip
            claims.validate(leeway=LEEWAY_SECONDS)
        except (JoseError, ValueError, TypeError) as error:
            raise Unauthenticated(
                f"the login provider's id token is not valid: {_short(error)}", where="id_token",
                hint="log in again; if it stays so, compare identity.oidc.* with the provider's settings, and both clocks",
            ) from error  # fmt: skip
        if not isinstance(claims["sub"], str) or not 0 < len(claims["sub"]) <= 255:
            raise Unauthenticated("the login provider's id token names no usable subject", where="id_token.sub")
        return dict(claims)

    async def _userinfo(self, metadata: Metadata, token: Mapping[str, Any], subject: str) -> Mapping[str, Any]:
        """Return what only the userinfo endpoint tells; nothing if it has none or it is about somebody else."""
        access = token.get("access_token")
        if metadata.userinfo_endpoint is None or not isinstance(access, str):
            return {}
        status, answer = await self._ask("GET", metadata.userinfo_endpoint, {"authorization": f"Bearer {access}"})
        return answer if status == 200 and answer.get("sub") == subject else {}

    async def _ask(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> tuple[int, Mapping[str, Any]]:
        """Send one request to the provider; an answer that is no JSON object is empty."""
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        transport = self._transports.setdefault(origin, HttpTransport(origin))
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        request = Request(
            method, path, {"accept": "application/json", **(headers or {})}, body, deadline=time.time() + ANSWER_SECONDS
        )
        try:
            async with transport.send(request) as response:
                content = await response.read(ANSWER_BYTES)
                return response.status, _json_object(content)
        except (Unreachable, DeadlineExceeded) as error:
            raise _away(url, error.message) from error
        except BurnishError as error:  # too large
            raise _distrusted(origin, error.message) from error


def _decoded(id_token: str, known: _Known) -> jwt.Token:
    allowed = sorted(ALGORITHMS.intersection(known.metadata.id_token_signing_alg_values_supported))
    registry = JWSRegistry(algorithms=allowed, strict_check_header=False)
    return jwt.decode(id_token, known.keys, registry=registry)


def _identity(settings: OidcConfiguration, issuer: str, claims: Mapping[str, Any]) -> Identity:
    groups = _at(claims, settings.roles_claim) if settings.roles_claim else None
    groups = [groups] if isinstance(groups, str) else groups if isinstance(groups, list) else []
    unverified = claims.get("email_verified") in (False, "false")
    return Identity(
        issuer, str(claims["sub"]), None if unverified else _text(claims.get("email")),
        claims.get("email_verified") is True,
        _text(claims.get("name")) or _text(claims.get("preferred_username")),
        tuple(dict.fromkeys(group for group in groups if isinstance(group, str))),
    )  # fmt: skip


def _at(claims: Mapping[str, Any], name: str) -> Any:
    """Return a claim; ``realm_access.roles`` is looked up inside ``realm_access`` unless there is one of that name."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _text(value: object) -> str | None:
    text = value.strip() if isinstance(value, str) else ""
    return text[:255] if text and text.isprintable() else None


def _json_object(content: bytes) -> Mapping[str, Any]:
    try:
        found = orjson.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _check_endpoint(url: str, where: str) -> None:
    """Refuse a URL over which somebody on the way could read or forge a login."""
    parts = urlsplit(url)
    local = parts.hostname in {"127.0.0.1", "localhost", "::1"}
    if not parts.hostname or parts.scheme not in ({"https", "http"} if local else {"https"}):
        raise Unavailable(
            f"the login provider's {where} is {url[:200]!r}, which is not https", where=where,
            hint="use the provider's https:// URL; http is accepted on this machine only",
        )  # fmt: skip


def _away(url: str, reason: str) -> Unavailable:
    origin = urlsplit(url)
    return Unavailable(
        f"the login provider at {origin.scheme}://{origin.netloc} does not answer: {reason}", where="identity.oidc.issuer",
        hint="try again; keys go on working without it (`burnish login --key -`)", retry_after=5,
    )  # fmt: skip


def _distrusted(issuer: str, reason: str) -> Unavailable:
    return Unavailable(
        f"the login provider {issuer} {reason}", where="identity.oidc.issuer",
        hint="check identity.oidc.issuer: it is the URL before /.well-known/openid-configuration", retry_after=30,
    )  # fmt: skip


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
