"""Passes one request of a client to a component and the answer back, both as streams."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from burnish.core.errors import BurnishError
from burnish.infra.asgi import Message, Receive, Send
from burnish.infra.delay import Delay
from burnish.infra.http import Request, Response

_BUFFERED_BYTES = 1 << 20
"""A body that says that it is this small is read first, so that it can be sent to another instance."""


DEADLINE_KEY = "burnish.deadline"
"""In a scope: unix time after which the client does not wait for the answer, or None."""

_NOT_ITS_OWN = frozenset(
    {
        "set-cookie", "set-cookie2", "clear-site-data", "service-worker-allowed", "strict-transport-security", "alt-svc",
        "nel", "report-to", "reporting-endpoints", "x-content-type-options", "content-security-policy",
        "content-security-policy-report-only", "refresh", "www-authenticate", "x-sendfile", "x-lighttpd-send-file",
    }
)  # fmt: skip
"""What an answer says about the whole origin, which is the platform's and not its component's; nor may it loosen ours, ask
for a password in our name, or tell a proxy before us which of its files to send (so does ``x-accel-``)."""
_SANDBOX = (b"content-security-policy", b"sandbox; default-src 'none'")
"""A page that a component answers with runs no script, and is of no origin: a browser would take it for one of ours."""
_unwatched = Delay(0.02)
"""Most answers are there before; only then somebody has to watch whether the client still is."""


class ClientGone(Exception):
    """The client hung up; nobody waits for an answer."""


async def relay(
    call: Callable[[Request], AbstractAsyncContextManager[Response]],
    scope: MutableMapping[str, Any],
    receive: Receive,
    send: Send,
) -> None:
    """Send the request of an ASGI ``scope`` by ``call`` and its answer to ``send``.

    A client that hangs up cancels the upstream: servers do not cancel an application by themselves.

    Args:
        call: sends a request to the component.
        scope: the request.
        receive: the request's body; a BurnishError that it raises (a body too large) is the answer.
        send: the client.

    Raises:
        ClientGone: the client hung up.
        BurnishError: from ``call`` or ``receive``. The response may have started.
    """
    body = _Body(receive)
    content = await _content(scope, body)
    request = Request(scope["method"], _target(scope), _headers(scope), content, scope.get(DEADLINE_KEY))
    watch = _Watch(body)
    try:
        await _pass(call, request, send)
    except asyncio.CancelledError:
        if not watch.hung_up:
            raise
        watch.current.uncancel()
        raise ClientGone from None
    except Exception:
        if body.error is not None:
            raise body.error from None
        if watch.hung_up:
            watch.current.uncancel()
            raise ClientGone from None
        raise
    finally:
        watch.stop()


async def _pass(call: Callable[[Request], AbstractAsyncContextManager[Response]], request: Request, send: Send) -> None:
    async with call(request) as response:
        headers = _of_an_answer(response.headers)
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        last = b""
        async for chunk in response.chunks():
            if response.is_over():
                last = chunk
            else:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": last, "more_body": False})


def _of_an_answer(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return the headers of a component's answer as a client gets them."""
    return [
        (name.encode("latin-1"), value.encode("latin-1"))
        for name, value in headers.items()
        if name not in _NOT_ITS_OWN and not name.startswith(("access-control-", "x-accel-"))
    ] + [_SANDBOX]


class _Watch:
    """Cancels the task that relays when the client has hung up."""

    def __init__(self, body: "_Body") -> None:
        current = asyncio.current_task()
        assert current is not None, "a relay runs in a task"
        self.current: asyncio.Task[Any] = current
        self.hung_up = False
        self._body = body
        self._task: asyncio.Task[None] | None = None
        _unwatched.start(self)

    def due(self) -> None:
        """Begin to watch."""
        self._task = asyncio.create_task(self._watch(), name="relay-watch")

    async def _watch(self) -> None:
        await self._body.gone()
        self.hung_up = True
        self.current.cancel()

    def stop(self) -> None:
        _unwatched.stop(self)
        if self._task is not None:
            self._task.cancel()


class _Body:
    """The request's body as it arrives, and the watch over the client after it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ended = False
        self._gone = False
        self._wakes: asyncio.Event | None = None
        """Of whoever waits for its end."""
        self.error: BurnishError | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body to the upstream. If the client goes, wait to be cancelled: a cut body is not an ended one."""
        async for chunk in self._chunks():
            yield chunk
        if self._gone:
            await asyncio.Event().wait()

    async def whole(self) -> bytes:
        """Return the body.

        Raises:
            ClientGone: the client hung up before its end.
        """
        first = await self._next()
        body: bytes = first.get("body", b"")
        if first["type"] == "http.request" and not first.get("more_body", False):  # nearly all of them
            self._end()
            return body
        if first["type"] == "http.disconnect":
            raise ClientGone
        parts = [body, *[chunk async for chunk in self._chunks()]]
        if self._gone:
            raise ClientGone
        return b"".join(parts)

    async def _chunks(self) -> AsyncIterator[bytes]:
        while not self._ended:
            message = await self._next()
            if message["type"] == "http.disconnect":
                self._gone = True
                self._end()
                return
            if not message.get("more_body", False):
                self._end()
            if chunk := message.get("body", b""):
                yield chunk

    async def gone(self) -> None:
        """Return once the client has hung up; begin to look when its body has ended."""
        if not self._ended:
            self._wakes = asyncio.Event()
            await self._wakes.wait()
        while not self._gone:
            self._gone = (await self._receive())["type"] == "http.disconnect"

    def _end(self) -> None:
        self._ended = True
        if self._wakes is not None:
            self._wakes.set()

    async def _next(self) -> Message:
        try:
            return await self._receive()
        except BurnishError as error:
            self.error = error
            raise


async def _content(scope: MutableMapping[str, Any], body: _Body) -> bytes | AsyncIterator[bytes]:
    """Return the body: at once if it is short, as a stream if it is long or of unknown length."""
    headers = dict(scope["headers"])
    length = headers.get(b"content-length")
    if length is None and b"transfer-encoding" not in headers:
        return await body.whole()
    if length is not None and length.isdigit() and int(length) <= _BUFFERED_BYTES:
        return await body.whole()
    return body.chunks()


def _target(scope: MutableMapping[str, Any]) -> str:
    path: bytes = scope.get("raw_path") or scope["path"].encode("utf-8")
    path = path.partition(b"?")[0]
    query: bytes = scope.get("query_string", b"")
    return (path + (b"?" + query if query else b"")).decode("latin-1")


def _headers(scope: MutableMapping[str, Any]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
