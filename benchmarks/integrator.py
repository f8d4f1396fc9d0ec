"""Listing instances and choosing one for a call, with 1,000 of them registered, on SQLite and PostgreSQL.

    PYTHONPATH=. python benchmarks/integrator.py [--instances 1000] [--rounds 200] [--databases sqlite postgresql] [--json out.json]

*list*: `GET /platform/components` through the platform's routes (no socket): a page of 50, and a page of 500; beside it
*all*, every page of 500 until the end, and *changed*, a page on which every instance changed since the last list. *route*: choosing the instance for one call out of all of them, alone and with a
preferred model; beside it `path`, which component a path belongs to. *reread*: a process reads all instances anew (it
does so when some change, at most 20 times a second, and every 2 s). *cpu* is the processor time of this process for one:
what is left when other processes are busy, too. What is wanted is that list and route stay under 10 ms.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from pydantic import SecretStr

from burnish.core.protocol import Description, Health, KindOffer, Registration
from burnish.core.settings import Settings
from burnish.infra.database import Database
from burnish.platform.identity import LOCAL, CallerTokens
from burnish.platform.identity.principal import SCOPE_KEY
from burnish.platform.integrator import Integrator, api, service, store
from burnish.platform.integrator.health import Sight
from burnish.platform.integrator.judging import Look
from tests.support.databases import prepare
from tests.support.postgres import PostgresServer, running_server

TYPE = "echo_metric"
WANTED_MS = 10.0
WANTED = ("list 50", "list 500", "route", "route, warm model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgresql"], choices=["sqlite", "postgresql"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, dict[str, dict[str, float]]] = {}
    with _postgres("postgresql" in options.databases) as server, tempfile.TemporaryDirectory() as folder:
        for database in options.databases:
            url = f"sqlite+aiosqlite:///{folder}/burnish.db"
            if database == "postgresql":
                assert server is not None
                url = server.url(server.create_database())
            prepare(url)
            home = Path(folder) / database
            home.mkdir()
            found[database] = asyncio.run(_measure(url, home, options.instances, options.rounds))
    for database, rows in found.items():
        for name, row in rows.items():
            sys.stdout.write(
                f"{database:<11} {name:<18} p50 {row['p50']:8.3f} ms   p99 {row['p99']:8.3f} ms   cpu {row['cpu']:8.3f} ms"
                f"{verdict(name, row)}\n"
            )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def verdict(name: str, row: dict[str, float]) -> str:
    """Return whether what is wanted of it is met; nothing is wanted of the rest."""
    if name not in WANTED:
        return ""
    return f"   p99 < {WANTED_MS:g} ms: {'met' if row['p99'] < WANTED_MS else 'not met'}"


@contextmanager
def _postgres(wanted: bool) -> Iterator[PostgresServer | None]:
    if not wanted:
        yield None
        return
    with running_server() as server:
        yield server


async def _measure(url: str, home: Path, instances: int, rounds: int) -> dict[str, dict[str, float]]:
    database = Database(url)
    settings = Settings(home=home, database_url=SecretStr(url), node="bench")
    integrator = Integrator(database, CallerTokens(b"k" * 32), settings, probing=False)
    await _register(integrator, database, instances)
    await integrator.start()
    app = FastAPI()
    app.include_router(api.router(database))

    async def as_administrator(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, SCOPE_KEY: LOCAL}, receive, send)

    calls = integrator._calls
    of_type = integrator._following.directory.by_type[TYPE]
    assert len(of_type.healthy) == instances
    async with httpx.AsyncClient(transport=httpx.ASGITransport(as_administrator), base_url="http://bench") as client:

        async def page(limit: int) -> None:
            answer = await client.get("/platform/components", params={"limit": limit})
            assert len(answer.json()["data"]) == min(limit, instances)

        async def changed_page(limit: int) -> None:
            service._listed.cache_clear()
            await page(limit)

        async def every_page() -> None:
            after: str | None = None
            while True:
                answer = (
                    await client.get(
                        "/platform/components", params={"limit": 500} | ({"after": after} if after else {})
                    )
                ).json()
                if (after := answer["next"]) is None:
                    return

        async def choose(prefer: str | None) -> None:
            calls._choose(TYPE, of_type, frozenset(), "GET /jobs", prefer)

        async def path() -> None:
            assert integrator.route_of("/platform/echo/some/thing") == TYPE

        try:
            return {
                "list 50": await _time(lambda: page(50), rounds),
                "list 500": await _time(lambda: page(500), rounds),
                "list 50, changed": await _time(lambda: changed_page(50), rounds),
                "list 500, changed": await _time(lambda: changed_page(500), max(10, rounds // 10)),
                "list all": await _time(every_page, max(10, rounds // 10)),
                "route": await _time(lambda: choose(None), rounds * 10),
                "route, warm model": await _time(lambda: choose("model-7"), rounds * 10),
                "path": await _time(path, rounds * 10),
                "reread": await _time(integrator._following.reread, rounds // 4),
            }
        finally:
            await integrator.stop()
            await database.dispose()


async def _register(integrator: Integrator, database: Database, instances: int) -> None:
    """Register them and have each look healthy, as after its first probe."""
    schema = {"type": "object", "properties": {f"field_{n}": {"type": "number", "title": "a field"} for n in range(40)}}
    kinds = tuple(KindOffer(name=f"kind_{n}", spec_schema=schema, result_schema=schema) for n in range(5))
    description = Description(component_type=TYPE, version="1", kinds=kinds, routes=("/platform/echo",))
    for first in range(0, instances, 100):
        async with database.write() as session:
            for n in range(first, min(first + 100, instances)):
                url = f"http://10.0.{n // 250}.{n % 250 + 1}:8001"
                registration = Registration(
                    component_id=f"echo-{n:04d}", component_type=TYPE, name=f"echo {n}", version="1",
                    health_endpoint=f"{url}/health", api_endpoint=url, metadata={"gpus": 2, "rack": f"r{n % 20}"},
                )  # fmt: skip
                row = await service.register(session, registration)
                look = Look(Sight.OK, None, description, Health(load=n % 10 / 10, warm=(f"model-{n % 50}",)))
                await integrator._judge.apply(session, row, look)
    async with database.read() as session:
        assert await store.count(session) == instances


async def _time(what: Callable[[], Awaitable[None]], rounds: int) -> dict[str, float]:
    """Return percentiles in milliseconds, after a short warm-up."""
    for _ in range(max(3, rounds // 20)):
        await what()
    taken = []
    spent = time.process_time()
    for _ in range(rounds):
        began = time.perf_counter()
        await what()
        taken.append((time.perf_counter() - began) * 1000)
    spent = (time.process_time() - spent) * 1000 / rounds
    taken.sort()
    return {"cpu": spent, "p50": statistics.median(taken), "p99": taken[min(len(taken) - 1, int(len(taken) * 0.99))]}


if __name__ == "__main__":
    main()
