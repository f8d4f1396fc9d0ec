"""What is scored is what is served: a client's own loop gives the evaluation's answers."""

import json
import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from burnish.core.errors import BadData, BadModel
from burnish.core.job import Stopped
from burnish.core.prompting import default_instruction
from burnish.core.specs import ArtifactRef, DatasetCard, EvaluationResult, EvaluationSpec
from burnish.core.specs.evaluation import EXAMPLES_FILE
from burnish.core.specs.serving import EngineName
from burnish.ml import score, score_classification, score_generation, score_perplexity
from burnish.ml.engine_process import RunningEngine
from burnish.ml.model import load_model, load_tokenizer
from burnish.ml.score_classification import Restriction, answered_label, label_logprob, normalised, restrict
from burnish.ml.score_generation import corpus_bleu, word_f1
from burnish.ml.score_perplexity import mean_surprise
from burnish.ml.text import encode
from burnish.ml.tiny import build
from burnish.testing.job_context import LocalJobContext
from tests.support.engines import ASK, QWEN3_TEMPLATE, add_dataset, client, make_gguf, running

CHINESE = ("\u8d1f\u9762", "\u6b63\u9762")
"""Negative and positive; their first bytes, which are their first tokens here, differ."""
WORDS = ("warm", "dull", "funny", "slow", "moving", "thin", "bright", "grim")
ROWS: list[dict[str, Any]] = [
    {"text": f"A {word} film of number {n}", "label": "positive" if n % 2 else "negative"}
    for n, word in enumerate(WORDS)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    model = build("llama", folder / "model")
    return {"transformers": model, "llama_cpp": make_gguf(model, folder / "gguf")}


@pytest.fixture
def context(tmp_path: Path) -> LocalJobContext:
    return LocalJobContext(tmp_path / "job")


def examples_of(context: LocalJobContext, result: EvaluationResult) -> list[dict[str, Any]]:
    text = (context.open(result.examples) / EXAMPLES_FILE).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def spec_for(
    context: LocalJobContext, engine: EngineName, model: Path, dataset: ArtifactRef, **more: Any
) -> EvaluationSpec:
    kind = "gguf" if engine == "llama_cpp" else "model"
    reference = context.add(model, cast(Any, kind))
    return EvaluationSpec(model=reference, dataset=dataset, engine=engine, context_length=256, label="tiny", **more)


@pytest.mark.parametrize("engine", ["llama_cpp", "transformers"])
def test_a_clients_own_loop_gives_the_same_labels(
    engine: EngineName, models: dict[str, Path], context: LocalJobContext, tmp_path: Path
) -> None:
    dataset = add_dataset(context, "classification", ROWS)
    result = score_classification.evaluate(spec_for(context, engine, models[engine], dataset), context)
    examples = examples_of(context, result)
    assert [example["expected"] for example in examples] == [row["label"] for row in ROWS]
    assert result.headline == "accuracy"
    accuracy = result.metrics["accuracy"]
    assert accuracy.n == len(ROWS)
    assert accuracy.value == sum(example["score"] for example in examples) / len(ROWS)
    assert set(result.metrics) == {"accuracy", "label_likelihood", "free_exact_match"}
    assert all(example["prediction"] in ("positive", "negative") for example in examples)
    assert result.served.tokens_per_second > 0
    assert result.served.memory_bytes > 10 << 20
    assert result.request["max_tokens"] == 1
    with running(engine, models[engine], tmp_path / "deployed", parallel=4) as deployed, client(deployed) as openai:
        for row, example in zip(ROWS, examples, strict=True):
            question = f"{default_instruction(['positive', 'negative'])}\n\n{row['text']}"
            answer = openai.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": question}], **cast(Any, result.request)
            )
            content = answer.choices[0].message.content
            assert content == example["answer"]
            assert example["prediction"].startswith(content or "?")


