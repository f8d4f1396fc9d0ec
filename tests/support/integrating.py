"""One process's integrator over a test's database, and load on what it knows."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.configuration import Configuration, IntegratorConfiguration
from burnish.core.errors import BurnishError
from burnish.core.protocol import Registration
from burnish.core.settings import Settings
from burnish.infra.database import Database
from burnish.platform.identity import LOCAL, CallerTokens
from burnish.platform.integrator import Integrator, service, store
from burnish.platform.integrator.discovery import Resolver
from burnish.platform.integrator.schemas import ComponentView

TYPE = "echo_metric"
FAST: dict[str, Any] = {
    "probe_seconds": 0.5, "probe_timeout_seconds": 0.5, "lease_seconds": 4.0, "lost_until_moved_seconds": 1.0
}  # fmt: skip


class World:
    """The database, and one integrator over it."""

    def __init__(
        self, url: str, home: Path, node: str = "here", resolver: Resolver | None = None, **rules: Any
    ) -> None:
        self.rules = FAST | rules
        self.settings = Settings(home=home, database_url=SecretStr(url), node=node)
        self.database = Database(url)
        self.integrator = Integrator(
            self.database, CallerTokens(b"k" * 32), self.settings, configuration=self.configuration, resolver=resolver
        )

    def configuration(self) -> Configuration:
        return Configuration(integrator=IntegratorConfiguration(**self.rules))

    async def call(self, method: str = "GET", path: str = "/work", timeout: float = 5, json: Any = None) -> Any:
        return await self.integrator.call(TYPE, method, path, json, principal=LOCAL.acting(), timeout=timeout)

    async def register(self, component_id: str, url: str, component_type: str = TYPE, **more: Any) -> int:
        registration = Registration(
            component_id=component_id, component_type=component_type, name="a name", version="1",
            health_endpoint=f"{url}/health", api_endpoint=url, **more,
        )  # fmt: skip
        return await service.registered(self.database, registration, self.rules["lease_seconds"])

    async def view(self, component_id: str) -> ComponentView | None:
        async with self.database.read() as session:
            row = await store.find(session, component_id)
            return None if row is None else service.detail_of(row)

    async def until(
        self, component_id: str, wanted: Callable[[ComponentView], bool], seconds: float = 15
    ) -> ComponentView:
        """Wait until the row of an instance is as wanted."""
        deadline = time.monotonic() + seconds
        while (found := await self.view(component_id)) is None or not wanted(found):
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.02)
        return found

    async def until_known(self, *component_ids: str, status: str = "healthy") -> None:
        """Wait until the integrator itself knows that they are so."""
        known = self.integrator
        await wait_for(
            lambda: all(one in known.instances and known.instances[one].status == status for one in component_ids)
        )


@asynccontextmanager
async def world(url: str, home: Path, **more: Any) -> AsyncIterator[World]:
    made = World(url, home, **more)
    await made.database.start()
    await made.integrator.start()
    try:
        yield made
    finally:
        await made.integrator.stop()
        await made.database.dispose()


@dataclass
class Load:
    """Steady load, and what came of it."""

    answers: Counter[str] = field(default_factory=Counter)
    failures: list[BurnishError] = field(default_factory=list)
    slowest: float = 0.0
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def calls(self) -> int:
        return self.answers.total() + len(self.failures)

    def share(self, name: str) -> float:
        return self.answers[name] / max(1, self.answers.total())

    async def run(self, ask: Callable[[], Any], pause: float = 0.0) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                answer = await ask()
                self.answers[answer["name"]] += 1
            except BurnishError as error:
                self.failures.append(error)
            self.slowest = max(self.slowest, time.monotonic() - began)
            await asyncio.sleep(pause)

    def stop(self) -> None:
        self._stop.set()


@asynccontextmanager
async def load(ask: Callable[[], Any], workers: int = 8, pause: float = 0.02) -> AsyncIterator[Load]:
    """Ask again and again while the block runs."""
    found = Load()
    tasks = [asyncio.create_task(found.run(ask, pause)) for _ in range(workers)]
    try:
        yield found
    finally:
        found.stop()
        await asyncio.gather(*tasks)


async def wait_for(wanted: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def component() -> FastAPI:
    app = FastAPI()

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "load": 0.1}

    @app.get("/describe")
    async def describe() -> dict[str, Any]:
        return {"component_type": TYPE, "version": "1"}

    return app


async def embedded_row(session: AsyncSession, component_id: str) -> Any:
    registration = Registration.model_construct(
        component_id=component_id, component_type="x", name="x", version="1", health_endpoint="embedded://x/health",
        api_endpoint="embedded://x", metadata={},
    )  # fmt: skip
    row = await service.register(session, registration, origin=service.Origin("embedded", node="n", process="1"))
    row.due_at = None
    return row
