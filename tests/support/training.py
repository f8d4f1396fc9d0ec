"""Inputs for jobs on models: tiny models and small datasets as artifacts of a local context."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from burnish.core.specs import ArtifactRef, DatasetCard, DatasetFormat
from burnish.ml import tiny
from burnish.testing import LocalJobContext

SENTIMENT: tuple[dict[str, str], ...] = tuple(
    {"text": f"{text} number {at}.", "label": label}
    for at, (text, label) in enumerate(
        [
            ("A warm and funny film", "positive"),
            ("Dull", "negative"),
            ("I laughed and cried, and would gladly see it all again", "positive"),
            ("The plot goes nowhere and takes two hours to get there", "negative"),
            ("Lovely", "positive"),
            ("A mess of a film", "negative"),
        ]
        * 4
    )
)


def model(context: LocalJobContext, architecture: str = "llama", seed: int = 0) -> ArtifactRef:
    """Publish a tiny model."""
    return context.add(tiny.build(architecture, context.root / f"model-{architecture}-{seed}", seed), "model")


def dataset(
    context: LocalJobContext, rows: Sequence[Mapping[str, Any]] = SENTIMENT, form: DatasetFormat = "classification"
) -> ArtifactRef:
    """Publish rows as a dataset."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    folder = context.root / ("dataset-" + hashlib.sha256(text.encode()).hexdigest()[:12])
    folder.mkdir(exist_ok=True)
    (folder / "data.jsonl").write_text(text, encoding="utf-8")
    card = DatasetCard(
        format=form, rows=len(rows), rows_hash="sha256:" + hashlib.sha256(text.encode()).hexdigest(),
        labels=dict(Counter(str(row["label"]) for row in rows if "label" in row)),
    )  # fmt: skip
    (folder / "dataset.json").write_text(card.model_dump_json(), encoding="utf-8")
    return context.add(folder, "dataset")


def folder_of(context: LocalJobContext, artifact: ArtifactRef | None) -> Path:
    """Return the folder of an artifact that must be there."""
    assert artifact is not None
    return context.open(artifact)
