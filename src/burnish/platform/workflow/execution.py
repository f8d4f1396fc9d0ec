"""One execution in memory during a turn: it applies what :mod:`decide` says and writes it in one unit of work."""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.errors import BurnishError, InvalidRequest, LimitExceeded
from burnish.core.protocol import Progress
from burnish.core.specs.base import ArtifactRef, digest_of
from burnish.core.states import ExecutionState, JobState, StepState
from burnish.infra import event_log, signals
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.artifact_store.references import problems_with, references_in
from burnish.infra.database import after_commit, utcnow
from burnish.platform.workflow import store
from burnish.platform.workflow.decide import Facts, View, decide
from burnish.platform.workflow.definition import ENGINE, Definition, check_storable, read
from burnish.platform.workflow.engine_kinds import EngineKind, EngineStep, Rejected
from burnish.platform.workflow.expressions import size_of
from burnish.platform.workflow.faults import Faults
from burnish.platform.workflow.library import definitions
from burnish.platform.workflow.reading import check_value
from burnish.platform.workflow.records import (
    FINAL,
    Action,
    EndAttempt,
    Item,
    Outcome,
    PauseAttempt,
    ResumeAttempt,
    SetState,
    StartAttempt,
    StepRecord,
    Steps,
    StopAttempt,
    apply,
    check_execution,
    dump_steps,
    load_steps,
)  # fmt: skip
from burnish.platform.workflow.tables import WorkflowExecutionRow

_MOST_RESULTS = 8 << 20
"""Characters and values of all results that an execution's row keeps, when a kind of ours adds one."""
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def job_id_of(workflow_id: str, step: str, item: int, number: int) -> str:
    """Return the id of an attempt's job: always the same for the same attempt."""
    digest = hashlib.sha256(f"{workflow_id}\n{step}\n{item}\n{number}".encode()).digest()
    value = int.from_bytes(digest[:14], "big")
    return "job_" + "".join(_ALPHABET[(value >> shift) & 31] for shift in range(0, 110, 5))


@dataclass
class Attempt:
    """An open attempt: its row, what changed of it in this turn, and what was found out about its job."""

    job_id: str
    step: str
    item: int
    number: int
    component: str
    kind: str
    spec: Mapping[str, Any]
    state: JobState = JobState.QUEUED
    cache_key: str | None = None
    submitted_at: float | None = None
    stop: str | None = None
    stop_delivered: bool = False
    pause: str = ""
    approval: Mapping[str, Any] | None = None
    note: str | None = None
    known: bool = False
    """Whether its row is in the database."""
    job_state: JobState | None = None
    """What our own table of jobs says, where the job is there."""
    outcome: Outcome | None = None
    prepared: Any = None
    ready: bool = False
    """Its evidence was prepared: the next unit of work applies it."""
    timed_out: bool = False
    news: Progress | None = None
    """How far its job is by its component's word, where that has not been told yet."""
    looked: bool = False
    """Whether its component was asked in this turn."""
    resting: bool = False
    """Whether its component failed to answer in this turn: it is left alone until the next."""
    again: float | None = None
    """Seconds after which to ask again."""
    changes: dict[str, Any] = field(default_factory=dict)

    def change(self, **values: Any) -> None:
        """Set columns; they are written with the next unit of work."""
        for name, value in values.items():
            if getattr(self, name) != value:
                setattr(self, name, value)
                self.changes[name] = value

    def facts(self) -> Facts:
        """Return what ``decide`` is told of it."""
        return Facts(
            outcome=self.outcome,
            timed_out=self.timed_out or self.stop == "timeout",
            stop_sent=self.stop is not None,
            pause_sent=self.pause in {"asked", "delivered"},
        )


_COLUMNS = (
    "job_id", "step", "item", "number", "component", "kind", "spec", "cache_key", "submitted_at", "stop",
    "stop_delivered", "pause", "approval", "note",
)  # fmt: skip


def attempt_of(found: store.OpenAttempt) -> Attempt:
    """Return the attempt of a row."""
    values = {name: getattr(found.row, name) for name in _COLUMNS}
    return Attempt(**values, state=JobState(found.row.state), known=True, job_state=found.job_state)


