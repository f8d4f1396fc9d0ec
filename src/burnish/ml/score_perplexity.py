"""The task ``perplexity``: how surprised is the model by the text?

exp of the mean negative log-likelihood of a token. The logits are those of the program that serves the model: llama.cpp
for GGUF, Transformers for safetensors; tokens come from the engine's own tokenizer.
"""

import contextlib
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.core.errors import BadData, BadModel
from burnish.core.job import JobContext
from burnish.core.prompting import ChatMessage, to_example
from burnish.core.specs.base import Estimate
from burnish.core.specs.evaluation import EvaluationResult, EvaluationSpec
from burnish.core.statistics import t_quantile
from burnish.core.threads import thread_environment
from burnish.ml.child import run_child, tail
from burnish.ml.engine_process import EngineRefused, RunningEngine
from burnish.ml.score import Scored, TestSet, again_when_killed, engine_for, finish, open_test_set, prepare, served_as

_LATENCY_ROWS = 10


@dataclass(frozen=True)
class TokenRun:
    """Tokens of one row, or of one window of a long text."""

    row: int
    ids: tuple[int, ...]
    start: int
    """The first token that is scored; at least 1."""


@again_when_killed
def evaluate(spec: EvaluationSpec, context: JobContext) -> EvaluationResult:
    """Score a test set by perplexity.

    Raises:
        BadData: nothing in it can be scored.
        BadModel: the model cannot be served.
    """
    test = open_test_set(spec, context)
    prepared = prepare(spec, context)
    with engine_for(spec, prepared, context) as engine:
        sequences, skipped = _tokenize(engine, test, spec.context_length, context)
        latencies = _latencies(engine, test)
        served = served_as(spec, prepared, engine, latencies, context)
        if spec.engine == "transformers":
            logprobs = _score_by_engine(engine, sequences, context)
    if spec.engine == "llama_cpp":
        logprobs = _score_gguf(next(iter(prepared.folder.glob("*.gguf"))), sequences, context)
    scored = _summarize(test, sequences, logprobs)
    scored.skipped = skipped
    scored.latencies = latencies
    return finish(spec, scored, served, context)


def _tokenize(engine: RunningEngine, test: TestSet, limit: int, context: JobContext) -> tuple[list[TokenRun], int]:
    """Return what is scored, and the number of rows that do not fit the context."""
    found: list[TokenRun] = []
    skipped = 0
    told = 0.0
    for number, row in enumerate(test.rows):
        context.check_stop()
        if test.card.format == "text":
            ids = _tokens(engine, str(row["text"]), special=True)
            windows = [ids[at : at + limit] for at in range(0, len(ids), limit)]
            found += [TokenRun(number, tuple(window), 1) for window in windows if len(window) > 1]
            skipped += len(ids) < 2
        else:
            prompt, answer = _parts(engine, test, row, number)
            if len(prompt) + len(answer) > limit or not answer:
                skipped += 1
            else:
                found.append(TokenRun(number, (*prompt, *answer), len(prompt)))
        if time.monotonic() - told > 0.5:
            told = time.monotonic()
            context.progress(number + 1, len(test.rows), phase="tokenizing", unit="rows")
    if not found:
        raise BadData("no row can be scored: none has two tokens and fits the context", hint="raise context_length")
    return found, skipped


def _parts(engine: RunningEngine, test: TestSet, row: Mapping[str, Any], number: int) -> tuple[list[int], list[int]]:
    example = to_example(row, test.card.format, test.instruction, f"row {number + 1}")
    rendered = engine.apply_template(example["prompt"])
    prompt = _tokens(engine, rendered["prompt"], special=bool(rendered.get("add_special", True)))
    return prompt, _tokens(engine, example["completion"], special=False)


def _tokens(engine: RunningEngine, text: str, *, special: bool) -> list[int]:
    ids: list[int] = engine.post("/tokenize", {"content": text, "add_special": special})["tokens"]
    return ids


