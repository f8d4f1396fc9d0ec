"""What an execution's row says of its steps, and the pure functions that change it.

``workflow_executions.steps`` holds ``{name: StepRecord}`` and is authoritative: everything else (attempt rows, events)
can be rebuilt or found again from it.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

from burnish.core.errors import ErrorBody
from burnish.core.states import EXECUTION, STEP, ExecutionState, StepState, check

ENDED = frozenset({StepState.SUCCEEDED, StepState.FAILED, StepState.SKIPPED, StepState.CANCELLED})
FINAL = frozenset({ExecutionState.SUCCEEDED, ExecutionState.REJECTED, ExecutionState.FAILED, ExecutionState.CANCELLED})
REJECTED = "rejected"
"""Error code of a gate whose verdict was not ``pass``."""


class Item(BaseModel):
    """One piece of work of a step: the only one, or one for each value of its ``foreach``."""

    model_config = ConfigDict(extra="ignore")

    state: StepState = StepState.WAITING
    value: JsonValue = None
    """The ``foreach`` value."""
    attempt: int = 0
    """Number of the latest attempt; it never falls, so that no two attempts share a job id."""
    tries: int = 0
    """Attempts since the step was last reset; what ``retry.attempts`` bounds."""
    job_id: str | None = None
    result: JsonValue = None
    error: ErrorBody | None = None
    reused_from: str | None = None
    """The job whose result stands here, when none was run."""
    failed_at: float | None = None
    """When the last try failed, in seconds since 1970; its backoff counts from here."""
    started_at: datetime | None = None
    finished_at: datetime | None = None


class StepRecord(BaseModel):
    """What is so of one step."""

    model_config = ConfigDict(extra="ignore")

    state: StepState = StepState.WAITING
    items: list[Item] = Field(default_factory=list)
    many: bool = False
    """Whether it has a ``foreach``: then ``result`` is the list of its items' results."""
    result: JsonValue = None
    error: ErrorBody | None = None
    reason: str | None = None
    """Why it was skipped or cancelled."""
    by_when: bool = False
    """Skipped by its own ``when``: what needs it may run all the same."""
    started_at: datetime | None = None
    finished_at: datetime | None = None


Steps = dict[str, StepRecord]
_STEPS: TypeAdapter[Steps] = TypeAdapter(Steps)


def load_steps(value: Mapping[str, Any]) -> Steps:
    """Return the records in a row's JSON."""
    return _STEPS.validate_python(dict(value))


def dump_steps(steps: Steps) -> dict[str, Any]:
    """Return the JSON of records, without what is at its default."""
    dumped: dict[str, Any] = _STEPS.dump_python(steps, mode="json", exclude_defaults=True)
    return dumped


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    state: Literal["succeeded", "failed", "cancelled"]
    result: Any = None
    error: ErrorBody | None = None
    reused_from: str | None = None


@dataclass(frozen=True)
class SetState:
    """The execution becomes ``state``."""

    state: ExecutionState
    error: ErrorBody | None = None


@dataclass(frozen=True)
class BeginStep:
    """A step starts, with one item for each of ``values``."""

    step: str
    values: tuple[Any, ...]
    many: bool


@dataclass(frozen=True)
class EndStep:
    """A step ends: skipped or cancelled before it began, failed by an expression, or by what its items came to."""

    step: str
    state: StepState
    result: Any = None
    error: ErrorBody | None = None
    reason: str | None = None
    by_when: bool = False


@dataclass(frozen=True)
class StartAttempt:
    """A new attempt begins: its row is committed before anything is submitted."""

    step: str
    index: int
    number: int
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class EndAttempt:
    """An attempt's outcome is recorded; ``retry`` makes the item wait for its next one."""

    step: str
    index: int
    outcome: Outcome
    retry: bool = False


@dataclass(frozen=True)
class StopAttempt:
    """Ask the component to cancel the job; its outcome comes later."""

    step: str
    index: int
    why: Literal["cancel", "timeout", "rejected"]


