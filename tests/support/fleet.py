"""The split form: several ``burnish serve`` on one PostgreSQL and one Redis, behind a plain TCP balancer."""

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from burnish.core.specs.base import ArtifactRef
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.database import Database
from tests.support.balancer import Balancer
from tests.support.fake_serve import PASSED
from tests.support.line import Line
from tests.support.passed import passed
from tests.support.postgres import PostgresServer, free_port
from tests.support.proxy import Proxy
from tests.support.redis import RedisServer
from tests.support.server import Answered, Server, wait_for
from tests.support.serving import fake_model

ENVIRONMENT = {
    "BURNISH_CPUS": "2", "BURNISH_LEASE_SECONDS": "2", "BURNISH_MEMORY_BYTES": str(4 << 30), "BURNISH_DISK_RESERVE_BYTES": "0",
}  # fmt: skip
ROLES = {
    "gateway1": "platform", "gateway2": "platform", "serving1": "model_serving", "serving2": "model_serving",
    "tuning": "fine_tuning", "rest": "data_management,hyperparameter_optimization,compression,evaluation",
}  # fmt: skip
"""The processes of the split form by name."""
GATEWAYS = ("gateway1", "gateway2")
CUTTABLE = ("serving2", "tuning")
_PATH = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
"""Where hosts find the kinds of tests."""
_KEY = re.compile(r"bk_[A-Za-z0-9_.-]{20,}")


