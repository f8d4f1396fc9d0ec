"""Evaluation of a model as it will be served: through its engine process, with the bodies that the gateway sends.

Every task has its own module (``score_<task>``); what they share stands here: opening the inputs, starting the engine,
measuring speed and memory, publishing the per-example results.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from http.client import HTTPException
from pathlib import Path
from typing import Any

from burnish.core.errors import BadData, BadModel, JobFailed
from burnish.core.job import JobContext
from burnish.core.prompting import default_instruction
from burnish.core.specs.base import ArtifactRef, Estimate, digest_of
from burnish.core.specs.data import DatasetCard
from burnish.core.specs.evaluation import EXAMPLES_FILE, EvaluationResult, EvaluationSpec, ServedAs
from burnish.core.specs.model import MODEL_CARD_FILE
from burnish.core.specs.serving import EngineConfig
from burnish.core.statistics import percentile
from burnish.ml.card import read_card
from burnish.ml.engine_process import EngineKilled, RunningEngine, killed, start, was_killed
from burnish.ml.quantize import MODEL_FILE, convert, stored_type
from burnish.ml.text import read_dataset
from burnish.ml.weights import quantization_name, read_gguf, safetensors_in, weight_files

_SPEED_TOKENS = 48
_SPEED_RUNS = 3
_ENGINE_STARTS = 3


@dataclass
class Scored:
    """What a task found."""

    headline: str
    metrics: dict[str, Estimate]
    examples: list[dict[str, Any]]
    """In test-set order; at least ``id`` and ``score``."""
    latencies: list[float] = field(default_factory=list)
    """Seconds of each headline request."""
    request: dict[str, object] = field(default_factory=dict)
    skipped: int = 0
    lower_is_better: frozenset[str] = frozenset()


@dataclass(frozen=True)
class TestSet:
    """The rows to score."""

    card: DatasetCard
    rows: Sequence[Mapping[str, Any]]
    ids: Sequence[str]
    """A hash of each row: equal rows have equal ids."""
    labels: tuple[str, ...]
    instruction: str | None


def open_test_set(spec: EvaluationSpec, context: JobContext) -> TestSet:
    """Return the rows of the spec's dataset.

    Raises:
        BadData: there are none.
    """
    card, rows = read_dataset(context.open(spec.dataset))
    rows = rows[: spec.limit]
    if not rows:
        raise BadData("the test set has no rows", where="dataset", hint="give a dataset with at least one row")
    labels = tuple(sorted(card.labels or {str(row["label"]) for row in rows if "label" in row}))
    instruction = spec.instruction
    if instruction is None and card.format == "classification":
        instruction = default_instruction(labels)
    return TestSet(card, rows, [digest_of(row)[7:23] for row in rows], labels, instruction)


@dataclass(frozen=True)
class Prepared:
    """Model files as the engine loads them."""

    folder: Path
    adapter: Path | None
    dtype: str
    size_bytes: int


def prepare(spec: EvaluationSpec, context: JobContext) -> Prepared:
    """Make of the spec's model what its engine loads: safetensors become a GGUF of their own float type.

    Raises:
        BadModel: the artifact's kind does not go with the engine.
    """
    folder = context.open(spec.model)
    adapter = context.open(spec.adapter) if spec.adapter is not None else None
    if spec.engine == "llama_cpp":
        if spec.model.kind == "model":
            return _converted(folder, adapter, context)
        if adapter is not None:
            raise BadModel("an adapter cannot be put on a GGUF model", hint="give the base it was trained on")
        file = next(iter(sorted(folder.glob("*.gguf"))), None)
        if file is None:
            raise BadModel("no *.gguf among the artifact's files", where=spec.model.digest)
        dtype = read_card(folder).dtype if (folder / MODEL_CARD_FILE).exists() else quantization_name(read_gguf(file))
        return Prepared(folder, None, dtype.lower(), file.stat().st_size)
    if spec.model.kind != "model":
        raise BadModel(f"the engine {spec.engine} loads no artifact of kind {spec.model.kind}", hint="use `llama_cpp`")
    files = [*weight_files(folder), *(adapter.glob("*.safetensors") if adapter else ())]
    size = sum(file.stat().st_size for file in files)
    return Prepared(folder, adapter, quantization_name(safetensors_in(folder)).lower(), size)


def _converted(folder: Path, adapter: Path | None, context: JobContext) -> Prepared:
    made = context.directory / "served"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    kind = stored_type(folder)
    convert(folder, adapter, kind, made / MODEL_FILE, context)
    if (folder / MODEL_CARD_FILE).exists():
        shutil.copyfile(folder / MODEL_CARD_FILE, made / MODEL_CARD_FILE)
    return Prepared(made, None, kind, (made / MODEL_FILE).stat().st_size)


@contextmanager
def engine_for(spec: EvaluationSpec, prepared: Prepared, context: JobContext) -> Iterator[RunningEngine]:
    """Start the spec's engine on prepared files, one request at a time; stop it at the end."""
    context.progress(0, 1, phase="loading the model", unit="parts")
    config = EngineConfig(
        engine=spec.engine, model_dir=str(prepared.folder), adapter_dir=str(prepared.adapter) if prepared.adapter else None,
        served_name=spec.label or "model", socket=str(context.directory / "engine.sock"),
        context_length=spec.context_length, parallel=1, threads=context.resources.cpus, seed=spec.seed,
    )  # fmt: skip
    told = 0.0

    def waiting(seconds: float) -> None:
        nonlocal told
        context.check_stop()
        if seconds - told > 0.5:
            told = seconds
            context.progress(0, 1, phase=f"loading the model ({seconds:.0f} s)", unit="parts")

    with start(config, context.directory / "engine.log", waiting=waiting) as engine:
        try:
            yield engine
        except (JobFailed, OSError, HTTPException, ValueError) as error:
            if was_killed(engine):
                raise killed(engine) from error
            raise


