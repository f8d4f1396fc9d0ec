"""The component protocol, version 1: the models that a component and the platform exchange over HTTP.

:data:`PROTOCOL` lists its routes with what they take, answer and promise; the reference page is generated from it.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from burnish.core.errors import ErrorBody, FieldProblem
from burnish.core.specs.base import ArtifactRef, Resources
from burnish.core.states import JobState

PROTOCOL_VERSION = "1"

ComponentType = Literal[
    "data_management", "fine_tuning", "hyperparameter_optimization", "compression", "evaluation", "model_serving"
]
COMPONENT_TYPES: tuple[ComponentType, ...] = (
    "data_management", "fine_tuning", "hyperparameter_optimization", "compression", "evaluation", "model_serving",
)  # fmt: skip

CALLER_HEADER = "burnish-caller"
"""Carries the caller as a short-lived signed token; never trusted from outside."""
INSTANCE_CLAIM = "ins"
"""In that token, besides its audience (the component type): the `component_id` of the one instance that it was sent to."""
DEADLINE_HEADER = "burnish-deadline"
"""Unix time in seconds, with a fraction, after which nobody waits for the answer."""
TRACE_HEADER = "traceparent"
"""W3C trace context."""


class Message(BaseModel):
    """Base of protocol messages. Unknown fields are kept out but do not fail, so that versions can differ."""

    model_config = ConfigDict(frozen=True, extra="ignore")


MAX_NAME = 255
MAX_WARM = 1000
MAX_WAITING_FOR = 1000
MAX_METADATA_BYTES = 64 << 10
MAX_METADATA_DEPTH = 20
_STORABLE = r"^[^\x00]*$"
"""No NUL: no database keeps one."""
_Count = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Health(Message):
    """Liveness and load. Kept with the instance and shown in lists, so nothing in it is of any size."""

    status: Literal["ok", "degraded"] = "ok"
    load: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="Admitted work by capacity; 1 is full")
    running_jobs: _Count = 0
    queued_jobs: _Count = 0
    waiting_for: str | None = Field(
        default=None, max_length=MAX_WAITING_FOR, pattern=_STORABLE, description="What it waits for, in words"
    )
    warm: tuple[Annotated[str, Field(max_length=MAX_NAME, pattern=_STORABLE)], ...] = Field(
        default=(), max_length=MAX_WARM, fail_fast=True,
        description="What it has loaded (names of models and deployments): calls about these are cheap here",
    )  # fmt: skip


class KindOffer(Message):
    """One job kind as `/describe` offers it."""

    name: str
    summary: str = ""
    spec_schema: dict[str, Any] = Field(description="JSON Schema of the spec")
    result_schema: dict[str, Any] = Field(description="JSON Schema of the result")
    heavy: bool = Field(default=True, description="Runs in a host process of its own")
    pausable: bool = False
    permission: str | None = Field(
        default=None,
        description="What whoever submits such work needs beyond `workflow:run`, as `model:deploy`; it is checked at submit",
    )


class Description(Message):
    """What a component is and offers."""

    component_type: str
    version: str
    protocol_version: str = PROTOCOL_VERSION
    kinds: tuple[KindOffer, ...] = ()
    routes: tuple[str, ...] = Field(default=(), description="Path prefixes that the gateway passes to this component")


class JobRequest(Message):
    """A job to validate or to accept."""

    job_id: str = Field(default="", description="Given by the caller; empty only for validation")
    kind: str
    spec: dict[str, JsonValue]
    project_id: str = "default"
    priority: int = Field(default=0, ge=-100, le=100, description="Higher first")
    resources: Resources | None = Field(default=None, description="Instead of what the kind would ask for")
    partial: bool = Field(
        default=False,
        description="For validation of a step whose inputs are other steps' results: fields named in `unresolved` are not there yet",
    )
    unresolved: tuple[str, ...] = Field(default=(), description="Dotted paths in `spec` that are filled in later")
    origin: str | None = Field(default=None, description="The execution that this job belongs to")


class Validation(Message):
    """The answer to `POST /jobs/validate`."""

    problems: tuple[FieldProblem, ...] = ()
    spec: dict[str, JsonValue] | None = Field(default=None, description="The spec with its defaults filled in")
    resources: Resources | None = None
    seconds: float | None = Field(default=None, description="Estimated run time")


class Progress(Message):
    """How far a job is."""

    done: float = 0
    total: float = 0
    unit: str = "steps"
    phase: str = ""
    metrics: dict[str, float] = Field(default_factory=dict, description="The latest value of each metric")
    seconds_left: float | None = None


class JobView(Message):
    """A job as its component answers it."""

    job_id: str
    kind: str
    state: JobState
    project_id: str = "default"
    pending_reason: str | None = Field(default=None, description="Why a queued job has not started")
    progress: Progress | None = None
    result: dict[str, JsonValue] | None = None
    error: ErrorBody | None = None
    artifacts: tuple[ArtifactRef, ...] = ()
    cancel_requested: bool = False
    restarts: int = Field(default=0, description="Times its host was lost and started again")
    pid: int | None = None
    resources: Resources | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    ran_seconds: float | None = Field(
        default=None, description="How long its hosts ran, pauses left out; null for what needs no host"
    )


EventType = Literal["state", "progress", "metric", "log", "artifact", "checkpoint", "action"]


class Event(Message):
    """One line of the event log."""

    id: str = Field(description="Cursor; send it back as `Last-Event-ID`")
    subject: str = Field(description="Id of the object that it is about")
    type: EventType
    at: datetime
    data: dict[str, JsonValue] = Field(default_factory=dict)


_PRINTABLE = r"^[^\x00-\x1f\x7f]*$"
"""No control characters: it is shown in lists."""
_HOST = r"^https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?"
_BASE = _HOST + r"(/[!\"$->@-~]*)?$"
"""Paths are put behind it, so it has no query and no fragment, which would swallow them."""
_ADDRESS = _HOST + r"(/[!\"$-~]*)?$"


def _no_dots(url: str) -> str:
    """Refuse a URL whose path climbs: what it means is for the server behind it to say."""
    path = url.partition("?")[0].replace("\\", "/")
    if any(unquote(part) in {".", ".."} or "/" in unquote(part) for part in path.split("/")[3:]):
        raise ValueError("no segment of its path may be `.` or `..`, or hide a `/`")
    return url


def _bounded(metadata: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Refuse metadata that is no JSON, or more than a list of instances should carry."""
    deep = f"it is nested deeper than {MAX_METADATA_DEPTH} levels"
    try:
        size = len(json.dumps(metadata, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass"))
    except RecursionError as error:
        raise ValueError(deep) from error
    except ValueError as error:
        raise ValueError("it holds a number that JSON has no form for (NaN or an infinity)") from error
    if size > MAX_METADATA_BYTES:
        raise ValueError(f"it has {size} bytes as JSON; at most {MAX_METADATA_BYTES} are kept")
    if is_deeper(metadata, MAX_METADATA_DEPTH):
        raise ValueError(deep)
    return metadata


def is_deeper(value: JsonValue, levels: int) -> bool:
    """Tell whether objects and lists are nested in each other more than ``levels`` times; it looks no deeper."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(levels == 0 or is_deeper(one, levels - 1) for one in inner)


class Registration(Message):
    """Body of `POST /platform/components/register`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    component_id: str = Field(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$")
    component_type: str = Field(min_length=1, max_length=100, pattern=r"^[a-z][a-z0-9_]*$")
    name: str = Field(min_length=1, max_length=255, pattern=_PRINTABLE)
    version: str = Field(min_length=1, max_length=50, pattern=_PRINTABLE)
    health_endpoint: Annotated[str, AfterValidator(_no_dots)] = Field(
        max_length=500, pattern=_ADDRESS, description="Its health check; at the same host as `api_endpoint`"
    )
    api_endpoint: Annotated[str, AfterValidator(_no_dots)] = Field(
        max_length=500, pattern=_BASE, description="What the protocol's paths are below"
    )
    metadata: Annotated[dict[str, JsonValue], AfterValidator(_bounded)] = Field(
        default_factory=dict,
        description=f"Whatever else is to be shown with it; at most {MAX_METADATA_BYTES >> 10} KiB of JSON, and "
        f"{MAX_METADATA_DEPTH} levels deep",
    )


@dataclass(frozen=True)
class ProtocolRoute:
    """One route of the protocol."""

    method: str
    path: str
    says: str
    """What it promises, in a few sentences."""
    body: type[Message] | None = None
    answer: type[Message] = Health
    errors: tuple[int, ...] = ()
    """Statuses besides 401 (no caller token that is believed) and 503 (not now)."""
    open: bool = False
    """Answers without a caller token."""


PROTOCOL: tuple[ProtocolRoute, ...] = (
    ProtocolRoute(
        "GET", "/health",
        "Says that it lives, how much it has to do and what it waits for. Fast: the platform waits 3 s. It shows a token; "
        "whoever shows none needs to learn no more than `status`. What breaks a bound below is no health: the instance is "
        "listed as broken, with the reason.",
        answer=Health, open=True,
    ),
    ProtocolRoute(
        "GET", "/describe",
        "Says what it is and offers. Read when it registers and again with each probe; at most 4 MiB. What it offers appears "
        "in definitions, validation, the API's schema and documentation from then on.",
        answer=Description, open=True,
    ),
    ProtocolRoute(
        "POST", "/jobs/validate",
        "Answers with every problem of a spec, each with its place (`spec.rank`, `kind`), or with the spec, its defaults filled "
        "in, and what it needs. Accepts nothing. Fields named in `unresolved` are not there yet and are not complained about.",
        body=JobRequest, answer=Validation, errors=(400, 403, 413, 422, 504),
    ),
    ProtocolRoute(
        "POST", "/jobs",
        "Accepts a job under the caller's id (1 to 100 letters, digits and `. _ : -`), durably, before it answers. The same id "
        "with the same spec is the same job, however often it is sent and whatever became of it; with another spec it is a 409. "
        "What does not validate is a 422 and leaves nothing behind.",
        body=JobRequest, answer=JobView, errors=(400, 403, 409, 413, 422, 504, 507),
    ),
    ProtocolRoute("GET", "/jobs/{id}", "A job as it is now.", answer=JobView, errors=(404, 504)),
    ProtocolRoute(
        "GET", "/jobs/{id}/events",
        "Server-sent events as they happen: states, progress, metrics, log lines. Each `data` is an event and each `id` its "
        "cursor: sent back as `Last-Event-ID` it goes on behind it. The stream ends with the event of the job's last state.",
        answer=Event, errors=(400, 404, 504),
    ),
    ProtocolRoute(
        "POST", "/jobs/{id}/cancel",
        "Asks for the job's end; again, or after its end, it changes nothing. An id that is not known is kept as cancelled "
        "(a tombstone), so that a submission that comes late never starts.",
        answer=JobView, errors=(404, 504),
    ),
    ProtocolRoute(
        "POST", "/jobs/{id}/pause", "Asks a job to checkpoint and stop. 409 where its kind cannot.",
        answer=JobView, errors=(404, 409, 504),
    ),
    ProtocolRoute(
        "POST", "/jobs/{id}/resume", "Lets a paused job go on from its last checkpoint.",
        answer=JobView, errors=(404, 409, 504),
    ),
)  # fmt: skip
"""Every route of the protocol, version 1."""
