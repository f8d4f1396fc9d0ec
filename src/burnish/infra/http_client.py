"""Connections to HTTP/1.1 services: kept while they are idle, parsed by httptools, as uvicorn's are on the other side.

A general client took a third of the processor time of a relayed request (decision 9): this one has what
:class:`burnish.infra.http.Transport` promises and nothing else. One request is on a connection at a
time; a connection on which anything went wrong, or whose answer was not read to its end, is closed and never used again.
"""

import asyncio
import ipaddress
import ssl
from collections import deque
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from yarl import URL

from burnish.infra.http import HOP_BY_HOP, Request, Response, Unreachable, until
from burnish.infra.http_connection import Connection, write_stream

CONNECT_SECONDS = 5.0
_KEPT_SECONDS = 15.0
_KEPT_ON_SOCKET_SECONDS = 3.0
"""llama.cpp's server closes connections that idle for 5 s: they are given up before it does."""
_NAMES_SECONDS = 30.0
"""Addresses of a name are used again for so long."""
_WRITTEN_AT_ONCE = 64 << 10
_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})
_WITHOUT_LENGTH = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
"""Methods that say nothing of a body that they do not have."""


class Resolver(Protocol):
    """Gives the addresses of a name, which connections are made to."""

    async def resolve(self, host: str, port: int) -> list[str]:
        """Return the addresses of a name, best first.

        Raises:
            OSError: there are none, or none that may be connected to.
        """
        ...


