"""The composition root: the one place that picks concrete classes and knows all parts."""

import asyncio
import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import burnish.components.data_management.tables
import burnish.components.model_serving.tables
import burnish.infra.artifact_store.tables
import burnish.infra.event_log.tables
import burnish.infra.idempotency.tables
import burnish.platform.configuration.tables
import burnish.platform.identity.tables
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
from burnish.core.configuration import Current
from burnish.core.errors import InvalidRequest
from burnish.core.settings import Settings
from burnish.infra import belonging, signals
from burnish.infra import logging as own_logging
from burnish.infra.artifact_store import ArtifactStore, open_store
from burnish.infra.database import Base, Database
from burnish.infra.event_log import EventLog
from burnish.infra.home import HomeLock
from burnish.infra.migrations import schema_problem, upgrade
from burnish.platform.configuration import LiveConfiguration, Secrets
from burnish.platform.gateway import Buckets
from burnish.platform.identity import CallerTokens
from burnish.platform.identity.authentication import Authenticator
from burnish.platform.identity.credentials import Credentials, bootstrap
from burnish.platform.identity.digest_key import DigestKey
from burnish.platform.identity.keys import KeyDigests
from burnish.platform.identity.logins import Logins
from burnish.platform.identity.oidc import Provider
from burnish.platform.identity.seal import seal_with
from burnish.platform.identity.sessions import Sessions
from burnish.platform.integrator import Integrator
from burnish.platform.integrator.entry_points import component_builders
from burnish.platform.jobs.embedding import Component
from burnish.platform.jobs.moving import free_queued, move_off
from burnish.platform.jobs.nodes import settle_node
from burnish.platform.jobs.runtime import JobRuntime
from burnish.platform.jobs.unoffered import UnofferedJobs
from burnish.platform.model_registry.service import ModelFinder
from burnish.platform.monitoring.housekeeping import Housekeeping
from burnish.platform.monitoring.readiness import Check
from burnish.platform.workflow.offers import KnownOffers
from burnish.platform.workflow.reconciler import WorkflowReconciler
from burnish.platform.workflow.service import WorkflowService

log = logging.getLogger(__name__)

JOBS = "jobs"
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


@dataclass(frozen=True)
class Part:
    """Something of a process with loops of its own: parts start in their order, and stop in the reverse."""

    name: str
    start: Callable[[], Awaitable[object]]
    stop: Callable[[], Awaitable[object]]
    alive: Callable[[], bool] = lambda: True
    """Whether its loops run (readiness)."""


@dataclass(frozen=True)
class Installation:
    """What all processes of one installation share, as one of them has opened it: proven to belong together."""

    settings: Settings
    """With this home's node."""
    database: Database
    """On the newest schema."""
    store: ArtifactStore
    key: bytes
    """The secret key."""
    digest_key: bytes
    """By which API keys are known, and the audit log is sealed; it outlives the secret key."""
    home_lock: HomeLock

    async def close(self) -> None:
        """Let go of it."""
        await self.database.dispose()
        self.home_lock.release()


@dataclass(frozen=True)
class PlatformParts:
    """What only a process with the role ``platform`` has."""

    offers: KnownOffers
    workflows: WorkflowService
    workflow_reconciler: WorkflowReconciler
    housekeeping: Housekeeping
    buckets: Buckets
    credentials: Credentials
    sessions: Sessions
    live_configuration: LiveConfiguration
    secrets: Secrets
    logins: Logins


