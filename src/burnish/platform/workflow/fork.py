"""Which results of an execution a fork of it may keep: pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from burnish.core.states import ExecutionState, StepState
from burnish.platform.workflow.decide import View, item_scope, spec_of
from burnish.platform.workflow.definition import Definition
from burnish.platform.workflow.expressions import ExpressionError, condition, resolve
from burnish.platform.workflow.records import Item, StepRecord, Steps, load_steps
from burnish.platform.workflow.tables import WorkflowExecutionRow


def copied_steps(
    row: WorkflowExecutionRow,
    definition: Definition,
    parameters: Mapping[str, Any],
    from_step: str | None,
    live: Iterable[str] = (),
) -> Steps:
    """Return a new execution's steps: succeeded ones whose inputs stay the same keep their results.

    Args:
        row: the execution that is forked.
        definition: its definition.
        parameters: the fork's, resolved.
        from_step: this step and all that needs it run again in any case.
        live: steps whose result is of the moment; they too run again, with all that needs them.
    """
    old = _view(row, definition, row.parameters, load_steps(row.steps))
    new: Steps = {name: StepRecord() for name in definition.steps}
    again = definition.descendants([*live, *([] if from_step is None else [from_step])])
    for name in definition.order:
        record = old.steps[name]
        needs = definition.needs[name]
        whole = all(new[need].state is not StepState.WAITING for need in needs)
        if name in again or not whole or not (record.state is StepState.SUCCEEDED or record.by_when):
            continue
        if _same(old, _view(row, definition, parameters, {**new, name: record}), name):
            new[name] = _copy(record)
    return new


def _view(row: WorkflowExecutionRow, definition: Definition, parameters: Mapping[str, Any], steps: Steps) -> View:
    return View("", row.project_id, definition, parameters, ExecutionState.RUNNING, steps)


def _same(old: View, new: View, name: str) -> bool:
    """Tell whether a step would be given the same again."""
    step, record = old.definition.steps[name], old.steps[name]
    try:
        scopes = [view.scope(view.definition.needs[name]) for view in (old, new)]
        if step.when is not None and condition(step.when, scopes[0]) != condition(step.when, scopes[1]):
            return False
        if record.by_when:
            return True
        if step.foreach is not None and resolve(step.foreach, scopes[0]) != resolve(step.foreach, scopes[1]):
            return False
        return all(
            spec_of(old, name, index) == spec_of(new, name, index)
            and resolve(step.resources, item_scope(old, name, index))
            == resolve(step.resources, item_scope(new, name, index))
            for index in range(len(record.items))
        )
    except ExpressionError:
        return False


def _copy(record: StepRecord) -> StepRecord:
    """Keep the results; the numbering of attempts begins anew, for the execution is another."""
    items = [
        Item(
            state=item.state, value=item.value, result=item.result, reused_from=item.reused_from or item.job_id,
            started_at=item.started_at, finished_at=item.finished_at,
        )
        for item in record.items
    ]  # fmt: skip
    return record.model_copy(update={"items": items})
