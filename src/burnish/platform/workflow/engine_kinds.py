"""The kinds of component ``platform``: steps that need no host, run in the server.

A kind has up to two phases. ``prepare`` loads evidence outside any transaction and may be run again; ``apply`` runs in
the short transaction that records its outcome, so that its effect and the record of it are one. A kind that ``waits``
has neither: the reconciler asks it again until it has an outcome.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field, JsonValue, ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.errors import BurnishError, FieldProblem, InvalidRequest, JobFailed
from burnish.core.protocol import KindOffer
from burnish.core.specs.base import Spec
from burnish.infra.artifact_store.protocol import ArtifactStore
from burnish.infra.database import Database
from burnish.platform.workflow.definition import field_problems
from burnish.platform.workflow.records import Outcome


@dataclass(frozen=True)
class EngineStep:
    """Which step it is that runs, for kinds that record where things came from."""

    workflow_id: str
    project_id: str
    step: str
    job_id: str
    workflow_type: str = ""
    definition_digest: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    submitted_by: str = ""


@dataclass(frozen=True)
class Evidence:
    """What ``prepare`` may read from."""

    database: Database
    store: ArtifactStore
    ask: Callable[..., Awaitable[Any]]
    """Calls a component, as the integrator's ``call`` does."""


Prepare = Callable[[Evidence, EngineStep, Any], Awaitable[Any]]
Apply = Callable[[AsyncSession, EngineStep, Any, Any], Awaitable[BaseModel]]
Check = Callable[[Mapping[str, Any], tuple[str, ...], str], Iterable[FieldProblem]]
"""``(spec, its fields that come later, where it stands)`` -> what is wrong with it."""
Waits = Callable[[Any, float, Mapping[str, Any] | None], "Outcome | float | None"]
"""``(spec, seconds since it began, what a person decided)`` -> its outcome, the seconds to wait, or None: until woken."""


@dataclass(frozen=True)
class EngineKind:
    """One kind that runs in the server."""

    spec: type[Spec]
    result: type[BaseModel]
    summary: str
    apply: Apply | None = None
    prepare: Prepare | None = None
    waits: Waits | None = None
    writes: bool = True
    """Whether ``apply`` changes rows, and so needs a savepoint for when it fails."""
    live: bool = False
    """Whether the same spec may come to another result later, because others change what it reads.

    Only for kinds that write nothing: a retry applies them once more to compare, with nothing prepared."""

    permission: str | None = None
    """What whoever submits it needs beyond ``workflow:run``, and what it acts with when it runs."""

    check: Check | None = None
    """Says what is wrong with a spec beyond its fields, as far as it is known at submit."""

    def offer(self, name: str) -> KindOffer:
        """Return the kind as a component's description would offer it."""
        return KindOffer(
            name=name, summary=self.summary, heavy=False, permission=self.permission,
            spec_schema=self.spec.model_json_schema(), result_schema=self.result.model_json_schema(),
        )  # fmt: skip

    def problems(self, spec: Mapping[str, Any], unresolved: tuple[str, ...], where: str) -> list[FieldProblem]:
        """Return what is wrong with a spec whose ``unresolved`` fields come later."""
        beyond = [] if self.check is None else list(self.check(spec, unresolved, where))
        try:
            self.spec.model_validate(dict(spec))
        except ValidationError as error:
            found = field_problems(error, where, self.spec, spec)
            later = tuple(f"{where}.{path}" for path in unresolved)
            return beyond + [p for p in found if not any(_touches(p.where, path) for path in later)]
        return beyond

    def parse(self, spec: Mapping[str, Any], step: str) -> Any:
        """Return the spec's model.

        Raises:
            InvalidRequest: it is none.
        """
        try:
            return self.spec.model_validate(dict(spec))
        except ValidationError as error:
            problems = field_problems(error, f"steps.{step}.with", self.spec, spec)
            raise InvalidRequest(
                f"step {step} was given something else than it takes: {problems[0].where}: {problems[0].message}",
                where=problems[0].where, hint=problems[0].hint, problems=problems,
            ) from error  # fmt: skip


def _touches(place: str, path: str) -> bool:
    """Tell whether one place is the other or lies inside it."""
    return place == path or place.startswith((path + ".", path + "[")) or path.startswith((place + ".", place + "["))


class NoopSpec(Spec):
    """Does nothing."""

    value: JsonValue = Field(default=None, description="Given back as the result's `value`")
    fail: bool = Field(default=False, description="Fail instead, to try out what follows")


class NoopResult(Spec):
    """What it was given."""

    value: JsonValue = None


async def _noop(_session: AsyncSession, step: EngineStep, spec: NoopSpec, _prepared: Any) -> NoopResult:
    if spec.fail:
        raise JobFailed(
            f"step {step.step} was told to fail", where=f"steps.{step.step}.with.fail", hint="set it to false"
        )
    return NoopResult(value=spec.value)


class WaitSpec(Spec):
    """Waits."""

    seconds: float = Field(ge=0, le=30 * 86_400)
    value: JsonValue = Field(default=None, description="Given back as the result's `value`")


def _wait(spec: WaitSpec, elapsed: float, _decision: Mapping[str, Any] | None) -> Outcome | float:
    if elapsed >= spec.seconds:
        return Outcome("succeeded", result=NoopResult(value=spec.value).model_dump(mode="json"))
    return spec.seconds - elapsed


class ApproveSpec(Spec):
    """Waits until a person says yes or no."""

    message: str = Field(default="", max_length=2_000, description="What is to be approved")


class ApproveResult(Spec):
    """Who approved it, and what they said."""

    approved_by: str
    comment: str = ""
    at: datetime


def _approve(_spec: ApproveSpec, _elapsed: float, decision: Mapping[str, Any] | None) -> Outcome | None:
    if decision is None:
        return None
    if decision["approved"]:
        result = ApproveResult(approved_by=decision["by"], comment=decision["comment"], at=decision["at"])
        return Outcome("succeeded", result=result.model_dump(mode="json"))
    said = f": {decision['comment']}" if decision["comment"] else ""
    error = Rejected(f"{decision['by']} did not approve it{said}", hint="change what was asked for and submit again")
    return Outcome("failed", error=error.body())


class Rejected(BurnishError):
    """A gate's verdict was not ``pass``, or a person said no. The execution ends as ``rejected``."""

    code = "rejected"
    status = 409

    result: BaseModel | None = None
    """What the step found, kept as its result."""

    def having(self, result: BaseModel) -> "Rejected":
        """Return this error with the step's result."""
        self.result = result
        return self


BASIC_KINDS: Mapping[str, EngineKind] = {
    "noop": EngineKind(NoopSpec, NoopResult, "Does nothing", apply=_noop, writes=False),
    "wait": EngineKind(WaitSpec, NoopResult, "Waits some seconds", waits=_wait),
    "approve": EngineKind(ApproveSpec, ApproveResult, "Waits for a person's yes", waits=_approve),
}
"""The kinds that need nothing but this module; :mod:`burnish.platform.workflow.kinds` has all of them."""