class Member(Server):
    """One process of the split form, on a port that it keeps."""

    def __init__(
        self, home: Path, name: str, port: int, environment: Mapping[str, str], program: tuple[str, ...]
    ) -> None:
        super().__init__(home, environment={**environment, "BURNISH_PORT": str(port)}, name=name)
        self.name = name
        self.port = port
        self.program = program
        self.key = ""

    def start(self, *, ready: bool = True, environment: Mapping[str, str] | None = None) -> "Member":
        """Start it on its own port."""
        super().start(ready=False, environment=environment)
        self.url = f"http://127.0.0.1:{self.port}"
        if ready:
            self.wait_ready()
        return self

    def request(
        self, method: str, path: str, body: Any = None, *, timeout: float = 30, headers: Mapping[str, str] | None = None
    ) -> Any:
        """Send one request as the administrator."""
        own = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return super().request(method, path, body, timeout=timeout, headers={**own, **(headers or {})})

    def freeze(self) -> None:
        """SIGSTOP, as a machine that swaps, or a debugger."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)


@dataclass(frozen=True)
class Instance:
    """An instance of a component, as the platform sees it."""

    component_id: str
    component_type: str
    status: str


class Fleet:
    """The whole installation. ``start`` it, disturb it, ``end`` it."""

    def __init__(
        self, folder: Path, postgres: PostgresServer, redis: RedisServer | None, *, fake_engine: bool = True,
        roles: Mapping[str, str] = ROLES, environment: Mapping[str, str] | None = None,
        cuttable: bool = False,
    ) -> None:  # fmt: skip
        """``cuttable``: everybody reaches those of :data:`CUTTABLE` by a line of their own, and ``gateway2`` the database
        by way of a proxy."""
        self.home = folder / "home"
        self.roles = roles
        self.folder = folder
        self.database_url = postgres.url(postgres.create_database())
        program = ("-m", "tests.support.fake_serve") if fake_engine else ("-m", "burnish.cli", "serve")
        shared = {
            **ENVIRONMENT, "BURNISH_DATABASE_URL": self.database_url,
            **({"BURNISH_REDIS_URL": redis.url} if redis is not None else {}), **(environment or {}),
            **({PASSED: str(folder), "PYTHONPATH": _PATH} if fake_engine else {}),
        }  # fmt: skip
        self.lines: dict[str, Line] = {}
        self.to_database: Proxy | None = None
        self.members: dict[str, Member] = {}
        for (name, role), port in zip(roles.items(), free_ports(len(roles)), strict=True):
            own = {**shared, "BURNISH_COMPONENTS": role}
            if cuttable and name in CUTTABLE:
                self.lines[name] = Line(port)
                own["BURNISH_ADVERTISE_URL"] = self.lines[name].url
            if cuttable and name == "gateway2":
                self.to_database = Proxy(("127.0.0.1", postgres.port))
                own["BURNISH_DATABASE_URL"] = self._through(self.to_database)
            self.members[name] = Member(self.home, name, port, own, program)
        self.balancer: Balancer | None = None
        self.key = ""

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    @property
    def gateways(self) -> list[Member]:
        return [one for name, one in self.members.items() if name in GATEWAYS]

    def start(self) -> "Fleet":
        """Start every process, the balancer last, and return when all are ready and know each other."""
        first, *others = self.members.values()
        first.start()  # alone: it makes the home's files, and the administrator's key
        key = _KEY.search(first.log.read_text())
        for member in self.members.values():
            member.key = self.key = key.group() if key else ""
        for member in others:
            member.start(ready=False)
        for member in others:
            member.wait_ready()
        wait_for(self.settled, 60, lambda: f"not every component is healthy: {self.instances()}")
        self.balancer = Balancer([("127.0.0.1", one.port) for one in self.gateways], self.folder / "balancer.jsonl")
        return self

    @property
    def url(self) -> str:
        assert self.balancer is not None
        return self.balancer.url

    def instances(self, through: str | None = None) -> list[Instance]:
        """Return the instances that a gateway (the first that answers) knows."""
        for gateway in [self.members[through]] if through else self.gateways:
            with suppress(OSError, Answered):
                page = gateway.request("GET", "/platform/components?limit=200", timeout=5)
                return [Instance(one["component_id"], one["component_type"], one["status"]) for one in page["data"]]
        return []

    def settled(self) -> bool:
        """Tell whether each process's components are healthy, as every gateway sees it."""
        wanted: dict[str, int] = {}
        for name, member in self.members.items():
            for component in self.roles[name].split(","):
                if component != "platform" and member.running:
                    wanted[component] = wanted.get(component, 0) + 1
        for gateway in self.gateways:
            if not gateway.running:
                continue
            found = [one.component_type for one in self.instances(gateway.name) if one.status == "healthy"]
            if any(found.count(component) < count for component, count in wanted.items()):
                return False
        return True

    def missed(self, name: str) -> bool:
        """Tell whether another process has noticed that a member's components are gone (a gateway has none)."""
        other = next(one for one in self.gateways if one.name != name and one.running)
        found = self.instances(other.name)
        healthy = [one.component_type for one in found if one.status == "healthy"]
        types = [role.split(",") for role in self.roles.values()]
        mine = [one for one in self.roles[name].split(",") if one != "platform"]
        return bool(found) and all(healthy.count(one) < sum(one in those for those in types) for one in mine)

    def passed(self, name: str) -> dict[str, float]:
        """Return the keys of the load's requests that were sent to a process, and when, as their senders say."""
        if name in GATEWAYS:
            assert self.balancer is not None
            return self.balancer.passed(GATEWAYS.index(name))
        url = self.lines[name].url if name in self.lines else self.members[name].url
        return self.passed_to(lambda to: to.partition("/components")[0].rstrip("/") == url)

    def passed_to(self, is_victim: Callable[[str], bool]) -> dict[str, float]:
        """Return the same for whatever processes of Burnish send requests to."""
        return passed(self.folder.glob("passed-*.jsonl"), is_victim)

    def restart(self, name: str) -> float:
        """Start a member that has ended; return the seconds until everything is healthy again."""
        began = time.monotonic()
        self.members[name].start()
        wait_for(self.settled, 60, lambda: f"{name} is not healthy: {self.instances()}\n{self.members[name].tail()}")
        return time.monotonic() - began

    def deploy_fake(self, name: str = "chat", *, replicas: int = 1, **fake: Any) -> None:
        """Deploy a fake model that says its name, and wait until it answers through every gateway."""
        store = FileArtifactStore(self.home / "artifacts")
        ref = fake_model(store, name, **fake)
        self._make_known(ref)
        spec = {
            "deployment": name,
            "model": ref.model_dump(mode="json"),
            "parallel": 64,
            "queue": 1024,
            "replicas": replicas,
        }
        self.gateways[0].request("POST", "/platform/deployments", spec)
        wait_for(
            lambda: all(answers(gateway, name) for gateway in self.gateways), 60,
            lambda: f"{name} does not answer\n{self.tails()}",
        )  # fmt: skip

    def _make_known(self, ref: ArtifactRef) -> None:
        async def recorded() -> None:
            database = Database(self.database_url)
            try:
                async with database.write() as session:
                    await artifacts.record(session, "default", ref)
                    await artifacts.refer(session, "default", ref.digest, "test", "test")
            finally:
                await database.dispose()

        asyncio.run(recorded())

    def _through(self, proxy: Proxy) -> str:
        """Return the database's URL by way of a proxy."""
        return make_url(self.database_url).set(port=proxy.port).render_as_string(hide_password=False)

    def tails(self, lines: int = 15) -> str:
        """Return the ends of all logs."""
        return "\n".join(f"== {name}\n{member.tail(lines)}" for name, member in self.members.items())

    def end(self) -> None:
        """End every process of it, and what they started."""
        if self.balancer is not None:
            self.balancer.close()
        for line in self.lines.values():
            line.close()
        if self.to_database is not None:
            self.to_database.close()
        for member in self.members.values():
            with suppress(AssertionError, ProcessLookupError):
                if member.running:
                    member.thaw()
        for member in self.members.values():
            member.end_everything()


def answers(server: Server, model: str) -> bool:
    """Tell whether a model answers a chat through a server."""
    body = {"model": model, "max_tokens": 2, "messages": [{"role": "user", "content": "hi"}]}
    try:
        return bool(server.request("POST", "/v1/chat/completions", body, timeout=10)["choices"])
    except (Answered, OSError):
        return False


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that are free, all different."""
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return list(found)
