"""What is wrong with an evaluation is told before it is accepted, with its place and the nearest name."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from burnish.components.evaluation.kinds import KINDS, check_evaluation
from burnish.components.evaluation.tasks import tasks
from burnish.core.errors import FieldProblem
from burnish.core.specs import DatasetCard, DatasetFormat, EvaluationSpec
from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.database import Database
from burnish.platform.jobs.schemas import Check

MODEL = {"digest": "sha256:" + "1" * 64, "kind": "model", "size_bytes": 1 << 28}


def dataset(store: FileArtifactStore, form: DatasetFormat, rows: int = 2, **labels: int) -> dict[str, Any]:
    staged = store.stage("dataset")
    card = DatasetCard(format=form, rows=rows, rows_hash="sha256:" + "0" * 64, labels=labels)
    (staged / "dataset.json").write_text(card.model_dump_json())
    (staged / "data.jsonl").write_text("{}\n" * rows)
    return store.publish(staged, "dataset").model_dump(mode="json")


@pytest.fixture
def store(tmp_path: Path) -> FileArtifactStore:
    return FileArtifactStore(tmp_path / "artifacts")


async def problems_of(
    spec: dict[str, Any], store: FileArtifactStore, tmp_path: Path, unresolved: tuple[str, ...] = ()
) -> list[FieldProblem]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}")
    try:
        return await check_evaluation(Check(spec, None, "default", unresolved, database, store))
    finally:
        await database.dispose()


async def test_sound_specs_have_no_problems(store: FileArtifactStore, tmp_path: Path) -> None:
    data = dataset(store, "classification", good=1, bad=1)
    for spec in (
        {"model": MODEL, "dataset": data},
        {"model": {**MODEL, "kind": "gguf"}, "dataset": data, "engine": "llama_cpp"},
        {"model": MODEL, "adapter": {**MODEL, "kind": "adapter"}, "dataset": data, "engine": "transformers"},
        {"model": MODEL, "dataset": data, "task": "perplexity"},
    ):
        assert await problems_of(spec, store, tmp_path) == []


@pytest.mark.parametrize(
    ("spec", "where", "said"),
    [
        ({"task": "clasification"}, "spec.task", "did you mean 'classification'"),
        ({"engine": "vllm"}, "spec.engine", "llama_cpp, transformers"),
        ({"model": {**MODEL, "kind": "gguf"}, "engine": "transformers"}, "spec.model", "loads model"),
        ({"model": {**MODEL, "kind": "adapter"}}, "spec.model", "as `adapter`"),
        ({"dataset": MODEL}, "spec.dataset", "not dataset"),
        ({"adapter": MODEL}, "spec.adapter", "not adapter"),
    ],
)
async def test_what_is_wrong_is_told_with_place_and_mend(
    spec: dict[str, Any], where: str, said: str, store: FileArtifactStore, tmp_path: Path
) -> None:
    data = dataset(store, "classification", good=1, bad=1)
    (problem,) = await problems_of({"model": MODEL, "dataset": data, **spec}, store, tmp_path)
    assert problem.where == where
    assert said in f"{problem.message} {problem.hint}"


async def test_an_adapter_on_gguf_is_refused(store: FileArtifactStore, tmp_path: Path) -> None:
    spec = {"model": {**MODEL, "kind": "gguf"}, "adapter": {**MODEL, "kind": "adapter"}}
    (problem,) = await problems_of(spec, store, tmp_path, ("dataset",))
    assert problem.where == "spec.adapter"


@pytest.mark.parametrize(
    ("form", "rows", "labels", "task", "said"),
    [
        ("text", 2, {}, "classification", "rows of format text"),
        ("text", 2, {}, "generation", "rows of format text"),
        ("classification", 2, {"good": 2}, "classification", "two labels"),
        ("classification", 0, {}, "classification", "no rows"),
    ],
)
async def test_a_dataset_that_the_task_cannot_score(
    form: DatasetFormat,
    rows: int,
    labels: dict[str, int],
    task: str,
    said: str,
    store: FileArtifactStore,
    tmp_path: Path,
) -> None:
    spec = {"model": MODEL, "dataset": dataset(store, form, rows, **labels), "task": task}
    (problem,) = await problems_of(spec, store, tmp_path)
    assert problem.where == "spec.dataset"
    assert said in problem.message


async def test_what_is_not_there_yet_is_not_judged(store: FileArtifactStore, tmp_path: Path) -> None:
    assert await problems_of({}, store, tmp_path, ("model", "dataset", "task", "engine")) == []


def test_every_task_can_be_resolved_and_explains_itself() -> None:
    for name, task in tasks().items():
        module, _, function = task.run.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
        assert task.name == name
        assert f"**{task.headline}**" in task.manual
        spec = EvaluationSpec.model_validate(
            {"model": MODEL, "dataset": {**MODEL, "kind": "dataset"}, "task": name, "limit": 100}
        )
        kind = KINDS["evaluate"]
        assert kind.run_of(spec) == task.run
        assert kind.resources(spec).memory_bytes > 1 << 30
        assert (kind.seconds(spec) or 0) > 0
