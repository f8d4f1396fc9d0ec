"""The task ``classification``: which label does the served model answer?

Headline ``accuracy``: one token, restricted to the labels by something that an ``openai`` client can send.
Where the labels' first tokens differ as text, that is ``logit_bias`` of +100 on those tokens with ``max_tokens`` 1; otherwise
(and where the engine has it) ``response_format`` with a JSON schema whose only values are the labels.
Beside it: ``free_exact_match`` (nothing restricted; on the first rows only) and ``label_likelihood`` (the label whose
tokens have the highest log-probability; left out where llama.cpp's server does not tell it, as it does not for tokens
that are part of a character).
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.core.errors import BadData, BadModel
from burnish.core.job import JobContext
from burnish.core.prompting import ChatMessage, to_example
from burnish.core.specs.evaluation import EvaluationResult, EvaluationSpec
from burnish.core.statistics import proportion
from burnish.ml.engine_process import EngineRefused, RunningEngine
from burnish.ml.score import Scored, TestSet, again_when_killed, engine_for, finish, open_test_set, prepare, served_as

FREE_ROWS = 100
"""Rows that are also answered freely: it costs as much as the headline and stands beside it only."""
_TOP = 20
_BIAS = 100
_REPLACEMENT = "\ufffd"
"""What bytes that are no whole character become as text."""
_PUNCTUATION = " \t\r\n.,;:!?\"'`*()[]{}<>"


@dataclass(frozen=True)
class Restriction:
    """How answers are restricted to the labels."""

    request: dict[str, object]
    """What a client sends besides the messages."""
    tokens: Mapping[str, tuple[int, ...]]
    """Token ids of each label as the assistant's answer."""
    first_texts: Mapping[str, str] | None
    """Each label's first token as text, where that is the answer; None where the answer is a JSON string."""
    scorable: bool = True
    """Whether the engine tells the log-probability of each label's tokens."""


@again_when_killed
def evaluate(spec: EvaluationSpec, context: JobContext) -> EvaluationResult:
    """Score a classification test set.

    Raises:
        BadData: the dataset has no labels, or fewer than two.
        BadModel: the model cannot be served, or its engine cannot tell the labels apart.
    """
    test = open_test_set(spec, context)
    if test.card.format != "classification" or len(test.labels) < 2:
        raise BadData(
            f"classification needs rows with at least two labels; this is {test.card.format} with {len(test.labels)}",
            where="dataset", hint="use the task `generation` or `perplexity`",
        )  # fmt: skip
    prepared = prepare(spec, context)
    with engine_for(spec, prepared, context) as engine:
        restriction = restrict(engine, test.labels)
        if not restriction.scorable:
            context.log("no label_likelihood: a label's tokens are parts of characters, which llama.cpp does not score")
        scored = _score(engine, test, restriction, context)
        served = served_as(spec, prepared, engine, scored.latencies, context)
    return finish(spec, scored, served, context)


def restrict(engine: RunningEngine, labels: Sequence[str]) -> Restriction:
    """Return how to restrict this model's answers to the labels.

    Raises:
        BadModel: the labels' first tokens do not tell them apart and the engine has no ``response_format``.
    """
    tokens = {label: tuple(engine.tokenize(label)) for label in labels}
    first_texts, scorable = _first_texts(engine, tokens), _scorable(engine, tokens)
    if first_texts is not None:
        bias = {str(tokens[label][0]): _BIAS for label in labels}
        return Restriction({"logit_bias": bias, "max_tokens": 1, "temperature": 0}, tokens, first_texts, scorable)
    if engine.config.engine == "transformers":
        raise BadModel(
            "the labels begin with the same token, or with one that is only part of a character, and the engine "
            "transformers has no response_format",
            hint="use the engine llama_cpp, or labels that differ in their first token",
        )
    schema = {"type": "string", "enum": list(labels)}
    form = {"type": "json_schema", "json_schema": {"name": "label", "strict": True, "schema": schema}}
    longest = max(len(engine.tokenize(json.dumps(label, ensure_ascii=False))) for label in labels)
    # llama.cpp's JSON grammars allow some blank space before and after a value: the model must have room for it.
    return Restriction({"response_format": form, "max_tokens": longest + 48, "temperature": 0}, tokens, None, scorable)


def answered_label(content: str, restriction: Restriction) -> str | None:
    """Return the label that a restricted answer means; None when it is none (an engine that ignored the restriction)."""
    if restriction.first_texts is not None:
        texts = restriction.first_texts
        return next((label for label, text in texts.items() if content.strip() == text.strip()), None)
    try:
        value = json.loads(content)
    except ValueError:
        return None
    return value if value in restriction.tokens else None


def _score(engine: RunningEngine, test: TestSet, restriction: Restriction, context: JobContext) -> Scored:
    scored = Scored("accuracy", {}, [], request=restriction.request)
    told = 0.0
    free_tokens = _longest(restriction) + 2
    for number, (row, identity) in enumerate(zip(test.rows, test.ids, strict=True)):
        context.check_stop()
        messages = to_example(row, "classification", test.instruction, f"row {number + 1}")["prompt"]
        try:
            example = _ask(engine, messages, restriction, scored.latencies)
            if len(scored.examples) < FREE_ROWS:
                example["free"] = _free_answer(engine, messages, free_tokens, example.pop("top"), restriction)
        except EngineRefused as error:
            if not error.prompt_too_long:
                raise BadModel(f"row {number + 1}: the engine refused the request: {error}") from error
            scored.skipped += 1
            continue
        example.pop("top", None)
        expected = str(row["label"])
        example |= {"id": identity, "expected": expected, "score": int(example["prediction"] == expected)}
        scored.examples.append(example)
        if time.monotonic() - told > 0.5 or number + 1 == len(test.rows):
            told = time.monotonic()
            context.progress(number + 1, len(test.rows), phase="scoring", unit="rows")
    if not scored.examples:
        raise BadData("no row of the test set fits the context", hint="raise context_length")
    scored.metrics = _metrics(scored.examples)
    return scored


