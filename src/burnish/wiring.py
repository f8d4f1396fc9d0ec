"""The composition root: the one place that picks concrete classes and knows all parts."""

import asyncio
import logging
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import burnish.components.data_management.tables
import burnish.components.model_serving.tables
import burnish.infra.artifact_store.tables
import burnish.infra.event_log.tables
import burnish.infra.idempotency.tables
import burnish.platform.integrator.tables
import burnish.platform.jobs.tables
import burnish.platform.model_registry.tables
import burnish.platform.workflow.tables  # noqa: F401 - imported so that the metadata knows every table
from burnish.components.compression.component import build as build_compression
from burnish.components.data_management.component import build as build_data_management
from burnish.components.evaluation.component import build as build_evaluation
from burnish.components.fine_tuning.component import build as build_fine_tuning
from burnish.components.hyperparameter_optimization.component import build as build_hyperparameter_optimization
from burnish.components.model_serving.component import build as build_model_serving
from burnish.core.errors import InvalidRequest, Unavailable
from burnish.core.settings import NODE_FILE, Settings
from burnish.infra import belonging, signals
from burnish.infra.artifact_store import ArtifactStore, open_store
from burnish.infra.database import Base, Database
from burnish.infra.event_log import EventLog
from burnish.infra.home import HomeLock, write_once
from burnish.infra.migrations import schema_problem, upgrade
from burnish.platform.identity import CallerTokens
from burnish.platform.integrator import Integrator
from burnish.platform.jobs.embedding import Component
from burnish.platform.jobs.runtime import JobRuntime
from burnish.platform.model_registry.service import ModelFinder
from burnish.platform.monitoring.housekeeping import Housekeeping
from burnish.platform.monitoring.readiness import Check
from burnish.platform.workflow.reconciler import WorkflowReconciler
from burnish.platform.workflow.service import WorkflowService

log = logging.getLogger(__name__)

metadata = Base.metadata
"""Every table of Burnish."""

BUILDERS: dict[str, Callable[[JobRuntime], Component]] = {
    "data_management": build_data_management,
    "fine_tuning": build_fine_tuning,
    "hyperparameter_optimization": build_hyperparameter_optimization,
    "compression": build_compression,
    "evaluation": build_evaluation,
    "model_serving": build_model_serving,
}


@dataclass
class Platform:
    """Everything of one process, in the order in which it starts."""

    settings: Settings
    database: Database
    store: ArtifactStore
    tokens: CallerTokens
    events: EventLog
    runtime: JobRuntime
    components: list[Component]
    integrator: Integrator
    workflows: WorkflowService
    workflow_reconciler: WorkflowReconciler
    housekeeping: Housekeeping
    home_lock: HomeLock
    _running: list[Callable[[], object]] = field(default_factory=list)

    async def start(self) -> None:
        """Migrate, then start every loop. What a dead server left running is found again.

        Raises:
            HomeLocked: another server holds this home.
            SchemaNewer: the database was made by a newer Burnish.
            Unavailable: the database does not answer, or home, artifact store and database do not belong together.
        """
        await upgrade(self.database, metadata)
        await belonging.claim(self.database, self.store, self.settings.home, self.settings.resolved_artifact_url)
        await self.database.start()
        await self.runtime.start()
        for component in self.components:
            await component.start()
        await self.integrator.start()
        await self.workflow_reconciler.start()
        await self.housekeeping.start()

    async def stop(self) -> None:
        """Stop the loops. Hosts and replicas live on; the next start finds them."""
        await self.housekeeping.stop()
        await self.workflow_reconciler.stop()
        await self.integrator.stop()
        for component in reversed(self.components):
            await component.stop()
        await self.runtime.stop()
        await self.events.close()
        await self.database.dispose()
        self.home_lock.release()

    async def drain(self) -> list[str]:
        """Pause this node's jobs at a checkpoint and end its replicas; say what was done (Ctrl-C in a terminal).

        With another server on this home, on PostgreSQL, all of that is left to it.
        """
        if not self.home_lock.only_holder():
            return ["another server of this home goes on with its jobs and replicas"]
        await self.workflow_reconciler.stop()
        drains = [component.drain() for component in self.components if component.drain]
        still, *done = await asyncio.gather(self.runtime.pause_running(), *drains)
        said = [line for lines in done for line in lines]
        said += [f"{job} cannot pause; it runs on and is found again" for job in still]
        return said

    def checks(self) -> list[Check]:
        """Return what readiness means here."""

        async def database() -> str | None:
            async with self.database.read() as session:
                await session.connection()
            return None

        async def artifact_store() -> str | None:
            await asyncio.to_thread(lambda: self.store.discard(self.store.stage("readiness")))
            return None

        async def reconcilers() -> str | None:
            loops = {
                "jobs": self.runtime.alive,
                "workflow": self.workflow_reconciler.alive,
                "components": self.integrator.alive,
            }
            loops |= {component.component_type: component.alive() for component in self.components}
            dead = sorted(name for name, lives in loops.items() if not lives)
            return f"not running: {', '.join(dead)}; restart the server" if dead else None

        return [
            Check("database", database),
            Check("schema", lambda: schema_problem(self.database)),
            Check("artifact_store", artifact_store),
            Check("reconcilers", reconcilers),
        ]


