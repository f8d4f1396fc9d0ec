"""A gateway before a component in a server of its own, for tests of what passes between them."""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from burnish.core.configuration import Configuration, GatewayConfiguration
from burnish.core.errors import Unauthenticated
from burnish.core.settings import Settings
from burnish.infra.asgi import Message, Receive, Send
from burnish.infra.http import Request as OutgoingRequest
from burnish.infra.http import Response
from burnish.infra.http_client import HttpTransport
from burnish.platform.gateway import Gateway, HttpProtocol
from burnish.platform.gateway.app import NotesRelayed
from burnish.platform.gateway.checks import Pace
from burnish.platform.gateway.limits import Limiter
from burnish.platform.identity import Principal
from burnish.platform.integrator import Integrator
from burnish.platform.jobs.component_app import install_problems
from burnish.platform.openai_api import OpenAIFace

ENGINEER = Principal("user_1", "red", frozenset({"engineer"}), credential="key_1")
VIEWER = Principal("user_2", "red", frozenset({"viewer"}), credential="key_2")
KEYS = {"sk-one": ENGINEER, "sk-two": VIEWER}
ONE = {"authorization": "Bearer sk-one"}
TWO = {"authorization": "Bearer sk-two"}
ECHO = "/platform/datasets/x/echo"


class Component:
    """An ASGI app that does what a path says, and counts what runs in it.

    ``.../echo`` tells what it got; ``.../stream`` never ends; ``.../silent`` says nothing; ``.../stall`` says one thing
    and then nothing; ``.../big/N`` answers N bytes, ``.../big-chunked/N`` without saying so; ``.../page`` is a page with
    the headers of ``said``; else the body is counted.
    """

    def __init__(self) -> None:
        self.running = 0
        self.begun = 0
        self.stored: list[int] = []
        self.got: list[dict[str, str]] = []
        self.said: list[tuple[bytes, bytes]] = []

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.running += 1
        self.begun += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            self.running -= 1

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        self.got.append(headers)
        parts: list[str] = ["", *str(scope["path"]).split("/")]
        what, amount = parts[-2:]
        if amount == "echo":
            await _json(send, {"headers": headers, "body": (await _read(receive) or b"").decode("latin-1")})
        elif amount == "page":
            await send({"type": "http.response.start", "status": 200, "headers": self.said})
            await send({"type": "http.response.body", "body": b"<script>fetch('/platform/keys')</script>"})
        elif amount == "silent":
            await _gone(receive)
        elif amount in ("stream", "stall"):
            await self._stream(receive, send, endless=amount == "stream")
        elif what.startswith("big"):
            length = [] if what == "big-chunked" else [(b"content-length", amount.encode())]
            await send({"type": "http.response.start", "status": 200, "headers": length})
            await send({"type": "http.response.body", "body": b"x" * int(amount)})
        else:
            body = await _read(receive)
            if body is not None:
                self.stored.append(len(body))
                await _json(send, {"bytes": len(body)})

    async def _stream(self, receive: Receive, send: Send, *, endless: bool) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await _read(receive)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: 0\n\n", "more_body": True})
        leaving = asyncio.create_task(_gone(receive))
        for number in itertools.count(1):
            done, _ = await asyncio.wait({leaving}, timeout=0.02)
            if done:
                return
            if endless:
                await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})


async def _read(receive: Receive) -> bytes | None:
    """Return the body, None if the client left before its end."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _json(send: Send, content: Any) -> None:
    answer = JSONResponse(content)
    await send({"type": "http.response.start", "status": 200, "headers": answer.raw_headers})
    await send({"type": "http.response.body", "body": answer.body})


class Keys:
    """Knows a few keys; what identity does, without a database."""

    def __init__(self, keys: Mapping[str, Principal]) -> None:
        self.keys = dict(keys)

    async def authenticate(
        self, headers: Mapping[str, str], *, method: str, unknown: Callable[[], Awaitable[None]] | None = None
    ) -> Principal:
        shown = headers.get("authorization")
        found = self.keys.get((shown or "").removeprefix("Bearer "))
        if found is None:
            if shown is not None and unknown is not None:
                await unknown()
            raise Unauthenticated("no such key")
        return found


class _Way:
    """Stands for the integrator: one instance, over the network."""

    def __init__(self, url: str) -> None:
        self.transport = HttpTransport(url)
        self.preferred: list[str | None] = []

    def route_of(self, path: str) -> str | None:
        return "data_management" if path.startswith("/platform/datasets") else None

    @asynccontextmanager
    async def send(
        self, component_type: str, request: OutgoingRequest, principal: Principal, *, prefer: str | None = None
    ) -> AsyncIterator[Response]:
        self.preferred.append(prefer)
        async with self.transport.send(request) as response:
            yield response


class Stand:
    """A gateway, what stands before and behind it, and its configuration, to be changed."""

    def __init__(self, url: str, gateway: Gateway, component: Component, way: Any, client: httpx.AsyncClient) -> None:
        self.url, self.gateway, self.component, self.way, self.client = url, gateway, component, way, client
        self.configuration = Configuration()

    def configure(self, **gateway: Any) -> None:
        """Change the gateway's section; the next request comes under it."""
        self.configuration = Configuration(gateway=GatewayConfiguration.model_validate(gateway))

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """Serve an app as the CLI does, on a free port of 127.0.0.1; gives its URL."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, lifespan="off", log_config=None, timeout_graceful_shutdown=1,
        http=HttpProtocol, proxy_headers=False, access_log=False, backlog=2048,
    )  # fmt: skip
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


def _platform() -> FastAPI:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    install_problems(app)
    app.state.ended = 0

    @app.get("/platform/things")
    async def things(request: Request) -> dict[str, Any]:
        return {"headers": dict(request.headers)}

    @app.get("/platform/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/platform/auth/exchange")
    async def exchange(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @app.post("/platform/workflows/run")
    async def run(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @app.get("/platform/slow/{seconds}")
    async def slow(seconds: float) -> str:
        await asyncio.sleep(seconds)
        app.state.ended += 1
        return "late"

    return app


@asynccontextmanager
async def gateway_stand(
    *, keys: Mapping[str, Principal] | None = None, limits: Limiter | None = None, pace: Pace | None = None,
    protect: Callable[[Gateway], Any] = lambda gateway: gateway, relayed: NotesRelayed | None = None,
    upstream: str | None = None,
) -> AsyncIterator[Stand]:  # fmt: skip
    """Run a component, a gateway before it, and a client. Without ``keys`` authentication is off.

    ``upstream``: what the gateway passes requests to in the place of the component.
    """
    component = Component()
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    async with served(component) as behind:
        way = _Way(upstream or behind)
        integrator = cast(Integrator, way)
        platform = _platform()
        stand: Stand
        gateway = Gateway(
            platform, OpenAIFace(integrator), integrator, Settings(auth="off" if keys is None else "on"),
            authenticator=None if keys is None else Keys(keys), configuration=lambda: stand.configuration,
            limits=limits, pace=pace, relayed=relayed,
        )  # fmt: skip
        try:
            async with served(protect(gateway)) as url, httpx.AsyncClient(base_url=url, timeout=20) as client:
                stand = Stand(url, gateway, component, way, client)
                stand.way.platform = platform
                yield stand
        finally:
            await way.transport.close()


async def slowly(stand: Stand, places: int) -> AsyncIterator[bytes]:
    """An upload that ends when the test has changed the number of places."""
    yield b"x" * 10
    while stand.configuration.gateway.max_in_flight != 10:
        await asyncio.sleep(0.01)
    yield b"y" * places


async def until(condition: object, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    assert callable(condition)
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