def _first_texts(engine: RunningEngine, tokens: Mapping[str, Sequence[int]]) -> dict[str, str] | None:
    """Return each label's first token as text: the label itself where it is one token.

    None where an answer of that token alone would not tell which label it is: two are the same, or one is blank or a
    part of a character, as the letters of Chinese and Korean are cut up by many tokenizers.
    """
    if not all(tokens.values()):
        return None
    texts = {}
    for label, ids in tokens.items():
        texts[label] = label if len(ids) == 1 else str(engine.post("/detokenize", {"tokens": [ids[0]]})["content"])
    bare = {text.strip() for text in texts.values()}
    told_apart = len(bare) == len(texts) and "" not in bare and not any(_REPLACEMENT in text for text in bare)
    return texts if told_apart else None


def _scorable(engine: RunningEngine, tokens: Mapping[str, Sequence[int]]) -> bool:
    """Tell whether the engine can score the labels: llama.cpp's server, where every token is text by itself."""
    if engine.config.engine == "transformers":
        return True
    every = {token for ids in tokens.values() for token in ids}
    return not any(_REPLACEMENT in engine.post("/detokenize", {"tokens": [token]})["content"] for token in every)


def _longest(restriction: Restriction) -> int:
    return max(len(ids) for ids in restriction.tokens.values())


def _ask(
    engine: RunningEngine, messages: Sequence[ChatMessage], restriction: Restriction, latencies: list[float]
) -> dict[str, Any]:
    """Send the headline request; the log-probabilities asked for beside it do not change the answer."""
    began = time.monotonic()
    answer = engine.chat({"messages": messages, **restriction.request, "logprobs": True, "top_logprobs": _TOP})
    latencies.append(time.monotonic() - began)
    choice = answer["choices"][0]
    content = str(choice["message"]["content"] or "")
    top = choice["logprobs"]["content"][0]["top_logprobs"] if choice.get("logprobs") else []
    found = {"prediction": answered_label(content, restriction), "answer": content, "top": top}
    if restriction.scorable:
        found["likeliest"] = _likeliest(engine, messages, restriction, top)
    return found


def _likeliest(
    engine: RunningEngine, messages: Sequence[ChatMessage], restriction: Restriction, top: Sequence[Mapping[str, Any]]
) -> str | None:  # fmt: skip
    """Return the label with the highest log-probability, summed over its tokens."""
    known = {int(entry["id"]): float(entry["logprob"]) for entry in top if "id" in entry}
    if restriction.first_texts is not None and all(len(ids) == 1 for ids in restriction.tokens.values()):
        found = {label: known[ids[0]] for label, ids in restriction.tokens.items() if ids[0] in known}
        if found:  # a label that is not among the likeliest tokens is less likely than one that is
            return max(sorted(found), key=lambda label: found[label])
    sums = {label: label_logprob(engine, messages, ids) for label, ids in restriction.tokens.items()}
    return max(sorted(sums), key=lambda label: sums[label])


def label_logprob(engine: RunningEngine, messages: Sequence[ChatMessage], ids: Sequence[int]) -> float:
    """Return the log-probability of these tokens as the beginning of the answer, by teacher forcing.

    llama.cpp: a grammar of token ids forces each token, and the log-probabilities told are those before the grammar.
    """
    if engine.config.engine == "transformers":
        return float(engine.post("/score", {"messages": list(messages), "tokens": list(ids)})["logprob"])
    prompt = engine.apply_template(messages)["prompt"]
    grammar = "root ::= " + " ".join(f"<[{token}]>" for token in ids)
    answer = engine.post(
        "/completion",
        {"prompt": prompt, "grammar": grammar, "n_probs": 1, "n_predict": len(ids), "temperature": 0, "top_k": 0},
    )
    found = [float(entry["logprob"]) for entry in answer["completion_probabilities"][: len(ids)]]
    return sum(found) if len(found) == len(ids) else -math.inf


def _free_answer(
    engine: RunningEngine, messages: Sequence[ChatMessage], max_tokens: int, top: Sequence[Mapping[str, Any]],
    restriction: Restriction,
) -> str:  # fmt: skip
    """Return the unrestricted greedy answer; only its first token when that begins no label."""
    if top:
        begins = normalised(str(top[0]["token"]))
        if not any(normalised(label).startswith(begins) for label in restriction.tokens):
            return str(top[0]["token"])
    answer = engine.chat({"messages": messages, "max_tokens": max_tokens, "temperature": 0})
    choice = answer["choices"][0]
    text = str(choice["message"]["content"] or "")
    # An answer that was cut is longer than any label, whatever its beginning looks like.
    return text + " ..." if choice["finish_reason"] == "length" else text


def normalised(text: str) -> str:
    """Return an answer without case, surrounding space and punctuation."""
    return text.strip(_PUNCTUATION).casefold()


def _metrics(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    free = [example for example in examples if "free" in example]
    likely = [example for example in examples if "likeliest" in example]
    found = {
        "accuracy": proportion(sum(example["score"] for example in examples), len(examples)),
        "free_exact_match": proportion(
            sum(normalised(e["free"]) == normalised(e["expected"]) for e in free), len(free)
        ),
    }
    if likely:
        hits = sum(example["likeliest"] == example["expected"] for example in likely)
        found["label_likelihood"] = proportion(hits, len(likely))
    return found
