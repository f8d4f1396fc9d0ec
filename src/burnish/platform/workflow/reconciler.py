"""Advances executions from whatever their rows say, and wakes those whose jobs have ended.

A turn alternates two phases until there is no news: *act* (submit, ask, stop: network, no transaction) and *advance*
(decide and write: one fenced transaction). An attempt is committed by an advance before an act submits it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.errors import BurnishError, Unavailable
from burnish.core.states import ExecutionState
from burnish.infra import signals
from burnish.infra.artifact_store.protocol import ArtifactStore
from burnish.infra.database import Database
from burnish.infra.loop import Periodic
from burnish.infra.reconcile import LeaseLost, Reconciler, Turn
from burnish.platform.jobs.store import FINISHED_TOPIC
from burnish.platform.workflow import store
from burnish.platform.workflow.components import Components, JobClient
from burnish.platform.workflow.definition import ENGINE
from burnish.platform.workflow.engine_kinds import EngineKind, Evidence
from burnish.platform.workflow.execution import Attempt, Definitions, Execution
from burnish.platform.workflow.faults import Faults
from burnish.platform.workflow.kinds import ENGINE_KINDS
from burnish.platform.workflow.records import FINAL, Outcome
from burnish.platform.workflow.tables import WorkflowExecutionRow

_WATCH_SECONDS = 2.0
_RESYNC_SECONDS = 30.0
_SETTLE_SECONDS = 30.0
"""After a start: by then a dead server's leases are over and every job's host has been looked for."""
_AT_ONCE = 8
"""Calls to components that one execution makes at a time."""


class WorkflowReconciler:
    """The loops of the workflow engine in one process."""

    def __init__(
        self,
        database: Database,
        components: Components,
        artifact_store: ArtifactStore,
        *,
        owner: str | None = None,
        lease_seconds: float = 10.0,
        concurrency: int = 32,
        kinds: Mapping[str, EngineKind] = ENGINE_KINDS,
        settle_seconds: float | None = None,
    ) -> None:
        self._database = database
        self._jobs = JobClient(
            components, database, artifact_store,
            max(_SETTLE_SECONDS, 3 * lease_seconds) if settle_seconds is None else settle_seconds,
        )  # fmt: skip
        self._evidence = Evidence(database, artifact_store, components.call)
        self._kinds = kinds
        self._definitions = Definitions()
        self._faults = Faults()
        self.reconciler = Reconciler(
            database, WorkflowExecutionRow, self._turn, name="workflow", owner=owner, lease_seconds=lease_seconds,
            concurrency=concurrency,
        )  # fmt: skip
        self._watch = Periodic(self._wake_finished, _WATCH_SECONDS, "workflow-watch", database.topic(FINISHED_TOPIC))
        self._resync = Periodic(self._look_over, _RESYNC_SECONDS, "workflow-resync")
        self._looked_over_to: str | None = None

    @property
    def alive(self) -> bool:
        """Whether all its loops run."""
        return self.reconciler.alive and self._watch.alive and self._resync.alive

    async def start(self) -> None:
        """Start the loops."""
        await self.reconciler.start()
        await self._watch.start()
        await self._resync.start()

    async def stop(self) -> None:
        """Stop the loops; what runs goes on and is found again."""
        await self._watch.stop()
        await self._resync.stop()
        await self.reconciler.stop()

    async def _turn(self, turn: Turn) -> float | None:
        execution = await self._load(turn)
        if execution is None or execution.ended:
            return None
        while True:
            delay, fault = await self._act(execution)
            if execution.has_news():
                async with self._unit(turn, [execution]) as session:
                    await execution.advance(session)
            elif fault is None:
                return _soonest(delay, execution.next_try())
            if fault is not None:  # a fault of ours with one attempt: what was found out of the others is written
                raise fault
            if execution.ended:
                return None

    async def _load(self, turn: Turn) -> Execution | None:
        """Return the execution; one without open attempts is advanced at once, in the same unit of work."""
        loaded: list[Execution] = []
        async with self._unit(turn, loaded) as session:
            row = await store.by_key(session, turn.key)
            if row is None or row.status in FINAL:
                return None
            attempts = [] if row.status == ExecutionState.PENDING else await store.open_attempts(session, turn.key)
            definition = self._definitions.of(row.definition_digest, row.definition)
            execution = Execution(row, attempts, definition, self._kinds, self._faults)
            loaded.append(execution)
            if not attempts:
                await execution.advance(session)
        return execution

    @asynccontextmanager
    async def _unit(self, turn: Turn, executions: Sequence[Execution]) -> AsyncIterator[AsyncSession]:
        """Open a unit of work; an exception of a kind in it is counted, trouble with the database is not."""
        try:
            async with turn.write() as session:
                yield session
        except (BurnishError, LeaseLost):
            raise
        except Exception as error:
            for job_id in {one.applying for one in executions} - {None}:
                self._faults.note(str(job_id), error)
            raise

    async def _act(self, execution: Execution) -> tuple[float | None, Exception | None]:
        """Deal with every open attempt; return the seconds until one must be looked at again, and a fault if there was."""
        limit = asyncio.Semaphore(_AT_ONCE)

        async def one(attempt: Attempt) -> float | None:
            async with limit:
                return await self._deal(execution, attempt)

        found = list(execution.attempts.values())
        results = await asyncio.gather(*(one(attempt) for attempt in found), return_exceptions=True)
        delays: list[float | None] = []
        fault: Exception | None = None
        for result in results:
            if isinstance(result, Exception):
                fault = result
            elif isinstance(result, BaseException):
                raise result
            else:
                delays.append(result)
        return _soonest(*delays), fault

    async def _deal(self, execution: Execution, attempt: Attempt) -> float | None:
        if attempt.outcome is not None or attempt.ready:
            return None
        if attempt.component != ENGINE:
            return await self._jobs.deal(execution, attempt)
        kind = self._kinds[attempt.kind]
        if attempt.stop is not None:
            attempt.outcome = Outcome("cancelled")
            return None
        if (error := self._faults.verdict(attempt.job_id, attempt.step)) is not None:
            attempt.outcome = Outcome("failed", error=error)
            return None
        try:
            if kind.waits is not None:
                return _wait(kind, attempt, execution.definition.steps[attempt.step].timeout)
            if kind.prepare is not None:
                spec = kind.parse(attempt.spec, attempt.step)
                attempt.prepared = await kind.prepare(self._evidence, execution.engine_step(attempt), spec)
            attempt.ready = True
        except Unavailable:
            raise
        except BurnishError as refusal:
            attempt.outcome = Outcome("failed", error=refusal.body())
        except Exception as fault:
            self._faults.note(attempt.job_id, fault)
            raise
        return None

    async def _wake_finished(self) -> None:
        """Wake executions whose jobs have ended: one query a notice, however many wait."""
        async with self._database.read() as session:
            keys = await store.with_finished_jobs(session)
        await self._wake(keys)

    async def _look_over(self) -> None:
        """Slowly page over unfinished executions and wake those that nothing would wake."""
        async with self._database.read() as session:
            keys = await store.parked_wrongly(session, self._looked_over_to)
            counts = await store.count_by_state(session)
        for state in ExecutionState:
            signals.EXECUTIONS.labels(state).set(counts.get(state, 0))
        await self._wake(keys)
        self._looked_over_to = keys[-1] if keys else None

    async def _wake(self, keys: Sequence[str]) -> None:
        if keys:
            async with self._database.write() as session:
                for key in keys:
                    await store.wake_execution(session, key)


def _wait(kind: EngineKind, attempt: Attempt, timeout: float | None) -> float | None:
    """Return the seconds to wait, None until woken; or set the attempt's outcome.

    Raises:
        InvalidRequest: the spec is none of the kind's.
    """
    assert kind.waits is not None
    if attempt.submitted_at is None or attempt.submitted_at > time.time():  # also when the clock was set back
        attempt.change(submitted_at=time.time())
    if attempt.pause:
        attempt.change(pause="delivered" if attempt.pause in {"asked", "delivered"} else "")
    spec = kind.parse(attempt.spec, attempt.step)
    elapsed = time.time() - (attempt.submitted_at or time.time())
    left = None if timeout is None else timeout - elapsed
    found = kind.waits(spec, elapsed if timeout is None else min(elapsed, timeout), attempt.approval)
    if isinstance(found, Outcome):
        attempt.outcome = found
        return None
    if left is not None and left <= 0:
        attempt.timed_out, attempt.outcome = True, Outcome("cancelled")
        return None
    return _soonest(found, left)


def _soonest(*delays: float | None) -> float | None:
    return min((delay for delay in delays if delay is not None), default=None)
