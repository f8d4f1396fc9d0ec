"""Requests for what another node serves: a replica listens on its own machine alone, so its node's process is asked.

The platform sends a request where its model is warm, so this is the exception: just after a deployment has begun to
serve, or moved. A request is passed on once at most.
"""

import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from burnish.components.model_serving.naming import Route
from burnish.core.errors import BurnishError, Unavailable
from burnish.core.protocol import CALLER_HEADER, DEADLINE_HEADER
from burnish.infra.http import Request, Unreachable
from burnish.infra.http_client import HttpTransport
from burnish.infra.logging import trace_headers
from burnish.platform.identity import CallerTokens, Principal

log = logging.getLogger(__name__)

_FORWARDED = "burnish-forwarded"
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def came_from_peer(scope: MutableMapping[str, Any]) -> bool:
    """Tell whether another process of this component has passed a request on already."""
    return any(name == _FORWARDED.encode() for name, _ in scope["headers"])


def deadline_of(scope: MutableMapping[str, Any]) -> float | None:
    """Return the unix time after which nobody waits for the answer, None if that is not said."""
    said = next((value for name, value in scope["headers"] if name == DEADLINE_HEADER.encode()), b"")
    try:
        found = float(said)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


class Peers:
    """The other processes of this component."""

    def __init__(self, tokens: CallerTokens | None, component_type: str) -> None:
        """Without ``tokens`` nothing can be passed on."""
        self._tokens = tokens
        self._component_type = component_type
        self._transports: dict[str, HttpTransport] = {}
        self._calls: Counter[str] = Counter()
        """Requests that are on their way, by URL."""

    async def forward(
        self, urls: Sequence[str], path: str, body: bytes, principal: Principal, send: _Send, deadline: float | None
    ) -> None:  # fmt: skip
        """Have the first of these processes that can be reached answer, and pass its answer on as it comes.

        It is told the ``deadline`` (unix time), and given up at it.

        Raises:
            Unavailable: none can be reached.
            BurnishError: the connection broke before the answer began.
        """
        headers = self._headers(principal)
        failure: BurnishError | None = None
        for url in urls:
            started = False
            try:
                target = f"/components/{self._component_type}{path}"
                async with (
                    self._to(url) as transport,
                    transport.send(Request("POST", target, headers, body, deadline)) as response,
                ):
                    raw = [
                        (name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()
                    ]
                    started = True
                    await send({"type": "http.response.start", "status": response.status, "headers": raw})
                    async for chunk in response.chunks():
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            except Unreachable as error:
                if started:
                    raise _BrokenOff(error.message) from error
                if error.sent:
                    raise
                failure = error
        raise failure or Unavailable("no process of the node that serves this can be reached", retry_after=1)

    def _headers(self, principal: Principal) -> dict[str, str]:
        if self._tokens is None:
            raise Unavailable("this process cannot pass requests on to the node that serves this", retry_after=1)
        return {
            "content-type": "application/json",
            CALLER_HEADER: self._tokens.sign(principal, self._component_type),
            **trace_headers(),
            _FORWARDED: "1",
        }

    @asynccontextmanager
    async def _to(self, url: str) -> AsyncIterator[HttpTransport]:
        transport = self._transports.setdefault(url, HttpTransport(url))
        self._calls[url] += 1
        try:
            yield transport
        finally:
            self._calls[url] -= 1

    async def keep_only(self, routes: Sequence[Route]) -> None:
        """Close the connections to processes that are in no route any more, of those that are not being asked."""
        known = {url for route in routes for url in route.elsewhere}
        for url in list(self._transports):
            if url not in known and not self._calls[url]:
                del self._calls[url]
                await self._transports.pop(url).close()

    async def close(self) -> None:
        """Close all connections."""
        for transport in self._transports.values():
            await transport.close()
        self._transports.clear()


class _BrokenOff(Exception):
    """The answer ended before its end; raised to the server, which closes the connection."""