Evaluate = Callable[[EvaluationSpec, JobContext], EvaluationResult]


def again_when_killed(evaluate: Evaluate) -> Evaluate:
    """Return an evaluation that begins anew when its engine's process was killed, twice at most."""

    @wraps(evaluate)
    def repeated(spec: EvaluationSpec, context: JobContext) -> EvaluationResult:
        for left in reversed(range(_ENGINE_STARTS)):
            try:
                return evaluate(spec, context)
            except EngineKilled as error:
                if not left:
                    raise
                context.log(f"{error.message}; the evaluation begins anew", "warning")
        raise AssertionError("unreachable")

    return repeated


def served_as(
    spec: EvaluationSpec, prepared: Prepared, engine: RunningEngine, latencies: Sequence[float], context: JobContext
) -> ServedAs:
    """Measure the running engine: tokens a second at one stream (median of three), memory, latency."""
    context.progress(0, 1, phase="measuring speed", unit="parts")
    speeds = []
    for run in range(_SPEED_RUNS):
        context.check_stop()
        speeds.append(tokens_per_second(engine))
        context.progress(run + 1, _SPEED_RUNS, phase="measuring speed", unit="runs")
    return ServedAs(
        engine=spec.engine, model=spec.model, adapter=spec.adapter, dtype=prepared.dtype,
        size_bytes=prepared.size_bytes, memory_bytes=engine.memory_bytes(), tokens_per_second=percentile(speeds, 0.5),
        latency_p50_seconds=percentile(latencies, 0.5), latency_p95_seconds=percentile(latencies, 0.95),
        load_seconds=engine.load_seconds,
    )  # fmt: skip


def tokens_per_second(engine: RunningEngine, tokens: int = _SPEED_TOKENS) -> float:
    """Return the speed of one streamed answer of a fixed length, from its first token to its last."""
    request = {
        "messages": [{"role": "user", "content": "Write a long story about a lighthouse."}],
        "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
    }  # fmt: skip
    times = []
    for chunk in engine.stream_chat(request):
        if any(choice["delta"].get("content") for choice in chunk.get("choices", ())):
            times.append(time.monotonic())
    # A chunk may carry several tokens where a character is made of several; the count is what was asked for.
    return (tokens - 1) / max(1e-6, times[-1] - times[0]) if len(times) > 1 else 0.0


def finish(spec: EvaluationSpec, scored: Scored, served: ServedAs, context: JobContext) -> EvaluationResult:
    """Publish the per-example results and return the evaluation's result."""
    if scored.skipped:
        context.log(f"{scored.skipped} rows could not be scored: their prompts do not fit the context", "warning")
    staged = context.stage("examples")
    with (staged / EXAMPLES_FILE).open("w", encoding="utf-8") as out:
        for example in scored.examples:
            out.write(json.dumps(example, ensure_ascii=False, sort_keys=True) + "\n")
    artifact: ArtifactRef = context.publish(staged, "report", {"task": spec.task, "label": spec.label})
    return EvaluationResult(
        task=spec.task, label=spec.label, headline=scored.headline, metrics=scored.metrics,
        higher_is_better={name: name not in scored.lower_is_better for name in scored.metrics},
        dataset=spec.dataset, examples=artifact, served=served, request=scored.request, skipped=scored.skipped,
    )  # fmt: skip
