"""From rows to what the API answers: pure."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from burnish.core.errors import ErrorBody
from burnish.core.protocol import Progress
from burnish.core.states import ExecutionState, JobState, StepState
from burnish.infra.artifact_store.references import references_in
from burnish.platform.workflow.definition import ENGINE, Definition
from burnish.platform.workflow.engine_kinds import EngineKind
from burnish.platform.workflow.offers import Known
from burnish.platform.workflow.records import ENDED, StepRecord, load_steps
from burnish.platform.workflow.schemas import (
    AttemptView,
    DefinitionView,
    ExecutionItem,
    ExecutionView,
    KindView,
    ParameterView,
    StepPlan,
    StepView,
)  # fmt: skip
from burnish.platform.workflow.store import AttemptWithJob
from burnish.platform.workflow.tables import WorkflowExecutionRow
from burnish.platform.workflow.validation import Estimate


def item_view(row: WorkflowExecutionRow) -> ExecutionItem:
    """Return an execution as lists show it."""
    return ExecutionItem(**_common(row))


def execution_view(
    row: WorkflowExecutionRow, definition: Definition, attempts: Sequence[AttemptWithJob], now: datetime
) -> ExecutionView:
    """Return an execution with its steps in the order in which they can run."""
    records = load_steps(row.steps)
    by_step: dict[str, list[AttemptView]] = {name: [] for name in definition.steps}
    for attempt in attempts:
        by_step[attempt.row.step].append(_attempt_view(attempt))
    steps = tuple(_step_view(name, definition, records[name], by_step[name], now) for name in definition.order)
    return ExecutionView(
        **_common(row), parameters=row.parameters, steps=steps,
        cancel_requested=row.cancel_requested_at is not None, pause_requested=row.pause_requested_at is not None,
        retries=row.retries, definition_digest=row.definition_digest, submitted_by=row.submitted_by,
    )  # fmt: skip


def _common(row: WorkflowExecutionRow) -> dict[str, Any]:
    states = [StepState(step.get("state", StepState.WAITING)) for step in row.steps.values()]
    return {
        "workflow_id": row.workflow_id, "workflow_type": row.workflow_type, "status": ExecutionState(row.status),
        "error": None if row.error is None else ErrorBody.model_validate(row.error),
        "steps_done": sum(state in ENDED for state in states), "steps_total": len(states),
        "created_at": row.created_at, "started_at": row.started_at, "completed_at": row.completed_at,
        "forked_from": row.forked_from,
    }  # fmt: skip


def _attempt_view(attempt: AttemptWithJob) -> AttemptView:
    row, job = attempt.row, attempt.job
    state, progress, reason = JobState(row.state), attempt.progress, row.note
    if job is not None:
        if row.finished_at is None:
            state = JobState(job.state)
        progress = job.progress
        reason = reason or job.pending_reason
    return AttemptView(
        job_id=row.job_id, item=row.item, number=row.number, state=state, reused_from=row.reused_from,
        error=None if row.error is None else ErrorBody.model_validate(row.error),
        progress=None if progress is None else Progress.model_validate(progress),
        waiting_for=None if row.finished_at is not None else reason, pid=None if job is None else job.pid,
        restarts=0 if job is None else job.restarts, created_at=row.created_at, finished_at=row.finished_at,
    )  # fmt: skip


def _step_view(
    name: str, definition: Definition, record: StepRecord, attempts: Sequence[AttemptView], now: datetime
) -> StepView:
    step = definition.steps[name]
    running = [attempt for attempt in attempts if attempt.finished_at is None]
    done = sum(item.state in ENDED for item in record.items)
    error = record.error or next((item.error for item in record.items if item.error is not None), None)
    end = record.finished_at or (now if record.started_at is not None else None)
    return StepView(
        name=name, state=record.state, needs=tuple(n for n in definition.order if n in definition.needs[name]),
        component=step.component, kind=step.kind, description=step.description, reason=record.reason,
        reused=bool(record.items) and all(item.reused_from is not None for item in record.items),
        progress=_progress(record, running, done), waiting_for=_waiting_for(definition, name, record, running),
        items=max(1, len(record.items)), items_done=done, attempts=tuple(attempts), result=record.result,
        artifacts=tuple({ref.digest: ref for _, ref in references_in(record.result)}.values()), error=error,
        started_at=record.started_at, finished_at=record.finished_at,
        seconds=None if end is None or record.started_at is None else max(0.0, (end - record.started_at).total_seconds()),
    )  # fmt: skip


def _progress(record: StepRecord, running: Sequence[AttemptView], done: int) -> Progress | None:
    if record.many and record.state is StepState.RUNNING:
        return Progress(done=done, total=len(record.items), unit="items")
    return running[0].progress if len(running) == 1 else None


def _waiting_for(definition: Definition, name: str, record: StepRecord, running: Sequence[AttemptView]) -> str | None:
    if record.state is StepState.RETRYING:
        return "its next try"
    if definition.steps[name].kind == "approve" and record.state is StepState.RUNNING:
        return f"a person: {definition.steps[name].spec.get('message') or 'yes or no'}"
    return next((attempt.waiting_for for attempt in running if attempt.waiting_for), None)


def plans(definition: Definition, estimates: Mapping[str, Estimate]) -> tuple[StepPlan, ...]:
    """Return the steps of a definition, with what their components said they need."""
    nothing = Estimate()
    return tuple(
        StepPlan(
            name=name, needs=tuple(n for n in definition.order if n in definition.needs[name]),
            component=definition.steps[name].component, kind=definition.steps[name].kind,
            resources=estimates.get(name, nothing).resources, seconds=estimates.get(name, nothing).seconds,
        )
        for name in definition.order
    )  # fmt: skip


def definition_view(definition: Definition, *, whole: bool) -> DefinitionView:
    """Return a definition of the library."""
    parameters = tuple(
        ParameterView(
            name=name, type=p.type, default=p.default, required=p.required, description=p.description, choices=p.choices
        )
        for name, p in definition.parameters.items()
    )
    return DefinitionView(
        name=definition.name, description=definition.description, digest=definition.digest, parameters=parameters,
        steps=plans(definition, {}), source=dict(definition.source) if whole else None,
    )  # fmt: skip


def kind_views(known: Known, own: Mapping[str, EngineKind]) -> list[KindView]:
    """Return everything that a step can be made of, sorted."""
    away = known.away()
    offers = {**known.kinds(), **{(ENGINE, name): kind.offer(name) for name, kind in own.items()}}
    return [
        KindView(component_type=component, away_since=away.get(component), **offer.model_dump())
        for (component, _), offer in sorted(offers.items())
    ]
