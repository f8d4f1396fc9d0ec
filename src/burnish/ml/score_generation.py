"""The task ``generation``: how close are greedy answers to the reference answers?"""

import random
import re
import string
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from burnish.core.errors import BadData, BadModel
from burnish.core.job import JobContext
from burnish.core.prompting import to_example
from burnish.core.specs.base import Estimate
from burnish.core.specs.evaluation import EvaluationResult, EvaluationSpec
from burnish.core.statistics import mean, percentile, proportion
from burnish.ml.engine_process import EngineRefused, RunningEngine
from burnish.ml.score import Scored, TestSet, again_when_killed, engine_for, finish, open_test_set, prepare, served_as

_BLEU_DRAWS = 500
_SEED = 20_240_229
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@again_when_killed
def evaluate(spec: EvaluationSpec, context: JobContext) -> EvaluationResult:
    """Generate an answer to each row and compare it with the reference.

    Raises:
        BadData: the rows have no completion, or none fits the context.
        BadModel: the model cannot be served.
    """
    test = open_test_set(spec, context)
    prepared = prepare(spec, context)
    with engine_for(spec, prepared, context) as engine:
        scored = _answer(engine, test, spec.max_tokens, context)
        served = served_as(spec, prepared, engine, scored.latencies, context)
    scored.metrics = summarize(scored.examples)
    return finish(spec, scored, served, context)


def _answer(engine: RunningEngine, test: TestSet, max_tokens: int, context: JobContext) -> Scored:
    request: dict[str, object] = {"max_tokens": max_tokens, "temperature": 0}
    scored = Scored("f1", {}, [], request=request)
    told = 0.0
    for number, (row, identity) in enumerate(zip(test.rows, test.ids, strict=True)):
        context.check_stop()
        example = to_example(row, test.card.format, test.instruction, f"row {number + 1}")
        began = time.monotonic()
        try:
            answer = engine.chat({"messages": example["prompt"], **request})
        except EngineRefused as error:
            if not error.prompt_too_long:
                raise BadModel(f"row {number + 1}: the engine refused the request: {error}") from error
            scored.skipped += 1
            continue
        scored.latencies.append(time.monotonic() - began)
        choice = answer["choices"][0]
        text, expected = str(choice["message"]["content"] or ""), example["completion"]
        scored.examples.append({
            "id": identity, "score": word_f1(text, expected), "prediction": text, "expected": expected,
            "exact": int(normalised(text) == normalised(expected)), "cut": choice["finish_reason"] == "length",
        })  # fmt: skip
        if time.monotonic() - told > 0.5:
            told = time.monotonic()
            context.progress(number + 1, len(test.rows), phase="generating", unit="rows")
    if not scored.examples:
        raise BadData("no row of the test set fits the context", hint="raise context_length")
    return scored


def normalised(text: str) -> str:
    """Return a text as SQuAD's evaluation compares it: no case, punctuation, articles, or doubled space."""
    bare = text.casefold().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def word_f1(answer: str, reference: str) -> float:
    """Return the F1 of the two normalised texts' words; 1 when both are empty."""
    ours, theirs = normalised(answer).split(), normalised(reference).split()
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(ours), shared / len(theirs)
    return 2 * precision * recall / (precision + recall)


def summarize(examples: Sequence[dict[str, Any]]) -> dict[str, Estimate]:
    """Return the metrics of answered examples; adds ``rouge_l`` to each example."""
    from rouge_score.rouge_scorer import RougeScorer

    rouge = RougeScorer(["rougeL"], use_stemmer=True)
    for example in examples:
        example["rouge_l"] = float(rouge.score(example["expected"], example["prediction"])["rougeL"].fmeasure)
    return {
        "f1": mean([example["score"] for example in examples]),
        "exact_match": proportion(sum(example["exact"] for example in examples), len(examples)),
        "rouge_l": mean([example["rouge_l"] for example in examples]),
        "bleu": corpus_bleu([e["prediction"] for e in examples], [e["expected"] for e in examples]),
    }


def corpus_bleu(answers: Sequence[str], references: Sequence[str]) -> Estimate:
    """Return sacreBLEU of the corpus with a bootstrap interval over rows (from each row's n-gram counts)."""
    from sacrebleu.metrics import BLEU

    metric = BLEU()
    value = float(metric.corpus_score(list(answers), [list(references)]).score)
    counts = metric._extract_corpus_statistics(list(answers), [list(references)])
    draw = random.Random(_SEED)  # noqa: S311 - resampling, not a secret
    rows = range(len(counts))
    scores = []
    for _ in range(_BLEU_DRAWS):
        sample = [counts[i] for i in draw.choices(rows, k=len(counts))]
        scores.append(float(metric._aggregate_and_compute(sample).score))
    return Estimate(
        value=value, low=percentile(scores, 0.025), high=percentile(scores, 0.975), n=len(counts), unit="0-100"
    )
