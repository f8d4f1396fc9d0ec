"""What cannot be learned from is an error that says where, never a silent success."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from burnish.core.errors import BadData, BadModel, InvalidRequest, NonFiniteLoss
from burnish.core.specs import ArtifactRef, FineTuningSpec
from burnish.ml import tiny
from burnish.ml.train import sft
from burnish.testing import LocalJobContext
from tests.support import training


@pytest.fixture
def context(tmp_path: Path) -> LocalJobContext:
    return LocalJobContext(tmp_path)


def _spec(context: LocalJobContext, base: ArtifactRef | None = None, **changes: Any) -> FineTuningSpec:
    given: dict[str, Any] = {
        "model": base or training.model(context), "max_steps": 2, "batch_size": 4, "rank": 2, "checkpoint_steps": 1
    }  # fmt: skip
    if "train" not in changes:
        given["train"] = training.dataset(context)
    return FineTuningSpec(**(given | changes))


def _changed_model(context: LocalJobContext, change: dict[str, Any]) -> ArtifactRef:
    """Publish a tiny model with changed files: name -> text, or None to remove."""
    folder = tiny.build("llama", context.root / "changed")
    for name, text in change.items():
        if text is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(text)
    return context.add(folder, "model")


def test_zero_steps_make_an_adapter_that_changes_nothing(context: LocalJobContext) -> None:
    result = sft(_spec(context, max_steps=0), context)
    assert (result.steps, result.examples, result.first_loss) == (0, 0, None)
    saved = load_file(training.folder_of(context, result.adapter) / "adapter_model.safetensors")
    assert all(not tensor.any() for name, tensor in saved.items() if "lora_B" in name)
    assert all(tensor.any() for name, tensor in saved.items() if "lora_A" in name)


def test_a_loss_that_is_not_finite_stops_before_the_update(context: LocalJobContext) -> None:
    folder = tiny.build("llama", context.root / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFiniteLoss, match="loss of step 1") as caught:
        sft(_spec(context, context.add(folder, "model")), context)
    assert caught.value.where is not None
    assert caught.value.where.startswith("rows ")
    assert not context.checkpoints
    assert not context.published


def test_only_the_rows_at_fault_are_named(context: LocalJobContext) -> None:
    folder = tiny.build("llama", context.root / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][ord("Z") - 0x21 + 260] = torch.nan  # the character Z
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    rows = [
        {"prompt": "ab", "completion": "c"},
        {"prompt": "Zb", "completion": "c"},
        {"prompt": "bb", "completion": "c"},
    ]
    data = training.dataset(context, rows, "prompt_completion")
    with pytest.raises(NonFiniteLoss) as caught:
        sft(_spec(context, context.add(folder, "model"), train=data), context)
    # The output head is tied to the embedding, so the character's logit breaks every row.
    assert caught.value.where == "rows 1, 2, 3"


@pytest.mark.parametrize(
    ("rows", "form", "says"),
    [
        ([], "classification", "no rows"),
        ([{"prompt": "a", "completion": "  "}], "prompt_completion", "row 1 has an empty completion"),
        ([{"prompt": "a"}], "prompt_completion", "row 1 has no completion"),
        ([{"text": "a", "label": "b"}, {"text": "c"}], "classification", "row 2 has no label"),
        ([{"messages": [{"role": "user", "content": "a"}]}], "chat", "not the assistant's"),
        ([{"messages": []}], "chat", "not the assistant's"),
        ([{"text": " "}], "text", "row 1 is empty"),
        ([{"prompt": "a" * 900, "completion": "b"}], "prompt_completion", "all 1 rows are longer"),
    ],
)
def test_bad_rows(context: LocalJobContext, rows: list[dict[str, Any]], form: Any, says: str) -> None:
    with pytest.raises(BadData, match=says):
        sft(_spec(context, train=training.dataset(context, rows, form)), context)


def test_long_rows_are_dropped_and_counted_or_an_error(context: LocalJobContext) -> None:
    rows = [*training.SENTIMENT[:7], {"text": "long " * 90, "label": "positive"}]
    data = training.dataset(context, rows)
    result = sft(_spec(context, train=data, max_length=220), context)
    assert result.dropped == 1
    assert any("dropped 1 of 8 rows" in line and "rows 8" in line for _, line in context.logs)
    with pytest.raises(BadData, match="row 8 has"):
        sft(_spec(context, train=data, max_length=220, on_truncation="fail"), context)


def test_a_broken_line_is_named(context: LocalJobContext) -> None:
    folder = context.open(training.dataset(context))
    copy = context.root / "copy"
    copy.mkdir()
    (copy / "dataset.json").write_text((folder / "dataset.json").read_text())
    (copy / "data.jsonl").write_text('{"text": "a", "label": "b"}\n{"text": \n')
    with pytest.raises(BadData, match="line 2 is not JSON"):
        sft(_spec(context, train=context.add(copy, "dataset")), context)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "row 1: .*roles must alternate"),
        ("{% for m in messages %}{{ m['content'] ", "row 1: .*refuses"),
        ("{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}", "leaves the answer out"),
        ("{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}", "does not continue the prompt"),
    ],
)  # fmt: skip
def test_a_chat_template_that_fails(context: LocalJobContext, template: str, says: str) -> None:
    base = _changed_model(context, {"chat_template.jinja": template})
    with pytest.raises(BadData, match=says):
        sft(_spec(context, base), context)


def test_a_tokenizer_without_template_trains_on_plain_text_and_says_so(context: LocalJobContext) -> None:
    base = _changed_model(context, {"chat_template.jinja": None})
    result = sft(_spec(context, base), context)
    assert result.steps == 2
    assert any(level == "warning" and "no chat template" in line for level, line in context.logs)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokenizer.json": None}, "no tokenizer"),
        ({"config.json": json.dumps({"model_type": "nonsense"})}, "unknown architecture"),
        ({"burnish.json": None}, "burnish.json"),
        ({"model.safetensors": "not tensors"}, "not a sound safetensors"),
    ],
)
def test_bad_models(context: LocalJobContext, change: dict[str, Any], says: str) -> None:
    with pytest.raises(BadModel, match=says):
        sft(_spec(context, _changed_model(context, change)), context)


def test_an_unknown_target_module_names_those_there_are(context: LocalJobContext) -> None:
    with pytest.raises(InvalidRequest, match="no linear layer is called nothing") as caught:
        sft(_spec(context, target_modules=("q_proj", "nothing")), context)
    assert caught.value.hint is not None
    assert "q_proj" in caught.value.hint


def test_qlora_without_bitsandbytes_says_what_to_install(
    context: LocalJobContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("burnish.ml.quantized.find_spec", lambda name: None)
    with pytest.raises(InvalidRequest, match="bitsandbytes") as caught:
        sft(_spec(context, method="qlora"), context)
    assert caught.value.hint == "pip install 'burnish[qlora]', or use method lora"
