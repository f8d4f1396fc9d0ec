"""What every HTTP transport promises, as one suite.

Serve :class:`ContractApp` behind the transport, then ``await check(transport, app)`` for each of :data:`CONTRACT`.
Plain asserts; no pytest needed.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from burnish.core.errors import DeadlineExceeded, UpstreamFailed
from burnish.core.protocol import DEADLINE_HEADER
from burnish.infra.asgi import Message, Receive, Send
from burnish.infra.http import Request, Transport, Unreachable

Scope = Message
_WAIT = 10.0


class ContractApp:
    """The service that the suite calls. Its events are seen by the suite, so it must run in the same process."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.waiting = asyncio.Event()
        """Set when a request that waits has reached the app."""
        self.left = asyncio.Event()
        """Set when the app learns that its caller has left."""
        self.sent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; the path picks the behaviour."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        behaviours: dict[str, Callable[[Scope, Receive, Send], Awaitable[None]]] = {
            "/echo": self._echo, "/upload": self._upload, "/stream": self._stream, "/wait": self._wait,
            "/flood": self._flood, "/crash": self._crash, "/break": self._break, "/early": self._early,
        }  # fmt: skip
        await behaviours[scope["path"].partition(" ")[0]](scope, receive, send)

    async def _echo(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b"".join([chunk async for chunk in _body(receive)])
        answer = {
            "method": scope["method"], "path": scope["path"], "query": scope["query_string"].decode(),
            "headers": {name.decode(): value.decode("latin-1") for name, value in scope["headers"]},
            "body": body.decode("latin-1"),
        }  # fmt: skip
        await _start(send, 201, (b"X-Mixed-Case", b"Kept"), (b"content-type", b"application/json"))
        await _end(send, json.dumps(answer).encode())

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer each chunk of the request's body with its size, while the body is still coming."""
        await _start(send, 200)
        async for chunk in _body(receive):
            if chunk:
                await send({"type": "http.response.body", "body": f"{len(chunk)}\n".encode(), "more_body": True})
        await _end(send)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _start(send, 200, (b"content-type", b"text/event-stream"))
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await self.go_on.wait()
        await _end(send, b"second")

    async def _wait(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer nothing (or one chunk, with a query) until the caller has left."""
        if scope["query_string"]:
            await _start(send, 200)
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
        try:
            self.waiting.set()
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            self.left.set()

    async def _flood(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _start(send, 200)
        for _ in range(int(scope["query_string"])):
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            self.sent += 65536
        await _end(send)

    async def _crash(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("this app crashes, as the suite wants it to")

    async def _break(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _start(send, 200)
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        raise RuntimeError("this app breaks off, as the suite wants it to")

    async def _early(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _start(send, 204)
        await _end(send)


async def _lifespan(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
    await send({"type": "lifespan.shutdown.complete"})


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def _start(send: Send, status: int, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def _end(send: Send, body: bytes = b"") -> None:
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def check_request_and_answer_are_whole(transport: Transport, app: ContractApp) -> None:
    """Method, path, query, headers and body arrive; header names are lower-case."""
    request = Request("POST", "/echo%20a/b?x=1&y=%26", {"X-Custom": "Value", "Connection": "close"}, b"body")
    async with transport.send(request) as response:
        assert response.status == 201
        assert response.headers["x-mixed-case"] == "Kept"
        seen = json.loads(await response.read())
    assert (seen["method"], seen["path"], seen["query"]) == ("POST", "/echo a/b", "x=1&y=%26")
    assert seen["body"] == "body"
    assert seen["headers"]["x-custom"] == "Value"
    assert seen["headers"]["content-length"] == "4"


async def check_empty_answer(transport: Transport, app: ContractApp) -> None:
    """An answer without a body is an empty body."""
    async with transport.send(Request("GET", "/early")) as response:
        assert response.status == 204
        assert await response.read() == b""


async def check_first_event_before_the_end(transport: Transport, app: ContractApp) -> None:
    """The first chunk is there while the app still holds the second back."""
    async with asyncio.timeout(_WAIT), transport.send(Request("GET", "/stream")) as response:
        chunks = response.chunks()
        assert await anext(chunks) == b"first"
        app.go_on.set()
        assert b"".join([chunk async for chunk in chunks]) == b"second"


async def check_request_body_streams(transport: Transport, app: ContractApp) -> None:
    """A chunk of the request reaches the app before the next one exists."""
    answered = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"12345"
        await answered.wait()
        yield b"123"

    async with asyncio.timeout(_WAIT), transport.send(Request("POST", "/upload", body=body())) as response:
        chunks = response.chunks()
        assert await anext(chunks) == b"5\n"
        answered.set()
        assert b"".join([chunk async for chunk in chunks]) == b"3\n"


async def check_leaving_cancels_before_headers(transport: Transport, app: ContractApp) -> None:
    """Cancelling the task that waits for the headers reaches the app."""

    async def call() -> None:
        async with transport.send(Request("GET", "/wait")):
            raise AssertionError("there is no answer")

    task = asyncio.create_task(call())
    await asyncio.wait_for(app.waiting.wait(), _WAIT)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    await asyncio.wait_for(app.left.wait(), _WAIT)


async def check_leaving_cancels_in_the_body(transport: Transport, app: ContractApp) -> None:
    """Leaving the context before the end reaches the app."""
    async with transport.send(Request("GET", "/wait?first")) as response:
        assert await anext(response.chunks()) == b"first"
        assert not app.left.is_set()
    await asyncio.wait_for(app.left.wait(), _WAIT)


async def check_deadline_before_headers(transport: Transport, app: ContractApp) -> None:
    """The deadline ends the wait for headers, reaches the app as a header and cancels it."""
    started = time.monotonic()
    try:
        async with transport.send(Request("GET", "/wait", deadline=time.time() + 1.0)):
            raise AssertionError("there is no answer")
    except DeadlineExceeded:
        assert 0.5 < time.monotonic() - started < _WAIT / 2
    await asyncio.wait_for(app.left.wait(), _WAIT)
    deadline = time.time() + 60
    async with transport.send(Request("GET", "/echo", deadline=deadline)) as response:
        seen = json.loads(await response.read())
    assert abs(float(seen["headers"][DEADLINE_HEADER]) - deadline) < 0.01


async def check_deadline_in_the_body(transport: Transport, app: ContractApp) -> None:
    """The deadline ends the wait for the next chunk."""
    async with transport.send(Request("GET", "/wait?first", deadline=time.time() + 0.4)) as response:
        chunks = response.chunks()
        assert await anext(chunks) == b"first"
        try:
            await anext(chunks)
            raise AssertionError("there is no second chunk")
        except DeadlineExceeded:
            pass
    await asyncio.wait_for(app.left.wait(), _WAIT)


async def check_big_bodies(transport: Transport, app: ContractApp) -> None:
    """Eight megabytes go there and back, and an answer over the limit is refused."""
    body = bytes(range(256)) * (8 << 12)
    async with transport.send(Request("POST", "/echo", body=body)) as response:
        assert json.loads(await response.read())["body"].encode("latin-1") == body
    try:
        async with transport.send(Request("GET", "/flood?10")) as response:
            await response.read(limit=65536)
        raise AssertionError("the limit did not hold")
    except UpstreamFailed:
        pass


async def check_slow_reader_holds_the_sender_back(transport: Transport, app: ContractApp) -> None:
    """A reader that does not read keeps the app from sending without bound."""
    async with transport.send(Request("GET", "/flood?1024")) as response:
        chunks = response.chunks()
        size = len(await anext(chunks))
        before = -1
        while before != app.sent:
            before = app.sent
            await asyncio.sleep(0.2)
        assert app.sent < 32 << 20
        async for chunk in chunks:
            size += len(chunk)
        assert size == 64 << 20


async def check_crash_is_a_500(transport: Transport, app: ContractApp) -> None:
    """An app that fails before it answers is a 500, as from any server."""
    async with transport.send(Request("GET", "/crash")) as response:
        assert response.status == 500
        await response.read()


async def check_broken_answer_is_an_error(transport: Transport, app: ContractApp) -> None:
    """An answer that breaks off is never taken for a whole one."""
    sent = None
    async with transport.send(Request("GET", "/break")) as response:
        try:
            await response.read()
        except Unreachable as error:
            sent = error.sent
    assert sent is True, "half an answer passed for a whole one"


CONTRACT: tuple[Callable[[Transport, ContractApp], Awaitable[None]], ...] = (
    check_request_and_answer_are_whole,
    check_empty_answer,
    check_first_event_before_the_end,
    check_request_body_streams,
    check_leaving_cancels_before_headers,
    check_leaving_cancels_in_the_body,
    check_deadline_before_headers,
    check_deadline_in_the_body,
    check_big_bodies,
    check_slow_reader_holds_the_sender_back,
    check_crash_is_a_500,
    check_broken_answer_is_an_error,
)
