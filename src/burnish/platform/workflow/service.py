"""The rules of executions: what is accepted, and what may be asked of one.

Whatever needs a component (validation, resolving datasets) happens before the unit of work; the functions that take a
session only read and write rows, and never commit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.errors import Conflict, FieldProblem, Forbidden, InvalidRequest, NotFound, Unavailable
from burnish.core.ids import new_id
from burnish.core.states import ExecutionState, StepState
from burnish.infra import event_log
from burnish.infra.database import Database, utcnow
from burnish.platform.identity import Principal
from burnish.platform.workflow import store
from burnish.platform.workflow.components import Components
from burnish.platform.workflow.definition import Definition, check_storable, nearest, refused
from burnish.platform.workflow.engine_kinds import EngineKind
from burnish.platform.workflow.execution import Definitions
from burnish.platform.workflow.fork import copied_steps
from burnish.platform.workflow.kinds import ENGINE_KINDS
from burnish.platform.workflow.library import definition_named
from burnish.platform.workflow.live import live_steps, outdated
from burnish.platform.workflow.offers import Known
from burnish.platform.workflow.parameters import ModelFinder, Resolver
from burnish.platform.workflow.reading import check_value
from burnish.platform.workflow.records import (
    FINAL,
    StepRecord,
    Steps,
    check_execution,
    dump_steps,
    load_steps,
    reset,
)  # fmt: skip
from burnish.platform.workflow.schemas import ForkRequest, RunRequest
from burnish.platform.workflow.tables import WorkflowExecutionRow
from burnish.platform.workflow.validation import Findings, Validator

_UNSUCCESSFUL = frozenset({StepState.FAILED, StepState.SKIPPED, StepState.CANCELLED})


@dataclass(frozen=True)
class Accepted:
    """A submission that passed validation, ready to be inserted."""

    definition: Definition
    given: Mapping[str, Any]
    parameters: Mapping[str, Any]
    findings: Findings
    steps: Steps
    forked_from: str | None = None


class WorkflowService:
    """Submits executions and changes what is wanted of them."""

    def __init__(
        self,
        database: Database,
        components: Components,
        find_model: ModelFinder,
        *,
        kinds: Mapping[str, EngineKind] = ENGINE_KINDS,
        known: Known | None = None,
    ) -> None:
        self._database = database
        self._kinds = kinds
        self._resolver = Resolver(components, find_model)
        self._validator = Validator(components, kinds, database, known)
        self._definitions = Definitions()

    def definition_of(self, request: RunRequest) -> Definition:
        """Return the definition that a request names or carries.

        Raises:
            InvalidRequest: neither or both, or the definition is not sound.
            NotFound: no definition has this name.
        """
        if (request.workflow_type is None) == (request.definition is None):
            raise InvalidRequest("give either `workflow_type` or `definition`", where="body",
                                 hint="`workflow_type` names a definition that the server has")  # fmt: skip
        if request.workflow_type is not None:
            return definition_named(request.workflow_type)
        assert request.definition is not None
        return self._definitions.read(request.definition)

    async def prepare(self, request: RunRequest, principal: Principal) -> Accepted:
        """Validate a submission; nothing is written.

        Raises:
            InvalidRequest: with every problem at once, each with place and mend.
        """
        accepted = await self.examine(self.definition_of(request), request.parameters, principal)
        refuse_lacking(accepted.findings.forbidden, principal)
        _refuse_faulty(accepted.findings, accepted.definition.name)
        return accepted

    async def examine(self, definition: Definition, given: Mapping[str, Any], principal: Principal) -> Accepted:
        """Return the submission with all that is wrong with it.

        Raises:
            InvalidRequest: text in the parameters cannot be kept, or they are nested too deep.
            TooLarge: the parameters have more than 256 KiB of text.
        """
        check_storable(given, "parameters")
        check_value(given, "parameters")
        parameters, problems = await self._resolver.resolve(definition, given, principal)
        wrong = {problem.where.removeprefix("parameters.") for problem in problems}
        known = {name: value for name, value in parameters.items() if name not in wrong}
        findings = await self._validator.check(definition, known, principal)
        findings.problems[:0] = problems
        steps = {name: StepRecord() for name in definition.steps}
        return Accepted(definition, dict(given), parameters, findings, steps)

    async def submit(self, session: AsyncSession, accepted: Accepted, principal: Principal) -> WorkflowExecutionRow:
        """Insert the execution and its first event. It is accepted once the caller's unit of work has committed."""
        row = WorkflowExecutionRow(
            workflow_id=new_id("wf"), workflow_type=accepted.definition.name, status=ExecutionState.PENDING,
            parameters=dict(accepted.parameters), given=dict(accepted.given), steps=dump_steps(accepted.steps),
            definition=dict(accepted.definition.source), definition_digest=accepted.definition.digest,
            project_id=principal.project_id, submitted_by=principal.subject, forked_from=accepted.forked_from,
        )  # fmt: skip
        await store.insert_execution(session, row)
        await self._tell(session, row, {"state": row.status, "workflow_type": row.workflow_type})
        return row

    async def get(
        self, session: AsyncSession, project_id: str, workflow_id: str, *, lock: bool = False
    ) -> WorkflowExecutionRow:
        """Return an execution.

        Raises:
            NotFound: the project has none of this id.
        """
        row = await store.by_workflow_id(session, project_id, workflow_id, lock=lock)
        if row is None:
            raise NotFound(
                f"there is no execution {workflow_id}", where="workflow_id", hint="`burnish list` shows them"
            )
        return row

    def definition_in(self, row: WorkflowExecutionRow) -> Definition:
        """Return the definition that an execution runs."""
        return self._definitions.of(row.definition_digest, row.definition)

    async def cancel(self, session: AsyncSession, project_id: str, workflow_id: str) -> WorkflowExecutionRow:
        """Ask for the end of an execution; its reconciler cancels what runs. Asking again changes nothing.

        Raises:
            Conflict: it has ended otherwise.
        """
        row = await self.get(session, project_id, workflow_id, lock=True)
        if row.status == ExecutionState.CANCELLED or row.cancel_requested_at is not None:
            return row
        _refuse_ended(row, "cancelled")
        row.cancel_requested_at = utcnow()
        return await self._asked(session, row, "cancel")

    async def pause(self, session: AsyncSession, project_id: str, workflow_id: str) -> WorkflowExecutionRow:
        """Ask that no new step starts; running jobs are paused where their kind can, else they finish.

        Raises:
            Conflict: it has ended, or is being cancelled.
        """
        row = await self.get(session, project_id, workflow_id, lock=True)
        _refuse_ended(row, "paused")
        if row.cancel_requested_at is not None:
            raise Conflict(f"execution {workflow_id} is being cancelled and cannot be paused")
        if row.pause_requested_at is None:
            row.pause_requested_at = utcnow()
            await self._asked(session, row, "pause")
        return row

    async def resume(self, session: AsyncSession, project_id: str, workflow_id: str) -> WorkflowExecutionRow:
        """Let a paused execution go on.

        Raises:
            Conflict: it has ended.
        """
        row = await self.get(session, project_id, workflow_id, lock=True)
        _refuse_ended(row, "resumed", "use `retry` to run its failed steps again")
        if row.pause_requested_at is not None:
            row.pause_requested_at = None
            await self._asked(session, row, "resume")
        return row

    async def retry(
        self, session: AsyncSession, principal: Principal, workflow_id: str, names: tuple[str, ...] = ()
    ) -> WorkflowExecutionRow:
        """Run again what did not succeed, in the same execution; what succeeded is re-used.

        Where that hangs on what is in production and something else is there by now, all that hangs on it runs again.

        Raises:
            Conflict: it has not ended, or it succeeded.
            InvalidRequest: a named step does not exist or succeeded.
            Forbidden: a step needs a permission that the caller lacks.
        """
        row = await self.get(session, principal.project_id, workflow_id, lock=True)
        if ExecutionState(row.status) not in FINAL or row.status == ExecutionState.SUCCEEDED:
            raise Conflict(f"execution {workflow_id} is {row.status}: there is nothing to retry",
                           hint="`fork` runs steps of a succeeded execution again")  # fmt: skip
        definition = self._definitions.of(row.definition_digest, row.definition)
        steps = load_steps(row.steps)
        again = _steps_to_retry(definition, steps, names)
        anew = definition.descendants(await self._outdated(session, row, definition, steps, again))
        again |= anew
        refuse_lacking(self._validator.lacking(definition, sorted(again), principal), principal)
        reset(steps, again, anew)
        row.status = check_execution(ExecutionState(row.status), ExecutionState.RUNNING, f"execution {workflow_id}")
        row.steps = dump_steps(steps)
        row.error = row.completed_at = row.cancel_requested_at = row.pause_requested_at = None
        row.retries += 1
        return await self._asked(session, row, "retry", {"state": row.status, "steps": sorted(again)})

    async def _outdated(
        self, session: AsyncSession, row: WorkflowExecutionRow, definition: Definition, steps: Steps, again: set[str]
    ) -> set[str]:
        """Return the live steps on which ``again`` hangs and whose result would be another now."""
        live = {
            name
            for name in live_steps(definition, self._kinds)
            if steps[name].state is StepState.SUCCEEDED and definition.descendants([name]) & again
        }
        return await outdated(session, row, definition, steps, self._kinds, live)

    async def prepare_fork(
        self, project_id: str, workflow_id: str, request: ForkRequest, principal: Principal
    ) -> Accepted:
        """Validate a fork: the same definition with changed parameters; what their change does not touch is copied.

        Raises:
            NotFound: there is no such execution.
            InvalidRequest: with every problem at once.
        """
        async with self._database.read() as session:
            row = await self.get(session, project_id, workflow_id)
        definition = self._definitions.of(row.definition_digest, row.definition)
        if request.from_step is not None and request.from_step not in definition.steps:
            raise InvalidRequest(f"{workflow_id} has no step {request.from_step!r}", where="from_step",
                                 hint=nearest(request.from_step, definition.steps))  # fmt: skip
        given = {**row.given, **request.parameters}
        accepted = await self.examine(definition, given, principal)
        refuse_lacking(accepted.findings.forbidden, principal)
        _refuse_faulty(accepted.findings, definition.name)
        live = live_steps(definition, self._kinds)
        steps = copied_steps(row, definition, accepted.parameters, request.from_step, live)
        return Accepted(definition, given, accepted.parameters, accepted.findings, steps, forked_from=workflow_id)

    async def approve(
        self, session: AsyncSession, principal: Principal, workflow_id: str, step: str, approved: bool, comment: str
    ) -> WorkflowExecutionRow:
        """Keep a person's answer to a waiting ``approve`` step.

        Raises:
            Conflict: no such step waits for an answer.
            InvalidRequest: the comment cannot be kept.
        """
        check_storable(comment, "comment")
        row = await self.get(session, principal.project_id, workflow_id, lock=True)
        answer = {"approved": approved, "by": principal.subject, "comment": comment, "at": utcnow().isoformat()}
        if not await store.decide_approval(session, row.id, step, answer):
            raise Conflict(f"no step {step!r} of {workflow_id} waits for approval", where=f"steps.{step}",
                           hint="its status says what each step waits for")  # fmt: skip
        return await self._asked(session, row, "approve", {"step": step, **answer})

    async def _asked(
        self, session: AsyncSession, row: WorkflowExecutionRow, verb: str, data: Mapping[str, Any] | None = None
    ) -> WorkflowExecutionRow:
        await session.flush()
        await store.wake_execution(session, row.id)
        await event_log.append(
            session, project_id=row.project_id, subject=row.workflow_id, type="action", origin=row.workflow_id,
            data={"asked": verb, **(data or {})},
        )  # fmt: skip
        return row

    async def _tell(self, session: AsyncSession, row: WorkflowExecutionRow, data: Mapping[str, Any]) -> None:
        await event_log.append(
            session, project_id=row.project_id, subject=row.workflow_id, type="state", data=data, origin=row.workflow_id
        )


