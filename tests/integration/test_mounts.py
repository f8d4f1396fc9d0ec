"""What stands open beside the gateway: a process's components, and what it says of itself."""

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import WebSocket
from pydantic import SecretStr

from burnish.app import Edge
from burnish.core.errors import InvalidRequest
from burnish.core.protocol import CALLER_HEADER
from burnish.core.settings import Settings
from burnish.infra.http import AsgiTransport
from burnish.platform.identity import ANONYMOUS, LOCAL, CallerTokens
from burnish.platform.integrator.probing import get_health, prober
from burnish.wiring import build, open_installation, refuse_open_bind
from tests.support.server import Server

MOUNT = "/components/evaluation"


@asynccontextmanager
async def edge_of(home: Path, **settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, CallerTokens, Edge]]:
    """One process's edge, with a client and what signs for its callers; its loops do not run."""
    url = SecretStr(f"sqlite:///{home}/mounts.db")
    installation = await open_installation(Settings(home=home, database_url=url, cpus=1, **settings))
    try:
        process = build(installation)
        edge = Edge(process)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(edge), base_url="http://127.0.0.1"
        ) as client:  # fmt: skip
            yield client, process.tokens, edge
    finally:
        await installation.close()


async def test_with_authentication_off_no_other_site_reaches_a_component(tmp_path: Path) -> None:
    """Breaks with: a page that reaches the mounts by a name of its own (DNS rebinding)."""
    async with edge_of(tmp_path, components="platform,evaluation") as (client, _, _):
        for headers, status in (
            ({}, 200), ({"host": "evil.example"}, 421), ({"host": "localhost:1", "origin": "https://evil.example"}, 403),
            ({"origin": "http://localhost:3000"}, 200), ({"host": "[::1]:8000"}, 200),
        ):  # fmt: skip
            answer = await client.get(f"{MOUNT}/describe", headers=headers)
            assert (headers, answer.status_code) == (headers, status)
    async with edge_of(tmp_path, components="evaluation", auth="on") as (client, _, _):
        assert (await client.get(f"{MOUNT}/describe", headers={"host": "node7"})).status_code == 200


async def test_a_component_says_what_it_holds_to_the_platform_alone(tmp_path: Path) -> None:
    """Breaks with: names of other people's models, or a document, for whoever can reach the port."""
    async with edge_of(tmp_path, components="platform,evaluation") as (client, tokens, _):
        token = {CALLER_HEADER: tokens.sign(LOCAL, "evaluation")}
        known = (await client.get(f"{MOUNT}/health", headers=token)).json()
        assert "running_jobs" in known
        bare = {
            "status": known["status"],
            "load": 0.0,
            "running_jobs": 0,
            "queued_jobs": 0,
            "waiting_for": None,
            "warm": [],
        }
        other = {CALLER_HEADER: tokens.sign(LOCAL, "compression")}
        for headers in ({}, other, {CALLER_HEADER: "forged"}):
            answer = await client.get(f"{MOUNT}/health", headers=headers)
            assert (answer.status_code, answer.json()) == (200, bare)
            assert (await client.get(f"{MOUNT}/openapi.json", headers=headers)).status_code == 401
        assert "/health" in (await client.get(f"{MOUNT}/openapi.json", headers=token)).json()["paths"]


async def test_the_platforms_probes_show_who_asks_and_may_do_nothing(tmp_path: Path) -> None:
    """Breaks with: a probe that no longer learns what is warm; one whose token opens more than health."""
    async with edge_of(tmp_path, components="platform,evaluation") as (_, tokens, edge):
        app = edge._components._components["evaluation"]
        shown: list[str] = []

        async def listening(scope: Any, receive: Any, send: Any) -> None:
            shown.append(dict(scope["headers"])[CALLER_HEADER.encode()].decode())
            await app(scope, receive, send)

        await get_health(AsgiTransport(listening, name="evaluation"), prober(tokens, "evaluation", None), 3)
        caller = tokens.verify(shown[0], "evaluation")
        assert (caller.subject, caller.permissions()) == ("platform", frozenset())
        assert caller != ANONYMOUS


async def test_no_websocket_gets_past_the_caller_check(tmp_path: Path) -> None:
    """Breaks with: a component with a websocket route of its own that anybody may open."""
    async with edge_of(tmp_path, components="platform,evaluation") as (_, _, edge):
        app: Any = edge._components._components["evaluation"]
        opened = []

        async def secret(socket: WebSocket) -> None:
            opened.append(socket)

        app.add_api_websocket_route("/secret", secret)
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "websocket", "path": "/secret", "raw_path": b"/secret", "query_string": b"", "headers": []}
        await app(scope, receive, send)
        assert [one["type"] for one in sent] == ["websocket.close"]
        assert not opened


async def test_an_open_process_without_the_platform_says_how_it_is_and_no_more(tmp_path: Path) -> None:
    """Breaks with: metrics of everybody's jobs for whoever can reach the port."""
    edge = edge_of(tmp_path, components="evaluation", host="0.0.0.0")
    async with edge as (client, _, _):
        for path in ("/health", "/platform/health", "/platform/ready"):
            assert (await client.get(path, headers={"host": "node7"})).status_code in {200, 503}, path
        for path in ("/platform/metrics", "/platform/nothing"):
            answer = await client.get(path)
            assert (answer.status_code, "BURNISH_AUTH=on" in answer.json()["hint"]) == (401, True)
    async with edge_of(tmp_path, components="evaluation") as (client, _, _):
        assert (await client.get("/platform/metrics")).status_code == 200, "on loopback as ever"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", "127.0.0.1.example.org"])
def test_an_open_bind_needs_authentication(host: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        refuse_open_bind(Settings(host=host))
    assert refused.value.where == "BURNISH_HOST"
    refuse_open_bind(Settings(host=host, auth="on"))
    refuse_open_bind(Settings(host=host, components="model_serving"))
    with pytest.raises(InvalidRequest):
        refuse_open_bind(Settings(host=host, components="model_serving,platform"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_serve_refuses_an_open_bind(tmp_path: Path, host: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "burnish.cli", "serve", "--host", host, "--port", "0", "--home", str(tmp_path / "home")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode != 0
    assert "BURNISH_HOST" in ended.stderr
    assert not (tmp_path / "home" / "burnish.db").exists()


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    given: dict[str, str] = request.param
    url = request.getfixturevalue("postgres_url") if "BURNISH_COMPONENTS" in given else None
    running = Server(
        tmp_path / "home", database_url=url and url.replace("postgresql+asyncpg", "postgresql"),
        environment={**given, "BURNISH_HOST": "0.0.0.0", "BURNISH_DISK_RESERVE_BYTES": "0"},
    )  # fmt: skip
    try:
        yield running.start()
        running.stop()
    finally:
        running.end_everything()


@pytest.mark.parametrize(
    "server",
    [
        {"BURNISH_AUTH": "on"},
        pytest.param({"BURNISH_COMPONENTS": "model_serving"}, marks=pytest.mark.postgres),
    ],
    indirect=True,
)
def test_an_open_bind_that_asks_or_has_nothing_to_give_away_starts(server: Server) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{server.url}/platform/metrics", timeout=10)
    assert refused.value.code == 401
    refused.value.close()
