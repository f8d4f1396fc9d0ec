"""One connection to an HTTP/1.1 service, and what comes back on it; httptools parses, the event loop holds back."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import cast

import httptools

_BUFFERED_BYTES = 128 << 10
"""Of an answer's body until the service is held back."""
_HEADER_BYTES = 64 << 10
_TOO_LARGE = f"the headers of its answer are larger than {_HEADER_BYTES} bytes"


class Broken(OSError):
    """What came is no answer, or ended before its end."""


class Connection(asyncio.Protocol):
    """One connection, with at most one request on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.lost = False
        self.on_lost: Callable[[Connection], None] = _nobody
        self.began = False
        """Whether anything of the answer has come."""
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._busy = False
        self._ended = True
        """The answer is whole."""
        self._keeps = True
        self._bare = False
        """The answer has no body, whatever its headers say: it is one to HEAD."""
        self._until_closed = False
        """The answer ends with the connection."""
        self._error: OSError | None = None
        self._answered: asyncio.Future[None] | None = None
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._head_size = self._fed = 0
        self._paused = False
        self._reading: asyncio.Future[None] | None = None
        self._full: asyncio.Future[None] | None = None

    # What a request does with it.

    def begin(self, bare: bool) -> "asyncio.Future[None]":
        """Begin a request; the future is done when the answer's headers are there."""
        if self.lost:
            raise self._error or Broken("it was closed")
        self._busy, self._ended, self._keeps, self._bare, self._until_closed = True, False, True, bare, False
        self.began, self.status, self.headers = False, 0, []
        self._head_size = self._fed = 0
        self._answered = self.loop.create_future()
        return self._answered

    def write(self, data: bytes) -> None:
        """Write, without waiting."""
        if self._transport is not None and not self.lost:
            self._transport.write(data)

    @property
    def usable(self) -> bool:
        """Whether it is open, as far as anybody here knows."""
        return not self.lost and self._transport is not None and not self._transport.is_closing()

    async def drained(self) -> None:
        """Wait until the service takes more."""
        while self._full is not None:
            await self._full

    def chunk(self) -> bytes | None:
        """Return what has come of the body, None if nothing is waiting."""
        if not self._chunks:
            return None
        chunk = self._chunks.popleft()
        self._size -= len(chunk)
        if self._paused and self._size <= _BUFFERED_BYTES // 2 and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return chunk

    async def next_chunk(self) -> bytes | None:
        """Return the next part of the body, None at its end.

        Raises:
            OSError: it broke off.
        """
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._reading = self.loop.create_future()
            try:
                await self._reading
            finally:
                self._reading = None
        return self.chunk()

    def is_over(self) -> bool:
        """Tell whether nothing more of the body is to come."""
        return self._ended and not self._chunks and self._error is None

    @property
    def reusable(self) -> bool:
        """Whether another request may follow: the answer was read to its end, and the service keeps the connection."""
        if not (self._keeps and self.is_over()) or self.lost or self._full is not None:
            return False
        self._busy = False
        return True

    def abort(self) -> None:
        """Close it at once."""
        if self._error is None and not self._ended:
            self._error = Broken("it was closed")
        self._busy = False
        self.lost = True
        if self._transport is not None:
            self._transport.abort()

    def fail(self, error: OSError) -> None:
        """Give the request up."""
        if self._error is None and not self._ended:
            self._error = error
        self._keeps = False
        self._wake()
        if self._transport is not None:
            self._transport.abort()

    def _wake(self) -> None:
        answered, self._answered = self._answered, None
        if answered is not None and not answered.done():
            if self._error is not None:
                answered.set_exception(self._error)
            else:
                answered.set_result(None)
        if self._reading is not None and not self._reading.done():
            self._reading.set_result(None)

    # What the event loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if not self._busy:  # nobody asked: what follows on it cannot be trusted
            self.abort()
            return
        self.began = True
        self._fed += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.fail(Broken("it changed to another protocol"))
        except httptools.HttpParserError as error:
            self.fail(Broken(f"what it answered is no HTTP/1.1: {error.__context__ or error}"))
        if self._answered is not None and self._fed > _HEADER_BYTES:  # the parser holds an unfinished header back
            self.fail(Broken(_TOO_LARGE))

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self.lost = True
        self.on_lost(self)
        if not self._ended:
            if self._until_closed and exc is None and self._error is None:
                self._ended = True
            else:
                self._error = self._error or (exc if isinstance(exc, OSError) else Broken(str(exc or "it was closed")))
        self._wake()
        self.resume_writing()

    def pause_writing(self) -> None:
        """Hold back who writes: the service does not keep up."""
        if self._full is None:
            self._full = self.loop.create_future()

    def resume_writing(self) -> None:
        """Let it go on."""
        full, self._full = self._full, None
        if full is not None and not full.done():
            full.set_result(None)

    # What the parser finds.

    def on_message_begin(self) -> None:
        """Begin an answer; there is one at most for a request."""
        if self._ended:
            self._keeps = False
            raise Broken("it answered twice")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        if self._answered is not None:  # else: a trailer
            self.headers.append((name.lower(), value))
            self._head_size += len(name) + len(value) + 4
            if self._head_size > _HEADER_BYTES:
                raise Broken(_TOO_LARGE)

    def on_headers_complete(self) -> None:
        """Have the answer begin, unless it is an interim one."""
        status = self._parser.get_status_code()
        if status < 200:
            if status == 101:
                raise Broken("it changed to another protocol")
            self.headers.clear()
            return
        self.status = status
        self._keeps = bool(self._parser.should_keep_alive())
        if self._bare:
            self._ended, self._keeps = True, False  # the parser would wait for a body
        elif status not in (204, 304):
            self._until_closed = not any(_tells_its_end(name, value) for name, value in self.headers)
        self._wake()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        if self._ended:
            return
        self._chunks.append(body)
        self._size += len(body)
        if self._size > _BUFFERED_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        if self._reading is not None and not self._reading.done():
            self._reading.set_result(None)

    def on_message_complete(self) -> None:
        """End the answer."""
        if not self.status:  # of an interim answer (1xx)
            return
        self._ended = True
        if self._reading is not None and not self._reading.done():
            self._reading.set_result(None)


def _tells_its_end(name: bytes, value: bytes) -> bool:
    return name == b"content-length" or (name == b"transfer-encoding" and value.lower().endswith(b"chunked"))


def _nobody(connection: Connection) -> None:
    """Nobody has to be told."""


async def write_stream(connection: Connection, head: bytes, body: AsyncIterator[bytes], length: int | None) -> None:
    """Write a request with a streamed body: as it is where its length was said, else in HTTP's chunks.

    The head goes with the first of the body: of a body that is refused before, the service hears nothing. An error of
    the body breaks the connection.
    """
    sent = 0
    try:
        async for chunk in body:
            if not chunk:
                continue
            sent += len(chunk)
            if length is not None and sent > length:
                break
            connection.write(head + (chunk if length is not None else b"%x\r\n%b\r\n" % (len(chunk), chunk)))
            head = b""
            await connection.drained()
        if length is not None and sent != length:
            connection.fail(Broken("the request's body is not as long as its content-length"))
        else:
            connection.write(head + (b"0\r\n\r\n" if length is None else b""))
    except Exception as error:
        broken = Broken(f"the request's body broke off: {error}")
        broken.__cause__ = error
        connection.fail(broken)
