"""What this process obeys: one configuration at a time, whole, replaced as soon as a layer changes.

A change in the database is heard of by a notice, and by polling the version's number where a notice was missed; one in
the file by watching its folder, and by polling the file. The new configuration is put together, judged and offered to
every part before any of it is obeyed; if a part refuses, the whole process stays with what it has, says so, and tries
again with the next version. A process whose file or variables are wrong does not start; one that finds a version in
the database that it cannot obey starts with the newest older one that it can.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial

from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.configuration import Configuration, schema, value_at
from burnish.core.errors import BurnishError, FieldProblem, InvalidRequest
from burnish.core.settings import Settings
from burnish.infra import event_log
from burnish.infra.database import Database, utcnow
from burnish.infra.loop import Loop, Periodic
from burnish.platform.configuration import store
from burnish.platform.configuration.file import ConfigurationFile, chain_of, layers_of
from burnish.platform.configuration.layers import Composed, Layer, LayerName, Placed, changed_keys, compose, parse
from burnish.platform.configuration.schemas import ProcessReport
from burnish.platform.configuration.tables import ConfigurationVersionRow
from burnish.platform.configuration.variables import process_layer
from burnish.platform.configuration.watched import WatchedFile

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
REPORT_SECONDS = 5.0
_LEASE_SECONDS = 20.0
_PROJECT = "default"

Part = Callable[[Configuration], None]


@dataclass(frozen=True)
class Snapshot:
    """What a process obeys, and what it was made of."""

    configuration: Configuration
    winners: Mapping[str, tuple[LayerName, Placed]]
    versions: Mapping[str, int]
    """The number of the version of each environment that the process's own is made of."""
    restart_needed: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """Of the configuration: equal digests, equal configurations."""
        return self.configuration.digest()


@dataclass(frozen=True)
class _Stored:
    """What the database says: the newest version of each environment that the process's own is made of."""

    rows: tuple[ConfigurationVersionRow, ...]
    versions: Mapping[str, int]


@dataclass(frozen=True)
class _Refusal:
    versions: Mapping[str, int]
    problems: tuple[FieldProblem, ...]