@dataclass
class Process:
    """One process: its components, and the platform if that is among its roles."""

    installation: Installation
    tokens: CallerTokens
    authenticator: Authenticator | None
    """None while authentication is off."""
    configuration: Current
    events: EventLog
    runtime: JobRuntime
    components: list[Component]
    integrator: Integrator
    platform: PlatformParts | None
    """None in a process without the role ``platform``."""
    parts: list[Part]
    """Everything with loops, in the order in which it starts."""
    offers: Mapping[str, HomeLock]
    """By component type, and for jobs of any: held together with the processes of this home that do the same."""
    _started: list[Part] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        """How it is set up."""
        return self.installation.settings

    @property
    def database(self) -> Database:
        """The installation's database."""
        return self.installation.database

    async def start(self) -> None:
        """Start every part. What a dead process left running is found again.

        Raises:
            BurnishError: a part cannot start.
        """
        await self.database.start()
        for part in self.parts:
            self._started.append(part)  # before: one that fails half-way is stopped, too
            await part.start()

    async def first_key(self) -> str | None:
        """Return a new key for the administrator if authentication is on and none could come in; else None."""
        if self.authenticator is None or self.platform is None:
            return None
        issuer = self.configuration().identity.oidc.issuer
        return await bootstrap(self.database, self.platform.credentials, issuer=issuer)

    async def stop(self) -> None:
        """Stop the parts that were started. Hosts and replicas live on; the next start finds them."""
        while self._started:
            part = self._started.pop()
            try:
                await part.stop()
            except Exception:  # the others are to stop all the same
                log.exception("%s did not stop well", part.name)
        await self.events.close()
        for lock in self.offers.values():
            lock.release()
        await self.installation.close()

    async def drain(self) -> list[str]:
        """Pause this node's jobs at a checkpoint and end its replicas; say what was done (Ctrl-C in a terminal).

        What another process of this home goes on with, on PostgreSQL, is left to it.
        """
        await self.integrator.sign_off()
        if self.platform is not None:
            await self.platform.workflow_reconciler.stop()
        alone = {name for name, lock in self.offers.items() if lock.only_holder()}
        work = [one.drain() for one in self.components if one.drain and one.component_type in alone]
        still: list[str] = []
        if JOBS in alone:
            still, *done = await asyncio.gather(self.runtime.pause_running(), *work)
        else:
            done = list(await asyncio.gather(*work))
        said = [line for lines in done for line in lines]
        said += [f"{job} cannot pause; it runs on and is found again" for job in still]
        if alone < self.offers.keys():
            said.append("another server of this home goes on with its jobs and replicas")
        return said

    def checks(self) -> list[Check]:
        """Return what readiness means here."""

        async def database() -> str | None:
            async with self.database.read() as session:
                await session.connection()
            return None

        async def artifact_store() -> str | None:
            store = self.installation.store
            await asyncio.to_thread(lambda: store.discard(store.stage("readiness")))
            return None

        async def reconcilers() -> str | None:
            dead = sorted(part.name for part in self.parts if not part.alive())
            return f"not running: {', '.join(dead)}; restart the server" if dead else None

        return [
            Check("database", database),
            Check("schema", lambda: schema_problem(self.database)),
            Check("artifact_store", artifact_store),
            Check("reconcilers", reconcilers),
        ]


async def open_installation(settings: Settings) -> Installation:
    """Open home, database, artifact store and secret key, and see that they belong together. Any process may migrate.

    Raises:
        InvalidRequest: the settings contradict each other.
        HomeLocked: another server holds this home (on PostgreSQL servers may share it with each other).
        SchemaNewer: the database was made by a newer Burnish.
        Unavailable: the database does not answer, or home, store, key and database do not belong together.
    """
    refuse_open_bind(settings)
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    home_lock = HomeLock(settings.home, shared=not settings.embedded_database)
    home_lock.acquire()
    database = Database(settings.resolved_database_url)
    try:
        await upgrade(database, metadata)
        store = open_store(settings.resolved_artifact_url)
        await belonging.claim(database, store, settings.home, settings.resolved_artifact_url)
        key = await belonging.claim_key(
            database, settings.resolved_secret_key_file, own=settings.secret_key_file is None
        )
        async with database.read() as session:
            digest_key = await DigestKey(key).load(session)
        seal_with(database, digest_key)
        settings = await settle_node(database, settings)
    except BaseException:
        await database.dispose()
        home_lock.release()
        raise
    return Installation(settings, database, store, key, digest_key, home_lock)