class HttpTransport:
    """To a service at a URL or on a unix socket. A user or password in the URL is not sent."""

    def __init__(
        self, base_url: str = "http://localhost", *, unix_socket: Path | None = None,
        resolver: Resolver | None = None,
    ) -> None:  # fmt: skip
        """Connect to addresses that ``resolver`` gives, where there is one: it may refuse some."""
        base = URL(base_url.rstrip("/"))
        self.where = str(unix_socket or base.with_user(None).with_password(None))
        self.prefix = "" if base.raw_path == "/" else base.raw_path
        self._address = _Address(base, unix_socket, resolver)
        self.host = self._address.named
        self._kept = _KEPT_SECONDS if unix_socket is None else _KEPT_ON_SOCKET_SECONDS
        self._idle: deque[tuple[Connection, float]] = deque()
        self._open: set[Connection] = set()
        self._tidying: asyncio.TimerHandle | None = None

    def send(self, request: Request) -> "_Sending":
        """Send a request over the network."""
        return _Sending(self, request)

    async def close(self) -> None:
        """Close the connections."""
        self._idle.clear()
        if self._tidying is not None:
            self._tidying.cancel()
            self._tidying = None
        for connection in list(self._open):
            connection.abort()

    @property
    def in_use(self) -> int:
        """Connections on which a request is, or its answer is being read."""
        return len(self._open) - sum(not connection.lost for connection, _ in self._idle)

    def take(self) -> Connection | None:
        """Return an idle connection, the one used last."""
        while self._idle:
            connection, since = self._idle.pop()
            if connection.usable and connection.loop.time() - since < self._kept:
                return connection
            connection.abort()
        return None

    async def connect(self) -> Connection:
        """Return a new connection.

        Raises:
            Unreachable: there is none within :data:`CONNECT_SECONDS`; nothing was sent.
        """
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await self._address.connect()
        except TimeoutError as error:
            raise self._unreached(f"no connection within {CONNECT_SECONDS:g} s") from error
        except (OSError, UnicodeError) as error:  # a name that cannot be one
            raise self._unreached(str(error) or type(error).__name__) from error
        self._open.add(connection)
        connection.on_lost = self._open.discard
        return connection

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose answer has been read, and close one of which that is not so."""
        if not connection.reusable:
            connection.abort()
            return
        now = connection.loop.time()
        self._idle.append((connection, now))
        if self._tidying is None:
            self._tidying = connection.loop.call_at(now + self._kept, self._tidy)

    def _tidy(self) -> None:
        """Close what has been idle for long enough; the oldest are on the left."""
        self._tidying = None
        while self._idle:
            connection, since = self._idle[0]
            if connection.loop.time() - since < self._kept and not connection.lost:
                self._tidying = connection.loop.call_at(since + self._kept, self._tidy)
                return
            self._idle.popleft()
            connection.abort()

    def _unreached(self, reason: str) -> Unreachable:
        return Unreachable(
            f"{self.where} cannot be reached: {reason}", sent=False, where=self.where,
            hint="check that it runs and listens there",
        )  # fmt: skip


class _Address:
    """Where connections lead."""

    def __init__(self, base: URL, unix_socket: Path | None, resolver: Resolver | None) -> None:
        self._socket = unix_socket
        self._resolver = resolver
        self._host, self._port = base.raw_host or "localhost", base.port or 80
        self._secure = base.scheme == "https"
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self.named = shown if base.is_default_port() else f"{shown}:{self._port}"
        self._context: ssl.SSLContext | None = None
        self._found: tuple[list[str], float] = ([], 0.0)

    async def connect(self) -> Connection:
        """Return a connection to the first address that takes one.

        Raises:
            OSError: none does, or the resolver refuses.
        """
        loop = asyncio.get_running_loop()
        if self._socket is not None:
            return (await loop.create_unix_connection(lambda: Connection(loop), str(self._socket)))[1]
        tls: dict[str, Any] = {}
        if self._secure:
            self._context = self._context or ssl.create_default_context()
            tls = {"ssl": self._context, "server_hostname": self._host}
        trouble: OSError | None = None
        for address in await self._addresses(loop):
            try:
                return (await loop.create_connection(lambda: Connection(loop), address, self._port, **tls))[1]
            except OSError as error:
                trouble = error
        self._found = ([], 0.0)
        raise trouble or OSError(f"{self._host} has no address")

    async def _addresses(self, loop: asyncio.AbstractEventLoop) -> list[str]:
        if self._resolver is None or _is_literal(self._host):
            return [self._host]
        addresses, expires = self._found
        if not addresses or loop.time() >= expires:
            addresses = await self._resolver.resolve(self._host, self._port)
            self._found = (addresses, loop.time() + _NAMES_SECONDS)
        return addresses


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class _Sending(AbstractAsyncContextManager[Response]):
    """One request on its way: a context whose value is the answer."""

    __slots__ = ("_connection", "_request", "_transport", "_writing")

    def __init__(self, transport: HttpTransport, request: Request) -> None:
        self._transport = transport
        self._request = request
        self._connection: Connection | None = None
        self._writing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Response:
        deadline, where = self._request.deadline, self._transport.where
        try:
            if deadline is None:
                connection = await self._answered()
            else:
                async with until(deadline, where):
                    connection = await self._answered()
        except BaseException:
            self._leave()
            raise
        headers, body = _joined(connection.headers), _Answer(connection, where)
        return Response(connection.status, headers, body, deadline, where, connection.is_over)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave()

    async def _answered(self) -> Connection:
        """Return the connection once the answer's headers are there.

        An idle connection that the service closed before it saw the request is noticed only by using it: what is safe
        to repeat is sent once more, over a new one.
        """
        head, transport, request = _head(self._transport, self._request), self._transport, self._request
        kept = transport.take()
        connection = self._connection = kept or await transport.connect()
        try:
            await self._ask(connection, head)
        except OSError as error:
            again = kept is not None and request.method.upper() in _IDEMPOTENT and isinstance(request.body, bytes)
            if not again or connection.began:
                raise _broken(error, transport.where) from error
        else:
            return connection
        connection.abort()
        connection = self._connection = await transport.connect()
        try:
            await self._ask(connection, head)
        except OSError as error:
            raise _broken(error, transport.where) from error
        return connection

    async def _ask(self, connection: Connection, head: bytes) -> None:
        body = self._request.body
        answered = connection.begin(self._request.method.upper() == "HEAD")
        if not isinstance(body, bytes):
            writing = write_stream(connection, head, body, _length(self._request))
            self._writing = asyncio.create_task(writing, name="request-body")
        elif len(body) > _WRITTEN_AT_ONCE:
            connection.write(head)
            connection.write(body)
        else:
            connection.write(head + body)
        await answered

    def _leave(self) -> None:
        """At the end of the body the connection is kept; before it, closing it is what the service notices."""
        connection, self._connection = self._connection, None
        if self._writing is not None and not self._writing.done():
            self._writing.cancel()
            if connection is not None:
                connection.abort()
        if connection is not None:
            self._transport.give_back(connection)


class _Answer:
    """The body of an answer."""

    __slots__ = ("_connection", "_where")

    def __init__(self, connection: Connection, where: str) -> None:
        self._connection = connection
        self._where = where

    def __aiter__(self) -> "_Answer":
        return self

    async def __anext__(self) -> bytes:
        connection = self._connection
        try:
            chunk = connection.chunk() or await connection.next_chunk()
        except OSError as error:
            raise _broken(error, self._where) from error
        if chunk is None:
            raise StopAsyncIteration
        return chunk


def _head(transport: HttpTransport, request: Request) -> bytes:
    """Return the first lines of a request.

    Raises:
        ValueError: the path or a header has a character that would end it there.
    """
    headers, body, method = request.sent_headers(), request.body, request.method.upper()
    if not isinstance(body, bytes):
        if "content-length" not in headers:
            headers["transfer-encoding"] = "chunked"
    elif body or method not in _WITHOUT_LENGTH:
        headers["content-length"] = str(len(body))
    lines = [f"{method} {transport.prefix}{request.path} HTTP/1.1\r\nhost: {transport.host}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    text = "\r\n".join(lines) + "\r\n\r\n"
    ends = len(lines) + 2
    if text.count("\n") != ends or text.count("\r") != ends or "\0" in text or " " in request.path:
        raise ValueError(f"a header or the path of {request.method} {request.path[:200]!r} cannot be sent")
    return text.encode("latin-1")


def _length(request: Request) -> int | None:
    given = request.sent_headers().get("content-length")
    return None if given is None else int(given)


def _broken(error: OSError, where: str) -> Unreachable:
    reason = str(error) or type(error).__name__
    return Unreachable(f"the connection to {where} broke: {reason}", sent=True, where=where)


def _joined(pairs: list[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in pairs:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name not in HOP_BY_HOP:
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
