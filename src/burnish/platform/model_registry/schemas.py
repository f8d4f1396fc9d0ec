"""The public contract of the model registry."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from burnish.core.specs.base import ArtifactRef, Digest
from burnish.core.specs.model import ModelCard
from burnish.infra.storable import NO_NUL

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
ModelName = Annotated[str, Field(pattern=NAME_PATTERN, description="Lower-case letters, digits, `.`, `_` and `-`")]
AliasName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$", description="Begins with a letter: `production`")]


class _View(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


_DIGEST = "sha256:" + "9b1c3d5e" * 8
_AT = "2026-11-24T12:00:00Z"
_ARTIFACT: dict[str, JsonValue] = {"digest": _DIGEST, "kind": "gguf", "size_bytes": 144_800_000}
_ALIAS: dict[str, JsonValue] = {"alias": "production", "version": 3, "moved_at": _AT}
_MOVE: dict[str, JsonValue] = {
    "alias": "production", "old_version": 2, "new_version": 3, "by": "local", "reason": "the gate passed", "at": _AT,
}  # fmt: skip
_VERSION: dict[str, JsonValue] = {
    "model": "sentiment", "version": 3, "reference": "sentiment@3", "artifact": _ARTIFACT, "aliases": ["production"],
    "metrics": {"accuracy": 0.91}, "licence": "apache-2.0", "execution": "wf_01jd8x0k2m4n6p8r0t2v4w",
    "created_by": "local", "created_at": _AT,
}  # fmt: skip
_MODEL: dict[str, JsonValue] = {
    "name": "sentiment", "latest_version": 3, "versions": 3, "aliases": [_ALIAS], "created_at": _AT,
}  # fmt: skip
_LINEAGE: dict[str, JsonValue] = {
    "reference": "sentiment@3", "artifact": _ARTIFACT, "licence": "apache-2.0", "aliases": ["production"],
    "promoted": [_MOVE],
    "upstream": {
        "execution": "wf_01jd8x0k2m4n6p8r0t2v4w", "workflow_type": "train-optimize-deploy", "seed": 0,
        "datasets": [{"role": "train", "digest": _DIGEST, "name": "reviews", "version": 2, "rows": 9072}],
        "base": {"digest": _DIGEST, "name": "HuggingFaceTB/SmolLM2-135M-Instruct", "licence": "apache-2.0"},
    },
}  # fmt: skip


class DatasetUse(_View):
    """A dataset that went into a version."""

    role: str = Field(description="What it was for: `source`, `train`, `validation`, `test`")
    digest: Digest
    name: str | None = None
    version: str | int | None = None
    rows: int | None = None
    rows_hash: str | None = None
    licence: str | None = None


class BaseUse(_View):
    """The model that a version was made from."""

    digest: Digest
    name: str | None = None
    source: str | None = None
    licence: str | None = None
    shipped_as: str | None = None


class StepUse(_View):
    """A step of the execution that made a version."""

    step: str
    component: str
    kind: str
    job_id: str
    spec_digest: Digest


class Lineage(_View):
    """Where a version came from: everything needed to make it again."""

    execution: str | None = None
    workflow_type: str | None = None
    definition_digest: Digest | None = None
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    datasets: tuple[DatasetUse, ...] = ()
    base: BaseUse | None = None
    adapter: Digest | None = None
    training: dict[str, JsonValue] = Field(
        default_factory=dict, description="The training's config and result, in short"
    )
    seed: int | None = None
    code_version: str | None = None
    steps: tuple[StepUse, ...] = ()
    verdict: str | None = Field(default=None, description="The gate's sentence")


class NewVersion(_Body):
    """A version to register."""

    model: ArtifactRef = Field(description="What is served: kind `model` or `gguf`")
    adapter: ArtifactRef | None = None
    card: ModelCard | None = None
    metrics: dict[str, JsonValue] = Field(default_factory=dict)
    lineage: Lineage = Field(default_factory=Lineage)
    licence: str | None = Field(default=None, max_length=255)
    description: str = Field(default="", max_length=10_000)


class AliasView(_View):
    """Where an alias points."""

    model_config = ConfigDict(frozen=True, json_schema_extra={"examples": [_ALIAS]})

    alias: str
    version: int
    moved_at: datetime


class AliasMove(_View):
    """One move of an alias."""

    model_config = ConfigDict(frozen=True, json_schema_extra={"examples": [_MOVE]})

    alias: str
    old_version: int | None
    new_version: int | None
    rolled_back: bool = False
    by: str = ""
    reason: str = ""
    at: datetime


class MoveAlias(_Body):
    """Where an alias is to point."""

    version: int = Field(ge=1, le=2_000_000_000)
    reason: str = Field(default="", max_length=2_000, json_schema_extra={"pattern": NO_NUL})


class VersionView(_View):
    """One immutable version of a model."""

    model_config = ConfigDict(frozen=True, json_schema_extra={"examples": [_VERSION]})

    model: str
    version: int
    reference: str = Field(description="`name@version`")
    artifact: ArtifactRef
    adapter: ArtifactRef | None = None
    aliases: tuple[str, ...] = ()
    card: ModelCard | None = None
    metrics: dict[str, JsonValue] = Field(default_factory=dict)
    licence: str | None = None
    base: Digest | None = None
    execution: str | None = None
    description: str = ""
    created_by: str = ""
    created_at: datetime


class ModelView(_View):
    """A model with its aliases."""

    model_config = ConfigDict(frozen=True, json_schema_extra={"examples": [_MODEL]})

    name: str
    description: str = ""
    latest_version: int | None = None
    versions: int = 0
    aliases: tuple[AliasView, ...] = ()
    created_at: datetime


class Derived(_View):
    """A version that was made from this one."""

    reference: str
    digest: Digest


class LineageView(_View):
    """Lineage both ways."""

    model_config = ConfigDict(frozen=True, json_schema_extra={"examples": [_LINEAGE]})

    reference: str
    artifact: ArtifactRef
    upstream: Lineage
    licence: str | None = None
    aliases: tuple[str, ...] = Field(default=(), description="What points at it now")
    promoted: tuple[AliasMove, ...] = Field(default=(), description="When it was put behind an alias")
    derived: tuple[Derived, ...] = Field(default=(), description="Versions made from it")


def example_version() -> dict[str, Any]:
    """An example for the documentation."""
    digest = "sha256:" + "0" * 64
    return {"model": {"digest": digest, "kind": "gguf", "size_bytes": 144_800_000}, "licence": "apache-2.0"}