class LiveConfiguration:
    """The configuration of one process. :meth:`current` is what its parts call for every decision.

    Until :meth:`start` the layers without the database's are obeyed.

    Args:
        database: where versions are kept.
        settings: of the process; names the environment and the file.
        process: a name that no other process ever has.
        variables: the process's environment variables.

    Raises:
        InvalidRequest: the file, a variable or the environment's name is wrong; ``problems`` has every place.
    """

    def __init__(
        self, database: Database, settings: Settings, process: str = "", variables: Mapping[str, str] = os.environ
    ) -> None:
        self.settings = settings
        self.environment = settings.environment
        self._database = database
        self._process = process or f"{settings.node}-{os.getpid()}"
        self._own = process_layer(settings, variables)
        self._watched = WatchedFile(settings.config, settings.environment)
        self._parts: dict[str, tuple[Part, Part | None]] = {}
        topic = database.topic(store.TOPIC)
        self._follower = Periodic(self._follow, POLL_SECONDS, "configuration", topic)
        self._file_watch = Loop(partial(self._watched.watch, topic.notify), "configuration-file")
        self._turn = asyncio.Lock()
        self._telling = asyncio.Lock()
        self._cold: dict[str, JsonValue] = {}
        self._started_at = self._obeyed_at = utcnow()
        self._seen: tuple[str, Mapping[str, int]] | None = None
        self._refusal: _Refusal | None = None
        self._told: ProcessReport | None = None
        self._told_at = 0.0
        if self._watched.problems:
            raise _refused("the configuration cannot be used", self._watched.problems)
        outcome = compose(self.layers(self.environment, ()))
        now = outcome.configuration or outcome.crossed  # what does not fit here may fit what the database has
        if now is None:
            raise _refused("the configuration cannot be used", outcome.problems)
        self._stored = _Stored((), dict.fromkeys(self.chain(), 0))
        self._snapshot = Snapshot(now, outcome.winners, self._stored.versions)

    def current(self) -> Configuration:
        """Return the configuration as it is now. Costs nothing; call it for every decision."""
        return self._snapshot.configuration

    @property
    def snapshot(self) -> Snapshot:
        """What is obeyed, with where each value comes from."""
        return self._snapshot

    @property
    def version(self) -> int:
        """The number of the version of its environment that this process obeys; 0 is none."""
        return self._snapshot.versions.get(self.environment, 0)

    @property
    def file(self) -> ConfigurationFile:
        """The file as it was when it was last right."""
        return self._watched.good

    def chain(self, environment: str | None = None) -> tuple[str, ...]:
        """Return the environments that one is made of, the farthest first, itself last."""
        return chain_of(self.file.environments, environment or self.environment)

    def layers(self, environment: str, rows: Sequence[ConfigurationVersionRow]) -> list[Layer]:
        """Return the layers of an environment with these versions in the database."""
        return self.layers_with(environment, [database_layer(row) for row in rows])

    def layers_with(self, environment: str, stored: Sequence[Layer]) -> list[Layer]:
        """Return the layers of an environment; this process's own variables count in its own environment alone."""
        own = [self._own] if environment == self.environment else []
        return [*layers_of(self.file, environment), *stored, *own]

    def decides(self, environment: str, key: str) -> bool:
        """Tell whether this process's own variables decide a key, whatever the environment's values say."""
        return key in self._own.values and environment in self.chain()

    def started_with(self) -> Mapping[str, JsonValue]:
        """Return what needs a restart to change, as it was at the start of this process."""
        return self._cold

    def subscribe(self, name: str, apply: Part, check: Part | None = None) -> None:
        """Let a part follow the configuration: ``apply`` is called with each new one, whole, and now with the present.

        A part that cannot obey raises; then the process stays with what it has, and parts that were called before it
        are called again with that. ``check`` raises likewise and does nothing else: it is asked first, and in dry runs.
        """
        self._parts[name] = (apply, check)
        apply(self.current())

    def refusals(self, configuration: Configuration) -> tuple[FieldProblem, ...]:
        """Return what parts of this process have against a configuration, without applying it."""
        problems = []
        for name, (_, check) in self._parts.items():
            if check is not None and (problem := _try(name, check, configuration)):
                problems.append(problem)
        return tuple(problems)

    async def start(self) -> None:
        """Obey the database's newest version that can be obeyed, and follow changes from now on.

        Raises:
            InvalidRequest: the layers contradict each other, with every version and with none.
            Unavailable: the database is away.
        """
        async with self._turn:
            async with self._database.read() as session:
                self._stored = await self._newest(session)
                if not self._offer(self._stored):
                    await self._fall_back(session, self._stored)
            self._cold = {
                key: value_at(self.current(), key) for key, one in schema().items() if one.change == "restart"
            }
            self._seen = (self._watched.digest, self._stored.versions)
        await self._tell()
        await self._follower.start()
        if self._watched.path is not None:
            await self._file_watch.start()

    async def stop(self) -> None:
        """Stop following."""
        running = self._follower.alive
        await self._follower.stop()
        await self._file_watch.stop()
        if running:
            with suppress(BurnishError):
                async with self._database.write() as session:
                    await store.forget_process(session, self._process)

    @property
    def alive(self) -> bool:
        """Whether changes are followed (readiness)."""
        return self._follower.alive

    async def refresh(self) -> None:
        """Obey what the layers say now, if they have changed. After it, the next decision obeys.

        Raises:
            Unavailable: the database is away; what was obeyed is obeyed on.
        """
        async with self._turn:
            await self._watched.look()
            try:
                async with self._database.read() as session:
                    if await store.heads(session, self.chain()) != self._stored.versions:
                        self._stored = await self._newest(session)
            finally:  # with the database away, a change of the file is obeyed all the same
                if self._seen != (seen := (self._watched.digest, self._stored.versions)):
                    self._seen = seen
                    if self._offer(self._stored):
                        self._obeyed_at = utcnow()

    async def obey(self) -> None:
        """Obey what was just committed, and say so, before its writer is answered; if that cannot be, soon after."""
        with suppress(BurnishError):
            await self.refresh()
            await self._tell()

    def status(self) -> ProcessReport:
        """Return what this process obeys, for others to see."""
        snapshot, refusal = self._snapshot, self._refusal
        return ProcessReport(
            process=self._process, node=self.settings.node, pid=os.getpid(),
            components=tuple(sorted(self.settings.component_set())), environment=self.environment,
            versions=dict(snapshot.versions), digest=snapshot.digest,
            restart_needed=snapshot.restart_needed, refused=dict(refusal.versions) if refusal else None,
            problems=(*(refusal.problems if refusal else ()), *self._watched.problems),
            file=str(self._watched.path) if self._watched.path else None,
            started_at=self._started_at, obeyed_at=self._obeyed_at,
        )  # fmt: skip

    async def _follow(self) -> None:
        await self.refresh()
        await self._tell()

    async def _newest(self, session: AsyncSession) -> _Stored:
        heads = await store.heads(session, self.chain())
        rows = [await store.version(session, name, number) for name, number in heads.items() if number]
        return _Stored(tuple(row for row in rows if row is not None), heads)

    async def _fall_back(self, session: AsyncSession, stored: _Stored) -> None:
        """At the start there is nothing to stay with: take the newest older version of the environment that fits."""
        others = [row for row in stored.rows if row.environment != self.environment]
        for number in range(stored.versions[self.environment] - 1, 0, -1):
            row = await store.version(session, self.environment, number)
            if row is None:
                continue
            judged = self._judge(_Stored((*others, row), {**stored.versions, self.environment: number}))
            if isinstance(judged, Snapshot) and not self._apply(judged.configuration):
                self._snapshot = judged
                log.warning("started with version %d of %s, the newest that can be obeyed", number, self.environment)
                return
        judged = self._judge(_Stored((), dict.fromkeys(stored.versions, 0)))
        if isinstance(judged, _Refusal):
            raise _refused("the configuration cannot be used", judged.problems)
        log.warning("started without what the database says")

    def _offer(self, stored: _Stored) -> bool:
        """Obey the layers with this in the database, all of it or nothing; tell whether it is obeyed."""
        judged = self._judge(stored)
        if isinstance(judged, Snapshot) and (problems := self._apply(judged.configuration)):
            judged = _Refusal(stored.versions, problems)
        if isinstance(judged, Snapshot):
            self._snapshot, self._refusal = judged, None
            return True
        self._refusal = judged
        texts = "; ".join(f"{problem.where}: {problem.message}" for problem in judged.problems)
        log.error("refused: %s; obeyed on: %s: %s", _named(stored.versions), _named(self._snapshot.versions), texts)
        return False

    def _judge(self, stored: _Stored) -> Snapshot | _Refusal:
        """Return what would be obeyed, or why it cannot be. Changes nothing."""
        outcome = compose(self.layers(self.environment, stored.rows))
        if outcome.configuration is None:
            return _Refusal(stored.versions, outcome.problems)
        snapshot = self._pinned(outcome, outcome.configuration, stored.versions)
        problems = self.refusals(snapshot.configuration)
        return _Refusal(stored.versions, problems) if problems else snapshot

    def _pinned(self, outcome: Composed, wanted: Configuration, versions: Mapping[str, int]) -> Snapshot:
        """Return a snapshot in which what needs a restart has the values of the start."""
        new = {key: value_at(wanted, key) for key in self._cold}
        if not (stale := changed_keys(self._cold, new)):
            return Snapshot(wanted, outcome.winners, versions)
        values = {key: placed.value for key, (_, placed) in outcome.winners.items()}
        return Snapshot(parse(values | self._cold), outcome.winners, versions, tuple(stale))

    def _apply(self, configuration: Configuration) -> tuple[FieldProblem, ...]:
        """Let every part obey; if one refuses, all go back to what they had."""
        done: list[tuple[str, Part]] = []
        for name, (apply, _) in self._parts.items():
            if problem := _try(name, apply, configuration):
                for other, back in reversed(done):
                    if trouble := _try(other, back, self.current()):
                        log.error("%s could not go back to the configuration that it had: %s", other, trouble.message)
                return (problem,)
            done.append((name, apply))
        return ()

    async def _tell(self) -> None:
        """Write down what is obeyed: at once when it changed, else as often as the lease needs."""
        async with self._telling:
            report = self.status()
            now = asyncio.get_running_loop().time()
            if report != self._told or now - self._told_at >= REPORT_SECONDS:
                await self._write_down(report, self._told)
                self._told, self._told_at = report, now

    async def _write_down(self, report: ProcessReport, before: ProcessReport | None) -> None:
        async with self._database.write() as session:
            await store.report(session, self._process, self.environment, report.model_dump(mode="json"), _LEASE_SECONDS)
            if report.problems and (before is None or before.problems != report.problems):
                await event_log.append(
                    session, project_id=_PROJECT, subject=f"configuration/{self.environment}", type="state",
                    data={"state": "refused", "process": self._process, "versions": report.refused,
                          "obeys": report.versions, "problems": [one.model_dump() for one in report.problems]},
                )  # fmt: skip


