"""Whom a component believes: caller tokens, by the public keys of the platform or of a file."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jwt

from burnish.core.errors import BurnishError, InvalidRequest, Unauthenticated, Unavailable
from burnish.infra.loop import Loop
from burnish.platform.identity import CallerVerifier, Principal

log = logging.getLogger(__name__)

Fetch = Callable[[], Awaitable[Mapping[str, Any]]]
"""Returns a JWK set.

Raises:
    BurnishError: it cannot be had at the moment.
"""

_REFRESH_SECONDS = 300.0
_RETRY_SECONDS = 1.0
_AGAIN_SECONDS = 5.0
"""How soon the keys are asked for again because of a token that none of them fits."""


class Trust(Loop):
    """Verifies caller tokens. The keys come from a file, or are fetched from the platform and kept fresh."""

    def __init__(self, fetch: Fetch) -> None:
        super().__init__(self._keep_fresh, "component-trust")
        self._fetch = fetch
        self._verifier: CallerVerifier | None = None
        self._kids: frozenset[str] = frozenset()
        self._wanted = asyncio.Event()
        self._fetched_at = float("-inf")

    def verify(self, token: str, audience: str, instances: Collection[str] | None = None) -> Principal:
        """Return the principal of a token that was signed for ``audience`` and, if it names an instance, for one of these.

        Raises:
            Unauthenticated: it is not the platform's, has expired, or is meant for another audience or instance.
            Unavailable: the keys are not known yet, or are newer than those that are known; they are being asked for.
        """
        try:
            kid = str(jwt.get_unverified_header(token).get("kid"))
        except (jwt.PyJWTError, ValueError) as error:
            raise Unauthenticated("the caller token is none", hint="call through the platform") from error
        fresh = time.monotonic() - self._fetched_at < _AGAIN_SECONDS
        if self._verifier is None or (kid not in self._kids and not fresh):
            self._wanted.set()
            raise Unavailable(
                "the platform's public keys are not known yet", retry_after=1,
                hint="is the platform up? this component asks it for /platform/identity/jwks",
            )  # fmt: skip
        return self._verifier.verify(token, audience, instances)

    async def _keep_fresh(self) -> None:
        told = ""
        while True:
            self._wanted.clear()
            wait = _RETRY_SECONDS
            try:
                document = await self._fetch()
                self._verifier, self._kids = verifier_of(document)
                self._fetched_at = time.monotonic()
                wait, told = _REFRESH_SECONDS, ""
            except BurnishError as error:
                if error.message != told:
                    log.warning("the public keys cannot be read: %s", error.message)
                    told = error.message
                await asyncio.sleep(_RETRY_SECONDS)
            except Exception:
                log.exception("the public keys cannot be read")
                await asyncio.sleep(_RETRY_SECONDS)
            try:
                async with asyncio.timeout(wait):
                    await self._wanted.wait()
            except TimeoutError:
                continue


def verifier_of(document: Mapping[str, Any]) -> tuple[CallerVerifier, frozenset[str]]:
    """Return what verifies tokens by a JWK set, and the ids of its keys.

    Raises:
        InvalidRequest: it is no JWK set, or has no Ed25519 key.
    """
    try:
        verifier = CallerVerifier(document)
        return verifier, frozenset(str(key.get("kid")) for key in document["keys"])
    except (jwt.PyJWTError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidRequest(f"this is no JWK set with an Ed25519 key: {error}", where="jwks") from error


def from_file(path: Path) -> Fetch:
    """Return what reads the keys from a file.

    Raises:
        InvalidRequest: it cannot be read, or has no key.
    """
    try:
        document: Mapping[str, Any] = json.loads(path.read_bytes())
        verifier_of(document)
    except (OSError, ValueError, InvalidRequest) as error:
        raise InvalidRequest(f"{path} is no JWK set: {error}", where="--jwks") from error

    async def fetch() -> Mapping[str, Any]:
        return document

    return fetch