@dataclass(frozen=True)
class PauseAttempt:
    """Ask the component to pause the job, if it can."""

    step: str
    index: int


@dataclass(frozen=True)
class ResumeAttempt:
    """Ask the component to let a paused job go on."""

    step: str
    index: int


Action = SetState | BeginStep | EndStep | StartAttempt | EndAttempt | StopAttempt | PauseAttempt | ResumeAttempt


def apply(steps: Steps, action: Action, now: datetime) -> None:
    """Change ``steps`` as ``action`` says. ``SetState`` and what only asks a component change nothing here.

    Raises:
        Conflict: the step's state does not allow it (a mistake in :mod:`decide`).
    """
    if isinstance(action, BeginStep):
        record = _move(steps, action.step, StepState.RUNNING)
        record.many = action.many
        record.items = [_begun(record.items, position, value) for position, value in enumerate(action.values)]
        record.started_at = now
        record.finished_at = record.error = record.reason = None
    elif isinstance(action, EndStep):
        record = _move(steps, action.step, action.state)
        record.result, record.error = action.result, action.error
        record.reason, record.by_when = action.reason, action.by_when
        record.finished_at = now
        if not record.many:
            for item in record.items:  # the step's result is its only item's: kept once
                item.result = None
    elif isinstance(action, StartAttempt):
        item = steps[action.step].items[action.index]
        item.state = StepState.RUNNING
        item.attempt, item.tries = action.number, item.tries + 1
        item.started_at, item.finished_at, item.failed_at = item.started_at or now, None, None
        if steps[action.step].state is StepState.RETRYING:
            _move(steps, action.step, StepState.RUNNING)
    elif isinstance(action, EndAttempt):
        _end_item(steps, action, now)


def _begun(items: list[Item], position: int, value: Any) -> Item:
    """Keep an item of an earlier run of the step: its numbering goes on, and what succeeded stays."""
    if position >= len(items):
        return Item(value=value)
    item = items[position]
    if item.state is not StepState.SUCCEEDED or item.value != value:
        return Item(value=value, attempt=item.attempt)
    return item


def _end_item(steps: Steps, action: EndAttempt, now: datetime) -> None:
    record = steps[action.step]
    item = record.items[action.index]
    outcome = action.outcome
    item.error, item.result, item.reused_from = outcome.error, outcome.result, outcome.reused_from
    item.finished_at = now
    if action.retry:
        item.state = StepState.RETRYING
        item.failed_at = now.timestamp()
        if not any(other.state is StepState.RUNNING for other in record.items):
            record.state = _checked(action.step, record.state, StepState.RETRYING)
    else:
        item.state = StepState(outcome.state)


def _move(steps: Steps, name: str, state: StepState) -> StepRecord:
    record = steps[name]
    record.state = _checked(name, record.state, state)
    return record


def _checked(name: str, old: StepState, new: StepState) -> StepState:
    if old is not new:
        check(STEP, old, new, f"step {name}")
    return new


def check_execution(old: ExecutionState, new: ExecutionState, what: str) -> ExecutionState:
    """Return ``new`` if the execution's state machine allows it.

    Raises:
        Conflict: it does not.
    """
    if old is not new:
        check(EXECUTION, old, new, what)
    return new


def reset(steps: Steps, names: Iterable[str], anew: Collection[str] = ()) -> None:
    """Put steps back to waiting. Numbering of attempts goes on.

    Items that succeeded keep their results, but not those of the steps ``anew``, whose inputs may have changed.
    """
    for name in names:
        record = steps[name]
        if record.state is StepState.WAITING:
            continue
        check(STEP, record.state, StepState.WAITING, f"step {name}")
        items = [Item(value=i.value, attempt=i.attempt) for i in record.items] if name in anew else record.items
        steps[name] = StepRecord(many=record.many, items=items)