def database_layer(row: ConfigurationVersionRow) -> Layer:
    """Return a version's values; each says which version gave it.

    They were checked when they were stored: a key that there is not is one of an older or a newer Burnish.
    """
    if unknown := row.overrides.keys() - schema().keys():
        log.warning("version %d of %s has keys that this Burnish does not know, they are left out: %s",
                    row.number, row.environment, ", ".join(sorted(unknown)))  # fmt: skip
    since = {key: row.origins.get(key, row.number) for key in row.overrides if key in schema()}
    values = {
        key: Placed(value, f"version {since[key]} of {row.environment}", (row.environment, since[key]))
        for key, value in row.overrides.items()
        if key in since
    }
    return Layer(LayerName.DATABASE, values)


def _try(name: str, call: Part, configuration: Configuration) -> FieldProblem | None:
    try:
        call(configuration)
    except BurnishError as error:
        return FieldProblem(where=name, message=error.message, hint=error.hint)
    except Exception as error:
        log.debug("%s refused a configuration", name, exc_info=True)
        return FieldProblem(where=name, message=str(error) or type(error).__name__)
    return None


def _named(versions: Mapping[str, int]) -> str:
    return ", ".join(f"version {number} of {name}" for name, number in versions.items()) or "nothing"


def _refused(message: str, problems: tuple[FieldProblem, ...]) -> InvalidRequest:
    return InvalidRequest(f"{message}: {problems[0].message}", where=problems[0].where, problems=problems)
