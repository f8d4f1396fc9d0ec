"""Where requests go: which deployment a model's name means, which replica has room, and who waits for it.

The route table is a snapshot of rows, read again when a deployment changed (and now and then, as notices between
processes can be lost). What is in flight is known only here, in memory: it ends with the server's connections.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from sqlalchemy.ext.asyncio import AsyncSession

from burnish.components.model_serving import store
from burnish.core.errors import Busy, Unavailable
from burnish.core.specs.serving import DeploySpec
from burnish.infra.database import Database
from burnish.infra.http import AiohttpTransport, Transport

_REFRESH_SECONDS = 2.0
_WAIT_FOR_REPLICA_SECONDS = 20.0


@dataclass(frozen=True)
class Target:
    """A replica that may get requests."""

    replica_id: str
    socket: Path


@dataclass(frozen=True)
class Route:
    """A deployment that gets requests."""

    project_id: str
    deployment_id: str
    deployment: str
    revision: int
    spec: DeploySpec
    created: int
    """Unix time of the deployment's making."""
    targets: tuple[Target, ...]


Names = Callable[[AsyncSession, str, str | None], Awaitable[Sequence[str]]]
"""Returns how else a registry version of a project is called: ``name@3``, ``name@production``, ``production``."""


class Routes:
    """The route table."""

    def __init__(self, database: Database, names: Names) -> None:
        self._database = database
        self._names = names
        self._topic = database.topic(store.TOPIC)
        self._table: Mapping[tuple[str, str], Route] = {}
        self._version = -1
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def find(self, project_id: str, model: str) -> Route | None:
        """Return the route of a deployment's name, an alias or ``name@version``."""
        await self._refresh()
        return self._table.get((project_id, model))

    async def of_project(self, project_id: str) -> list[Route]:
        """Return the routes of a project by name of deployment."""
        await self._refresh()
        own = {route.deployment: route for (project, _), route in self._table.items() if project == project_id}
        return [own[name] for name in sorted(own)]

    async def changed(self, timeout: float) -> None:
        """Wait until a deployment changed, at most ``timeout`` seconds; the next look reads again."""
        await self._topic.wait(self._version, timeout)
        self.distrust()

    def distrust(self) -> None:
        """Read the rows again at the next look."""
        self._read_at = float("-inf")

    async def _refresh(self) -> None:
        if self._fresh():
            return
        async with self._reading:
            if self._fresh():
                return
            version = self._topic.version
            async with self._database.read() as session:
                rows = await store.serving(session)
                table: dict[tuple[str, str], Route] = {}
                for deployment, revision, replicas in rows:
                    route = Route(
                        deployment.project_id, deployment.id, deployment.name, revision.number,
                        DeploySpec.model_validate(revision.spec), int(deployment.created_at.timestamp()),
                        tuple(Target(replica.id, Path(replica.socket)) for replica in replicas),
                    )  # fmt: skip
                    for name in await self._names(session, route.project_id, route.spec.model_version):
                        table.setdefault((route.project_id, name), route)
                    table[(route.project_id, route.deployment)] = route
            self._table, self._version, self._read_at = table, version, time.monotonic()

    def _fresh(self) -> bool:
        return self._version == self._topic.version and time.monotonic() - self._read_at < _REFRESH_SECONDS


class _Lane:
    """One replica: its connections, what it generates, and who waits."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.running = 0
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.quiet = asyncio.Event()
        self.quiet.set()

    @property
    def in_flight(self) -> int:
        return self.running + len(self.waiting)

    async def enter(self, parallel: int) -> None:
        self.quiet.clear()
        if self.running < parallel and not self.waiting:
            self.running += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # the turn came just as its owner went
            else:
                with suppress(ValueError):
                    self.waiting.remove(turn)
            raise

    def leave(self) -> None:
        while self.waiting:
            turn = self.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1
        if self.running == 0:
            self.quiet.set()


class Traffic:
    """Admits requests to replicas: at most ``parallel`` at once each, ``queue`` more wait, and no more."""

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane] = {}

    def in_flight(self) -> Mapping[str, int]:
        """Return the number of requests by replica, waiting ones included."""
        return MappingProxyType({replica: lane.in_flight for replica, lane in self._lanes.items()})

    @asynccontextmanager
    async def admit(self, route: Route, avoid: Sequence[str] = ()) -> AsyncIterator[tuple[Target, Transport]]:
        """Wait for a place at the replica with the fewest requests, and hold it inside the context.

        Raises:
            Busy: every replica's queue is full.
            Unavailable: there is no replica besides those in ``avoid``.
        """
        targets = [target for target in route.targets if target.replica_id not in avoid]
        if not targets:
            raise Unavailable(f"deployment {route.deployment} has no replica that is ready", retry_after=1)
        target = min(targets, key=lambda target: self._lane(target).in_flight)
        lane = self._lane(target)
        if lane.in_flight >= route.spec.parallel + route.spec.queue:
            raise Busy(
                f"deployment {route.deployment} has {lane.in_flight} requests in its queue, as many as it takes",
                hint="come back later, or deploy it with a longer `queue`, more `parallel` or more `replicas`",
                retry_after=1,
            )
        await lane.enter(route.spec.parallel)
        try:
            yield target, lane.transport
        finally:
            lane.leave()

    def _lane(self, target: Target) -> _Lane:
        lane = self._lanes.get(target.replica_id)
        if lane is None:
            lane = self._lanes[target.replica_id] = _Lane(AiohttpTransport(unix_socket=target.socket))
        return lane

    async def idle(self, replica_id: str, timeout: float) -> bool:
        """Wait until nothing is in flight at a replica; False after ``timeout`` seconds."""
        lane = self._lanes.get(replica_id)
        if lane is None:
            return True
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await lane.quiet.wait()
        return lane.quiet.is_set()

    async def drop(self, replica_id: str) -> None:
        """Close the connections to a replica that has ended."""
        lane = self._lanes.pop(replica_id, None)
        if lane is not None:
            await lane.transport.close()

    async def close(self) -> None:
        """Close all connections."""
        for replica_id in list(self._lanes):
            await self.drop(replica_id)


async def ready_route(routes: Routes, route: Route, avoid: Sequence[str] = ()) -> Route | None:
    """Return the deployment's route once it has a replica besides those in ``avoid``, waiting for a restart.

    Returns:
        None: the deployment is gone, or no replica came up in time.
    """
    deadline = time.monotonic() + _WAIT_FOR_REPLICA_SECONDS
    current: Route | None = route
    while current is not None:
        if any(target.replica_id not in avoid for target in current.targets):
            return current
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        await routes.changed(min(left, 0.5))
        current = await routes.find(route.project_id, route.deployment)
    return None
