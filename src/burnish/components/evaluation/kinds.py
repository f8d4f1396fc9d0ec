"""The job kind of the evaluation component: ``evaluate``."""

import asyncio
import os
from importlib.util import find_spec
from typing import Any

from burnish.components.evaluation.tasks import Task, tasks
from burnish.core.errors import BurnishError, FieldProblem
from burnish.core.plug_points import none_called
from burnish.core.specs import DatasetCard, EvaluationResult, EvaluationSpec, Resources
from burnish.core.specs.data import DATASET_CARD_FILE
from burnish.infra.artifact_store.protocol import ArtifactStore
from burnish.platform.jobs.schemas import Check, Kind

_GIB = 1 << 30
_ENGINE_MODULES = {"llama_cpp": "xllamacpp", "transformers": "transformers", "vllm": "vllm"}
_LOADS = {"llama_cpp": ("gguf", "model"), "transformers": ("model",), "vllm": ("model",)}
_TOKENS_PER_SECOND_PER_GIB = 40.0
"""Prompt tokens that two cores read a second from a model of one GiB, roughly."""


def evaluation_function(spec: EvaluationSpec) -> str:
    """Return the task's function, as ``module:function``."""
    return tasks()[spec.task].run


def evaluation_resources(spec: EvaluationSpec) -> Resources:
    """Return what it needs: this process and the engine's, and room for a conversion."""
    weights = (spec.model.size_bytes or _GIB) + (spec.adapter.size_bytes if spec.adapter else 0)
    converts = spec.engine == "llama_cpp" and spec.model.kind == "model"
    return Resources(
        cpus=min(2, os.cpu_count() or 1), memory_bytes=2 * _GIB + int(2.5 * weights),
        disk_bytes=(3 * weights if converts else 0) + (64 << 20),
    )  # fmt: skip


def evaluation_seconds(spec: EvaluationSpec) -> float | None:
    """Return a rough time on two cores, where the number of rows is known."""
    if spec.limit is None:
        return None
    size = (spec.model.size_bytes or _GIB) / _GIB
    return 10 + spec.limit * 16 * size / _TOKENS_PER_SECOND_PER_GIB * 3


async def check_evaluation(check: Check) -> list[FieldProblem]:
    """Check task, engine and dataset before anything is accepted."""
    problems: list[FieldProblem] = []
    known = tasks()
    name = str(check.spec.get("task", "classification"))
    task = known.get(name)
    if task is None and "task" not in check.unresolved:
        problems.append(none_called("task", name, known))
    if "engine" not in check.unresolved:
        problems += _engine_problems(check, task)
    problems += _wrong_kinds(check)
    if task is not None and not problems:
        problems += await asyncio.to_thread(_dataset_problems, check.spec.get("dataset"), task, check.store)
    return problems


def _engine_problems(check: Check, task: Task | None) -> list[FieldProblem]:
    engine = str(check.spec.get("engine", "llama_cpp"))
    module = _ENGINE_MODULES.get(engine)
    if module is None:
        return []  # the schema tells
    if task is not None and engine not in task.engines:
        return [
            FieldProblem(
                where="spec.engine", message=f"the task {task.name} cannot score through {engine}",
                hint=f"it can through {', '.join(task.engines)}",
            )
        ]  # fmt: skip
    if find_spec(module) is None:
        return [
            FieldProblem(
                where="spec.engine", message=f"the engine {engine} needs {module}, which is not installed here",
                hint="pip install 'burnish[ml]'",
            )
        ]  # fmt: skip
    return []


def _wrong_kinds(check: Check) -> list[FieldProblem]:
    engine = str(check.spec.get("engine", "llama_cpp"))
    model, adapter = _kind(check.spec.get("model")), _kind(check.spec.get("adapter"))
    allowed = _LOADS.get(engine, ())
    problems = []
    if model is not None and allowed and model not in allowed:
        hint = f"an adapter is given beside its base, as `adapter`; {engine} loads {' and '.join(allowed)}"
        problems.append(FieldProblem(where="spec.model", message=f"an artifact of kind {model}", hint=hint))
    if adapter is not None and adapter != "adapter":
        problems.append(FieldProblem(where="spec.adapter", message=f"an artifact of kind {adapter}, not adapter"))
    if adapter is not None and model == "gguf":
        problems.append(
            FieldProblem(where="spec.adapter", message="an adapter cannot be put on a GGUF model", hint="give the base")
        )
    dataset = _kind(check.spec.get("dataset"))
    if dataset is not None and dataset != "dataset":
        problems.append(FieldProblem(where="spec.dataset", message=f"an artifact of kind {dataset}, not dataset"))
    return problems


def _kind(value: Any) -> str | None:
    found = value.get("kind") if isinstance(value, dict) else None
    return found if isinstance(found, str) else None


def _dataset_problems(value: Any, task: Task, store: ArtifactStore) -> list[FieldProblem]:
    """Look at the dataset's card, if the artifact is here; that it exists at all is checked elsewhere."""
    digest = value.get("digest") if isinstance(value, dict) else None
    if not isinstance(digest, str):
        return []
    try:
        text = (store.open(digest, verify=False) / DATASET_CARD_FILE).read_text(encoding="utf-8")
        card = DatasetCard.model_validate_json(text)
    except (BurnishError, OSError, ValueError):
        return []
    if card.format not in task.formats:
        return [
            FieldProblem(
                where="spec.dataset", message=f"the task {task.name} cannot score rows of format {card.format}",
                hint=f"it scores {', '.join(task.formats)}",
            )
        ]  # fmt: skip
    if card.rows == 0:
        return [FieldProblem(where="spec.dataset", message="the dataset has no rows")]
    if task.name == "classification" and len(card.labels) < 2:
        return [
            FieldProblem(where="spec.dataset", message=f"classification needs two labels; there is {len(card.labels)}")
        ]
    return []


KINDS: dict[str, Kind] = {
    "evaluate": Kind(
        spec=EvaluationSpec, result=EvaluationResult, run=evaluation_function,
        summary="Measure a model on a dataset, as it would be served", resources=evaluation_resources,
        check=check_evaluation, seconds=evaluation_seconds,
    ),
}  # fmt: skip
