"""The public contract of jobs beyond the component protocol, and the models that pass between this package's modules."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from burnish.core.errors import FieldProblem
from burnish.core.job import LogLevel
from burnish.core.protocol import JobView
from burnish.core.specs.base import Resources, Spec
from burnish.infra.artifact_store.protocol import ArtifactStore
from burnish.infra.database import Database


class JobItem(JobView):
    """A job in the platform's list: as its component answers it, and whose it is."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        json_schema_extra={
            "examples": [
                {
                    "job_id": "job_01k9zq7d3x8m2v5n0c4r6t1y", "kind": "sft", "state": "running", "project_id": "default",
                    "progress": {"done": 120, "total": 200, "unit": "steps", "phase": "training", "seconds_left": 41.5,
                                 "metrics": {"loss": 0.31}},
                    "restarts": 0, "pid": 4711, "component_type": "fine_tuning", "origin": "wf_01k9zq7d3x8m2v5n0c4r6t1x",
                    "node": "laptop", "priority": 0, "spec": {"epochs": 1},
                }
            ]
        },
    )  # fmt: skip

    component_type: str
    origin: str | None = Field(default=None, description="The execution that it belongs to")
    node: str | None = None
    spec: dict[str, Any] = Field(default_factory=dict)
    priority: int = 0


class LogLine(BaseModel):
    """One line of a job's log."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [
                {"id": "0-41", "at": "2026-11-24T12:00:00Z", "level": "info", "message": "400 examples, 50 steps"}
            ]
        },
    )

    id: str
    at: datetime
    level: LogLevel
    message: str


@dataclass(frozen=True)
class Wait:
    """A light job is not done: call it again after ``seconds``, or when it is woken."""

    seconds: float | None
    reason: str
    cleaning: bool = False
    """After a cancel was requested: keep calling, until what was begun has been undone."""


@dataclass(frozen=True)
class LightJob:
    """What a light kind's ``advance`` is given."""

    job_id: str
    project_id: str
    spec: Any
    origin: str | None
    cancel_requested: bool
    database: Database
    progress: Callable[[float, float, str], Awaitable[None]]
    """``await progress(done, total, phase)``."""
    log: Callable[..., Awaitable[None]]
    """``await log(message, level="info")``."""


@dataclass(frozen=True)
class Check:
    """What a kind's own check is given, after the schema was checked."""

    spec: dict[str, Any]
    """As sent; it may lack ``unresolved`` fields."""
    parsed: Any | None
    """The spec, unless fields are unresolved or wrong."""
    project_id: str
    unresolved: tuple[str, ...]
    database: Database
    store: ArtifactStore


def _default_resources(_spec: Any) -> Resources:
    return Resources()


def _no_estimate(_spec: Any) -> float | None:
    return None


@dataclass(frozen=True)
class Kind:
    """One kind of job that a component offers: heavy (``run``) or light (``advance``), never both."""

    spec: type[Spec]
    result: type[BaseModel]
    summary: str
    run: str | Callable[[Any], str] | None = None
    """``"module:function"``, or what chooses it by the spec; called in a host as ``run(spec, JobContext)``."""
    advance: Callable[[LightJob], Awaitable[BaseModel | Wait]] | None = None
    """Called in the server, again and again, until it returns the result: idempotent and short. A BurnishError fails the job."""
    resources: Callable[[Any], Resources] = _default_resources
    check: Callable[[Check], Awaitable[list[FieldProblem]]] | None = None
    """What is checked beyond the schema. Problems are placed as ``spec.<field>``."""
    complete: Callable[[Any], Any] | None = None
    """Fills in what the caller left to us, such as a fingerprint of local files; sync, called in a thread after the checks."""
    pausable: bool = False
    """The job publishes a checkpoint and stops when it is told to pause."""
    max_restarts: int = 3
    """Times a lost host is started again, from its last checkpoint."""
    permission: str | None = None
    """What whoever submits it needs beyond ``workflow:run``."""
    seconds: Callable[[Any], float | None] = field(default=_no_estimate)

    def __post_init__(self) -> None:
        if (self.run is None) == (self.advance is None):
            raise ValueError("a kind has either run (heavy) or advance (light)")

    def run_of(self, spec: Any) -> str | None:
        """Return the function that runs this spec; None for light work."""
        return self.run(spec) if callable(self.run) else self.run

    @property
    def spec_type(self) -> str:
        """The spec's class as ``module:Class``, for the host."""
        return f"{self.spec.__module__}:{self.spec.__qualname__}"
