r"""Datasets: the card inside a dataset artifact, and the ``split`` kind.

A dataset artifact holds ``data.jsonl`` (UTF-8, one canonical row a line, ``\\n``) and ``dataset.json`` (the card).
Canonical rows: classification ``{"text", "label"}``; prompt_completion ``{"prompt", "completion"}``;
chat ``{"messages": [{"role", "content"}, ...]}``; text ``{"text"}``. Other columns are kept under ``"extra"``.
"""

from typing import Literal

from pydantic import Field

from burnish.core.specs.base import ArtifactRef, Spec

DATA_FILE = "data.jsonl"
DATASET_CARD_FILE = "dataset.json"

DatasetFormat = Literal["classification", "prompt_completion", "chat", "text"]


class DatasetCard(Spec):
    """What is known of a dataset version's rows."""

    format: DatasetFormat
    rows: int = Field(ge=0)
    rows_hash: str = Field(description="`sha256:...` over `data.jsonl`")
    labels: dict[str, int] = Field(
        default_factory=dict,
        description="Rows by label, for classification; a part of a split names every label of the whole",
    )
    columns: tuple[str, ...] = ()
    exact_duplicates: int = Field(
        default=0, description="Rows equal to an earlier row (but for blanks at the ends of values, and other columns)"
    )
    near_duplicates: int = Field(
        default=0, description="Other rows whose words nearly equal an earlier row's; case and punctuation aside"
    )
    near_checked: int = Field(default=0, description="Rows that were compared with the others for near duplicates")
    conflicting_labels: int = Field(default=0, description="Rows whose text stands earlier with another label")
    dropped: int = Field(default=0, description="Rows left out when the version was made")
    source: str = Field(default="", description="The name of the file that was uploaded")
    licence: str | None = None


class SplitSpec(Spec):
    """Split a dataset into train, validation and test, deterministically, and look for leaks."""

    dataset: ArtifactRef
    test_dataset: ArtifactRef | None = Field(
        default=None, description="A given test set; then only train and validation are split"
    )
    validation: float = Field(default=0.05, ge=0, lt=1, description="Share of rows (of what is not test)")
    test: float = Field(default=0.2, ge=0, lt=1, description="Share of rows; ignored with `test_dataset`")
    max_train: int | None = Field(default=None, ge=1, description="Keep at most this many training rows")
    max_test: int | None = Field(default=None, ge=1)
    seed: int = 0
    stratify: bool = Field(default=True, description="Keep the share of each label (classification)")
    on_leak: Literal["drop_from_train", "fail", "report"] = Field(
        default="drop_from_train", description="What to do with training rows that equal a test row, or nearly do"
    )


class SplitResult(Spec):
    """The three parts and what was found."""

    train: ArtifactRef
    validation: ArtifactRef | None
    test: ArtifactRef
    train_rows: int
    validation_rows: int
    test_rows: int
    exact_leaks: int = Field(description="Training rows whose input equals a test row's (but for blanks at the ends)")
    near_leaks: int = Field(
        description="Other training rows whose words nearly equal a test row's; case and punctuation aside"
    )
    dropped: int
    format: DatasetFormat
    labels: dict[str, int] = Field(default_factory=dict)