def _latencies(engine: RunningEngine, test: TestSet) -> list[float]:
    """Time a one-token answer to the first rows that fit the context, or to a greeting if none does."""
    latencies: list[float] = []
    greeting: list[ChatMessage] = [{"role": "user", "content": "Hello"}]
    for number, row in enumerate(test.rows[:_LATENCY_ROWS]):
        messages = greeting
        if test.card.format != "text":
            messages = to_example(row, test.card.format, test.instruction, f"row {number + 1}")["prompt"]
        with contextlib.suppress(EngineRefused):
            latencies.append(_time(engine, messages))
    return latencies or [_time(engine, greeting)]


def _time(engine: RunningEngine, messages: Sequence[ChatMessage]) -> float:
    began = time.monotonic()
    engine.chat({"messages": messages, "max_tokens": 1, "temperature": 0})
    return time.monotonic() - began


def _score_by_engine(engine: RunningEngine, sequences: Sequence[TokenRun], context: JobContext) -> list[list[float]]:
    found: list[list[float]] = []
    told = 0.0
    for number, one in enumerate(sequences):
        context.check_stop()
        body = {"prompt_tokens": one.ids[: one.start], "tokens": one.ids[one.start :]}
        found.append(engine.post("/score", body)["token_logprobs"])
        if time.monotonic() - told > 0.5:
            told = time.monotonic()
            context.progress(number + 1, len(sequences), phase="scoring", unit="rows")
    return found


def _score_gguf(model: Path, sequences: Sequence[TokenRun], context: JobContext) -> list[list[float]]:
    asked, out = context.directory / "sequences.jsonl", context.directory / "logprobs.jsonl"
    out.unlink(missing_ok=True)
    lines = (json.dumps({"ids": one.ids, "start": one.start}) for one in sequences)
    asked.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    tokens = sum(len(one.ids) - one.start for one in sequences)
    log = context.directory / "scorer.log"
    status = run_child(
        [sys.executable, "-m", "burnish.ml.gguf_scorer", str(model), str(asked), str(out), str(context.resources.cpus)],
        context, log, phase="scoring", share=lambda: (out.stat().st_size if out.exists() else 0) / (21 * tokens),
        environment=thread_environment(context.resources.cpus),
    )  # fmt: skip
    if status != 0:
        raise BadModel(f"llama.cpp cannot score the text: {tail(log)}", where=str(model))
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def _summarize(test: TestSet, sequences: Sequence[TokenRun], logprobs: Sequence[Sequence[float]]) -> Scored:
    by_row: dict[int, list[float]] = {}
    for one, found in zip(sequences, logprobs, strict=True):
        by_row.setdefault(one.row, []).extend(found)
    examples = [
        {"id": test.ids[row], "score": sum(found) / len(found), "tokens": len(found), "logprob": sum(found)}
        for row, found in sorted(by_row.items())
    ]
    units = [(-sum(found), len(found)) for found in by_row.values()]
    mean, low, high = mean_surprise(units)
    tokens = sum(count for _, count in units)
    return Scored(
        "perplexity",
        {
            "perplexity": Estimate(value=math.exp(mean), low=_exp(low), high=_exp(high), n=tokens, unit="tokens"),
            "bits_per_token": Estimate(
                value=mean / math.log(2), low=None if low is None else low / math.log(2),
                high=None if high is None else high / math.log(2), n=tokens, unit="bits",
            ),
        },
        examples, lower_is_better=frozenset({"perplexity", "bits_per_token"}),
    )  # fmt: skip


def mean_surprise(units: Sequence[tuple[float, int]]) -> tuple[float, float | None, float | None]:
    """Return the mean negative log-likelihood a token with its 95 % interval.

    A ratio of sums over units (rows), by the delta method: tokens of a row depend on each other, rows do not. One unit
    has no interval.
    """
    total = sum(count for _, count in units)
    mean = sum(loss for loss, _ in units) / total
    n = len(units)
    if n < 2:
        return mean, None, None
    squares = sum((loss - mean * count) ** 2 for loss, count in units)
    error = math.sqrt(n / (n - 1) * squares) / total
    spread = t_quantile(0.975, n - 1) * error
    return mean, mean - spread, mean + spread


def _exp(value: float | None) -> float | None:
    return None if value is None else math.exp(value)
