"""The public contract of datasets."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from burnish.core.errors import FieldProblem
from burnish.core.specs.base import ArtifactRef
from burnish.core.specs.data import DatasetCard

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
VERSION_PATTERN = r"^(latest|[1-9][0-9]{0,8})$"
REFERENCE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}(@(latest|[1-9][0-9]{0,8}))?$"

ARTIFACT_EXAMPLE: dict[str, Any] = {"digest": "sha256:" + "63040744" * 8, "kind": "dataset", "size_bytes": 1538813}
VERSION_EXAMPLE: dict[str, Any] = {
    "id": "ds_01jdk2m8xw0q3v5t7z9b1c3",
    "name": "reviews",
    "version": 2,
    "artifact": ARTIFACT_EXAMPLE,
    "card": {
        "format": "classification", "rows": 9072, "rows_hash": "sha256:" + "9b1c3d5e" * 8,
        "labels": {"negative": 4584, "positive": 4488}, "columns": ["text", "label", "valence"], "exact_duplicates": 2,
        "near_duplicates": 0, "near_checked": 9072, "conflicting_labels": 0, "dropped": 0, "source": "reviews.jsonl",
        "licence": "MIT",
    },
    "created_at": "2026-11-24T12:00:00Z",
}  # fmt: skip


class DatasetVersionView(BaseModel):
    """One immutable version of a dataset."""

    model_config = ConfigDict(frozen=True, json_schema_extra={"example": VERSION_EXAMPLE})

    id: str = Field(description="Id of the dataset")
    name: str
    version: int
    artifact: ArtifactRef
    card: DatasetCard
    created_at: datetime


class UploadAnswer(DatasetVersionView):
    """The version that holds what was uploaded."""

    model_config = ConfigDict(json_schema_extra={"example": {**VERSION_EXAMPLE, "created": True, "dropped_rows": []}})

    created: bool = Field(description="False: the dataset had these very rows already, as this version")
    dropped_rows: tuple[FieldProblem, ...] = Field(
        default=(), description="With `bad_rows=drop`: the first rows that were left out, and why"
    )


class VersionSummary(BaseModel):
    """A version in its dataset's list."""

    model_config = ConfigDict(frozen=True)

    version: int
    rows: int
    format: str
    digest: str
    size_bytes: int
    created_at: datetime


class DatasetView(DatasetVersionView):
    """A dataset as its newest (or the named) version, and its 100 newest versions."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                **VERSION_EXAMPLE,
                "versions": [
                    {
                        "version": 2, "rows": 9072, "format": "classification", "digest": ARTIFACT_EXAMPLE["digest"],
                        "size_bytes": 1538813, "created_at": "2026-11-24T12:00:00Z",
                    }
                ],
            }
        }
    )  # fmt: skip

    versions: tuple[VersionSummary, ...]


class Preview(BaseModel):
    """Some rows of a version, as they are stored."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "example": {"rows": [{"text": "A great movie", "label": "positive"}], "offset": 0, "total": 9072, "next": 1}
        },
    )

    rows: list[dict[str, Any]]
    offset: int
    total: int = Field(description="Rows of the version")
    next: int | None = Field(description="The offset of the row after these; none at the end")


class Difference(BaseModel):
    """What version `b` has and `a` has not, and the other way round. A changed row is one of each."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "example": {
                "a": 1, "b": 2, "added": 1, "removed": 0, "kept": 9071,
                "added_rows": [{"text": "A great movie", "label": "positive"}], "removed_rows": [],
            }
        },
    )  # fmt: skip

    a: int
    b: int
    added: int
    removed: int
    kept: int
    added_rows: list[dict[str, Any]] = Field(description="The first 20 of them")
    removed_rows: list[dict[str, Any]] = Field(description="The first 20 of them")
