"""The public contract of workflows."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from burnish.core.errors import ErrorBody, FieldProblem
from burnish.core.protocol import Progress
from burnish.core.specs.base import ArtifactRef, Resources
from burnish.core.states import ExecutionState, JobState, StepState
from burnish.infra.storable import NO_NUL


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _View(BaseModel):
    model_config = ConfigDict(frozen=True)


_AT = "2026-11-24T12:00:00Z"
_ITEM: dict[str, JsonValue] = {
    "workflow_id": "wf_01jd8x0k2m4n6p8r0t2v4w", "workflow_type": "hello", "status": "succeeded", "steps_done": 1,
    "steps_total": 1, "created_at": _AT, "started_at": _AT, "completed_at": _AT,
}  # fmt: skip
_ATTEMPT: dict[str, JsonValue] = {
    "job_id": "job_01jd8x0k2m4n6p8r0t2v4w", "number": 1, "state": "succeeded", "created_at": _AT, "finished_at": _AT,
}  # fmt: skip
_EXECUTION: dict[str, JsonValue] = {
    **_ITEM, "parameters": {}, "definition_digest": "sha256:" + "9b1c3d5e" * 8, "submitted_by": "local",
    "steps": [{"name": "first", "state": "succeeded", "component": "platform", "kind": "noop", "items_done": 1,
               "attempts": [_ATTEMPT], "started_at": _AT, "finished_at": _AT, "seconds": 0.02}],
}  # fmt: skip
_DEFINITION: dict[str, JsonValue] = {
    "name": "hello", "description": "Two steps, one after the other", "digest": "sha256:" + "9b1c3d5e" * 8,
    "parameters": [{"name": "greeting", "type": "string", "default": "hello"}],
    "steps": [{"name": "first", "needs": [], "component": "platform", "kind": "noop"},
              {"name": "second", "needs": ["first"], "component": "platform", "kind": "noop"}],
}  # fmt: skip


class RunRequest(_Body):
    """What to run: a definition by name, or one that is sent along."""

    workflow_type: str | None = Field(
        default=None, max_length=100, description="Name of a definition that the server has"
    )
    definition: dict[str, JsonValue] | str | None = Field(
        default=None, description="A definition of your own: an object, or YAML text"
    )
    parameters: dict[str, JsonValue] = Field(default_factory=dict, max_length=200)

    model_config = ConfigDict(
        frozen=True, extra="forbid",
        json_schema_extra={"examples": [
            {"workflow_type": "train-optimize-deploy", "parameters": {"model": "HuggingFaceTB/SmolLM2-135M-Instruct",
             "dataset": "reviews", "name": "production"}},
            {"definition": {"name": "hello", "steps": {"first": {"kind": "noop"}, "second": {"kind": "noop",
             "needs": ["first"]}}}},
        ]},
    )  # fmt: skip


class RunAnswer(_View):
    """The execution that was accepted: committed before this answer."""

    model_config = ConfigDict(
        frozen=True, json_schema_extra={"examples": [{"workflow_id": "wf_01jd8x0k2m4n6p8r0t2v4w", "status": "pending"}]}
    )

    workflow_id: str
    status: ExecutionState


class StepPlan(_View):
    """What validation knows of a step."""

    name: str
    needs: tuple[str, ...]
    component: str
    kind: str
    resources: Resources | None = Field(default=None, description="What its component says it needs")
    seconds: float | None = Field(default=None, description="Estimated run time")


class ValidationAnswer(_View):
    """Whether a run would be accepted; all that is wrong at once."""

    valid: bool
    problems: tuple[FieldProblem, ...] = ()
    steps: tuple[StepPlan, ...] = ()


class RetryRequest(_Body):
    """How to go on with an execution that ended without success."""

    steps: tuple[str, ...] = Field(
        default=(),
        max_length=200,
        description="Steps to run again, with all that needs them; by default all that did not succeed",
    )


class ForkRequest(_Body):
    """A new execution of the same definition, with changed parameters."""

    parameters: dict[str, JsonValue] = Field(default_factory=dict, description="Those that change", max_length=200)
    from_step: str | None = Field(default=None, description="Run this step and all that needs it again in any case")

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"examples": [{"parameters": {"rank": 16}, "from_step": "train"}]},
    )


class ApproveRequest(_Body):
    """A person's answer to a step of kind `approve`."""

    approved: bool
    comment: str = Field(default="", max_length=2_000, json_schema_extra={"pattern": NO_NUL})


