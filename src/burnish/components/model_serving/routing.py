"""Where requests go: which deployment a model's name means, which replica has room, and who waits for it.

The route table is a snapshot of rows, read again when a deployment changed or an alias moved (and now and then, as notices between
processes can be lost). What is in flight is known only here, in memory: it ends with the server's connections.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import MappingProxyType

from sqlalchemy.ext.asyncio import AsyncSession

from burnish.components.model_serving import store
from burnish.components.model_serving.naming import (
    Aliases,
    Ambiguous,
    AmbiguousName,
    Route,
    Target,
    contested,
    table_of,
)
from burnish.components.model_serving.tables import Deployment, Replica, Revision
from burnish.core.errors import Busy, Unavailable
from burnish.core.specs.serving import DeploySpec
from burnish.infra.database import Database
from burnish.infra.http import Transport
from burnish.infra.http_client import HttpTransport
from burnish.platform.jobs import service as jobs

_REFRESH_SECONDS = 2.0
_STALE_SECONDS = 0.5
_WAIT_FOR_REPLICA_SECONDS = 20.0
COMPONENT_TYPE = "model_serving"

log = logging.getLogger(__name__)


AliasesOf = Callable[[AsyncSession, str, Collection[str]], Awaitable[Aliases]]
"""Returns the aliases of some models of a project."""


class Routes:
    """The route table."""

    def __init__(self, database: Database, aliases: AliasesOf, topics: Sequence[str] = (), *, node: str) -> None:
        """Read aliases by ``aliases``; ``topics`` are notified when one of them moved. ``node``: this process's."""
        self._database = database
        self._node = node
        self._aliases = aliases
        self._topics = tuple(database.topic(name) for name in (store.TOPIC, *topics))
        self._table: Mapping[tuple[str, str], Route | Ambiguous] = {}
        self._routes: Sequence[Route] = ()
        self._versions: tuple[int, ...] = ()
        self._read_at: float | None = None
        self._reading = asyncio.Lock()
        self.on_read: list[Callable[[Sequence[Route]], Awaitable[None]]] = []
        """Told the routes each time that they were read."""
        self._stale = False
        """The last read failed: the table that there is goes on serving."""

    async def find(self, project_id: str, model: str) -> Route | None:
        """Return the route of a deployment's name, an alias or ``name@version``.

        Raises:
            AmbiguousName: it is an alias of several models that are served.
        """
        await self._refresh()
        found = self._table.get((project_id, model))
        if isinstance(found, Ambiguous):
            raise AmbiguousName(
                f"The model '{model}' is ambiguous: it is an alias of several models", where="model",
                hint=f"ask for one of: {', '.join(found.choices)}",
            )  # fmt: skip
        return found

    async def of_project(self, project_id: str) -> list[Route]:
        """Return the routes of a project by name of deployment."""
        await self._refresh()
        return sorted((r for r in self._routes if r.project_id == project_id), key=lambda route: route.deployment)

    async def changed(self, timeout: float) -> None:
        """Wait until a deployment changed, at most ``timeout`` seconds; the next look reads again."""
        deployments = self._topics[0]
        await deployments.wait(self._versions[0] if self._versions else deployments.version, timeout)
        self.distrust()

    def distrust(self) -> None:
        """Read the rows again at the next look."""
        if self._read_at is not None:
            self._read_at = float("-inf")

    async def warm(self) -> tuple[str, ...]:
        """Return every name (deployment, version, alias) that this node itself has replicas for."""
        await self._refresh()
        here = (name for (_, name), route in self._table.items() if isinstance(route, Route) and route.targets)
        return tuple(sorted(set(here)))

    async def _refresh(self) -> None:
        """Read the rows again if they may have changed. Without the database, the table of before goes on serving.

        Raises:
            Unavailable: the database does not answer, and there is no table yet.
        """
        if self._fresh():
            return
        async with self._reading:
            if self._fresh():
                return
            versions = self._noticed()
            try:
                await self._read()
            except Unavailable as error:
                if self._read_at is None:
                    raise
                if not self._stale:
                    log.warning("requests go on by the last table of routes: %s", error.message)
                self._stale = True
            else:
                if self._stale:
                    log.info("the table of routes is read from the database again")
                self._stale = False
            self._versions, self._read_at = versions, time.monotonic()

    async def _read(self) -> None:
        async with self._database.read() as session:
            processes = await jobs.processes_of(session, COMPONENT_TYPE)
            routes = [
                self._route(deployment, revision, replicas, processes)
                for deployment, revision, replicas in await store.serving(session)
            ]
            table: dict[tuple[str, str], Route | Ambiguous] = {}
            for project in {route.project_id for route in routes}:
                own = [route for route in routes if route.project_id == project]
                table.update(((project, name), route) for name, route in (await self._names(session, own)).items())
        self._table, self._routes = table, routes
        for told in self.on_read:
            await told(routes)

    def _route(
        self, deployment: Deployment, revision: Revision, replicas: Sequence[Replica],
        processes: Mapping[str, tuple[str, ...]],
    ) -> Route:  # fmt: skip
        here = [replica for replica in replicas if replica.node == self._node]
        nodes = dict.fromkeys(replica.node for replica in replicas if replica.node != self._node)
        return Route(
            deployment.project_id, deployment.id, deployment.name, revision.number,
            DeploySpec.model_validate(revision.spec), int(deployment.created_at.timestamp()),
            tuple(Target(replica.id, Path(replica.socket)) for replica in here),
            tuple(url for node in nodes for url in processes.get(node, ())),
        )  # fmt: skip

    async def _names(self, session: AsyncSession, routes: Sequence[Route]) -> Mapping[str, Route | Ambiguous]:
        models = {route.model for route in routes if route.model is not None}
        aliases = await self._aliases(session, routes[0].project_id, models) if models else {}
        rivals = contested(routes, aliases)
        return table_of(routes, aliases, await store.served_before(session, rivals) if rivals else {})

    def _noticed(self) -> tuple[int, ...]:
        return tuple(topic.version for topic in self._topics)

    def _fresh(self) -> bool:
        if self._read_at is None:
            return False
        age = time.monotonic() - self._read_at
        if self._stale:  # whatever is noticed: the database does not answer, and nobody is to wait for it
            return age < _STALE_SECONDS
        return self._versions == self._noticed() and age < _REFRESH_SECONDS


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
            lane = self._lanes[target.replica_id] = _Lane(HttpTransport(unix_socket=target.socket))
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

    async def keep_only(self, routes: Sequence[Route]) -> None:
        """Close the connections to replicas that are in no route any more, of those at which nothing is in flight."""
        known = {target.replica_id for route in routes for target in route.targets}
        for replica_id, lane in list(self._lanes.items()):
            if replica_id not in known and lane.in_flight == 0:
                await self.drop(replica_id)

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
    """Return the deployment's route once this node has a replica besides those in ``avoid``, waiting for a restart.

    Returns:
        None: the deployment is gone or served elsewhere, or no replica came up in time.
    """
    deadline = time.monotonic() + _WAIT_FOR_REPLICA_SECONDS
    current: Route | None = route
    while current is not None:
        if any(target.replica_id not in avoid for target in current.targets):
            return current
        left = deadline - time.monotonic()
        if left <= 0 or (current.elsewhere and not current.targets):
            return None
        await routes.changed(min(left, 0.5))
        current = await routes.find(route.project_id, route.deployment)
    return None
