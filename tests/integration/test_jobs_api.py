"""The platform's routes of jobs and components, and the protocol's, against whatever may be sent."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from burnish.core.configuration import defaults
from burnish.core.protocol import CALLER_HEADER
from burnish.infra.asgi import ASGIApp, Receive, Send
from burnish.infra.event_log import EventLog
from burnish.infra.http import AsgiTransport, Request
from burnish.platform.identity import LOCAL, CallerTokens, audit
from burnish.platform.identity.principal import SCOPE_KEY
from burnish.platform.identity.refusals import Refusals
from burnish.platform.integrator.api import router as components_router
from burnish.platform.jobs.api import router as jobs_router
from burnish.platform.jobs.component_app import component_app, install_problems
from burnish.platform.jobs.mounting import MountedComponents
from tests.support.asgi_server import served
from tests.support.fuzzing import FULL, fuzz, tolerances
from tests.support.jobs_bench import ROOT, Bench
from tests.support.jobs_kinds import KINDS


class AsLocal:
    """Stands for the gateway with authentication off."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        scope[SCOPE_KEY] = LOCAL
        await self._app(scope, receive, send)


def platform_app(bench: Bench, event_log: EventLog) -> FastAPI:
    app = FastAPI(title="jobs and components", version="1")
    install_problems(app)
    app.include_router(jobs_router(bench.database, event_log))
    app.include_router(components_router(bench.database))
    app.add_middleware(AsLocal)
    return app


@pytest.fixture
async def bench(database_url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = Bench(database_url, home)
    await made.runtime.start()
    yield made
    await made.runtime.stop()
    await made.runtime.event_log.close()
    for folder in made.runtime.backend.folders().values():
        made.runtime.backend.remove(folder)
    await made.database.dispose()


async def get(app: ASGIApp, path: str) -> tuple[int, Any]:
    async with AsgiTransport(app).send(Request("GET", path)) as response:
        return response.status, json.loads(await response.read())


async def test_jobs_are_listed_page_by_page_and_their_logs_read(bench: Bench) -> None:
    app = platform_app(bench, bench.runtime.event_log)
    for number in range(5):
        await bench.submit(f"job_{number}", "count", {"to": 1}, origin="wf_1" if number % 2 else None)
    for number in range(5):
        await bench.ended(f"job_{number}")
    seen: list[str] = []
    path = "/platform/jobs?limit=2"
    while True:
        status, page = await get(app, path)
        assert status == 200
        seen += [job["job_id"] for job in page["data"]]
        if not page["has_more"]:
            break
        path = f"/platform/jobs?limit=2&after={page['next']}"
    assert seen == [f"job_{number}" for number in (4, 3, 2, 1, 0)]
    _, page = await get(app, "/platform/jobs?workflow_id=wf_1&state=succeeded&kind=count")
    assert [job["job_id"] for job in page["data"]] == ["job_3", "job_1"]
    _, page = await get(app, "/platform/jobs/job_0/logs")
    assert [line["message"] for line in page["data"]] == ["counting from 0"]
    status, problem = await get(app, "/platform/jobs/job_nine")
    assert (status, problem["code"]) == (404, "not_found")
    status, problem = await get(app, "/platform/jobs?state=odd")
    assert (status, problem["problems"][0]["where"]) == (422, "query.state.0")


async def test_forged_caller_tokens_leave_an_entry_of_a_failed_login(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: a component that refuses them and says so to nobody. Bounded: of however many, one a minute."""
    monkeypatch.setattr(audit, "REFUSALS", Refusals())
    app = MountedComponents({"fine_tuning": component_app("fine_tuning", KINDS, bench.runtime)}, defaults)
    wrong = ["nonsense", CallerTokens(b"f" * 32).sign(LOCAL.acting(), "fine_tuning")]
    wrong += [bench.runtime.tokens.sign(LOCAL.acting(), "evaluation")] * 50
    for token in wrong:
        asked = Request("GET", "/components/fine_tuning/jobs/job_x", {CALLER_HEADER: token})
        async with AsgiTransport(app).send(asked) as response:
            assert response.status == 401
    found, dropped = audit.REFUSALS.take()
    assert [(one.actor, one.action, one.times, one.stranger) for one in found] == [
        ("a caller token", "login:failed", 52, True)
    ]
    assert dropped == 0


# The platform's own routes are in test_whole_api.py, too, on a real server.
@pytest.mark.parametrize("which", [pytest.param("platform", marks=pytest.mark.full), "component"])
async def test_whatever_is_sent_is_answered_as_documented(bench: Bench, which: str, tmp_path: Path) -> None:
    tolerated: list[str] = []
    configuration: list[str] = []
    if which == "platform":
        configuration = tolerances()
        app: ASGIApp = platform_app(bench, bench.runtime.event_log)
    else:
        # Versions of the protocol may differ, so it is lenient; whether a job is right depends on its kind.
        tolerated = ["--exclude-checks", "negative_data_rejection,positive_data_acceptance"]
        app = component_app("fine_tuning", KINDS, bench.runtime)
    headers = {"burnish-caller": bench.runtime.tokens.sign(LOCAL.acting(), "fine_tuning", ttl=3600)}
    await bench.submit("job_1", "count", {"to": 1})
    # The phase of hundreds of borderline cases asks the routes; in short it is sent to the stricter of the databases.
    phases = "examples,coverage,fuzzing" if FULL or bench.database.dialect == "postgresql" else "examples,fuzzing"
    async with served(app) as url:
        await asyncio.to_thread(
            fuzz, f"{url}/openapi.json", tmp_path, *tolerated, examples=8, phases=phases, headers=headers,
            configuration=configuration,
        )  # fmt: skip