class Definitions:
    """Definitions by digest, so that a turn does not read the text again."""

    def __init__(self, capacity: int = 256) -> None:
        self._found: OrderedDict[str, Definition] = OrderedDict()
        self._capacity = capacity

    def of(self, digest: str, source: str | Mapping[str, Any]) -> Definition:
        """Return the definition in a row."""
        found = self._found.get(digest)
        if found is None:
            found = self._found[digest] = read(source)
            if len(self._found) > self._capacity:
                self._found.popitem(last=False)
        else:
            self._found.move_to_end(digest)
        return found

    def read(self, source: str | Mapping[str, Any]) -> Definition:
        """Return a definition that was sent, read once for each text.

        Raises:
            InvalidRequest: it is not sound.
            TooLarge: longer than the limit.
        """
        if not isinstance(source, str):
            check_value(source)
        check_storable(source, "definition")
        return self.of(digest_of(source), source)


class Execution:
    """The state of one execution during a turn."""

    def __init__(
        self,
        row: WorkflowExecutionRow,
        attempts: list[store.OpenAttempt],
        definition: Definition,
        kinds: Mapping[str, EngineKind],
        faults: Faults | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.key, self.workflow_id, self.project_id = row.id, row.workflow_id, row.project_id
        self.definition = definition
        self.state = ExecutionState(row.status)
        self.steps: Steps = load_steps(row.steps)
        self.attempts = {(found.row.step, found.row.item): attempt_of(found) for found in attempts}
        self.submitted_by = row.submitted_by
        self._parameters: Mapping[str, Any] = row.parameters
        self._cancel = row.cancel_requested_at is not None
        self._pause = row.pause_requested_at is not None
        self._started = row.started_at is not None
        self._created = row.created_at
        self.seconds: float | None = None
        """From its submission to its end, once it has ended in this turn."""
        self.applying: str | None = None
        """The job whose kind is applied just now."""
        self._faults = faults or Faults()
        self._kinds = kinds
        self._clock = clock
        self._inserts: list[dict[str, Any]] = []
        self._updates: list[tuple[str, dict[str, Any]]] = []
        self._values: dict[str, Any] = {}
        self._events: list[event_log.NewEvent] = []
        self._refs: dict[str, tuple[str, ArtifactRef]] = {}
        self._counts: list[tuple[str, str]] = []
        self._room: int | None = None
        """What results of our own kinds may still come to; None: not measured yet."""

    @property
    def ended(self) -> bool:
        """Whether nothing follows by itself."""
        return self.state in FINAL

    def view(self) -> View:
        """Return what ``decide`` looks at."""
        facts = {key: attempt.facts() for key, attempt in self.attempts.items()}
        now = self._clock()
        for name, index, item in self.retrying():
            facts[name, index] = Facts(due=self._wait_left(name, item, now) <= 0)
        return View(
            self.workflow_id, self.project_id, self.definition, self._parameters, self.state, self.steps,
            self._cancel, self._pause, facts,
        )  # fmt: skip

    def retrying(self) -> Iterator[tuple[str, int, Item]]:
        """Yield the items that wait for their next try."""
        for name, record in self.steps.items():
            if record.state in {StepState.RUNNING, StepState.RETRYING}:
                for index, item in enumerate(record.items):
                    if item.state is StepState.RETRYING:
                        yield name, index, item

    def _wait_left(self, name: str, item: Item, now: float) -> float:
        """Return the seconds until an item's next try. A clock that was set back never makes it longer."""
        if item.failed_at is None or now < item.failed_at:
            return 0.0
        return item.failed_at + self.definition.steps[name].retry.delay(item.tries) - now

    def next_try(self) -> float | None:
        """Return the seconds until the first retry is due."""
        now = self._clock()
        return min((max(0.0, self._wait_left(n, i, now)) for n, _, i in self.retrying()), default=None)

    def has_news(self) -> bool:
        """Tell whether a unit of work would write anything."""
        dirty = any(attempt.changes or attempt.ready or attempt.news for attempt in self.attempts.values())
        return dirty or bool(decide(self.view()))

    async def advance(self, session: AsyncSession) -> None:
        """Do all that there is to do without a component, and write it."""
        before = {name: (record.state, len(record.items)) for name, record in self.steps.items()}
        for attempt in self.attempts.values():
            if attempt.ready:
                attempt.ready = False
                attempt.outcome = await self._apply_kind(session, attempt)
        while actions := decide(self.view()):
            for action in actions:
                await self._apply(session, action)
        self._tell_steps(before)
        await self._write(session)

    async def _apply(self, session: AsyncSession, action: Action) -> None:
        if isinstance(action, SetState):
            self._set_state(action)
            return
        apply(self.steps, action, utcnow())
        if isinstance(action, StartAttempt):
            await self._start(session, action)
        elif isinstance(action, EndAttempt):
            self._end(action)
        elif isinstance(action, StopAttempt):
            self.attempts[action.step, action.index].change(stop=action.why)
        elif isinstance(action, PauseAttempt):
            self.attempts[action.step, action.index].change(pause="asked")
        elif isinstance(action, ResumeAttempt):
            self.attempts[action.step, action.index].change(pause="resume")

    def _set_state(self, action: SetState) -> None:
        self.state = self._values["status"] = check_execution(self.state, action.state, f"execution {self.workflow_id}")
        now = utcnow()
        if action.state is ExecutionState.RUNNING and not self._started:
            self._started = True
            self._values["started_at"] = now
        data: dict[str, Any] = {"state": action.state}
        if action.state in FINAL:
            self._values["completed_at"] = now
            self.seconds = max(0.0, (now - self._created).total_seconds())
            self._values["error"] = None if action.error is None else action.error.model_dump(mode="json")
        if action.error is not None:
            data["error"] = action.error.model_dump(mode="json", exclude_defaults=True)
        self._events.append(self._event(data))

    async def _start(self, session: AsyncSession, action: StartAttempt) -> None:
        step = self.definition.steps[action.step]
        job_id = job_id_of(self.workflow_id, action.step, action.index, action.number)
        self.steps[action.step].items[action.index].job_id = job_id
        attempt = Attempt(job_id, action.step, action.index, action.number, step.component, step.kind, action.spec)
        self.attempts[action.step, action.index] = attempt
        place = f"steps.{action.step}.with"
        if problems := await problems_with(session, self.project_id, action.spec, place, besides=self._refs.keys()):
            refusal = InvalidRequest(
                problems[0].message, where=problems[0].where, hint=problems[0].hint, problems=problems
            )
            attempt.outcome = Outcome("failed", error=refusal.body())
            return
        if step.component != ENGINE:
            return
        kind = self._kinds.get(step.kind)
        if kind is None:  # submitted to a server that had it
            error = InvalidRequest(f"this server has no kind {step.kind!r}", where=f"steps.{action.step}.kind")
            attempt.outcome = Outcome("failed", error=error.body())
        elif kind.prepare is None and kind.apply is not None:
            attempt.outcome = await self._apply_kind(session, attempt)

    async def _apply_kind(self, session: AsyncSession, attempt: Attempt) -> Outcome:
        """Run the transactional phase of a kind of ours; what it wrote goes with it if it fails."""
        kind = self._kinds[attempt.kind]
        assert kind.apply is not None
        if (given_up := self._faults.verdict(attempt.job_id, attempt.step)) is not None:
            return Outcome("failed", error=given_up)
        self.applying = attempt.job_id
        try:
            spec = kind.parse(attempt.spec, attempt.step)
            async with session.begin_nested() if kind.writes else nullcontext():
                result = await kind.apply(session, self.engine_step(attempt), spec, attempt.prepared)
                outcome = Outcome("succeeded", result=self._fitting(attempt, result.model_dump(mode="json")))
        except Rejected as error:
            found = None if error.result is None else error.result.model_dump(mode="json")
            outcome = Outcome("failed", result=found, error=error.body())
        except BurnishError as error:
            outcome = Outcome("failed", error=error.body())
        self.applying = None  # after any other exception it stays: that is to be counted
        return outcome

    def _fitting(self, attempt: Attempt, result: dict[str, Any]) -> dict[str, Any]:
        """Return the result of a kind of ours, if there is room for it in the execution's row.

        Raises:
            LimitExceeded: steps that hand on what others gave may double it with each step.
        """
        if self._room is None:
            kept = [item.result for record in self.steps.values() for item in record.items]
            self._room = _MOST_RESULTS - size_of(kept, _MOST_RESULTS)
        self._room -= size_of(result, max(0, self._room))
        if self._room < 0:
            raise LimitExceeded(
                f"the results of the execution's steps have more than {_MOST_RESULTS:,} characters and values together",
                where=f"steps.{attempt.step}", hint="hand data on as an artifact",
            )  # fmt: skip
        return result

    def engine_step(self, attempt: Attempt) -> EngineStep:
        """Return what a kind of ours is told about where it runs."""
        return EngineStep(
            self.workflow_id, self.project_id, attempt.step, attempt.job_id, self.definition.name,
            self.definition.digest, self._parameters, self.submitted_by,
        )  # fmt: skip

    def _end(self, action: EndAttempt) -> None:
        attempt = self.attempts.pop((action.step, action.index), None)
        if attempt is None:  # an item that never had an attempt: cancelled before, or its spec could not be made
            return
        outcome = action.outcome
        attempt.changes |= {
            "state": JobState(outcome.state), "finished_at": utcnow(), "note": None, "reused_from": outcome.reused_from,
            "result": outcome.result, "error": None if outcome.error is None else outcome.error.model_dump(mode="json"),
        }  # fmt: skip
        self._counts.append((attempt.kind, str(outcome.state)))
        for _, ref in references_in(outcome.result):
            self._refs[ref.digest] = (attempt.job_id, ref)
        self._keep(attempt)

    def _keep(self, attempt: Attempt) -> None:
        if attempt.known:
            if attempt.changes:
                self._updates.append((attempt.job_id, attempt.changes))
        else:
            columns = {name: getattr(attempt, name) for name in _COLUMNS}
            self._inserts.append(
                {**columns, "execution_id": self.key, "project_id": self.project_id, "state": attempt.state,
                 "created_at": utcnow(), "result": None, "error": None, "finished_at": None, "reused_from": None,
                 **attempt.changes}
            )  # fmt: skip
            attempt.known = True
        attempt.changes = {}

    def _tell_steps(self, before: Mapping[str, tuple[StepState, int]]) -> None:
        """Make one event for each step whose state changed."""
        changed = [n for n, record in self.steps.items() if before[n] != (record.state, len(record.items))]
        self._events[:0] = [self._event(_told(name, self.steps[name])) for name in changed]
        if changed or self._values:
            self._values["steps"] = dump_steps(self.steps)

    def _tell_progress(self, attempt: Attempt) -> None:
        if attempt.news is not None:
            data = attempt.news.model_dump(mode="json")
            self._events.append(event_log.NewEvent(self.project_id, attempt.job_id, "progress", data, self.workflow_id))
            attempt.news = None

    def _event(self, data: Mapping[str, Any]) -> event_log.NewEvent:
        return event_log.NewEvent(self.project_id, self.workflow_id, "state", data, origin=self.workflow_id)

    async def _write(self, session: AsyncSession) -> None:
        for attempt in self.attempts.values():
            self._keep(attempt)
            self._tell_progress(attempt)
        inserts, updates, values, events, refs = self._inserts, self._updates, self._values, self._events, self._refs
        self._inserts, self._updates, self._values, self._events, self._refs = [], [], {}, [], {}
        if inserts or updates:
            values["steps"] = dump_steps(self.steps)
        if values:
            await store.update_execution(session, self.key, values)
        await store.insert_attempts(session, inserts)
        for job_id, changes in updates:
            await store.update_attempt(session, job_id, changes)
        for job_id, ref in refs.values():
            await artifacts.record(session, self.project_id, ref, produced_by=job_id)
            await artifacts.refer(session, self.project_id, ref.digest, "execution", self.workflow_id)
        await event_log.append_all(session, events)
        if self._counts or self.ended:
            after_commit(session, self._count)

    def _count(self) -> None:
        """Count what has been committed."""
        counts, self._counts = self._counts, []
        for kind, state in counts:
            signals.STEP_ATTEMPTS.labels(kind, state).inc()
        if self.seconds is not None:
            name = self.definition.name if self.definition.name in definitions() else "custom"
            signals.EXECUTIONS_FINISHED.labels(name, self.state).inc()
            signals.EXECUTION_SECONDS.labels(name, self.state).observe(self.seconds)
            self.seconds = None


def _told(name: str, record: StepRecord) -> dict[str, Any]:
    data: dict[str, Any] = {"step": name, "state": record.state}
    if record.reason is not None:
        data["reason"] = record.reason
    error = record.error or next((i.error for i in record.items if i.error and i.state is StepState.RETRYING), None)
    if error is not None:
        data["error"] = error.model_dump(mode="json", exclude_defaults=True)
    jobs = [item.job_id for item in record.items if item.job_id is not None]
    if len(jobs) == 1:
        data |= {"job_id": jobs[0], "attempt": record.items[0].attempt}
        if record.items[0].reused_from:
            data["reused_from"] = record.items[0].reused_from
    elif jobs:
        data["items"] = len(record.items)
    return data
