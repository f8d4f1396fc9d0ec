"""How soon a change of the configuration is obeyed by eight processes.

    python benchmarks/configuration.py [--processes 8] [--changes 200] [--json out.json]

Eight processes on one PostgreSQL database (each does nothing but follow the configuration, as it does in a server) and a
ninth that changes `gateway.per_key.burst`, as the server does for `PATCH /platform/configuration`: in one transaction,
with every check. Each process notes the moment at which its `current()` first had the new value (a tight loop looks
every millisecond), by the machine's one monotonic clock. A change counts once the last process obeys it. *begun*: from
before the change is checked; *committed*: from its commit, the answer to whoever changed it. Then the same with every
LISTEN connection cut just before each change, so that polling alone finds it.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from burnish.core.settings import Settings
from burnish.infra.database import Database
from burnish.platform.configuration import LiveConfiguration, service
from burnish.platform.configuration.service import Change
from burnish.platform.identity import LOCAL
from tests.support.databases import prepare
from tests.support.postgres import PostgresServer, running_server

KEY = "gateway.per_key.burst"
PAUSE = 0.05
CUT = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}' AND pid <> pg_backend_pid()"
    " AND (query ILIKE 'LISTEN %' OR query ILIKE '%pg_terminate_backend(pid)%')"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--changes", type=int, default=200)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--follow", nargs=2, metavar=("URL", "HOME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.follow:
        asyncio.run(follow(*options.follow))
        return
    found = {}
    with running_server() as server, tempfile.TemporaryDirectory() as folder:
        for name, cut in (("with notices", False), ("notices missed", True)):
            count = options.changes if not cut else max(10, options.changes // 10)
            found[name] = run(server, Path(folder), options.processes, count, cut=cut)
            show(name, found[name])
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


async def follow(url: str, home: str) -> None:
    """Print the moment at which each new value is first there."""
    database = Database(url)
    live = LiveConfiguration(database, Settings(home=Path(home), node="here"), variables={})
    await database.start()
    await live.start()
    seen = None
    while True:
        if (now := live.current().gateway.per_key.burst) != seen:
            print(f"{now} {time.monotonic()}", flush=True)
            seen = now
        await asyncio.sleep(0.001)


def run(server: PostgresServer, folder: Path, processes: int, changes: int, *, cut: bool) -> dict[str, list[float]]:
    name = server.create_database()
    url = server.url(name)
    prepare(url)
    argv = [sys.executable, __file__, "--follow", url, str(folder)]
    followers = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    try:
        return asyncio.run(change(server, name, followers, folder, changes, cut))
    finally:
        for one in followers:
            one.kill()
            one.wait()
            if one.stdout is not None:
                one.stdout.close()
        server.drop_database(name)


async def change(
    server: PostgresServer, name: str, followers: Sequence[subprocess.Popen[str]], folder: Path, changes: int, cut: bool
) -> dict[str, list[float]]:
    await asyncio.to_thread(moments, followers)  # the first value: they have started
    database = Database(server.url(name))
    live = LiveConfiguration(database, Settings(home=folder, node="here"), variables={})
    await database.start()
    await live.start()
    took: dict[str, list[float]] = {"begun": [], "committed": []}
    for number in range(1, changes + 1):
        if cut:
            await asyncio.sleep(3)  # until all listen again
            await asyncio.to_thread(server.execute, CUT.format(name))
        begun = time.monotonic()
        async with database.write() as session:
            wanted = Change(live.environment, "change", "benchmark", None, dry_run=False)
            await service.apply(session, live, LOCAL, wanted, service.named({KEY: number}, ()))
        committed = time.monotonic()
        last = max(await asyncio.to_thread(moments, followers))
        took["begun"].append(last - begun)
        took["committed"].append(last - committed)
        await asyncio.sleep(PAUSE)
    await live.stop()
    await database.dispose()
    return took


def moments(followers: Sequence[subprocess.Popen[str]]) -> list[float]:
    """Return when each process first had its next value."""
    found = []
    for one in followers:
        assert one.stdout is not None
        found.append(float(one.stdout.readline().split()[1]))
    return found


def show(name: str, took: dict[str, list[float]]) -> None:
    for since, values in took.items():
        cuts = statistics.quantiles(values, n=100, method="inclusive")
        print(
            f"{name}, since it was {since}: p50 {cuts[49] * 1000:.1f} ms, p99 {cuts[98] * 1000:.1f} ms, "
            f"most {max(values) * 1000:.1f} ms over {len(values)} changes", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
