"""Calling an HTTP service over two transports that behave alike: the network (http_client) and ASGI in this process (embedded).

What both promise (``burnish.testing.transport_contract``): bodies are streamed both ways and never collected; the
first bytes of an answer arrive before the answer ends; leaving the context, or cancelling the task in it, cancels the
upstream; a deadline is honoured while waiting for headers and for each chunk; redirects are not followed and bodies not decoded.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

from burnish.core.errors import DeadlineExceeded, Unavailable, UpstreamFailed
from burnish.core.protocol import DEADLINE_HEADER
from burnish.infra.asgi import ASGIApp, AsgiCall, AsgiFailed

log = logging.getLogger(__name__)

READ_LIMIT = 64 << 20

HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade"}
)  # fmt: skip
_NEVER = HOP_BY_HOP | {"host"}
_NEVER_OF_BYTES = _NEVER | {"content-length"}


class Unreachable(Unavailable):
    """The service could not be reached, or the connection broke."""

    def __init__(self, message: str, *, sent: bool, hint: str | None = None, where: str | None = None) -> None:
        super().__init__(message, hint=hint, where=where)
        self.sent = sent
        """Whether any of the request may have reached the service; if not, sending it elsewhere is safe."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_unreachable, (self.message, self.sent, self.hint, self.where))


def _unreachable(message: str, sent: bool, hint: str | None, where: str | None) -> Unreachable:
    return Unreachable(message, sent=sent, hint=hint, where=where)


@dataclass(slots=True)
class Request:
    """A request to a service. Not to be changed; frozen, it would cost three times as much to make."""

    method: str
    path: str
    """Absolute path, percent-encoded, with its query."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | AsyncIterator[bytes] = b""
    deadline: float | None = None
    """Unix time after which nobody waits for the answer; sent along as a header."""

    def sent_headers(self) -> dict[str, str]:
        """Return the headers to send: lower-case, without those of one connection, with the deadline."""
        never = _NEVER_OF_BYTES if isinstance(self.body, bytes) else _NEVER
        headers = {name: value for given, value in self.headers.items() if (name := given.lower()) not in never}
        if self.deadline is not None:
            headers[DEADLINE_HEADER] = f"{self.deadline:.3f}"
        return headers


class Response:
    """The answer, while its body may still be coming. Valid inside the context of :meth:`Transport.send`."""

    def __init__(
        self, status: int, headers: Mapping[str, str], body: AsyncIterator[bytes], deadline: float | None, where: str,
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self.status = status
        self.headers = headers
        """Names in lower case; headers of one connection left out."""
        self._body = body
        self._deadline = deadline
        self._where = where
        self._closed = False
        self.is_over = is_over
        """Tells whether the chunk that was given last is known to be the last; False says nothing."""

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives.

        Raises:
            DeadlineExceeded: the deadline passed before the end.
            Unreachable: the connection broke before the end.
        """
        while not self._closed:
            if self._deadline is None:
                chunk = await anext(self._body, None)
            else:
                async with until(self._deadline, self._where):
                    chunk = await anext(self._body, None)
            if chunk is None:
                return
            if chunk:
                yield chunk

    async def read(self, limit: int = READ_LIMIT) -> bytes:
        """Return the whole body.

        Raises:
            UpstreamFailed: it has more than ``limit`` bytes.
        """
        parts, size = [], 0
        async for chunk in self.chunks():
            size += len(chunk)
            if size > limit:
                raise UpstreamFailed(f"the answer of {self._where} is larger than {limit} bytes", where=self._where)
            parts.append(chunk)
        return b"".join(parts)

    async def close(self) -> None:
        """Stop reading; the upstream is cancelled when the context is left."""
        self._closed = True


class Transport(Protocol):
    """A way to one service."""

    def send(self, request: Request) -> AbstractAsyncContextManager[Response]:
        """Send a request and give the answer as soon as its headers are there.

        Raises:
            DeadlineExceeded: the deadline passed.
            Unreachable: no connection, or it broke; ``sent`` tells whether the service may have seen the request.
        """

    async def close(self) -> None:
        """Close idle connections; the transport is not used afterwards."""


class AsgiTransport:
    """To an ASGI app in this process."""

    def __init__(self, app: ASGIApp, *, name: str = "embedded") -> None:
        self._app = app
        self._name = name
        self._calls: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def send(self, request: Request) -> AsyncIterator[Response]:
        """Call the app in a task of its own."""
        call = AsgiCall(_body_of(request))
        task = asyncio.create_task(
            call.run(self._app, self._scope(request)), name=f"asgi {request.method} {request.path}"
        )
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        try:
            async with until(request.deadline, self._name):
                status, raw = await call.started()
            headers = _joined((name.decode("latin-1"), value.decode("latin-1")) for name, value in raw)
            yield Response(status, headers, self._body(call), request.deadline, self._name)
        finally:
            call.disconnect(task)

    async def close(self) -> None:
        """Cancel what still runs."""
        for task in list(self._calls):
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def _body(self, call: AsgiCall) -> AsyncIterator[bytes]:
        while True:
            try:
                chunk = await call.next_chunk()
            except AsgiFailed as error:
                raise Unreachable(f"{self._name} broke off its answer", sent=True, where=self._name) from error
            if chunk is None:
                return
            yield chunk

    def _scope(self, request: Request) -> MutableMapping[str, Any]:
        path, _, query = request.path.partition("?")
        headers = request.sent_headers()
        if isinstance(request.body, bytes) and (request.body or request.method in {"POST", "PUT", "PATCH"}):
            headers["content-length"] = str(len(request.body))
        elif not isinstance(request.body, bytes) and "content-length" not in headers:
            headers["transfer-encoding"] = "chunked"
        headers["host"] = "localhost"
        return {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
            "method": request.method.upper(), "scheme": "http", "root_path": "", "state": {},
            "path": unquote_to_bytes(path).decode("utf-8", "replace"), "raw_path": path.encode("ascii", "replace"),
            "query_string": query.encode("ascii", "replace"),
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
            "client": None, "server": (self._name, None),
        }  # fmt: skip


async def _body_of(request: Request) -> AsyncIterator[bytes]:
    if isinstance(request.body, bytes):
        yield request.body
        return
    async for chunk in request.body:
        yield chunk


@asynccontextmanager
async def until(deadline: float | None, where: str) -> AsyncIterator[None]:
    """Raise DeadlineExceeded at ``deadline`` (unix time)."""
    if deadline is None:
        yield
        return
    try:
        async with asyncio.timeout(max(0.0, deadline - time.time())):
            yield
    except TimeoutError as error:
        raise DeadlineExceeded(f"{where} did not answer before the deadline", where=where) from error


def _joined(pairs: Any) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in pairs:
        name = name.lower()
        if name not in HOP_BY_HOP:
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
