"""One call of an ASGI app in this process: what a server does between a socket and an app, without the socket."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

RawHeaders = list[tuple[bytes, bytes]]

_CHUNKS = 8
_GRACE_SECONDS = 0.2

_grim: set[asyncio.Task[None]] = set()


class AsgiFailed(Exception):
    """The app ended before its answer did."""


class Disconnected(OSError):
    """What an app gets that goes on sending to somebody who has left."""


class AsgiCall:
    """Bridges one request to ``app(scope, receive, send)``.

    The answer's chunks pass through a queue of a few, so that an app that sends faster than the caller reads waits.
    """

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self._request_body = body
        self._request_ended = False
        self._start: asyncio.Future[tuple[int, RawHeaders]] = asyncio.get_running_loop().create_future()
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(_CHUNKS)
        self._space = asyncio.Event()
        self._answered = False
        self._read_all = False
        self._gone = asyncio.Event()
        self._failure: BaseException | None = None

    async def run(self, app: ASGIApp, scope: MutableMapping[str, Any]) -> None:
        """Call the app; its exceptions become the answer (500 before it started, a broken body after)."""
        try:
            await app(scope, self._receive, self._send)
            if not self._answered and not self._gone.is_set():
                raise AsgiFailed("the app ended without an answer")
        except asyncio.CancelledError as error:
            self._failure = error
            raise
        except Exception as error:
            self._failure = error
            if not self._gone.is_set() and not self._answered:
                log.exception("%s %s failed", scope["method"], scope["path"], exc_info=error)
        finally:
            await self._end()

    async def _end(self) -> None:
        if self._gone.is_set() or self._answered:
            return
        if not self._start.done():
            text = b"Internal Server Error"
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(text)).encode())]
            self._start.set_result((500, headers))
            self._failure = None
            self._chunks.put_nowait(text)
        with suppress(asyncio.CancelledError, Disconnected):
            await self._put(None)

    async def _receive(self) -> Message:
        if not self._request_ended:
            chunk = await anext(self._request_body, None)
            if chunk is not None:
                return {"type": "http.request", "body": chunk, "more_body": True}
            self._request_ended = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._gone.is_set():
            raise Disconnected("the caller has left")
        if message["type"] == "http.response.start":
            if not self._start.done():
                self._start.set_result((int(message["status"]), list(message.get("headers", ()))))
        elif message["type"] == "http.response.body" and not self._answered:
            if not self._start.done():
                raise RuntimeError("a body before http.response.start")
            if body := message.get("body", b""):
                await self._put(bytes(body))
            if not message.get("more_body", False):
                self._answered = True
                await self._put(None)

    async def _put(self, chunk: bytes | None) -> None:
        """Queue a chunk; wakes up with Disconnected when the caller leaves meanwhile."""
        while self._chunks.full():
            self._space.clear()
            await self._space.wait()
            if self._gone.is_set():
                raise Disconnected("the caller has left")
        self._chunks.put_nowait(chunk)

    async def started(self) -> tuple[int, RawHeaders]:
        """Return status and headers once the app sent them."""
        return await asyncio.shield(self._start)

    async def next_chunk(self) -> bytes | None:
        """Return the next chunk, or None at the end.

        Raises:
            AsgiFailed: the app failed before the end.
        """
        if self._read_all:
            return None
        chunk = await self._chunks.get()
        self._space.set()
        if chunk is None:
            self._read_all = True
            if self._failure is not None and not self._answered:
                raise AsgiFailed(str(self._failure)) from self._failure
        return chunk

    def disconnect(self, task: asyncio.Task[None]) -> None:
        """Tell the app that its caller has left; cancel it if it does not end by itself."""
        self._gone.set()
        self._space.set()
        if not task.done():
            reaper = asyncio.create_task(_cancel_after_grace(task))
            _grim.add(reaper)
            reaper.add_done_callback(_grim.discard)


async def _cancel_after_grace(task: asyncio.Task[None]) -> None:
    done, _ = await asyncio.wait({task}, timeout=_GRACE_SECONDS)
    if not done:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