class AttemptView(_View):
    """One try of a step."""

    job_id: str
    item: int = 0
    number: int
    state: JobState
    error: ErrorBody | None = None
    reused_from: str | None = Field(default=None, description="The job whose result was taken, because it is equal")
    progress: Progress | None = None
    waiting_for: str | None = Field(default=None, description="Why it has not begun, or what does not answer")
    pid: int | None = None
    restarts: int = 0
    created_at: datetime
    finished_at: datetime | None = None


class StepView(_View):
    """One step: what is so of it, and why."""

    name: str
    state: StepState
    needs: tuple[str, ...] = ()
    component: str
    kind: str
    description: str = ""
    reason: str | None = Field(default=None, description="Why it was skipped or cancelled")
    reused: bool = Field(default=False, description="Its result is an earlier job's: nothing was run")
    progress: Progress | None = None
    waiting_for: str | None = None
    items: int = Field(default=1, description="How many pieces of work, with `foreach`")
    items_done: int = 0
    attempts: tuple[AttemptView, ...] = ()
    result: JsonValue = None
    artifacts: tuple[ArtifactRef, ...] = ()
    error: ErrorBody | None = Field(default=None, description="What happened, why, and what to do next")
    started_at: datetime | None = None
    finished_at: datetime | None = None
    seconds: float | None = Field(default=None, description="From its start to its end, or until now")


class ExecutionItem(_View):
    """An execution in a list."""

    model_config = ConfigDict(frozen=True, json_schema_extra={"examples": [_ITEM]})

    workflow_id: str
    workflow_type: str
    status: ExecutionState
    error: ErrorBody | None = None
    steps_done: int = 0
    steps_total: int = 0
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    forked_from: str | None = None


class ExecutionView(ExecutionItem):
    """An execution with all its steps."""

    model_config = ConfigDict(frozen=True, json_schema_extra={"examples": [_EXECUTION]})

    parameters: dict[str, Any] = Field(description="As they were given, with defaults; datasets and models resolved")
    steps: tuple[StepView, ...] = Field(description="In an order in which each stands after what it needs")
    cancel_requested: bool = False
    pause_requested: bool = False
    retries: int = 0
    definition_digest: str
    submitted_by: str = ""


class ParameterView(_View):
    """A parameter of a definition."""

    name: str
    type: str
    default: JsonValue = None
    required: bool = False
    description: str = ""
    choices: tuple[JsonValue, ...] = ()


class DefinitionView(_View):
    """A definition that the server has."""

    model_config = ConfigDict(frozen=True, json_schema_extra={"examples": [_DEFINITION]})

    name: str
    description: str
    digest: str
    parameters: tuple[ParameterView, ...]
    steps: tuple[StepPlan, ...]
    source: dict[str, Any] | None = Field(default=None, description="The whole definition")


Verb = Literal["cancel", "pause", "resume"]


_KIND: dict[str, JsonValue] = {
    "component_type": "echo_metric", "name": "measure", "summary": "Measure an echo", "heavy": True, "pausable": False,
    "spec_schema": {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}},
    "result_schema": {"type": "object", "required": ["characters"], "properties": {"characters": {"type": "integer"}}},
}  # fmt: skip


class KindView(_View):
    """What a step can be made of: a kind of job that a component offers, or a kind of the engine (`platform`)."""

    model_config = ConfigDict(frozen=True, json_schema_extra={"examples": [_KIND]})

    component_type: str = Field(description="A step's `component`")
    name: str = Field(description="A step's `kind`")
    summary: str = ""
    heavy: bool = Field(default=True, description="Runs in a host process of its own")
    pausable: bool = False
    away_since: datetime | None = Field(
        default=None, description="Since when no instance of the component is known; null: it is there"
    )
    spec_schema: dict[str, Any] = Field(description="JSON Schema of a step's `with`")
    result_schema: dict[str, Any] = Field(description="JSON Schema of what `steps.<name>.result` is")
