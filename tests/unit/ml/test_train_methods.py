"""Methods, formats and options of `sft` that the architectures' tests do not touch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from burnish.core.errors import BadModel
from burnish.core.specs import DatasetCard, FineTuningResult, FineTuningSpec
from burnish.ml import lora, tiny
from burnish.ml.model import load_model, load_tokenizer, read_card
from burnish.ml.text import encode
from burnish.ml.train import sft
from burnish.testing import LocalJobContext
from tests.support import training


@pytest.fixture
def context(tmp_path: Path) -> LocalJobContext:
    return LocalJobContext(tmp_path)


def _train(context: LocalJobContext, **changes: Any) -> FineTuningResult:
    given: dict[str, Any] = {
        "model": training.model(context), "max_steps": 6, "batch_size": 4, "rank": 4, "learning_rate": 0.01, "warmup": 0
    }  # fmt: skip
    if "train" not in changes:
        given["train"] = training.dataset(context)
    return sft(FineTuningSpec(**(given | changes)), context)


def _fell(result: FineTuningResult) -> bool:
    assert result.first_loss is not None
    assert result.final_loss is not None
    return result.final_loss < result.first_loss


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_full_publishes_a_whole_model(context: LocalJobContext, dtype: str) -> None:
    result = _train(context, method="full", dtype=dtype)
    assert _fell(result)
    assert result.adapter is None
    folder = training.folder_of(context, result.model)
    tuned, base = load_model(folder, torch.float32), load_model(context.open(result.base), torch.float32)
    assert sum(p.numel() for p in tuned.parameters()) == result.trainable_parameters
    assert any(not torch.equal(a, b) for a, b in zip(tuned.parameters(), base.parameters(), strict=True))
    assert load_tokenizer(folder).chat_template
    assert read_card(folder).base == result.base.digest


def test_bf16_base_keeps_float32_adapters(context: LocalJobContext) -> None:
    result = _train(context)
    assert _fell(result)
    saved = load_file(training.folder_of(context, result.adapter) / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert any(tensor.any() for name, tensor in saved.items() if "lora_B" in name)
    card = read_card(training.folder_of(context, result.adapter))
    assert (card.base, card.parameters) == (result.base.digest, result.trainable_parameters)


def test_epochs_with_a_fraction_validation_and_counts(context: LocalJobContext) -> None:
    validation = training.dataset(context, training.SENTIMENT[:5])
    result = _train(context, max_steps=None, epochs=1.5, validation=validation)
    assert (result.steps, result.epochs, result.examples) == (9, 1.5, 36)
    assert result.validation_loss is not None
    assert [step for step, values in context.metrics if "validation_loss" in values] == [6]
    assert {"loss", "learning_rate", "grad_norm", "examples_per_second"} <= context.metrics[0][1].keys()
    assert context.progressed[-1][:2] == (9, 9)
    assert {"loading the model", "reading the data", "training", "validating"} <= {p[2] for p in context.progressed}
    assert len(result.history) == 9


def test_micro_batches_change_nothing_but_rounding(context: LocalJobContext, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _train(context, dtype="float32", max_steps=3)
    monkeypatch.setattr("burnish.ml.train.TOKEN_BUDGET", 100)
    cut = _train(context, dtype="float32", max_steps=3)
    assert [p.loss for p in cut.history] == pytest.approx([p.loss for p in whole.history], rel=1e-4)
    assert [p.grad_norm for p in cut.history] == pytest.approx([p.grad_norm for p in whole.history], rel=1e-3)


def test_the_same_spec_gives_the_same_bits_and_another_seed_does_not(context: LocalJobContext) -> None:
    first, second, other = _train(context), _train(context), _train(context, seed=1)
    assert first.adapter == second.adapter != other.adapter
    assert first.data_order_hash == second.data_order_hash != other.data_order_hash


def test_chosen_modules_are_the_only_ones(context: LocalJobContext) -> None:
    result = _train(context, target_modules=("q_proj", "v_proj"), dropout=0.1)
    saved = load_file(training.folder_of(context, result.adapter) / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in saved} == {"q_proj", "v_proj"}


def test_plain_text_and_chat(context: LocalJobContext) -> None:
    texts = [{"text": f"A short film, number {at}, about a cat."} for at in range(8)]
    result = _train(context, train=training.dataset(context, texts, "text"))
    assert _fell(result)
    assert result.supervised_tokens > 6 * 4 * 20
    chats = [
        {"messages": [{"role": "user", "content": f"Say {at}"}, {"role": "assistant", "content": f"{at}!"}]}
        for at in range(8)
    ]
    assert _fell(_train(context, train=training.dataset(context, chats, "chat")))


def test_a_long_sequence_takes_the_padded_path(context: LocalJobContext, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = _train(context, dtype="float32", max_steps=3)
    monkeypatch.setattr("burnish.ml.loss._LONGEST_FLAT", 1)
    padded = _train(context, dtype="float32", max_steps=3)
    assert [p.loss for p in padded.history] == pytest.approx([p.loss for p in flat.history], rel=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_qlora_learns_as_lora_does(context: LocalJobContext, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(BadModel, match="4-bit blocks of 64"):
        _train(context, method="qlora")
    for side in ("hidden_size", "intermediate_size"):
        monkeypatch.setitem(tiny._SMALL, side, 128)
    base = training.model(context, seed=1)
    quantized, plain = _train(context, model=base, method="qlora"), _train(context, model=base)
    assert [p.loss for p in quantized.history] == pytest.approx([p.loss for p in plain.history], rel=0.15)
    assert quantized.trainable_parameters == plain.trainable_parameters


def test_validation_is_of_the_adapter_that_is_published(context: LocalJobContext) -> None:
    held_out = training.SENTIMENT[:5]
    result = _train(context, dropout=0.5, dtype="float32", validation=training.dataset(context, held_out))
    model: Any = load_model(context.open(result.base), torch.float32)
    adapters = lora.attach(model, lora.find_targets(model, "all-linear"), rank=4, alpha=16, dropout=0, seed=0)
    lora.load_adapter(adapters, training.folder_of(context, result.adapter))
    data = encode(held_out, _card(held_out), load_tokenizer(context.open(result.base)), max_length=512)
    loss, count = 0.0, 0
    for example in data.examples:
        with torch.inference_mode():
            logits = model(torch.tensor([list(example.ids)])).logits[0].log_softmax(-1)
        loss -= sum(float(logits[at - 1, example.ids[at]]) for at in range(example.start, len(example.ids)))
        count += example.supervised
    assert result.validation_loss == pytest.approx(loss / count, rel=1e-4)


def _card(rows: Sequence[dict[str, str]]) -> DatasetCard:
    labels = {row["label"]: 1 for row in rows}
    return DatasetCard(format="classification", rows=len(rows), rows_hash="", labels=labels)
