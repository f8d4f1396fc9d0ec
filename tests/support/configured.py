"""The configuration's routes in one process, asked by whomever a test says."""

from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from burnish.core.settings import Settings
from burnish.infra.asgi import ASGIApp, Receive, Send
from burnish.infra.database import Database
from burnish.platform.configuration import LiveConfiguration, Secrets, api, secret_api
from burnish.platform.identity import LOCAL, Principal
from burnish.platform.identity.principal import SCOPE_KEY
from burnish.platform.jobs.component_app import install_problems

ADMINISTRATOR = replace(LOCAL, subject="alice")
ENGINEER = Principal("eve", "default", frozenset({"engineer"}))
VIEWER = Principal("victor", "default", frozenset({"viewer"}))
PROJECT_ADMINISTRATOR = Principal("paula", "default", frozenset({"administrator"}))
BASE = "/platform/configuration"


@dataclass
class Configured:
    """One process's configuration and the routes to it."""

    live: LiveConfiguration
    secrets: Secrets
    database: Database
    client: httpx.AsyncClient
    app: ASGIApp
    caller: Principal = ADMINISTRATOR

    async def get(self, path: str = "", **query: Any) -> Any:
        answer = await self.client.get(BASE + path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def change(self, set: dict[str, Any] | None = None, unset: tuple[str, ...] = (), **more: Any) -> Any:  # noqa: A002
        answer = await self.patch(set, unset, **more)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def patch(
        self, set: dict[str, Any] | None = None, unset: tuple[str, ...] = (), **more: Any  # noqa: A002
    ) -> httpx.Response:  # fmt: skip
        return await self.client.patch(BASE, json={"set": set or {}, "unset": list(unset), **more})

    async def value(self, key: str) -> Any:
        return (await self.get(f"/explain/{key}"))["value"]


@asynccontextmanager
async def configured(
    database: Database, home: Path, *, variables: dict[str, str] | None = None, key: bytes = b"k" * 32, start: bool = True,
    process: str = "first", **settings: Any,
) -> AsyncIterator[Configured]:  # fmt: skip
    """Run one process's configuration on a database."""
    live = LiveConfiguration(database, Settings(home=home, node="here", **settings), process, variables or {})
    secrets = Secrets(database, key)
    app = FastAPI()
    install_problems(app)
    app.include_router(api.router(database, live))
    app.include_router(secret_api.router(database, live, secrets))

    async def asked(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        scope[SCOPE_KEY] = found.caller
        await app(scope, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(asked), base_url="http://127.0.0.1") as client:
        found = Configured(live, secrets, database, client, asked)
        if start:
            await live.start()
        try:
            yield found
        finally:
            await live.stop()
