"""The connection under the gateway: uvicorn's HTTP/1.1 over httptools, with the bounds and refusals that it lacks.

The parser refuses by itself what smuggles requests past a proxy: two lengths, a length beside ``Transfer-Encoding``,
folded headers, bare line feeds. Here are refused besides: headers without end or measure (431, 408), two hosts or none,
a target for another host, encodings nobody decodes, and trailers, which could pass for headers. A connection on which
something unfit came is closed: what follows on it cannot be trusted.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Iterable
from functools import lru_cache, partial
from typing import Any, cast

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HEADER_RE, STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from burnish.infra import signals
from burnish.infra.asgi import Send

log = logging.getLogger(__name__)

HEADER_BYTES = 64 << 10
HEADER_COUNT = 200
HEADER_SECONDS = 20.0
"""From the first byte of a request to the end of its headers; on a new connection, also until that byte."""
PIPELINED = 8
"""Requests of one connection that wait while another is answered. Clients hardly send one; each takes some kilobytes."""
DISCARDED_BYTES = 64 << 20
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""Beside CR and LF; a tab is allowed."""
LINGER_SECONDS = 5.0
"""A body whose answer has been given is read on for so long and so far: closing at once would lose the answer."""


class _Refused(Exception):
    """Raised out of the parser's callbacks."""


