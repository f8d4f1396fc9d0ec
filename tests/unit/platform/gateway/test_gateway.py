"""The gateway behind a real socket, before a component that streams."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from burnish.core.errors import Busy, Unavailable
from burnish.core.settings import Settings
from burnish.infra import signals
from burnish.infra.http import AsgiTransport, Response
from burnish.infra.http import Request as OutgoingRequest
from burnish.platform.gateway import Gateway
from burnish.platform.gateway.checks import is_loopback
from burnish.platform.identity import Principal
from burnish.platform.integrator import Integrator
from burnish.platform.jobs.component_app import install_problems
from burnish.platform.openai_api import OpenAIFace
from tests.support.serving import listening


class Upstream:
    """A component, and the integrator that reaches it."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.transport = AsgiTransport(self.app)
        self.cancelled = asyncio.Event()
        self.first_chunk = asyncio.Event()
        self.received = 0
        self.missing = False
        self.app.add_api_route("/platform/datasets", self.upload, methods=["POST"])
        self.app.add_api_route("/platform/datasets/{name}/stream", self.endless, methods=["GET"])
        self.app.add_api_route("/platform/datasets/{name}/echo", self.echo, methods=["GET"])
        self.app.add_api_route("/platform/datasets/{name}/broken", self.broken, methods=["GET"])

    async def upload(self, request: Request) -> dict[str, int]:
        async for chunk in request.stream():
            self.received += len(chunk)
            self.first_chunk.set()
        return {"bytes": self.received}

    async def endless(self) -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"tick\n"
                    await asyncio.sleep(0.01)
            finally:
                self.cancelled.set()

        return StreamingResponse(chunks())

    async def echo(self, request: Request) -> dict[str, Any]:
        return {
            "path": request.scope["raw_path"].decode(),
            "query": request.url.query,
            "headers": dict(request.headers),
        }

    async def broken(self) -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"begin"
            raise RuntimeError("broke off")

        return StreamingResponse(chunks())

    def route_of(self, path: str) -> str | None:
        return "data_management" if path.startswith("/platform/datasets") else None

    @asynccontextmanager
    async def send(
        self, component_type: str, request: OutgoingRequest, principal: Principal
    ) -> AsyncIterator[Response]:
        if self.missing:
            raise Unavailable("no instance", retry_after=3)
        async with self.transport.send(request) as response:
            yield response


class Running:
    def __init__(self, upstream: Upstream, platform: FastAPI, client: httpx.AsyncClient) -> None:
        self.upstream, self.platform, self.client = upstream, platform, client


def gateway_over(upstream: Upstream, platform: FastAPI, **settings: Any) -> Gateway:
    integrator = cast(Integrator, upstream)
    return Gateway(platform, OpenAIFace(integrator), integrator, Settings(**settings))


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    upstream, platform = Upstream(), FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    install_problems(platform)

    @platform.get("/platform/things/{thing}")
    async def thing(thing: str) -> dict[str, str]:
        if thing == "crash":
            raise RuntimeError("the secret reason")
        if thing == "busy":
            raise Busy("too many", hint="wait", retry_after=7)
        return {"thing": thing}

    @platform.post("/platform/things")
    async def add(request: Request) -> int:
        return len(await request.body())

    gateway = gateway_over(upstream, platform, upload_max_bytes=32 << 20)
    async with listening(gateway) as url, httpx.AsyncClient(base_url=url, timeout=20) as client:
        yield Running(upstream, platform, client)
    await upstream.transport.close()


async def test_requests_are_named_and_counted(running: Running) -> None:
    before = signals.REQUESTS.labels("GET", "/platform/things/{thing}", "200")._value.get()
    answer = await running.client.get("/platform/things/a", headers={"x-request-id": "mine-1"})
    assert (answer.json(), answer.headers["x-request-id"]) == ({"thing": "a"}, "mine-1")
    assert (
        (await running.client.get("/platform/things/b", headers={"x-request-id": "bad id"}))
        .headers["x-request-id"]
        .startswith("req_")
    )
    await counted("GET", "/platform/things/{thing}", "200", before + 2)
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    echoed = await running.client.get(
        "/platform/datasets/a%20b/echo?x=1&y=%2F",
        headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "burnish-caller": "forged"},
    )
    assert (echoed.json()["path"], echoed.json()["query"]) == ("/platform/datasets/a%20b/echo", "x=1&y=%2F")
    assert echoed.json()["headers"]["traceparent"].split("-")[1] == trace
    assert "burnish-caller" not in echoed.json()["headers"]
    await counted("GET", "/platform/datasets/{path}", "200")


async def test_errors_are_problems(running: Running) -> None:
    missing = await running.client.get("/nothing/here")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
    assert missing.json()["code"] == "not_found"
    busy = await running.client.get("/platform/things/busy")
    assert (busy.status_code, busy.headers["retry-after"], busy.json()["hint"]) == (429, "7", "wait")
    crash = await running.client.get("/platform/things/crash")
    assert (crash.status_code, crash.headers["content-type"]) == (500, "application/problem+json")
    assert len(crash.json()["trace_id"]) == 32
    assert "secret" not in crash.text
    running.upstream.missing = True
    gone = await running.client.get("/platform/datasets/a/echo")
    assert (gone.status_code, gone.headers["retry-after"], gone.json()["code"]) == (503, "3", "unavailable")
    openai_style = await running.client.get("/v1/models")
    assert (openai_style.status_code, openai_style.json()["error"]["type"]) == (503, "server_error")


