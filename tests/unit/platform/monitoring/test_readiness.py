"""Readiness costs little however often it is asked, and tells strangers no more than they need."""

import asyncio
import json
from typing import Any

import pytest
from fastapi import FastAPI

from burnish.infra.http import AsgiTransport, Request
from burnish.platform.identity import ANONYMOUS, LOCAL, Principal
from burnish.platform.identity.principal import SCOPE_KEY
from burnish.platform.monitoring import api, readiness
from burnish.platform.monitoring.readiness import Check, Readiness


class Counted:
    """A check that counts how often it runs, and finds what it is told."""

    def __init__(self, problem: str | None = None) -> None:
        self.runs = 0
        self.problem = problem

    async def __call__(self) -> str | None:
        self.runs += 1
        await asyncio.sleep(0.02)
        return self.problem


async def test_many_who_ask_at_once_have_the_checks_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    check = Counted("it is away")
    ready = Readiness([Check("database", check)])
    first = asyncio.create_task(ready.problems())
    await asyncio.sleep(0)
    first.cancel()  # who goes away does not end it for the others
    found = await asyncio.gather(*(ready.problems() for _ in range(50)))
    assert all(one == {"database": "it is away"} for one in found)
    await ready.problems()
    assert check.runs == 1
    monkeypatch.setattr(readiness, "FRESH_SECONDS", 0.0)
    check.problem, ready = None, Readiness([Check("database", check)])
    assert await ready.problems() == await ready.problems() == {"database": None}
    assert check.runs == 3


async def metrics() -> bytes:
    return b""


@pytest.mark.parametrize(
    ("caller", "told"),
    [(ANONYMOUS, "failed"), (Principal("eve", scopes=frozenset()), "failed"), (LOCAL, "postgresql://db.internal:5432 is away"),
     (Principal("ada", roles=frozenset({"viewer"})), "postgresql://db.internal:5432 is away")],
)  # fmt: skip
async def test_why_it_is_not_ready_is_told_to_who_may_read_metrics(caller: Principal, told: str) -> None:
    app = FastAPI()
    checks = [Check("database", Counted("postgresql://db.internal:5432 is away")), Check("schema", Counted())]
    app.include_router(api.router(checks, metrics))

    async def called(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, SCOPE_KEY: caller}, receive, send)

    async with AsgiTransport(called).send(Request("GET", "/platform/ready")) as response:
        body = json.loads(await response.read())
        assert response.status == 503
    assert body == {"status": "not_ready", "checks": {"database": told, "schema": None}}