def test_labels_that_begin_alike_are_restricted_by_a_schema(models: dict[str, Path], context: LocalJobContext) -> None:
    rows = [
        {"text": row["text"], "label": "positively" if row["label"] == "positive" else "possibly"} for row in ROWS[:3]
    ]
    dataset = add_dataset(context, "classification", rows)
    result = score_classification.evaluate(spec_for(context, "llama_cpp", models["llama_cpp"], dataset), context)
    assert "response_format" in result.request
    assert {example["prediction"] for example in examples_of(context, result)} <= {"positively", "possibly"}


def test_labels_that_begin_alike_need_llama_cpp(models: dict[str, Path], tmp_path: Path) -> None:
    with running("transformers", models["transformers"], tmp_path) as engine:
        # Those that begin with different tokens, each a part of a character, are no better off.
        for labels in (("positively", "possibly"), CHINESE):
            with pytest.raises(BadModel, match="same token, or with one that is only part of a character"):
                restrict(engine, labels)
        assert restrict(engine, ("yes", "no")).first_texts == {"yes": "y", "no": "n"}


def test_labels_whose_first_token_is_no_character(models: dict[str, Path], context: LocalJobContext) -> None:
    bad, good = CHINESE
    rows = [{"text": row["text"], "label": good if row["label"] == "positive" else bad} for row in ROWS[:3]]
    dataset = add_dataset(context, "classification", rows)
    result = score_classification.evaluate(spec_for(context, "llama_cpp", models["llama_cpp"], dataset), context)
    assert "response_format" in result.request
    assert {example["prediction"] for example in examples_of(context, result)} <= {bad, good}
    assert set(result.metrics) == {"accuracy", "free_exact_match"}
    assert any("no label_likelihood" in message for _, message in context.logs)


@pytest.mark.parametrize("engine", ["llama_cpp", "transformers"])
def test_label_logprobs_are_those_of_a_plain_forward_pass(
    engine: EngineName, models: dict[str, Path], tmp_path: Path
) -> None:
    tokenizer, model = load_tokenizer(models["transformers"]), load_model(models["transformers"], torch.float32)
    prompt = tokenizer(
        tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True), add_special_tokens=False
    )["input_ids"]
    with running(engine, models[engine], tmp_path) as started:
        for label in ("yes", "no"):
            ids = started.tokenize(label)
            assert ids == tokenizer(label, add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
            expected = sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(ids))
            assert label_logprob(started, ASK, ids) == pytest.approx(expected, abs=5e-3)


def test_rows_that_do_not_fit_are_counted(models: dict[str, Path], context: LocalJobContext) -> None:
    dataset = add_dataset(context, "classification", [*ROWS[:2], {"text": "x" * 400, "label": "negative"}])
    result = score_classification.evaluate(spec_for(context, "llama_cpp", models["llama_cpp"], dataset), context)
    assert result.skipped == 1
    assert result.metrics["accuracy"].n == 2
    assert len(examples_of(context, result)) == 2
    assert any("could not be scored" in message for _, message in context.logs)


def test_a_safetensors_model_is_served_by_llama_cpp_as_gguf(models: dict[str, Path], context: LocalJobContext) -> None:
    dataset = add_dataset(context, "classification", ROWS[:2])
    model = context.add(models["transformers"], "model")
    result = score_classification.evaluate(
        EvaluationSpec(model=model, dataset=dataset, limit=1, context_length=256), context
    )
    assert result.served.engine == "llama_cpp"
    assert result.served.dtype == "f32"
    assert result.metrics["accuracy"].n == 1


def test_one_label_or_no_rows_are_refused(models: dict[str, Path], context: LocalJobContext) -> None:
    one = add_dataset(context, "classification", [{"text": "x", "label": "a"}])
    with pytest.raises(BadData, match="at least two labels"):
        score_classification.evaluate(spec_for(context, "llama_cpp", models["llama_cpp"], one), context)
    none = add_dataset(context, "classification", [])
    with pytest.raises(BadData, match="no rows"):
        score_classification.evaluate(spec_for(context, "llama_cpp", models["llama_cpp"], none), context)


