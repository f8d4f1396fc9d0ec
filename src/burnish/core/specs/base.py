"""What all specs and results share."""

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Digest = str
"""``sha256:`` and 64 hexadecimal characters: the hash of an artifact's manifest."""

DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"

ArtifactKind = Literal["dataset", "model", "adapter", "gguf", "checkpoint", "report", "bundle"]


class Spec(BaseModel):
    """Base of every spec and result: frozen, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ArtifactRef(Spec):
    """A reference to immutable files. Equal digests are equal files."""

    digest: Digest = Field(pattern=DIGEST_PATTERN, description="`sha256:...` of the artifact's manifest")
    kind: ArtifactKind = Field(description="What the files are")
    size_bytes: int = Field(ge=0, le=1 << 55, default=0, description="Sum of the sizes of its files")


class Resources(Spec):
    """What a job needs while it runs. The scheduler admits it when the node has that much left."""

    cpus: int = Field(default=1, ge=1, le=1024, description="Processor cores; also its thread count")
    memory_bytes: int = Field(default=1 << 30, ge=1 << 20, description="Peak memory; also its limit")
    gpus: int = Field(default=0, ge=0, le=64)
    disk_bytes: int = Field(default=0, ge=0, description="Space for what it stages and publishes")
    wall_seconds: float | None = Field(default=None, gt=0, description="Wall-time limit; none by default")


class Estimate(Spec):
    """A measured quantity with its interval."""

    value: float
    low: float | None = Field(default=None, description="Lower end of the 95 % interval")
    high: float | None = Field(default=None, description="Upper end of the 95 % interval")
    n: int = Field(default=0, ge=0, description="Examples it was measured on")
    unit: str = ""


def digest_of(value: Any) -> str:
    """Return ``sha256:...`` of the canonical JSON of ``value`` (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
