"""Every supported architecture trains, its masked loss is the plain one, and PEFT loads the adapter with equal logits."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from burnish.core.specs import FineTuningSpec
from burnish.ml import tiny
from burnish.ml.batches import micro_batches, plan_epoch
from burnish.ml.lora import attach, find_targets, load_adapter
from burnish.ml.loss import token_losses, use_flat
from burnish.ml.model import load_model, load_tokenizer, quiet
from burnish.ml.text import encode, read_dataset
from burnish.ml.train import sft
from burnish.testing import LocalJobContext
from tests.support import training


def _plain_loss(folder: Path, data: Path, batch: int) -> float:
    """Compute the first batch's loss the ordinary way: padded rows, labels of -100, Transformers' own model and loss."""
    card, rows = read_dataset(data)
    tokenizer = load_tokenizer(folder)
    examples = encode(rows, card, tokenizer, max_length=512).examples
    chosen = [examples[index] for index in plan_epoch([len(e.ids) for e in examples], batch, 0, 0)[0]]
    width = max(len(e.ids) for e in chosen)
    ids = torch.full((len(chosen), width), tokenizer.pad_token_id)
    labels = torch.full((len(chosen), width), -100)
    seen = torch.zeros((len(chosen), width), dtype=torch.long)
    for row, example in enumerate(chosen):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        labels[row, example.start : len(example.ids)] = torch.tensor(example.ids[example.start :])
        seen[row, : len(example.ids)] = 1
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return float(model(input_ids=ids, attention_mask=seen, labels=labels).loss)


@pytest.mark.parametrize("architecture", sorted(tiny.ARCHITECTURES))
def test_trains_with_the_plain_loss_and_loads_in_peft(architecture: str, tmp_path: Path) -> None:
    context = LocalJobContext(tmp_path)
    base, data = training.model(context, architecture), training.dataset(context)
    spec = FineTuningSpec(
        model=base, train=data, max_steps=4, batch_size=6, learning_rate=0.01, warmup=0, dtype="float32"
    )
    result = sft(spec, context)
    folder = context.open(base)
    assert result.first_loss == pytest.approx(_plain_loss(folder, context.open(data), 6), abs=2e-4)
    assert result.final_loss is not None
    assert result.first_loss is not None
    assert result.final_loss < result.first_loss

    adapter = training.folder_of(context, result.adapter)
    ids = torch.arange(3, 40)[None]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        plain: Any = load_model(folder, torch.float32)
        before = plain(input_ids=ids).logits
        theirs = PeftModel.from_pretrained(plain, adapter).eval()(input_ids=ids).logits
        ours: Any = load_model(folder, torch.float32)
        layers = attach(ours, find_targets(ours, "all-linear"), rank=8, alpha=16, dropout=0, seed=1)
        load_adapter(layers, adapter)
        mine = ours(input_ids=ids).logits
    assert (theirs - before).abs().max() > 1e-3
    torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", sorted(set(tiny.ARCHITECTURES) - {"falcon", "stablelm"}))
def test_flat_sequences_with_a_shared_prefix_have_the_plain_gradients(architecture: str, tmp_path: Path) -> None:
    context = LocalJobContext(tmp_path)
    folder = tiny.build(architecture, tmp_path / "model")
    card, rows = read_dataset(context.open(training.dataset(context)))
    tokenizer = load_tokenizer(folder)
    examples = list(encode(rows, card, tokenizer, max_length=512).examples[:6])
    model = load_model(folder, torch.float32)
    layers = attach(model, find_targets(model, "all-linear"), rank=4, alpha=8, dropout=0, seed=0)
    for layer in layers.values():
        torch.nn.init.normal_(layer.lora_b, std=0.1)

    def gradients(flat: bool) -> list[torch.Tensor]:
        model.zero_grad()
        cut = micro_batches(examples, token_budget=400, pad=2, limit=512, share_prefix=flat)
        assert (max(micro.prefix for micro in cut) > 8) == flat
        for micro in cut:
            token_losses(model, micro, flat=flat).sum().backward()  # type: ignore[no-untyped-call]
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    plain = gradients(flat=False)
    assert use_flat(model, examples, 2, 512)
    for ours, theirs in zip(gradients(flat=True), plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5 * max(1.0, float(theirs.abs().max())), rtol=1e-3)


@pytest.mark.parametrize("architecture", ["falcon", "stablelm"])
def test_a_model_without_the_attention_interface_keeps_the_padded_path(architecture: str, tmp_path: Path) -> None:
    folder = tiny.build(architecture, tmp_path / "model")
    context = LocalJobContext(tmp_path)
    card, rows = read_dataset(context.open(training.dataset(context)))
    examples = list(encode(rows, card, load_tokenizer(folder), max_length=512).examples[:6])
    model = load_model(folder, torch.float32)
    before = model.config._attn_implementation
    assert not use_flat(model, examples, 2, 512)
    assert model.config._attn_implementation == before