def test_a_stop_ends_the_scoring_and_the_engine(
    models: dict[str, Path], context: LocalJobContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[RunningEngine] = []
    stop = RunningEngine.stop

    def remember(engine: RunningEngine) -> None:
        stopped.append(engine)
        stop(engine)

    monkeypatch.setattr(RunningEngine, "stop", remember)
    dataset = add_dataset(context, "classification", ROWS)
    context.request_stop("cancel")
    with pytest.raises(Stopped):
        score_classification.evaluate(spec_for(context, "llama_cpp", models["llama_cpp"], dataset), context)
    assert [engine.process.poll() is not None for engine in stopped] == [True]


def test_answers_are_read_strictly() -> None:
    by_token = Restriction({}, {"good": (1,), "bad": (2, 3)}, {"good": "good", "bad": "ba"})
    assert answered_label(" good", by_token) == "good"
    assert answered_label("ba", by_token) == "bad"
    assert answered_label("The", by_token) is None
    by_schema = Restriction({}, {"good": (1,), "bad": (2, 3)}, None)
    assert answered_label('"bad"', by_schema) == "bad"
    assert answered_label('"other"', by_schema) is None
    assert answered_label("bad", by_schema) is None
    assert normalised(' "Positive." ') == "positive"


@pytest.mark.parametrize("form", ["text", "prompt_completion"])
def test_perplexity_is_that_of_a_plain_forward_pass(
    form: Any, models: dict[str, Path], context: LocalJobContext
) -> None:
    if form == "text":
        rows: list[dict[str, Any]] = [{"text": row["text"]} for row in ROWS[:3]]
    else:
        rows = [{"prompt": row["text"], "completion": "It is " + row["label"]} for row in ROWS[:3]]
    dataset = add_dataset(context, form, rows)
    expected = _plain_perplexity(models["transformers"], form, rows)
    engines: tuple[EngineName, ...] = ("llama_cpp", "transformers")
    for engine in engines:
        spec = spec_for(context, engine, models[engine], dataset, task="perplexity")
        result = score_perplexity.evaluate(spec, context)
        found = result.metrics["perplexity"]
        assert found.value == pytest.approx(expected, rel=5e-3)
        assert found.low is not None
        assert found.high is not None
        assert found.low < found.value < found.high
        assert result.higher_is_better == {"perplexity": False, "bits_per_token": False}
        examples = examples_of(context, result)
        tokens = sum(example["tokens"] for example in examples)
        assert math.exp(-sum(example["logprob"] for example in examples) / tokens) == pytest.approx(found.value)


def _plain_perplexity(folder: Path, form: str, rows: list[dict[str, Any]]) -> float:
    tokenizer, model = load_tokenizer(folder), load_model(folder, torch.float32)
    loss, count = 0.0, 0
    for row in rows:
        if form == "text":
            ids, start = tokenizer(row["text"], add_special_tokens=True)["input_ids"], 1
        else:
            messages = [{"role": "user", "content": row["prompt"]}]
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            ids, start = head + tokenizer(row["completion"], add_special_tokens=False)["input_ids"], len(head)
        with torch.inference_mode():
            rows_of = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        loss -= sum(float(rows_of[i - 1, ids[i]]) for i in range(start, len(ids)))
        count += len(ids) - start
    return math.exp(loss / count)


def test_long_texts_are_cut_into_windows(models: dict[str, Path], context: LocalJobContext) -> None:
    dataset = add_dataset(context, "text", [{"text": "a b c d " * 80}])
    result = score_perplexity.evaluate(
        spec_for(context, "transformers", models["transformers"], dataset, task="perplexity"), context
    )
    assert result.metrics["perplexity"].n == 640 - 3  # three windows, each without its first token
    assert result.metrics["perplexity"].low is None  # of one row: its windows are no samples of their own
    assert result.skipped == 0


def test_the_interval_of_perplexity_needs_two_rows() -> None:
    assert mean_surprise([(4.0, 2)]) == (2.0, None, None)
    mean, low, high = mean_surprise([(4.0, 2), (9.0, 3)])
    assert mean == pytest.approx(2.6)
    assert low is not None
    assert high is not None
    assert low < mean < high


def test_generation_measures_answers(models: dict[str, Path], context: LocalJobContext) -> None:
    rows = [{"prompt": row["text"], "completion": "A good one."} for row in ROWS[:3]]
    dataset = add_dataset(context, "prompt_completion", rows)
    spec = spec_for(context, "llama_cpp", models["llama_cpp"], dataset, task="generation", max_tokens=6)
    result = score_generation.evaluate(spec, context)
    assert set(result.metrics) == {"f1", "exact_match", "rouge_l", "bleu"}
    assert result.request == {"max_tokens": 6, "temperature": 0}
    examples = examples_of(context, result)
    assert [example["expected"] for example in examples] == ["A good one."] * 3
    assert all("rouge_l" in example for example in examples)


def test_word_f1_counts_as_squad() -> None:
    assert word_f1("The good film!", "a good film") == 1
    assert word_f1("good", "good film") == pytest.approx(2 / 3)
    assert word_f1("bad", "good film") == 0
    assert word_f1("", "") == 1
    assert word_f1("", "x") == 0


def test_bleu_is_sacrebleus_with_an_interval() -> None:
    references = ["the film is good and warm", "a dull plot that goes nowhere at all", "it moves me every single time"]
    perfect = corpus_bleu(references, references)
    assert perfect.value == pytest.approx(100)
    worse = corpus_bleu(["the film is bad and warm", *references[1:]], references)
    assert worse.low is not None
    assert worse.high is not None
    assert worse.low <= worse.value < 100
    assert worse.high <= 100 + 1e-9


@pytest.mark.parametrize("engine", ["llama_cpp", "transformers"])
def test_a_thinking_template_asks_where_training_answers(engine: EngineName, tmp_path: Path) -> None:
    model = build("llama", tmp_path / "model")
    (model / "chat_template.jinja").write_text(QWEN3_TEMPLATE, encoding="utf-8")
    tokenizer = load_tokenizer(model)
    rows = [{"prompt": ASK[0]["content"], "completion": "no"}]
    card = DatasetCard(format="prompt_completion", rows=1, rows_hash="")
    (example,) = encode(rows, card, tokenizer, max_length=256).examples
    served = make_gguf(model, tmp_path / "gguf") if engine == "llama_cpp" else model
    with running(engine, served, tmp_path / "engine") as started:
        prompt = started.apply_template(ASK)["prompt"]
        assert prompt == tokenizer.decode(example.ids[: example.start])
        assert prompt.endswith("<think>\n\n</think>\n\n")
        asked = {"messages": ASK, "max_tokens": 1}
        assert started.chat(asked)["usage"]["prompt_tokens"] == example.start
        thinking = started.chat({**asked, "chat_template_kwargs": {"enable_thinking": True}})
        assert thinking["usage"]["prompt_tokens"] == example.start - len(started.tokenize("<think>\n\n</think>\n\n"))
        ids = started.tokenize("no")
        loss = label_logprob(started, ASK, ids)
    with torch.inference_mode():
        logits = load_model(model, torch.float32)(torch.tensor([example.ids])).logits[0].log_softmax(-1)
    expected = sum(float(logits[example.start - 1 + i, token]) for i, token in enumerate(ids))
    assert loss == pytest.approx(expected, abs=5e-3)


def test_what_was_served_names_its_adapter(context: LocalJobContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate tells two adapters on one base apart by it."""

    class Engine:
        load_seconds = 1.0

        def memory_bytes(self) -> int:
            return 1

    monkeypatch.setattr(score, "tokens_per_second", lambda _engine: 10.0)
    base, adapter, rows = (
        ArtifactRef(digest=f"sha256:{n:064x}", kind=cast(Any, kind))
        for n, kind in enumerate(("model", "adapter", "dataset"))
    )
    prepared = score.Prepared(Path("model"), Path("adapter"), "bfloat16", 1)
    for given in (adapter, None):
        spec = EvaluationSpec(model=base, adapter=given, dataset=rows)
        served = score.served_as(spec, prepared, cast(RunningEngine, Engine()), [0.1], context)
        assert (served.model, served.adapter) == (base, given)
