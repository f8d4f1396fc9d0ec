"""The job kinds of the fine-tuning component: ``import_model`` and ``sft``."""

import asyncio
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from burnish.components.fine_tuning.recipes import recipe
from burnish.components.fine_tuning.sources import fingerprint, no_model_at, problem_with, weight_bytes
from burnish.core.errors import FieldProblem, InvalidRequest
from burnish.core.specs import FineTuningResult, FineTuningSpec, ImportModelResult, ImportModelSpec, Resources
from burnish.infra.artifact_store.protocol import ArtifactStore
from burnish.platform.jobs.schemas import Check, Kind

_GIB = 1 << 30


def with_fingerprint(spec: ImportModelSpec) -> ImportModelSpec:
    """Return the spec with a local source's fingerprint, so that a changed source is another spec."""
    return spec.model_copy(update={"fingerprint": fingerprint(spec.source)})


def import_resources(spec: ImportModelSpec) -> Resources:
    """Return what an import needs: a quantized file unpacks to several times its size."""
    size = weight_bytes(spec.source) or 2 * _GIB
    quantized = spec.source.lower().endswith(".gguf")
    return Resources(
        cpus=min(2, os.cpu_count() or 1), memory_bytes=2 * _GIB + size * (12 if quantized else 3),
        disk_bytes=size * (8 if quantized else 2),
    )  # fmt: skip


def training_resources(spec: FineTuningSpec) -> Resources:
    """Return what the spec's recipe says that it needs."""
    return recipe(spec.recipe).resources(spec)


def training_seconds(spec: FineTuningSpec) -> float | None:
    """Return about how long the training runs, if that is known."""
    return recipe(spec.recipe).seconds(spec)


def training_function(spec: FineTuningSpec) -> str:
    """Return the recipe's function, as ``module:function``."""
    return recipe(spec.recipe).run


async def check_import(check: Check) -> list[FieldProblem]:
    """Look at the source before anything is accepted."""
    source = check.spec.get("source")
    if not isinstance(source, str) or "source" in check.unresolved:
        return []
    problem = await asyncio.to_thread(_problem_with, source, check.store)
    return [problem] if problem else []


def _problem_with(source: str, store: ArtifactStore) -> FieldProblem | None:
    """Return what is wrong with a source: artifacts are named by reference, so that each project reads its own alone."""
    try:
        path = Path(source).expanduser()
        if path.is_absolute() and store.holds(path):
            return no_model_at(source)
        return problem_with(source)
    except (OSError, RuntimeError):  # it may not be looked at, its name is none, or `~` has no home
        return no_model_at(source)


async def check_training(check: Check) -> list[FieldProblem]:
    """Check recipe, method and the kinds of the artifacts."""
    problems: list[FieldProblem] = []
    method = check.spec.get("method", "lora")
    try:
        chosen = recipe(str(check.spec.get("recipe", "sft")))
    except InvalidRequest as error:
        return [FieldProblem(where=error.where or "spec.recipe", message=error.message, hint=error.hint)]
    if method not in chosen.methods:
        problems.append(
            FieldProblem(
                where="spec.method",
                message=f"recipe {chosen.name} does not train by {method}",
                hint=f"it does by {', '.join(chosen.methods)}",
            )
        )
    if method == "qlora" and find_spec("bitsandbytes") is None:
        problems.append(
            FieldProblem(
                where="spec.method",
                message="method qlora needs bitsandbytes, which is not installed here",
                hint="pip install 'burnish[qlora]', or use method lora",
            )
        )
    for name, kind in (("model", "model"), ("train", "dataset"), ("validation", "dataset")):
        problems += _wrong_kind(check.spec.get(name), name, kind)
    return problems


def _wrong_kind(value: Any, name: str, kind: str) -> list[FieldProblem]:
    found = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(found, str) or found == kind:
        return []
    hint = "train on the model that it was made from" if found in ("gguf", "adapter") else None
    return [FieldProblem(where=f"spec.{name}", message=f"an artifact of kind {found}, not {kind}", hint=hint)]


KINDS: dict[str, Kind] = {
    "import_model": Kind(
        spec=ImportModelSpec, result=ImportModelResult, run="burnish.ml.import_model:import_model",
        summary="Make a base model an artifact, from a hub name, a folder of safetensors or a GGUF file",
        resources=import_resources, check=check_import, complete=with_fingerprint,
    ),
    "sft": Kind(
        spec=FineTuningSpec, result=FineTuningResult, run=training_function,
        summary="Fine-tune a model on prompts and completions", resources=training_resources, check=check_training,
        pausable=True, seconds=training_seconds,
    ),
}  # fmt: skip
