"""Steps whose result is of the moment, such as what is in production: a fork asks them anew, a retry if it must."""

from collections.abc import Iterable, Mapping

from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.errors import BurnishError
from burnish.core.states import ExecutionState
from burnish.platform.workflow.decide import View, spec_of
from burnish.platform.workflow.definition import ENGINE, Definition
from burnish.platform.workflow.engine_kinds import EngineKind, EngineStep
from burnish.platform.workflow.records import Steps
from burnish.platform.workflow.tables import WorkflowExecutionRow


def live_steps(definition: Definition, kinds: Mapping[str, EngineKind]) -> frozenset[str]:
    """Return the steps whose kind reads what changes by itself."""
    return frozenset(
        name
        for name, step in definition.steps.items()
        if step.component == ENGINE and step.kind in kinds and kinds[step.kind].live
    )


async def outdated(
    session: AsyncSession,
    row: WorkflowExecutionRow,
    definition: Definition,
    steps: Steps,
    kinds: Mapping[str, EngineKind],
    names: Iterable[str],
) -> set[str]:
    """Return those of ``names``, live steps that succeeded, which would (or could) come to another result now."""
    view = View(row.workflow_id, row.project_id, definition, row.parameters, ExecutionState.RUNNING, steps)
    return {name for name in names if not await _stands(session, view, name, kinds[definition.steps[name].kind])}


async def _stands(session: AsyncSession, view: View, name: str, kind: EngineKind) -> bool:
    record = view.steps[name]
    assert kind.apply is not None
    try:
        for index, item in enumerate(record.items):
            spec = kind.parse(spec_of(view, name, index), name)
            if getattr(spec, "deployment", None) is not None:
                return False  # a component would have to be asked, for which no transaction is held open
            step = EngineStep(view.execution_id, view.project_id, name, item.job_id or "")
            result = await kind.apply(session, step, spec, None)
            if result.model_dump(mode="json") != (item.result if record.many else record.result):
                return False
    except BurnishError:
        return False
    return True