def build(settings: Settings) -> Platform:
    """Put one process together; nothing runs until :meth:`Platform.start`.

    Raises:
        InvalidRequest: the settings contradict each other.
        HomeLocked: another server holds this home (on PostgreSQL servers may share it with each other).
    """
    refuse_open_bind(settings)
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    home_lock = HomeLock(settings.home, shared=not settings.embedded_database)
    home_lock.acquire()
    write_once(settings.home / NODE_FILE, f"{settings.node}\n".encode())
    database = Database(settings.resolved_database_url)
    store = open_store(settings.resolved_artifact_url)
    tokens = CallerTokens(secret_key(settings))
    owner = f"{settings.node}-{os.getpid()}-{secrets.token_hex(3)}"
    runtime = JobRuntime(database, store, settings, tokens, owner=owner)
    wanted = settings.component_set()
    components = [make(runtime) for name, make in BUILDERS.items() if name in wanted]
    integrator = Integrator(database, tokens, settings)
    for component in components:
        integrator.embed(component.component_type, component.app)
    signals.watch_disk("home", settings.home)
    return Platform(
        settings=settings, database=database, store=store, tokens=tokens, events=runtime.event_log, runtime=runtime,
        components=components, integrator=integrator,
        workflows=WorkflowService(database, integrator, ModelFinder(database)),
        workflow_reconciler=WorkflowReconciler(database, integrator, store, owner=owner, lease_seconds=settings.lease_seconds),
        housekeeping=Housekeeping(database, store), home_lock=home_lock,
    )  # fmt: skip


def refuse_open_bind(settings: Settings) -> None:
    """Refuse to listen beyond this machine while nobody is asked who they are."""
    if settings.host in {"127.0.0.1", "localhost", "::1"}:
        return
    raise InvalidRequest(
        f"with authentication off the server binds to loopback only, not to {settings.host}",
        where="BURNISH_HOST",
        hint="use 127.0.0.1 and a tunnel; binding elsewhere needs authentication, which this version does not have yet",
    )


def secret_key(settings: Settings) -> bytes:
    """Return the key of this installation's own tokens, made on the first start.

    Raises:
        Unavailable: the file cannot be read or is too short.
    """
    path = settings.secret_key_file or settings.home / "secret.key"
    if not path.exists() and settings.secret_key_file is None:
        write_once(path, secrets.token_bytes(32))
    try:
        key = path.read_bytes()
    except OSError as error:
        raise Unavailable(f"the secret key cannot be read: {error.strerror}", where=str(path)) from error
    if len(key) < 32:
        raise Unavailable(
            "the secret key is shorter than 32 bytes", where=str(path), hint="make one: head -c 32 /dev/urandom"
        )
    return key
