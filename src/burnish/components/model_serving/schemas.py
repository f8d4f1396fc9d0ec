"""What the deployment routes take and answer."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from burnish.core.errors import ErrorBody
from burnish.core.specs.base import Spec
from burnish.core.specs.serving import DeploySpec
from burnish.core.states import DeploymentState, ReplicaState, RevisionState

DEPLOY_EXAMPLE: dict[str, Any] = {
    "deployment": "sentiment",
    "model": {"digest": "sha256:" + "0" * 64, "kind": "gguf", "size_bytes": 144800000},
    "model_version": "sentiment@1",
    "engine": "llama_cpp",
    "replicas": 1,
    "context_length": 1024,
    "parallel": 8,
    "queue": 64,
}
_MADE = {"created_at": "2026-11-24T12:00:00Z", "ready_at": "2026-11-24T12:00:02Z"}
DEPLOYMENT_EXAMPLE: dict[str, Any] = {
    "id": "5f0c6c0e-6a52-4f0e-9a54-0d7b5f7a2f11", "name": "sentiment", "state": "ready", "wanted": 1, "serving": 1,
    "model_version": "sentiment@1",
    "revisions": [{"number": 1, "state": "serving", "spec": DEPLOY_EXAMPLE, **_MADE}],
    "replicas": [{"id": "rep_01jdk2m8xw0q3v5t7z9b1c3", "revision": 1, "state": "ready", "pid": 4711, "cpus": 1,
                  "memory_bytes": 440000000, **_MADE}],
    "created_at": "2026-11-24T12:00:00Z", "updated_at": "2026-11-24T12:00:02Z",
}  # fmt: skip


class View(BaseModel):
    """Base of answers."""

    model_config = ConfigDict(frozen=True)


class ReplicaView(View):
    """One serving process."""

    id: str
    revision: int
    state: ReplicaState
    pid: int | None
    cpus: int = Field(description="Cores that it is declared to use")
    memory_bytes: int = Field(description="Memory that it is declared to use")
    in_flight: int = Field(default=0, description="Requests that it serves for this server now, waiting ones included")
    error: ErrorBody | None = None
    created_at: datetime
    ready_at: datetime | None = None


class RevisionView(View):
    """An immutable snapshot of a deployment, and how far it is."""

    number: int
    state: RevisionState
    spec: DeploySpec
    replaced: int | None = Field(default=None, description="The revision that served when this one took over")
    failures: int = Field(default=0, description="Replicas lost in a row")
    error: ErrorBody | None = None
    job_id: str | None = Field(default=None, description="The job that asked for it")
    created_at: datetime
    ready_at: datetime | None = None


class DeploymentView(View):
    """What is wanted behind a name, and what is so."""

    model_config = ConfigDict(frozen=True, json_schema_extra={"examples": [DEPLOYMENT_EXAMPLE]})

    id: str
    name: str
    state: DeploymentState
    wanted: int | None = Field(description="Revision that shall serve; null when it was stopped")
    serving: int | None = Field(description="Revision that requests go to")
    model_version: str | None = Field(default=None, description="Registry version that is served, `name@3`")
    error: ErrorBody | None = Field(default=None, description="Why the last change did not come about")
    revisions: tuple[RevisionView, ...] = Field(default=(), description="Newest first; the last 20")
    replicas: tuple[ReplicaView, ...] = Field(default=(), description="Those that have not ended")
    created_at: datetime
    updated_at: datetime


class DeploymentPage(View):
    """A page of deployments."""

    data: tuple[DeploymentView, ...]
    has_more: bool = False
    next: str | None = Field(default=None, description="Send it as `after` for the next page")


class Rollback(Spec):
    """Body of a rollback."""

    revision: int | None = Field(
        default=None, ge=1, le=2_000_000_000, description="By default the one that served before"
    )
