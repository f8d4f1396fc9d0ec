"""What the server answers, as frozen models. Fields that this version does not know are kept (``model_extra``)."""

from datetime import datetime, timedelta
from typing import Any, Generic, Literal, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from burnish.core.errors import ErrorBody
from burnish.core.protocol import Progress
from burnish.core.specs.base import ArtifactRef
from burnish.core.specs.data import DatasetCard
from burnish.core.states import DeploymentState, ExecutionState, RevisionState, StepState

Item = TypeVar("Item")


class View(BaseModel):
    """Base of answers."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)


class Page(View, Generic[Item]):
    """A page of a listing; ``next`` is the ``after`` of the page that follows."""

    data: tuple[Item, ...] = ()
    has_more: bool = False
    next: str | None = None


class AttemptView(View):
    """One try of a step."""

    number: int = Field(default=1, validation_alias=AliasChoices("number", "attempt"))
    job_id: str | None = None
    state: str = ""
    error: ErrorBody | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


class StepView(View):
    """One step of an execution."""

    name: str = Field(validation_alias=AliasChoices("name", "step", "id"))
    state: StepState
    component: str | None = None
    kind: str | None = None
    needs: tuple[str, ...] = ()
    attempts: tuple[AttemptView, ...] = ()
    progress: Progress | None = None
    result: dict[str, Any] | None = None
    error: ErrorBody | None = None
    artifacts: tuple[ArtifactRef, ...] = ()
    reused_from: str | None = Field(default=None, description="The execution whose result was taken over")
    reason: str | None = Field(default=None, description="Why it waits or was skipped")
    started_at: datetime | None = None
    finished_at: datetime | None = None


class ExecutionView(View):
    """One run of a workflow definition."""

    workflow_id: str
    workflow_type: str = ""
    status: ExecutionState
    parameters: dict[str, Any] = Field(default_factory=dict)
    steps: tuple[StepView, ...] = ()
    error: ErrorBody | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more happens unless someone retries it."""
        return self.status in ENDED

    def finished_by(self, moment: datetime) -> bool:
        """Whether an event of that moment is its end, not the end of an earlier try."""
        return self.completed_at is None or moment >= self.completed_at - timedelta(seconds=1)


ENDED = frozenset({ExecutionState.SUCCEEDED, ExecutionState.REJECTED, ExecutionState.FAILED, ExecutionState.CANCELLED})


class Accepted(View):
    """The answer to a submission."""

    workflow_id: str
    status: ExecutionState


class DatasetView(View):
    """A dataset version."""

    name: str
    version: int
    artifact: ArtifactRef
    card: DatasetCard
    created_at: datetime | None = None


class ModelView(View):
    """A registered model."""

    name: str
    latest_version: int | None = None
    aliases: dict[str, int] = Field(default_factory=dict)
    created_at: datetime | None = None


class ModelVersionView(View):
    """An immutable version of a registered model."""

    model: str = Field(validation_alias=AliasChoices("model", "name"))
    version: int


class RevisionView(View):
    """An immutable snapshot of a deployment."""

    number: int
    state: RevisionState
    spec: dict[str, Any] = Field(default_factory=dict)


class DeploymentView(View):
    """What is wanted and what is so of a deployment."""

    name: str
    state: DeploymentState
    wanted: int | None = None
    serving: int | None = None
    model_version: str | None = None
    error: ErrorBody | None = None
    revisions: tuple[RevisionView, ...] = ()
    replicas: tuple[dict[str, Any], ...] = ()


class ComponentView(View):
    """One instance of a component."""

    component_id: str
    component_type: str
    name: str = ""
    version: str = ""
    status: str = ""
    api_endpoint: str | None = None
    last_heartbeat: datetime | None = None


class Chunk(View):
    """A piece of an answer from a deployed model."""

    text: str
    finish_reason: Literal["stop", "length", "content_filter", "tool_calls"] | None = None
