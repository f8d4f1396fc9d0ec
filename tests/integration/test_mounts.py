"""What stands open beside the gateway: a process's components, and what it says of itself."""

import asyncio
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
from sqlalchemy import Engine, event

from burnish.app import Edge
from burnish.core.errors import InvalidRequest, Unavailable
from burnish.core.protocol import CALLER_HEADER, Health
from burnish.core.settings import Settings
from burnish.infra.http import AsgiTransport
from burnish.platform.identity import ANONYMOUS, LOCAL, CallerTokens
from burnish.platform.integrator.probing import get_health, prober
from burnish.platform.jobs import component_app
from burnish.platform.jobs import service as jobs_service
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


async def test_a_component_that_crashes_answers_and_keeps_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Breaks with: a server that closes the connection behind the answer, on which another request is on its way."""

    async def fails(*_: Any) -> None:
        raise ZeroDivisionError("nobody thought of this")

    monkeypatch.setattr(component_app, "validate", fails)
    async with edge_of(tmp_path, components="evaluation", auth="on") as (client, tokens, _):
        caller = tokens.sign(LOCAL.acting(), "evaluation")
        body = {"kind": "evaluate", "spec": {}, "project_id": "default"}
        answer = await client.post(f"{MOUNT}/jobs/validate", json=body, headers={CALLER_HEADER: caller})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "ZeroDivisionError: nobody thought of this" in caplog.text
    assert "ZeroDivisionError" not in answer.text


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


async def test_strangers_who_ask_for_health_cost_one_small_question_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: counts of jobs and nodes for each of whoever can reach the port; a status that says nothing."""
    asked: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    async with edge_of(tmp_path, components="platform,evaluation") as (client, tokens, _):
        event.listen(Engine, "before_cursor_execute", note)
        try:
            answers = await asyncio.gather(*(client.get(f"{MOUNT}/health") for _ in range(50)))
            assert {answer.json()["status"] for answer in answers} == {"ok"}
            assert [one.partition(" ")[0] for one in asked] == ["BEGIN", "SELECT"], asked
            asked.clear()
            token = {CALLER_HEADER: tokens.sign(LOCAL, "evaluation")}
            assert (await client.get(f"{MOUNT}/health", headers=token)).json()["status"] == "ok"
            assert len(asked) > 2, "the platform is told everything"
        finally:
            event.remove(Engine, "before_cursor_execute", note)

    async def away(session: Any) -> None:
        raise Unavailable("it is away")

    async def hangs(session: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(component_app, "_PING_SECONDS", 0.05)
    for ping in (away, hangs):
        monkeypatch.setattr(jobs_service, "ping", ping)
        async with edge_of(tmp_path, components="platform,evaluation") as (client, _, _):
            assert (await client.get(f"{MOUNT}/health")).json()["status"] == "degraded"


def test_what_a_component_has_loaded_is_told_within_bounds() -> None:
    names = ["x" * 256, *(f"model-{n}" for n in range(2000))]
    told = component_app._within_bounds(Health(), names)
    assert told.warm == tuple(names[1:1001])
    long = component_app._within_bounds(Health.model_construct(waiting_for="y" * 5000), [])
    assert Health.model_validate(long.model_dump()) == long


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


async def test_a_path_with_a_slash_too_many_leads_nowhere(tmp_path: Path) -> None:
    """Breaks with: a redirect to wherever the Host header says."""
    async with edge_of(tmp_path, components="platform,evaluation") as (client, tokens, _):
        headers = {"host": "evil.localhost:1", CALLER_HEADER: tokens.sign(LOCAL, "evaluation")}
        for path in (
            "/platform/jobs/",
            "/platform/health/",
            "/platform/components/",
            f"{MOUNT}/health/",
            f"{MOUNT}/jobs/",
        ):
            answer = await client.get(path, headers=headers)
            assert (path, answer.status_code, answer.headers.get("location")) == (path, 404, None)
            assert answer.headers["content-type"] == "application/problem+json"
    async with edge_of(tmp_path, components="evaluation") as (client, _, _):
        answer = await client.get("/platform/ready/")
        assert (answer.status_code, answer.headers.get("location")) == (404, None)


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