class _HeadAndBody:
    """Where one answer is written: its head goes with the first of its body if that follows at once, else before it.

    A write is a system call of its own, and with what it wakes up one of the dearest parts of a short answer.
    """

    __slots__ = ("_began", "_head", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._began = False
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        if not self._began:
            self._began, self._head = True, data
            self._loop.call_soon(self.flush)
        elif self._head is None:
            self._transport.write(data)
        else:
            head, self._head = self._head, None
            self._transport.writelines((head, data))

    def flush(self) -> None:
        head, self._head = self._head, None
        if head is not None and not self._transport.is_closing():
            self._transport.write(head)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self.flush()
        self._transport.close()


async def _send(cycle: RequestResponseCycle, message: Any) -> None:
    """Write a message of the app; the head of an answer is looked through as a whole: one by one costs three times as much."""
    if cycle.response_started or message["type"] != "http.response.start" or cycle.flow.write_paused:
        await cycle.send(message)
    elif not cycle.disconnected:
        head = _head(cycle, message["status"], message.get("headers", ()))
        cycle.response_started, cycle.waiting_for_100_continue = True, False
        cycle.transport.write(head)


def _head(cycle: RequestResponseCycle, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the head of an answer, and note how it says that its body ends.

    Raises:
        RuntimeError: a name or a value has a character that would end it there.
    """
    lines, closes = [STATUS_LINE[status]], False
    for raw_name, value in headers:
        name = _name(raw_name)
        if name == b"content-length":
            if cycle.chunked_encoding is None:
                cycle.expected_content_length, cycle.chunked_encoding = int(value), False
        elif name == b"transfer-encoding":
            if value.lower() == b"chunked":
                cycle.expected_content_length, cycle.chunked_encoding = 0, True
        elif name == b"connection":
            closes = closes or b"close" in [token.strip() for token in value.lower().split(b",")]
        lines.append(b"%b: %b\r\n" % (name, value))
    if closes:
        cycle.keep_alive = False
    elif not cycle.keep_alive:
        lines.append(b"connection: close\r\n")
    if cycle.chunked_encoding is None and cycle.scope["method"] != "HEAD" and status not in (204, 304):
        cycle.chunked_encoding = True
        lines.append(b"transfer-encoding: chunked\r\n")
    head = b"".join(lines)
    if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines) or _CONTROL.search(head):
        raise RuntimeError("a header of the answer has a character that no header may have")
    return head + b"\r\n"


def _answered(app: Any, write: Send, scope: Any, receive: Any, send: Any) -> Awaitable[None]:
    """Call the app with our way of writing in the place of the server's."""
    answered: Awaitable[None] = app(scope, receive, write)
    return answered


@lru_cache(1024)
def _name(name: bytes) -> bytes:
    if HEADER_RE.search(name):
        raise RuntimeError(f"the answer has a header named {name!r}, which is no name")
    return name.lower()


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    _header_bytes = 0
    _in_headers = False
    _ended_one = False
    """Whether the bytes being parsed ended a request: then nobody knows how many of them are the next one's headers."""
    _fed = 0
    """Bytes of headers that are not complete; 0 between requests."""
    _discarded = 0
    _slow: asyncio.TimerHandle | None = None
    _lingering: asyncio.TimerHandle | None = None
    _idle_since: float | None = None
    """Since when it waits for another request."""
    _idle_look: asyncio.TimerHandle | None = None
    _current: RequestResponseCycle | None = None
    """The request that is being answered; ``cycle`` is the one that came last, which may wait behind it."""
    _refusal: tuple[int, str, str] = (400, "malformed_request", "what came is no HTTP/1.1 request")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; the first headers must come in time."""
        super().connection_made(transport)
        self._slow = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_waiting()
        for timer in (self._lingering, self._idle_look):
            if timer is not None:
                timer.cancel()
        # uvicorn tells the request that came last alone, not the one that is being answered before it.
        if self._current is not None and not self._current.response_complete:
            self._current.disconnected = True
            self._current.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and refuse what is no fit request."""
        self._idle_since = None
        self._ended_one = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse()
            return
        except httptools.HttpParserUpgrade:
            # An offer (h2c, websocket) that is not taken up. What would follow it is not HTTP/1.1, so it is the last.
            self.cycle.keep_alive = False
            return
        if self._in_headers:
            # The parser holds an unfinished header back: what it was given counts.
            self._fed += 1 if self._ended_one else len(data)
            if self._fed > HEADER_BYTES:
                self._too_large()
                self._refuse()
            elif self._slow is None:
                self._slow = self.loop.call_later(HEADER_SECONDS, self._too_slow)
        elif self.cycle is not None and self.cycle.response_complete and not self.cycle.more_body:
            self._idle()  # empty lines between requests are no request

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._in_headers, self._header_bytes, self._fed = True, 0, 0

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        super().on_url(url)
        self._weigh(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. Behind a body come trailers: nobody here reads them, and they must not pass for headers."""
        if not self._in_headers:
            return
        super().on_header(name, value)
        self._weigh(len(name) + len(value) + 4)
        if len(self.headers) > HEADER_COUNT:
            self._too_large()
            raise _Refused

    def on_headers_complete(self) -> None:
        """Check the headers together and start to answer."""
        self._in_headers, self._fed = False, 0
        self._stop_waiting()
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            detail = f"the request is HTTP/{version}; what is spoken here is HTTP/1.1"
            self._refusal = (505, "http_version_not_supported", detail)
            raise _Refused
        problem = _problem(self.url, self.headers, version)
        if problem is not None:
            self._refusal = (400, "malformed_request", problem)
            raise _Refused
        if len(self.pipeline) >= PIPELINED:
            self._refusal = (400, "too_many_requests_at_once", f"more than {PIPELINED} requests wait on the connection")
            raise _Refused
        super().on_headers_complete()
        if self.pipeline:
            self.flow.resume_reading()  # paused by uvicorn; but then nobody would notice a client that hangs up

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._current = cycle
        cycle.transport = cast(asyncio.Transport, _HeadAndBody(self.transport, self.loop))
        super()._start_asgi_task(cycle, partial(_answered, app, partial(_send, cycle)))

    def on_message_complete(self) -> None:
        """End a request; the next may follow."""
        super().on_message_complete()
        self._ended_one, self._discarded = True, 0
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
            self._idle()

    def on_response_complete(self) -> None:
        """End an answer. The rest of its request's body, if it has not come, is given a little time."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._idle()
        if self.cycle.response_complete and self.cycle.more_body and not self.transport.is_closing():
            self._lingering = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        if self.cycle.response_complete:
            self._discarded += len(body)
            if self._discarded > DISCARDED_BYTES:
                self.transport.close()
        super().on_body(body)

    def _idle(self) -> None:
        """Wait for the next request. One timer sees to it: one a request would cost more than what it is for."""
        self._idle_since = self.loop.time()
        if self._idle_look is None:
            self._idle_look = self.loop.call_later(self.timeout_keep_alive, self._look_idle)

    def _look_idle(self) -> None:
        self._idle_look = None
        if self._idle_since is None:
            return
        until = self._idle_since + self.timeout_keep_alive
        if self.loop.time() < until:
            self._idle_look = self.loop.call_at(until, self._look_idle)
        else:
            self.timeout_keep_alive_handler()

    def _should_upgrade(self) -> bool:
        return False

    def _weigh(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > HEADER_BYTES:
            self._too_large()
            raise _Refused

    def _too_large(self) -> None:
        self._refusal = (
            431, "headers_too_large", f"the request's headers are larger than {HEADER_BYTES} bytes or more than {HEADER_COUNT}",
        )  # fmt: skip

    def _too_slow(self) -> None:
        self._slow = None
        if self._fed:
            self._refusal = (408, "headers_too_slow", f"the headers were not complete after {HEADER_SECONDS:.0f} s")
            self._refuse()
        elif not self.transport.is_closing():
            self.transport.close()

    def _stop_waiting(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _refuse(self) -> None:
        """Say why, unless an answer is on its way, which that would spoil; then close."""
        self._stop_waiting()
        status, code, detail = self._refusal
        signals.REFUSED.labels(code).inc()
        log.info("a connection was refused: %s", detail)
        if self.transport.is_closing():
            return
        unspoilt = self.cycle is None or self.cycle.response_complete or not self.cycle.response_started
        if unspoilt and not self.pipeline:
            if self.cycle is not None:
                self.cycle.disconnected = True  # what its app still says comes too late
            body = orjson.dumps({
                "type": f"urn:burnish:error:{code}", "title": "the request was not read", "status": status,
                "detail": detail, "code": code, "hint": "look at what the client sends", "retryable": False,
            })  # fmt: skip
            head = b"content-type: application/problem+json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(
                body
            )
            self.transport.write(STATUS_LINE[status] + head + body)
        with contextlib.suppress(OSError, RuntimeError):
            self.transport.close()


def _problem(url: bytes, headers: list[tuple[bytes, bytes]], version: str) -> str | None:
    """Return what is wrong with a request's headers together."""
    hosts = 0
    host = b""
    for name, value in headers:
        if name == b"host":
            hosts, host = hosts + 1, value
        elif name == b"transfer-encoding" and (value.lower() != b"chunked" or version == "1.0"):
            return "the transfer encoding is not `chunked`"
    if hosts > 1 or (hosts == 0 and version != "1.0"):
        return "the request names no host, or several"
    if not url.startswith(b"/") and url != b"*" and not _is_for(url, host):
        return "the request's target is for another host than its Host header"
    return None


def _is_for(url: bytes, host: bytes) -> bool:
    """Tell whether a target in absolute form is one of ours."""
    scheme, _, rest = url.partition(b"://")
    return scheme.lower() in (b"http", b"https") and rest.partition(b"/")[0].partition(b"?")[0].lower() == host.lower()