def build(installation: Installation) -> Process:
    """Put one process together from the roles in its settings; nothing runs until :meth:`Process.start`."""
    settings, database, store = installation.settings, installation.database, installation.store
    tokens = CallerTokens(installation.key)
    owner = f"{settings.node}-{os.getpid()}-{secrets.token_hex(3)}"
    live = LiveConfiguration(database, settings, owner)
    live.subscribe("logging", lambda now: own_logging.set_level(now.logging.level))
    runtime = JobRuntime(database, store, settings, tokens, owner=owner, configuration=live.current)
    wanted = settings.component_set()
    components = [make(runtime) for name, make in BUILDERS.items() if name in wanted]
    integrator = Integrator(
        database, tokens, settings, configuration=live.current, probing=settings.with_platform
    )  # fmt: skip
    runtime.instances = lambda: integrator.believed_ids
    integrator.on_lost.append(move_off)
    integrator.on_stopped.append(free_queued)
    for component in components:
        integrator.embed(component.component_type, component.app)
    if settings.components.strip() == "all":
        for component in installed_components(runtime):
            integrator.embed(component.component_type, component.app, source="entry_point")
            components.append(component)
    parts = [Part("configuration", live.start, live.stop, lambda: live.alive)]
    digests, sessions = KeyDigests(installation.digest_key), Sessions(database, live.current)
    authenticator = None
    if settings.auth == "on":
        authenticator = Authenticator(database, digests, configuration=live.current, sessions=sessions)
        parts += [Part("authentication", authenticator.start, authenticator.stop, lambda: authenticator.alive)]
    parts += [Part("jobs", runtime.start, runtime.stop, lambda: runtime.alive)]
    parts += [Part(one.component_type, one.start, one.stop, one.alive) for one in components]
    parts += [Part("components", integrator.start, integrator.stop, lambda: integrator.alive)]
    platform = None
    if settings.with_platform:
        secret_values = Secrets(database, installation.key)
        credentials = Credentials(digests, live.current)
        provider = Provider(live.current, secret_values.resolve)
        logins = Logins(
            database, provider, sessions, credentials, authenticator=authenticator, configuration=live.current
        )
        platform = _platform(installation, live, integrator, owner, credentials, sessions, secret_values, logins)
        reconciler, housekeeping = platform.workflow_reconciler, platform.housekeeping
        unoffered = UnofferedJobs(database, lambda: integrator.instances)
        parts += [
            Part("limits", platform.buckets.start, platform.buckets.stop),
            Part("offers", platform.offers.start, platform.offers.stop, lambda: platform.offers.alive),
            Part("workflow", reconciler.start, reconciler.stop, lambda: reconciler.alive),
            Part("unoffered jobs", unoffered.start, unoffered.stop, lambda: unoffered.alive),
            Part("housekeeping", housekeeping.start, housekeeping.stop),
            Part("secrets", platform.secrets.start, platform.secrets.stop),
            Part("logins", logins.start, logins.stop),
        ]
    signals.watch_disk("home", settings.home)
    return Process(
        installation=installation, tokens=tokens, authenticator=authenticator, configuration=live.current, events=runtime.event_log, runtime=runtime,
        components=components, integrator=integrator, platform=platform, parts=parts,
        offers=_hold_offers(settings, components),
    )  # fmt: skip


def _hold_offers(settings: Settings, components: Sequence[Component]) -> Mapping[str, HomeLock]:
    names = [one.component_type for one in components]
    locks = {
        name: HomeLock(settings.home, shared=True, name=f"offers.{name}.lock")
        for name in (*names, *([JOBS] if names else []))
    }
    for lock in locks.values():
        lock.acquire()
    return locks


def _platform(
    installation: Installation, live: LiveConfiguration, integrator: Integrator, owner: str,
    credentials: Credentials, sessions: Sessions, secret_values: Secrets, logins: Logins,
) -> PlatformParts:  # fmt: skip
    """Return what only a process with the role ``platform`` has."""
    database, store = installation.database, installation.store
    lease, url = installation.settings.lease_seconds, installation.settings.redis_url
    offers = KnownOffers(database, integrator)
    return PlatformParts(
        offers=offers,
        workflows=WorkflowService(database, integrator, ModelFinder(database), known=offers),
        workflow_reconciler=WorkflowReconciler(database, integrator, store, owner=owner, lease_seconds=lease),
        housekeeping=Housekeeping(database, store),
        buckets=Buckets(database, None if url is None else url.get_secret_value(), node=installation.settings.node),
        credentials=credentials,
        sessions=sessions,
        live_configuration=live,
        secrets=secret_values,
        logins=logins,
    )


def installed_components(runtime: JobRuntime) -> list[Component]:
    """Return the components that installed packages offer; one that cannot be built is logged and left out."""
    found: list[Component] = []
    for name, make in component_builders().items():
        try:
            component: Component = make(runtime)
        except Exception:
            log.exception("the component %s cannot be built; it is left out", name)
            continue
        if component.component_type in {*BUILDERS, *(one.component_type for one in found)}:
            log.error(
                "the component %s is a %s, which there is already; it is left out", name, component.component_type
            )
            continue
        found.append(component)
    return found


def listens_locally(settings: Settings) -> bool:
    """Tell whether nobody beyond this machine can reach the server."""
    return settings.host in {"127.0.0.1", "localhost", "::1"}


def refuse_open_bind(settings: Settings) -> None:
    """Refuse to listen beyond this machine while nobody is asked who they are.

    A process without the role ``platform`` may: it answers to the platform's signed callers alone, and beyond that only
    says how it is, to nobody in particular.
    """
    if listens_locally(settings) or settings.auth == "on" or not settings.with_platform:
        return
    raise InvalidRequest(
        f"with authentication off the server binds to loopback only, not to {settings.host}",
        where="BURNISH_HOST",
        hint="use 127.0.0.1 and a tunnel, or turn authentication on (--auth on, BURNISH_AUTH=on)",
    )
