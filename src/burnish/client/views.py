"""What the server answers, as frozen models. Fields that this version does not know are kept (``model_extra``)."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from burnish.core.errors import ErrorBody, FieldProblem
from burnish.core.protocol import Progress
from burnish.core.specs.base import ArtifactRef
from burnish.core.specs.data import DatasetCard
from burnish.core.states import DeploymentState, ExecutionState, RevisionState, StepState


class View(BaseModel):
    """Base of answers."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)


class AttemptView(View):
    """One try of a step."""

    number: int = 1
    item: int = 0
    job_id: str | None = None
    state: str = ""
    error: ErrorBody | None = None
    reused_from: str | None = Field(default=None, description="The job whose result was taken over")
    progress: Progress | None = None
    waiting_for: str | None = None
    restarts: int = 0
    finished_at: datetime | None = None


class StepView(View):
    """One step of an execution."""

    name: str
    state: StepState
    component: str = ""
    kind: str = ""
    needs: tuple[str, ...] = ()
    attempts: tuple[AttemptView, ...] = ()
    progress: Progress | None = None
    waiting_for: str | None = Field(default=None, description="Why what runs has not begun")
    items: int = 1
    result: JsonValue = None
    error: ErrorBody | None = None
    artifacts: tuple[ArtifactRef, ...] = ()
    reused: bool = Field(default=False, description="Its result is an earlier job's: nothing was run")
    reason: str | None = Field(default=None, description="Why it was skipped or cancelled")
    seconds: float | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


class ExecutionView(View):
    """One run of a workflow definition."""

    workflow_id: str
    workflow_type: str = ""
    status: ExecutionState
    parameters: dict[str, Any] = Field(default_factory=dict)
    steps: tuple[StepView, ...] = Field(default=(), description="Empty in lists")
    steps_done: int = 0
    steps_total: int = 0
    error: ErrorBody | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more happens unless someone retries it."""
        return self.status in ENDED


ENDED = frozenset({ExecutionState.SUCCEEDED, ExecutionState.REJECTED, ExecutionState.FAILED, ExecutionState.CANCELLED})


class Accepted(View):
    """The answer to a submission."""

    workflow_id: str
    status: ExecutionState


class DefinitionView(View):
    """A definition that the server has."""

    name: str
    description: str = ""
    parameters: tuple[dict[str, Any], ...] = ()


class Validation(View):
    """Whether a submission would be accepted, and all that is wrong with it."""

    valid: bool
    problems: tuple[FieldProblem, ...] = ()
    steps: tuple[dict[str, Any], ...] = ()


class DatasetView(View):
    """A dataset version."""

    name: str
    version: int
    artifact: ArtifactRef
    card: DatasetCard
    created_at: datetime | None = None


class AddedDataset(DatasetView):
    """The version that holds what was uploaded."""

    created: bool = Field(default=True, description="False: the dataset had these very rows already")
    dropped_rows: tuple[FieldProblem, ...] = ()


class AliasView(View):
    """Where an alias points."""

    alias: str
    version: int


class ModelView(View):
    """A registered model."""

    name: str
    latest_version: int | None = None
    versions: int = 0
    aliases: tuple[AliasView, ...] = ()
    created_at: datetime | None = None


class ModelVersionView(View):
    """An immutable version of a registered model."""

    model: str
    version: int
    artifact: ArtifactRef
    aliases: tuple[str, ...] = ()
    execution: str | None = None


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
    health_endpoint: str | None = None
    registered_at: datetime | None = None
    last_heartbeat: datetime | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    node: str | None = None
    embedded: bool = False
    """Inside a process of Burnish's own, which says what its metadata say."""
    protocol_version: str | None = None
    kinds: tuple[str, ...] = ()
    """The job kinds that it offers."""
    source: str = ""
    """How it was found: ``embedded``, ``registered``, ``static``, ``dns`` or ``entry_point``."""
    health: dict[str, Any] | None = None
    """Its own word: ``load``, ``waiting_for``, ``warm``, ..."""
    failures: int = 0
    """Health checks failed in a row."""
    problem: str | None = None
    """Why it is not healthy."""
    problem_kind: str | None = None
    since: datetime | None = None
    """When its state began."""
    restarts: int = 0
    restart_requested_at: datetime | None = None
    actions: tuple[dict[str, Any], ...] | None = None
    """What the platform has done about it, with the cause; only of a single instance."""


class Chunk(View):
    """A piece of an answer from a deployed model."""

    text: str
    finish_reason: Literal["stop", "length", "content_filter", "tool_calls"] | None = None


class KindView(View):
    """What a step can be made of: a kind of job of a component."""

    component_type: str
    name: str
    summary: str = ""
    heavy: bool = True
    pausable: bool = False
    away_since: datetime | None = None
    """Since when no instance of its component is known."""
    spec_schema: dict[str, Any] = Field(default_factory=dict)
    result_schema: dict[str, Any] = Field(default_factory=dict)
