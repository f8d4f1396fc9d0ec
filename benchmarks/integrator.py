"""Listing instances and choosing one for a call, with 1,000 of them registered, on SQLite and PostgreSQL.

    PYTHONPATH=. python benchmarks/integrator.py [--instances 1000] [--rounds 200] [--databases sqlite postgresql] [--json out.json]

*list*: `GET /platform/components` through the platform's routes, without a socket and without what a client does with the
answer: a page of 50, all of them, and all of them where a tenth, or each one, was written to since the last list. *list,
served*: all of them as one client gets them over HTTP from `burnish serve` (a process of its own, with its gateway), until
the last byte is there; the instances are real and the server looks at each of them all the time. *route*: choosing the
instance for one call out of all of them, alone and with a preferred model; beside it `path`, which component a path
belongs to. *reread*: a process reads all instances anew (it does so when some change, at most 20 times a second, and every
2 s). *cpu* is the processor time of the process that answers for one: what is left when other processes are busy, too. What is wanted is that list and route stay under 10 ms.
"""

import argparse
import asyncio
import http.client
import json
import multiprocessing
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from aiohttp import web
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import text

from burnish.cli.server import _leave_to_itself
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
from tests.support.server import Server, running_burnish, wait_for

TYPE = "echo_metric"
WANTED_MS = 10.0
WANTED = ("list 50", "list 1000", "list 50, served", "list 1000, served", "route", "route, warm model")
LISTS = "/platform/components"
_PAUSE_SECONDS = 0.05


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
            home = Path(folder) / database
            home.mkdir()
            urls = (f"sqlite+aiosqlite:///{home}/routes.db", f"sqlite+aiosqlite:///{home}/burnish.db")
            if database == "postgresql":
                assert server is not None
                urls = (server.url(server.create_database()), server.url(server.create_database()))
            for url in urls:
                prepare(url)
            found[database] = asyncio.run(_measure(urls[0], home, options.instances, options.rounds))
            found[database] |= _served(urls[1], home, options.instances, options.rounds)
    for database, rows in found.items():
        for name, row in rows.items():
            sys.stdout.write(
                f"{database:<11} {name:<27} p50 {row['p50']:8.3f} ms   p99 {row['p99']:8.3f} ms   cpu {row['cpu']:8.3f} ms"
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
    _leave_to_itself()  # the garbage collector, as in a server

    async def page(limit: int) -> bytes:
        return await _answer(as_administrator, f"limit={limit}")

    async def choose(prefer: str | None) -> None:
        calls._choose(TYPE, of_type, frozenset(), "GET /jobs", prefer)

    async def path() -> None:
        assert integrator.route_of("/platform/echo/some/thing") == TYPE

    async def touch(names: str) -> None:
        async with database.write() as session:
            statement = text("UPDATE platform_components SET restarts = restarts + 1 WHERE name LIKE :names")
            await session.execute(statement, {"names": names})

    try:
        sizes = {limit: len(json.loads(await page(limit))["data"]) for limit in (50, 1000)}
        assert sizes == {limit: min(limit, instances) for limit in sizes}
        return {
            "list 50": await _time(lambda: page(50), rounds),
            "list 1000": await _time(lambda: page(1000), rounds),
            "list 1000, a tenth changed": await _time(lambda: page(1000), rounds, lambda: touch("%7")),
            "list 1000, all changed": await _time(lambda: page(1000), max(20, rounds // 10), lambda: touch("%")),
            "route": await _time(lambda: choose(None), rounds * 10),
            "route, warm model": await _time(lambda: choose("model-7"), rounds * 10),
            "path": await _time(path, rounds * 10),
            "reread": await _time(integrator._following.reread, rounds // 4),
        }
    finally:
        await integrator.stop()
        await database.dispose()


async def _answer(app: Any, query: str) -> bytes:
    """Return the body of one list, as the server below is given it."""
    sent: list[Any] = []
    scope = {
        "type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "path": LISTS, "raw_path": LISTS.encode(),
        "query_string": query.encode(), "root_path": "", "headers": [], "server": ("bench", 80), "client": ("bench", 1),
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    assert sent[0]["status"] == 200
    return b"".join(message.get("body", b"") for message in sent)


def _served(url: str, home: Path, instances: int, rounds: int) -> dict[str, dict[str, float]]:
    """Measure what a client gets from a server that looks at all of its instances meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fleet = multiprocessing.get_context("spawn").Process(target=_be_all, args=(listener,), daemon=True)
        fleet.start()
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        asyncio.run(_enter(url, home, instances, base))
        with running_burnish(home, {"BURNISH_DATABASE_URL": url}) as server:
            wait_for(lambda: _healthy(server) >= instances, timeout=120)
            time.sleep(5)  # each is described and looked at once; from here on it goes on evenly
            found = {f"list {limit}, served": _asked(server, limit, rounds) for limit in (50, 1000)}
            assert _healthy(server) >= instances
        return found
    finally:
        fleet.kill()
        fleet.join()


async def _enter(url: str, home: Path, instances: int, base: str) -> None:
    database = Database(url)
    settings = Settings(home=home, database_url=SecretStr(url), node="bench")
    await _register(Integrator(database, CallerTokens(b"k" * 32), settings, probing=False), database, instances, base)
    await database.dispose()


def _healthy(server: Server) -> int:
    return len(server.request("GET", f"{LISTS}?limit=1000&status=healthy&component_type={TYPE}")["data"])


def _asked(server: Server, limit: int, rounds: int) -> dict[str, float]:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    process = psutil.Process(server.pid)
    taken, spent = [], 0.0
    for _ in range(rounds):
        time.sleep(_PAUSE_SECONDS)
        cpu, began = sum(process.cpu_times()[:2]), time.perf_counter()
        connection.request("GET", f"{LISTS}?limit={limit}")
        body = connection.getresponse().read()
        taken.append((time.perf_counter() - began) * 1000)
        spent += sum(process.cpu_times()[:2]) - cpu
    connection.close()
    assert len(json.loads(body)["data"]) == limit
    return _percentiles(taken, spent * 1000 / rounds)


def _be_all(listener: socket.socket) -> None:
    """Answer for every instance, each below a path of its own."""

    async def health(request: web.Request) -> web.Response:
        n = int(request.match_info["n"])
        return web.json_response(_health(n).model_dump(mode="json"))

    described = _description().model_dump_json()

    async def describe(_: web.Request) -> web.Response:
        return web.Response(text=described, content_type="application/json")

    app = web.Application()
    app.router.add_get("/{n}/health", health)
    app.router.add_get("/{n}/describe", describe)
    web.run_app(app, sock=listener, print=None)


def _description() -> Description:
    schema = {"type": "object", "properties": {f"field_{n}": {"type": "number", "title": "a field"} for n in range(40)}}
    kinds = tuple(KindOffer(name=f"kind_{n}", spec_schema=schema, result_schema=schema) for n in range(5))
    return Description(component_type=TYPE, version="1", kinds=kinds, routes=("/platform/echo",))


def _health(n: int) -> Health:
    return Health(load=n % 10 / 10, warm=(f"model-{n % 50}",))


async def _register(integrator: Integrator, database: Database, instances: int, base: str | None = None) -> None:
    """Register them, below ``base`` or out of reach, and have each look healthy, as after its first probe."""
    description = _description()
    for first in range(0, instances, 100):
        async with database.write() as session:
            for n in range(first, min(first + 100, instances)):
                url = f"{base}/{n}" if base else f"http://10.0.{n // 250}.{n % 250 + 1}:8001"
                registration = Registration(
                    component_id=f"echo-{n:04d}", component_type=TYPE, name=f"echo {n}", version="1",
                    health_endpoint=f"{url}/health", api_endpoint=url, metadata={"gpus": 2, "rack": f"r{n % 20}"},
                )  # fmt: skip
                row = await service.register(session, registration)
                look = Look(Sight.OK, None, description, _health(n))
                await integrator._judge.apply(session, row, look)
    async with database.read() as session:
        assert await store.count(session) == instances


async def _time(
    what: Callable[[], Awaitable[object]], rounds: int, before: Callable[[], Awaitable[None]] | None = None
) -> dict[str, float]:
    """Return percentiles in milliseconds, after a short warm-up; what is done ``before`` each is not counted."""
    taken, spent, warm_up = [], 0.0, max(3, rounds // 20)
    for n in range(-warm_up, rounds):
        if before is not None:
            await before()
        cpu, began = time.process_time(), time.perf_counter()
        await what()
        if n >= 0:
            taken.append((time.perf_counter() - began) * 1000)
            spent += time.process_time() - cpu
    return _percentiles(taken, spent * 1000 / rounds)


def _percentiles(taken: list[float], cpu: float) -> dict[str, float]:
    taken = sorted(taken)
    p99 = taken[min(len(taken) - 1, int(len(taken) * 0.99))]
    return {"cpu": cpu, "p50": statistics.median(taken), "p99": p99}


if __name__ == "__main__":
    main()
