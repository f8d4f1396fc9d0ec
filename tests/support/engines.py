"""Engines for tests: started on tiny models, spoken to as a client does."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from openai import OpenAI

from burnish.core.specs import ArtifactRef, DatasetCard, DatasetFormat
from burnish.core.specs.serving import EngineConfig, EngineName
from burnish.ml.engine_process import RunningEngine, start
from burnish.ml.quantize import MODEL_FILE, convert
from burnish.testing.job_context import LocalJobContext

QWEN3_TEMPLATE = Path(__file__).with_name("qwen3.jinja").read_text(encoding="utf-8")
"""The chat template of Qwen3 (Alibaba Cloud, Apache-2.0), which thinks unless it is told not to."""
ASK: list[Any] = [{"role": "user", "content": "Is the film good?"}]


def add_dataset(context: LocalJobContext, form: DatasetFormat, rows: list[dict[str, Any]]) -> ArtifactRef:
    """Publish rows as a dataset artifact."""
    staged = context.stage("dataset")
    (staged / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    labels: dict[str, int] = {}
    for row in rows:
        if "label" in row:
            labels[row["label"]] = labels.get(row["label"], 0) + 1
    card = DatasetCard(format=form, rows=len(rows), rows_hash="sha256:" + "0" * 64, labels=labels)
    (staged / "dataset.json").write_text(card.model_dump_json(), encoding="utf-8")
    return context.publish(staged, "dataset")


def make_gguf(model: Path, folder: Path) -> Path:
    """Convert a model folder into a folder with one GGUF of fp32, and its card."""
    folder.mkdir(parents=True)
    convert(model, None, "f32", folder / MODEL_FILE, LocalJobContext(folder.parent / "conversion"))
    shutil.copy(model / "burnish.json", folder)
    return folder


@contextmanager
def running(engine: EngineName, model: Path, folder: Path, **options: Any) -> Iterator[RunningEngine]:
    """Start an engine; stop it at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    config = EngineConfig(
        engine=engine, model_dir=str(model), served_name="tiny", socket="", context_length=256, threads=1,
        **{"parallel": 2, **options},
    )  # fmt: skip
    with start(config, folder / "engine.log", load_seconds=90) as started:
        yield started


@contextmanager
def client(engine: RunningEngine) -> Iterator[OpenAI]:
    """Give the official client, speaking to the engine itself."""
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=engine.config.socket), timeout=60) as http:
        yield OpenAI(base_url="http://engine/v1", api_key="none", http_client=http, max_retries=0)
