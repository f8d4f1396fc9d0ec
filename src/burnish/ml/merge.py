"""Merging a LoRA adapter into its base, tensor by tensor.

W' = W + scale * B A is computed in fp32 and rounded once to W's own dtype; scale = alpha / r (alpha / sqrt(r) with
rsLoRA). The base's files are copied and the merged tensors written over their old bytes, so that peak memory is that
of one tensor, whatever the model's size. What this cannot do (DoRA, biases, fused experts ...) PEFT itself does.
"""

import json
import math
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from burnish.core.errors import BadModel
from burnish.ml.model import load_model, load_tokenizer, quiet
from burnish.ml.weights import read_safetensors, safetensors_in, weight_files

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


@dataclass(frozen=True)
class _Delta:
    """One adapted layer."""

    a: torch.Tensor
    """[r, in]"""
    b: torch.Tensor
    """[out, r]"""
    scale: float
    transposed: bool
    """The base's weight is [in, out] (GPT-2's Conv1D)."""

    def matrix(self) -> torch.Tensor:
        delta = self.scale * (self.b.float() @ self.a.float())
        return delta.T if self.transposed else delta


def merge(model_dir: Path, adapter_dir: Path, out_dir: Path) -> int:
    """Write the merged model with all other files of ``model_dir`` into ``out_dir``; return how many tensors changed.

    Args:
        model_dir: The base: safetensors, config, tokenizer.
        adapter_dir: A PEFT adapter.
        out_dir: An empty folder, or one that does not exist yet.

    Raises:
        BadModel: the adapter is damaged, not finite, or does not fit the base.
    """
    safetensors_in(model_dir)
    config = _adapter_config(adapter_dir)
    read_safetensors(adapter_dir / ADAPTER_WEIGHTS)
    tensors = load_file(adapter_dir / ADAPTER_WEIGHTS)
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise BadModel(f"the adapter's tensor {name} is not finite", where=str(adapter_dir), hint="train it again")
    deltas = _deltas(config, tensors, adapter_dir) if _is_plain(config, tensors) else None
    places = _places(model_dir, set(deltas)) if deltas is not None else {}
    if deltas is None or len(places) != len(deltas):
        return _merge_with_peft(model_dir, adapter_dir, out_dir, len(tensors) // 2)
    _copy_contents(model_dir, out_dir)
    for name, (file, key) in places.items():
        with _tensor_bytes(out_dir / file, key) as (weight, write):
            delta = deltas[name].matrix()
            if weight.shape != delta.shape:
                raise BadModel(
                    f"the adapter's {name} is {tuple(delta.shape)}, the base's {tuple(weight.shape)}",
                    where=str(adapter_dir), hint="this adapter was trained on another base",
                )  # fmt: skip
            write((weight.float() + delta).to(weight.dtype))
    return len(places)


def _copy_contents(source: Path, target: Path) -> None:
    """Copy all files, not their permissions.

    A published folder is read-only; a copy that is so too can be neither changed nor, by anyone but root, deleted.
    """
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_dir():
            _copy_contents(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def _adapter_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadModel(f"no readable {ADAPTER_CONFIG}: {error}", where=str(folder)) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise BadModel(f"the adapter is not a LoRA but {kind!r}", where=str(folder))
    return config


def _is_plain(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether the adapter is nothing but pairs of A and B on linear layers."""
    special = ("use_dora", "modules_to_save", "alpha_pattern", "rank_pattern", "lora_bias", "target_parameters")
    if any(config.get(key) for key in special) or config.get("bias", "none") != "none":
        return False
    return all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in tensors)


def _deltas(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], folder: Path) -> dict[str, _Delta]:
    """Return the deltas by module path."""
    found: dict[str, _Delta] = {}
    alpha = float(config["lora_alpha"])
    transposed = bool(config.get("fan_in_fan_out"))
    for name, a in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        stem = name.removesuffix(".lora_A.weight")
        b = tensors.get(f"{stem}.lora_B.weight")
        if b is None or a.ndim != 2 or b.ndim != 2 or b.shape[1] != a.shape[0]:
            raise BadModel(f"the adapter's {stem} lacks its other half, or the shapes differ", where=str(folder))
        rank = a.shape[0]
        scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
        found[stem.removeprefix(_PREFIX)] = _Delta(a, b, scale, transposed)
    if not found:
        raise BadModel("the adapter has no LoRA tensors", where=str(folder))
    return found


def _places(model_dir: Path, modules: set[str]) -> dict[str, tuple[str, str]]:
    """Return ``module -> (file, tensor name)`` for those that stand in the base's files under a name of their own.

    Checkpoints of bare models leave the first part of the path out (``h.0...`` for ``transformer.h.0...``).
    """
    found: dict[str, tuple[str, str]] = {}
    for file in weight_files(model_dir):
        names = {tensor.name for tensor in read_safetensors(file)}
        for module in modules:
            for key in (f"{module}.weight", f"{module.partition('.')[2]}.weight"):
                if key in names:
                    found[module] = (file.name, key)
                    break
    return found


@contextmanager
def _tensor_bytes(file: Path, key: str) -> Iterator[tuple[torch.Tensor, Any]]:
    """Give one tensor of a safetensors file and a function that writes it back in place."""
    with file.open("r+b") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        entry = json.loads(stream.read(length))[key]
        begin = 8 + length + entry["data_offsets"][0]
        with safe_open(file, framework="pt") as opened:
            weight: torch.Tensor = opened.get_tensor(key).clone()
        if weight.dtype != _DTYPES.get(entry["dtype"]):
            raise BadModel(f"{key} is stored as {entry['dtype']}, which cannot be merged into", where=str(file))

        def write(merged: torch.Tensor) -> None:
            stream.seek(begin)
            stream.write(merged.contiguous().view(torch.uint8).numpy().data)

        yield weight, write


def _merge_with_peft(model_dir: Path, adapter_dir: Path, out_dir: Path, count: int) -> int:
    """Load everything in fp32, let PEFT merge, save in the base's dtype."""
    from peft import PeftModel

    base = load_model(model_dir, torch.float32)
    stored = safetensors_in(model_dir)[0].dtype
    try:
        with quiet():
            merged = PeftModel.from_pretrained(base, str(adapter_dir)).merge_and_unload(safe_merge=True)
    except Exception as error:
        raise BadModel(f"PEFT cannot merge the adapter: {error}", where=str(adapter_dir)) from error
    out_dir.mkdir(parents=True, exist_ok=True)
    with quiet():
        merged.to(_DTYPES.get(stored, torch.float32)).save_pretrained(out_dir)
        load_tokenizer(model_dir).save_pretrained(out_dir)
    for path in model_dir.iterdir():
        if path.is_file() and not (out_dir / path.name).exists() and path.suffix != ".safetensors":
            shutil.copyfile(path, out_dir / path.name)
    return count
