"""Components that answer with garbage, slowly, without an end, or with lies: the platform lists them, says why, and goes on."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from burnish.platform.identity import CallerTokens
from tests.support.asgi_server import served
from tests.support.plain_component import PlainComponent
from tests.support.server import Answered, Server, running_burnish


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_burnish(tmp_path_factory.mktemp("hostile") / "home", {"BURNISH_DISK_RESERVE_BYTES": "0"}) as found:
        yield found


async def ask(server: Server, method: str, path: str, body: Any = None) -> Any:
    return await asyncio.to_thread(server.request, method, path, body)


@asynccontextmanager
async def registered(server: Server, app: Any, component_id: str, component_type: str = "plain") -> AsyncIterator[str]:
    async with served(app) as url:
        registration = {
            "component_id": component_id, "component_type": component_type, "name": "x", "version": "1",
            "api_endpoint": url, "health_endpoint": f"{url}/health",
        }  # fmt: skip
        await ask(server, "POST", "/platform/components/register", registration)
        try:
            yield url
        finally:
            try:
                await ask(server, "DELETE", f"/platform/components/{component_id}")
            except Answered as gone:
                if gone.status not in {404, 409}:
                    raise


async def shown(server: Server, component_id: str, wanted: Any) -> dict[str, Any]:
    for _ in range(400):
        found: dict[str, Any] = await ask(server, "GET", f"/platform/components/{component_id}")
        if wanted(found):
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(found)


async def offered(server: Server, component_type: str) -> None:
    """Wait until the server has read what its database says of an instance."""
    for _ in range(400):
        if (await ask(server, "GET", f"/platform/kinds?component_type={component_type}"))["data"]:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(component_type)


REFUSED = {
    "describe garbage": "without JSON", "describe endless": "", "describe huge": "", "describe version": "version 2",
    "schema": "no JSON type", "schema of nothing": "no JSON Schema", "name": "printable", "route": "platform's own",
    "schema deep": "deeper than 100", "permission": "at most 100 printable",
}  # fmt: skip
"""What a component does wrong in its /describe, and what is told of it."""


async def test_descriptions_that_lie_are_refused_with_the_reason_and_bring_nothing(server: Server) -> None:
    jwks = await ask(server, "GET", "/platform/identity/jwks")

    async def one(fault: str, reason: str) -> None:
        component_id = f"bad-{fault.replace(' ', '-')}"
        async with registered(server, PlainComponent(jwks, fault).app, component_id):
            found = await shown(server, component_id, lambda view: view["problem"])
            assert reason in found["problem"], (fault, found["problem"])
            assert "\x1b" not in found["problem"]
            assert found["status"] != "healthy"
            assert found["kinds"] == []

    await asyncio.gather(*(one(fault, reason) for fault, reason in REFUSED.items()))
    with pytest.raises(Answered) as missing:
        await ask(server, "GET", "/platform/kinds/plain/shout")
    assert missing.value.status == 404
    assert (await ask(server, "GET", "/platform/ready"))["status"] == "ready"
    assert (await ask(server, "POST", "/platform/workflows/run", {"workflow_type": "noop"}))["workflow_id"]


async def test_a_health_beyond_its_bounds_is_told_and_not_kept(server: Server) -> None:
    """Breaks with: names without number that every list carries, and every process reads again and again."""
    jwks = await ask(server, "GET", "/platform/identity/jwks")
    async with registered(server, PlainComponent(jwks, "health names").app, "full"):
        found = await shown(server, "full", lambda view: view["problem"])
    assert found["status"] != "healthy"
    assert found["problem"] == (
        "its /health does not validate: warm: Tuple should have at most 1000 items after validation, not 1001"
    )
    assert not (found["health"] or {}).get("warm")


class Telling(PlainComponent):
    """Answers one of its paths with an error that says more than others should read."""

    async def _refused(self, request: Request) -> Response:
        return JSONResponse({"code": "unauthenticated", "detail": "the word is sesame", "where": "sesame"}, 401)


@pytest.mark.parametrize("path", ["health", "describe"])
async def test_of_an_error_answer_its_status_is_told_alone(
    server: Server, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: showing to every viewer what the platform alone could ask for."""
    jwks = await ask(server, "GET", "/platform/identity/jwks")
    monkeypatch.setattr(Telling, path, Telling._refused)
    async with registered(server, Telling(jwks).app, "telling"):
        found = await shown(server, "telling", lambda view: view["problem"])
    assert (found["problem"], found["problem_kind"]) == (f"its /{path} answers with status 401", "broken")
    assert "sesame" not in json.dumps(found)