async def test_other_methods(running: Running) -> None:
    head = await running.client.head("/platform/things/a")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "13")
    assert (await running.client.head("/platform/datasets/a/echo")).status_code == 200
    options = await running.client.options("/platform/things/a")
    assert (options.status_code, options.headers["allow"]) == (204, "GET, OPTIONS")
    wrong = await running.client.put("/platform/things/a")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")
    assert (await running.client.options("/nothing")).status_code == 404


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("host", "evil.example", 421),
        ("host", "127.0.0.1.evil.example:8000", 421),
        ("host", "localhost:1234", 200),
        ("host", "[::1]:80", 200),
        ("origin", "https://evil.example", 403),
        ("origin", "null", 403),
        ("origin", "http://localhost:5173", 200),
    ],
)
async def test_only_this_machine_asks(running: Running, header: str, value: str, status: int) -> None:
    answer = await running.client.get("/platform/things/a", headers={header: value})
    assert answer.status_code == status
    assert answer.status_code == 200 or answer.json()["hint"]


@pytest.mark.parametrize(
    ("url", "where"), [("/platform/things/a%00", "path"), ("/platform/things/a?after=%00", "query")]
)
async def test_a_nul_in_the_url_is_refused(running: Running, url: str, where: str) -> None:
    """PostgreSQL keeps none. Breaks with: a URL that goes through to a query."""
    answer = await running.client.get(url)
    assert (answer.status_code, answer.json()["code"], answer.json()["where"]) == (400, "malformed_request", where)


def test_loopback() -> None:
    assert all(map(is_loopback, ["localhost", "127.0.0.1", "127.9.9.9", "::1", "app.localhost"]))
    assert not any(map(is_loopback, [None, "", "localhost.evil", "10.0.0.1", "0.0.0.0", "notlocalhost"]))


async def test_a_body_has_a_limit(running: Running) -> None:
    big = b"x" * ((16 << 20) + 1)

    async def chunked() -> AsyncIterator[bytes]:
        for start in range(0, len(big), 1 << 20):
            yield big[start : start + (1 << 20)]

    for content in (big, chunked()):
        answer = await running.client.post("/platform/things", content=content)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    fits = await running.client.post("/platform/datasets", content=chunked_again(big))
    assert (fits.status_code, fits.json()["bytes"]) == (200, len(big))
    twice = await running.client.post("/platform/datasets", content=chunked_again(big * 2))
    assert (twice.status_code, twice.json()["code"]) == (413, "too_large")
    as_json = await running.client.post("/platform/datasets", content=big, headers={"content-type": "application/json"})
    assert as_json.status_code == 413
    assert (await running.client.post("/v1/chat/completions", content=big)).json()["error"]["code"] == "too_large"


async def chunked_again(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1 << 20):
        yield data[start : start + (1 << 20)]


async def test_an_upload_streams(running: Running) -> None:
    """The component has the first bytes before the client has sent the last."""

    async def slow() -> AsyncIterator[bytes]:
        yield b"a" * 1000
        await asyncio.wait_for(running.upstream.first_chunk.wait(), 5)
        yield b"b" * 1000

    assert (await running.client.post("/platform/datasets", content=slow())).json() == {"bytes": 2000}


async def test_an_answer_streams_and_a_hang_up_cancels(running: Running) -> None:
    async with running.client.stream("GET", "/platform/datasets/a/stream") as response:
        chunk = await anext(response.aiter_raw())
        assert chunk.startswith(b"tick")
    await asyncio.wait_for(running.upstream.cancelled.wait(), 5)


async def test_an_upload_that_is_cut_is_no_upload(running: Running) -> None:
    async def cut() -> AsyncIterator[bytes]:
        yield b"a" * 1000
        await asyncio.wait_for(running.upstream.first_chunk.wait(), 5)
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        await running.client.post("/platform/datasets", content=cut())
    await counted("POST", "/platform/datasets", "499")


async def counted(method: str, route: str, status: str, times: float = 1) -> None:
    """Wait until so many requests were counted: that happens just after the client has its answer."""
    deadline = time.monotonic() + 5
    while signals.REQUESTS.labels(method, route, status)._value.get() < times:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_broken_answer_breaks_the_connection(running: Running) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await running.client.get("/platform/datasets/a/broken")


async def test_lifespan_and_websockets() -> None:
    seen: list[str] = []

    async def platform(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    gateway = gateway_over(Upstream(), cast(FastAPI, platform))
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    await gateway({"type": "lifespan"}, receive, send)
    await gateway({"type": "websocket"}, receive, send)
    assert seen == ["lifespan"]
    assert sent[0]["type"] == "websocket.close"


async def test_with_authentication_on_nobody_is_let_in_without_a_credential() -> None:
    platform = FastAPI()
    async with (
        listening(gateway_over(Upstream(), platform, auth="on")) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        answer = await client.get("/platform/jobs")
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert (await client.get("/v1/models")).json()["error"]["type"] == "authentication_error"
