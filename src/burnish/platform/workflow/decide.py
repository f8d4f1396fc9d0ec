"""From what the rows say to what is to be done: pure, without a clock or a network.

``decide`` is called again after its actions were applied, until it has none: so each pass may stop at the first thing
that changes what the next would see. What holds, whatever the order of outcomes, cancels and pauses:

- no attempt is started twice, and no step before all that it needs has ended;
- an outcome is recorded before a cancel or a pause is looked at, so that none is lost;
- a retry starts only after a recorded failure, and re-uses everything that succeeded;
- an execution whose attempts all come to an outcome ends; a cancelled one starts nothing more.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from burnish.core.errors import ErrorBody, InvalidRequest, LimitExceeded
from burnish.core.states import ExecutionState, StepState
from burnish.platform.workflow.definition import MAX_ITEMS, Definition, Step
from burnish.platform.workflow.expressions import ExpressionError, Room, Scope, condition, resolve
from burnish.platform.workflow.records import (
    ENDED,
    FINAL,
    REJECTED,
    Action,
    BeginStep,
    EndAttempt,
    EndStep,
    Outcome,
    PauseAttempt,
    ResumeAttempt,
    SetState,
    StartAttempt,
    StepRecord,
    StopAttempt,
)  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What is known of an item beyond its record: its attempt's outcome, and what the clock says."""

    outcome: Outcome | None = None
    timed_out: bool = False
    due: bool = False
    """Its backoff has passed (for an item that is ``retrying``)."""
    stop_sent: bool = False
    pause_sent: bool = False


_NOTHING = Facts()


@dataclass(frozen=True)
class View:
    """All that ``decide`` looks at."""

    execution_id: str
    project_id: str
    definition: Definition
    parameters: Mapping[str, Any]
    state: ExecutionState
    steps: Mapping[str, StepRecord]
    cancel_requested: bool = False
    pause_requested: bool = False
    facts: Mapping[tuple[str, int], Facts] = field(default_factory=dict)

    @cached_property
    def rejected(self) -> str | None:
        """The gate that did not pass, if one did not."""
        return next((n for n, r in self.steps.items() if r.error is not None and r.error.code == REJECTED), None)

    def scope(self, needs: frozenset[str]) -> dict[str, Any]:
        """Return what a step's expressions see."""
        steps = {n: {"result": self.steps[n].result, "state": str(self.steps[n].state)} for n in needs}
        execution = {"id": self.execution_id, "project_id": self.project_id}
        return {"parameters": self.parameters, "steps": steps, "execution": execution}


def decide(view: View) -> list[Action]:
    """Return what is to be done now; nothing when the execution has ended or only waits."""
    if view.state in FINAL:
        return []
    if actions := list(_outcomes(view)) or list(_ended_steps(view)):
        return actions
    if all(record.state in ENDED for record in view.steps.values()):
        return _finish(view)
    if view.cancel_requested or view.rejected is not None:
        return list(_stop(view))
    if view.pause_requested:
        return list(_pause(view))
    return list(_go_on(view))


def _outcomes(view: View) -> Iterator[Action]:
    for name, index, facts in _running(view):
        if (outcome := facts.outcome) is None:
            continue
        if outcome.state == "cancelled" and facts.timed_out:
            outcome = Outcome("failed", error=_timeout_error(name, view.definition.steps[name]))
        yield EndAttempt(name, index, outcome, retry=_worth_a_retry(view, name, index, outcome))


def _running(view: View) -> Iterator[tuple[str, int, Facts]]:
    for name, record in view.steps.items():
        for index, item in enumerate(record.items):
            if item.state is StepState.RUNNING:
                yield name, index, view.facts.get((name, index), _NOTHING)


def _timeout_error(name: str, step: Step) -> ErrorBody:
    return LimitExceeded(
        f"step {name} ran longer than its timeout of {step.timeout:g} s", where=f"steps.{name}.timeout",
        hint="raise `timeout`, give it less to do, or add `retry: {on: [limit_exceeded]}`",
    ).body()  # fmt: skip


def _worth_a_retry(view: View, name: str, index: int, outcome: Outcome) -> bool:
    if outcome.state != "failed" or view.cancel_requested or view.rejected is not None:
        return False
    error, retry = outcome.error, view.definition.steps[name].retry
    if error is not None and error.code == REJECTED:
        return False
    wanted = error is not None and (error.code in retry.on if retry.on else error.retryable)
    return wanted and view.steps[name].items[index].tries < retry.attempts


def _ended_steps(view: View) -> Iterator[Action]:
    for name, record in view.steps.items():
        started = record.state in {StepState.RUNNING, StepState.RETRYING}
        if started and all(item.state in ENDED for item in record.items):
            yield _sum_up(name, record)


def _sum_up(name: str, record: StepRecord) -> EndStep:
    failed = [item for item in record.items if item.state is StepState.FAILED]
    if failed:
        result = None if record.many else failed[0].result
        return EndStep(name, StepState.FAILED, result=result, error=_first_error(failed[0].error, name, record))
    if any(item.state is StepState.CANCELLED for item in record.items):
        return EndStep(name, StepState.CANCELLED, reason="its job was cancelled")
    results = [item.result for item in record.items]
    return EndStep(name, StepState.SUCCEEDED, result=results if record.many else results[0])


def _first_error(error: ErrorBody | None, name: str, record: StepRecord) -> ErrorBody:
    body = error or ErrorBody(code="internal", message=f"step {name} failed without saying why")
    count = sum(item.state is StepState.FAILED for item in record.items)
    if not record.many:
        return body
    return body.model_copy(
        update={"message": f"{count} of {len(record.items)} items failed; the first: {body.message}"}
    )


