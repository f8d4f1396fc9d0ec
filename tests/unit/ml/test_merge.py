"""A merged model is what PEFT would make of it."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from burnish.core.errors import BadModel
from burnish.ml.merge import merge
from burnish.ml.tiny import build

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # PEFT asks Transformers for it
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]


def make_adapter(base: Path, folder: Path, **options: object) -> Path:
    """Save an adapter whose B is not zero."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(1)
    adapted = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    adapted.save_pretrained(folder)
    return folder


def expected(base: Path, adapter: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return {name: tensor.to(dtype) for name, tensor in merged.state_dict().items()}


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    state: dict[str, torch.Tensor] = model.state_dict()
    return state


def as_bfloat16(folder: Path) -> None:
    file = folder / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {}),
        ("llama", {"use_rslora": True}),
        ("qwen2", {}),
        ("gpt2", {"fan_in_fan_out": True}),
        ("phi3", {}),
        ("gpt_neox", {}),
        ("llama", {"use_dora": True}),
        ("llama", {"rank_pattern": {"q_proj": 2}}),
    ],
)
def test_merged_weights_are_pefts(architecture: str, options: dict[str, object], tmp_path: Path) -> None:
    base = build(architecture, tmp_path / "base")
    as_bfloat16(base)
    adapter = make_adapter(base, tmp_path / "adapter", **options)
    changed = merge(base, adapter, tmp_path / "merged")
    assert changed > 0
    want, got = expected(base, adapter, torch.bfloat16), loaded(tmp_path / "merged")
    before = loaded(base)
    moved = 0
    for name, tensor in got.items():
        assert tensor.dtype == torch.bfloat16
        # W + BA is rounded once; the order of the sum in fp32 may move it by one place of bf16
        torch.testing.assert_close(tensor.float(), want[name].float(), rtol=2**-7, atol=1e-6)
        moved += not torch.equal(tensor, before[name])
    assert moved > 0
    assert (tmp_path / "merged" / "tokenizer.json").exists()


def test_the_base_stays_as_it_was(tmp_path: Path) -> None:
    base = build("llama", tmp_path / "base")
    before = (base / "model.safetensors").read_bytes()
    adapter = make_adapter(base, tmp_path / "adapter")
    (base / "model.safetensors").chmod(0o444)
    merge(base, adapter, tmp_path / "merged")
    assert (base / "model.safetensors").read_bytes() == before


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    base, other = build("llama", tmp_path / "base"), build("llama", tmp_path / "other")
    adapter = make_adapter(base, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in tensors if name.endswith("q_proj.lora_B.weight"))
    tensors[name] = torch.zeros(7, 4)
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(BadModel, match="q_proj"):
        merge(other, adapter, tmp_path / "merged")


def test_damaged_adapters_are_refused(tmp_path: Path) -> None:
    base = build("llama", tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    broken = {name: tensor.clone() for name, tensor in tensors.items()}
    first = next(iter(broken))
    broken[first][0, 0] = float("nan")
    save_file(broken, adapter / "adapter_model.safetensors")
    with pytest.raises(BadModel, match="not finite"):
        merge(base, adapter, tmp_path / "nan")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(BadModel, match="IA3"):
        merge(base, adapter, tmp_path / "ia3")
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(BadModel, match="adapter_config"):
        merge(base, adapter, tmp_path / "json")
