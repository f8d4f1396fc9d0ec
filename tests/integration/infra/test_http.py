import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import uvicorn

from burnish.core.errors import Unavailable
from burnish.infra.http import AsgiTransport, Request, Transport, Unreachable
from burnish.infra.http_client import HttpTransport
from burnish.testing.transport_contract import CONTRACT, ContractApp

Opened = tuple[Transport, ContractApp]


@contextlib.asynccontextmanager
async def served(app: ContractApp, unix_socket: Path | None) -> AsyncIterator[str]:
    listener = socket.socket(socket.AF_UNIX if unix_socket else socket.AF_INET)
    listener.bind(str(unix_socket) if unix_socket else ("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1, lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve([listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield "http://localhost" if unix_socket else f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        listener.close()


@pytest.fixture(params=["asgi", "tcp", "unix"])
async def opened(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Opened]:
    app = ContractApp()
    if request.param == "asgi":
        embedded = AsgiTransport(app)
        yield embedded, app
        await embedded.close()
        return
    unix_socket = tmp_path / "s" if request.param == "unix" else None
    async with served(app, unix_socket) as url:
        remote = HttpTransport(url, unix_socket=unix_socket)
        yield remote, app
        await remote.close()


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__.removeprefix("check_"))
async def test_contract(check: Callable[[Transport, ContractApp], Awaitable[None]], opened: Opened) -> None:
    transport, app = opened
    await check(transport, app)


async def test_nobody_there_means_nothing_was_sent(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nobody = HttpTransport(f"http://user:secret@127.0.0.1:{port}"), HttpTransport(unix_socket=tmp_path / "none")
    for transport in nobody:
        with pytest.raises(Unreachable) as caught:
            async with transport.send(Request("GET", "/")):
                pass
        assert caught.value.sent is False
        assert isinstance(caught.value, Unavailable)
        assert "secret" not in str(caught.value)
        await transport.close()


async def test_an_embedded_call_that_ignores_its_caller_is_cancelled() -> None:
    cancelled = asyncio.Event()

    async def stubborn(scope: object, receive: object, send: Callable[[dict[str, object]], Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    transport = AsgiTransport(stubborn)
    async with transport.send(Request("GET", "/")) as response:
        assert await anext(response.chunks()) == b"x"
    await asyncio.wait_for(cancelled.wait(), 5)
    await transport.close()


async def test_concurrent_calls_do_not_mix(opened: Opened) -> None:
    transport, _ = opened

    async def call(number: int) -> bool:
        async with transport.send(Request("POST", "/echo", body=f"<{number}>".encode())) as response:
            return f'"<{number}>"'.encode() in await response.read()

    assert all(await asyncio.gather(*(call(number) for number in range(100))))