def _finish(view: View) -> list[Action]:
    states = {record.state for record in view.steps.values()}
    before = [SetState(ExecutionState.RUNNING)] if view.state in {ExecutionState.PENDING, ExecutionState.PAUSED} else []
    if view.rejected is not None:
        return [*before, SetState(ExecutionState.REJECTED, view.steps[view.rejected].error)]
    if StepState.FAILED in states:
        name = next(n for n in view.definition.order if view.steps[n].state is StepState.FAILED)
        return [*before, SetState(ExecutionState.FAILED, view.steps[name].error)]
    if StepState.CANCELLED in states:
        return [*before, SetState(ExecutionState.CANCELLED)]
    return [*before, SetState(ExecutionState.SUCCEEDED)]


def _stop(view: View) -> Iterator[Action]:
    """Cancel what runs, end what has not begun. A rejection skips; a cancel cancels."""
    if view.cancel_requested and view.state is not ExecutionState.CANCELLING:
        yield SetState(ExecutionState.CANCELLING)
    for name, record in view.steps.items():
        if record.state is StepState.WAITING and view.cancel_requested:
            yield EndStep(name, StepState.CANCELLED, reason="the execution was cancelled")
        elif record.state is StepState.WAITING:
            yield EndStep(name, StepState.SKIPPED, reason=f"the gate {view.rejected} did not pass")
        for index, item in enumerate(record.items):
            if item.state in {StepState.WAITING, StepState.RETRYING} and record.state not in ENDED | {
                StepState.WAITING
            }:
                yield EndAttempt(name, index, Outcome("cancelled", error=item.error))
    for name, index, facts in _running(view):
        if not facts.stop_sent:
            yield StopAttempt(name, index, "cancel" if view.cancel_requested else "rejected")


def _pause(view: View) -> Iterator[Action]:
    if view.state is not ExecutionState.PAUSED:
        yield SetState(ExecutionState.PAUSED)
    for name, index, facts in _running(view):
        if not facts.pause_sent:
            yield PauseAttempt(name, index)


def _go_on(view: View) -> Iterator[Action]:
    if view.state in {ExecutionState.PENDING, ExecutionState.PAUSED}:
        yield SetState(ExecutionState.RUNNING)
    for name, index, facts in _running(view):
        if facts.pause_sent:
            yield ResumeAttempt(name, index)
        if facts.timed_out and not facts.stop_sent:
            yield StopAttempt(name, index, "timeout")
    for name, record in view.steps.items():
        if record.state is StepState.WAITING:
            yield from _begin(view, name)
            continue
        for index, item in enumerate(record.items):
            due = item.state is StepState.RETRYING and view.facts.get((name, index), _NOTHING).due
            if record.state not in ENDED and (item.state is StepState.WAITING or due):
                yield _start(view, name, index)


def _begin(view: View, name: str) -> Iterator[Action]:
    step, needs = view.definition.steps[name], view.definition.needs[name]
    if not all(view.steps[need].state in ENDED for need in needs):
        return
    judged = view.definition.judged[name]
    for need in view.definition.order:
        record = view.steps[need]
        if need not in needs or need in judged or record.state is StepState.SUCCEEDED or record.by_when:
            continue
        yield EndStep(name, StepState.SKIPPED, reason=f"it needs {need}, which was not done: {need} is {record.state}")
        return
    try:
        scope = view.scope(needs)
        if step.when is not None and not condition(step.when, scope):
            yield EndStep(name, StepState.SKIPPED, reason=f"`when` is false: {step.when}", by_when=True)
            return
        yield BeginStep(name, _values(name, step, scope), many=step.foreach is not None)
    except (ExpressionError, InvalidRequest) as error:
        yield EndStep(name, StepState.FAILED, error=error.body())


def _values(name: str, step: Step, scope: Scope) -> tuple[Any, ...]:
    if step.foreach is None:
        return (None,)
    values = resolve(step.foreach, scope)
    if not isinstance(values, list | tuple):
        raise InvalidRequest(f"`foreach` of step {name} is not a list", where=f"steps.{name}.foreach",
                             hint="refer to a list")  # fmt: skip
    if len(values) > MAX_ITEMS:
        raise InvalidRequest(f"`foreach` of step {name} has {len(values):,} values; at most {MAX_ITEMS:,} are allowed",
                             where=f"steps.{name}.foreach", hint="split the list")  # fmt: skip
    return tuple(values)


def _start(view: View, name: str, index: int) -> Action:
    item = view.steps[name].items[index]
    try:
        spec = spec_of(view, name, index)
    except ExpressionError as error:
        body = error.body().model_copy(update={"where": f"steps.{name}.with"})
        return EndAttempt(name, index, Outcome("failed", error=body))
    return StartAttempt(name, index, item.attempt + 1, spec)


def spec_of(view: View, name: str, index: int) -> dict[str, Any]:
    """Return the spec of an item, every expression resolved.

    Raises:
        ExpressionError: a reference leads nowhere, or they stand for too much.
    """
    step = view.definition.steps[name]
    room = Room(len(view.steps[name].items))
    resolved: dict[str, Any] = resolve(step.spec, item_scope(view, name, index), room)
    return resolved


def item_scope(view: View, name: str, index: int) -> Scope:
    """Return what the expressions of an item see."""
    scope = view.scope(view.definition.needs[name])
    if view.steps[name].many:
        scope |= {"item": view.steps[name].items[index].value, "index": index}
    return scope