async def test_an_honest_one_of_another_language_runs_a_step(server: Server) -> None:
    jwks = await ask(server, "GET", "/platform/identity/jwks")
    async with registered(server, PlainComponent(jwks).app, "plain-1"):
        await shown(server, "plain-1", lambda view: view["status"] == "healthy")
        await offered(server, "plain")
        steps = {"a": {"component": "plain", "kind": "shout", "with": {"text": "hello"}}}
        body = {"definition": {"name": "x", "steps": steps}}
        workflow_id = (await ask(server, "POST", "/platform/workflows/run", body))["workflow_id"]
        for _ in range(400):
            found = await ask(server, "GET", f"/platform/workflows/{workflow_id}/status")
            if found["status"] == "succeeded":
                break
            await asyncio.sleep(0.05)
        assert found["steps"][0]["result"] == {"text": "HELLO"}


ODD = [
    Response(b"\x00\xff" * 100), JSONResponse({"state": "finished"}), JSONResponse([]), JSONResponse("x" * 1000),
    Response(b'{"job_id": "\\u0000"', media_type="application/json"), Response(b"", 204), Response(b"no", 500),
    JSONResponse({"code": "\x00odd", "detail": "\x00"}, 503),
]  # fmt: skip


class Odd(PlainComponent):
    """Describes itself well and answers everything about jobs oddly, a different way each time."""

    def __init__(self, jwks: dict[str, Any]) -> None:
        super().__init__(jwks)
        self.turn = 0

        async def odd(request: Request) -> Response:
            self.turn += 1
            return ODD[self.turn % len(ODD)]

        async def validate(request: Request) -> Response:
            return JSONResponse({"problems": [], "spec": {}})

        async def openapi(request: Request) -> Response:
            return JSONResponse({"paths": {"/platform/oddities": {"get": {"responses": "all"}}, "/platform/jobs": {}}})

        async def describe(request: Request) -> Response:
            answer = json.loads(bytes((await self.describe(request)).body))
            return JSONResponse({**answer, "component_type": "odd", "routes": ["/platform/oddities"]})

        self.app = Starlette(
            routes=[
                Route("/health", self.health), Route("/describe", describe), Route("/openapi.json", openapi),
                Route("/jobs/validate", validate, methods=["POST"]), Route("/{path:path}", odd, methods=["GET", "POST"]),
            ]
        )  # fmt: skip


async def test_answers_that_are_none_are_shown_and_asked_for_again_and_can_be_cancelled(server: Server) -> None:
    jwks = await ask(server, "GET", "/platform/identity/jwks")
    component = Odd(jwks)
    async with registered(server, component.app, "odd-1", "odd"):
        await shown(server, "odd-1", lambda view: view["status"] == "healthy")
        await offered(server, "odd")
        steps = {"a": {"component": "odd", "kind": "shout", "with": {"text": "hello"}, "retry": {"attempts": 1}}}
        body = {"definition": {"name": "x", "steps": steps}}
        workflow_id = (await ask(server, "POST", "/platform/workflows/run", body))["workflow_id"]
        for _ in range(600):
            found = await ask(server, "GET", f"/platform/workflows/{workflow_id}/status")
            if component.turn >= 3 or found["status"] == "failed":
                break
            await asyncio.sleep(0.05)
        assert found["status"] in {"running", "failed"}, found
        document = await ask(server, "GET", "/openapi.json")
        assert "/platform/oddities" not in document["paths"]
        assert "get" in document["paths"]["/platform/jobs"]
    assert (await ask(server, "GET", "/platform/ready"))["status"] == "ready"


async def test_a_third_party_cannot_be_one_of_the_platforms_own(server: Server, tmp_path: Path) -> None:
    tokens = CallerTokens(b"x" * 32)
    async with served(PlainComponent(tokens.public_jwks()).app) as url:
        registration = {
            "component_id": "sly", "component_type": "platform", "name": "x", "version": "1", "api_endpoint": url,
            "health_endpoint": f"{url}/health",
        }  # fmt: skip
        await ask(server, "POST", "/platform/components/register", registration)
        found = await shown(server, "sly", lambda view: view["problem"])
        assert found["status"] != "healthy"
        kinds = await ask(server, "GET", "/platform/kinds?component_type=platform")
        assert "shout" not in [one["name"] for one in kinds["data"]]
        await ask(server, "DELETE", "/platform/components/sly")
