"""Readiness costs little however often it is asked, and tells strangers no more than they need."""

import json
from typing import Any

import pytest
from fastapi import FastAPI

from burnish.infra.http import AsgiTransport, Request
from burnish.platform.identity import ANONYMOUS, LOCAL, Principal
from burnish.platform.identity.principal import SCOPE_KEY
from burnish.platform.jobs.component_app import install_problems
from burnish.platform.monitoring import api
from burnish.platform.monitoring.readiness import Check


class Counted:
    """A check that counts how often it runs, and finds what it is told."""

    def __init__(self, problem: str | None = None) -> None:
        self.runs = 0
        self.problem = problem

    async def __call__(self) -> str | None:
        self.runs += 1
        return self.problem


async def metrics() -> bytes:
    return b""


@pytest.mark.parametrize(
    ("caller", "status"),
    [(ANONYMOUS, 401), (Principal("ada", roles=frozenset({"administrator"})), 403), (LOCAL, 200),
     (Principal("eva", everywhere=frozenset({"viewer"})), 200),
     (Principal("prometheus", everywhere=frozenset({"viewer"}), scopes=frozenset({"metrics:read"})), 200)],
)  # fmt: skip
async def test_metrics_are_for_who_may_see_every_project(caller: Principal, status: int) -> None:
    """Breaks with: labels that tell somebody of one project what the deployments of others are called."""
    app = FastAPI()
    install_problems(app)
    app.include_router(api.router([], metrics))

    async def called(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, SCOPE_KEY: caller}, receive, send)

    async with AsgiTransport(called).send(Request("GET", "/platform/metrics")) as response:
        assert response.status == status


@pytest.mark.parametrize(
    ("caller", "told"),
    [(ANONYMOUS, "failed"), (Principal("eve", scopes=frozenset()), "failed"), (LOCAL, "postgresql://db.internal:5432 is away"),
     (Principal("ada", roles=frozenset({"viewer"})), "failed"),
     (Principal("eva", everywhere=frozenset({"viewer"})), "postgresql://db.internal:5432 is away")],
)  # fmt: skip
async def test_why_it_is_not_ready_is_told_to_who_may_read_metrics(caller: Principal, told: str) -> None:
    app = FastAPI()
    away = Counted("postgresql://db.internal:5432 is away")
    checks = [Check("database", away), Check("schema", Counted())]
    app.include_router(api.router(checks, metrics))

    async def called(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, SCOPE_KEY: caller}, receive, send)

    for _ in range(3):
        async with AsgiTransport(called).send(Request("GET", "/platform/ready")) as response:
            body = json.loads(await response.read())
            assert response.status == 503
        assert body == {"status": "not_ready", "checks": {"database": told, "schema": None}}
    assert away.runs == 1, "what was found a moment ago is told again"