def refuse_lacking(lacking: list[FieldProblem], principal: Principal) -> None:
    """Refuse work for which its submitter lacks a permission.

    Raises:
        Forbidden: it names the steps and their permissions.
    """
    if lacking:
        raise Forbidden(
            f"{lacking[0].message} in project {principal.project_id}", where=lacking[0].where, hint=lacking[0].hint,
            problems=lacking,
        )  # fmt: skip


def _refuse_faulty(findings: Findings, name: str) -> None:
    """Refuse what is wrong; what only waits for a component to come back may be sent again."""
    if findings.problems:
        raise refused([*findings.problems, *findings.away], name)
    if findings.away:
        first = findings.away[0]
        raise Unavailable(
            f"{name} cannot be run now: {first.message}", where=first.where, hint=first.hint, problems=findings.away,
            retry_after=10,
        )  # fmt: skip


def _refuse_ended(row: WorkflowExecutionRow, verb: str, hint: str | None = None) -> None:
    if ExecutionState(row.status) in FINAL:
        raise Conflict(f"execution {row.workflow_id} has ended ({row.status}) and cannot be {verb}", hint=hint)


def _steps_to_retry(definition: Definition, steps: Steps, names: tuple[str, ...]) -> set[str]:
    """Return the steps to reset: those named (or all without success) and everything that hangs on them."""
    for name in names:
        if name not in steps:
            raise InvalidRequest(f"there is no step {name!r}", where="steps", hint=nearest(name, steps))
        if steps[name].state is StepState.SUCCEEDED:
            raise InvalidRequest(f"step {name} succeeded: its result stands", where="steps",
                                 hint=f"`fork` with `from_step: {name}` runs it again")  # fmt: skip
    unsuccessful = {name for name, record in steps.items() if record.state in _UNSUCCESSFUL and not record.by_when}
    wanted = definition.descendants(names) & {*unsuccessful, *_by_when(steps)} if names else unsuccessful
    below = definition.descendants(wanted)
    return {name for name in below if steps[name].state is not StepState.SUCCEEDED}


def _by_when(steps: Steps) -> set[str]:
    return {name for name, record in steps.items() if record.by_when}
