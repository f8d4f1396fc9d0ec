"""LoRA: ``y = W x + (alpha / rank) B A x`` with ``A`` and ``B`` trained in float32 over a frozen base.

Saved in PEFT's format, so that plain PEFT (and llama.cpp's converter) loads it and computes the same.
Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from burnish.core.errors import BadModel, InvalidRequest

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
_PEFT_PREFIX = "base_model.model."


class LoraLinear(nn.Module):
    """A frozen linear layer with a trainable low-rank update beside it.

    Attributes:
        base: The layer as it was: ``nn.Linear``, Transformers' ``Conv1D``, or a quantized one.
        lora_a: float32 ``[rank, in]``
        lora_b: float32 ``[out, rank]``, zero at the start
        dropout: Share of the inputs that the update does not see, while ``dropping``
        dropping: Whether anything is dropped now
    """

    def __init__(
        self, base: nn.Module, rank: int, alpha: float, dropout: float, generator: torch.Generator, device: torch.device
    ) -> None:
        super().__init__()
        inputs, outputs = linear_shape(base)
        self.base = base
        self.scale = alpha / rank
        self.dropout = dropout
        self.dropping = dropout > 0
        start = torch.empty(rank, inputs)
        bound = 1 / math.sqrt(inputs)  # kaiming_uniform with a = sqrt(5), as PEFT draws it
        start.uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(start.to(device))
        self.lora_b = nn.Parameter(torch.zeros(outputs, rank, device=device))
        self._weight = _plain_weight(base)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output for ``x`` of ``[..., in]``."""
        if self._weight is not None and not self.dropping:
            bias: Any = self.base.bias
            # Shaped outside of the function: Falcon adds to the result in place, which a view made inside forbids.
            flat = x.reshape(-1, x.shape[-1])
            y: torch.Tensor = _LoraProduct.apply(flat, self._weight, bias, self.lora_a, self.lora_b, self.scale)
            return y.view(*x.shape[:-1], -1)
        base: torch.Tensor = self.base(x)
        dropped = F.dropout(x, self.dropout) if self.dropping else x
        down = F.linear(dropped, self.lora_a.to(x.dtype))
        return base + F.linear(down, (self.lora_b * self.scale).to(x.dtype))


class _LoraProduct(torch.autograd.Function):
    """Base product and update in one node: one saved input, no intermediate of the output's size."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, lora_a: torch.Tensor,
        lora_b: torch.Tensor, scale: float,
    ) -> torch.Tensor:  # fmt: skip
        a = lora_a.to(x.dtype)
        b = (lora_b * scale).to(x.dtype)
        down = x @ a.t()
        y = F.linear(x, weight, bias)
        y.addmm_(down, b.t())
        ctx.save_for_backward(x, weight, a, b, down)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, a, b, down = ctx.saved_tensors
        out = grads[0]
        inner = out @ b
        grad_a = (inner.t() @ x).float()
        grad_b = (out.t() @ down).float().mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (out @ weight).addmm_(inner, a)
        return grad_x, None, None, grad_a, grad_b, None


def _plain_weight(base: nn.Module) -> torch.Tensor | None:
    """Return the weight as ``[out, in]`` if the layer is an ordinary dense one."""
    weight = getattr(base, "weight", None)
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
        return None
    if isinstance(base, Conv1D):
        return weight.detach().t()
    # A subclass may compute something else; Falcon's only spells the same product otherwise.
    return weight.detach() if type(base).__name__ in ("Linear", "FalconLinear") else None


def linear_shape(layer: nn.Module) -> tuple[int, int]:
    """Return a linear layer's input and output sizes."""
    if isinstance(layer, Conv1D):
        return layer.weight.shape[0], layer.weight.shape[1]
    assert isinstance(layer, nn.Linear)
    return layer.in_features, layer.out_features


def find_targets(model: nn.Module, wanted: Literal["all-linear"] | Sequence[str]) -> list[str]:
    """Return the full names of the layers to adapt, in the model's order.

    ``all-linear`` is every linear layer but the output head, as in PEFT; otherwise the layers whose name is, or ends
    with, one of ``wanted``.

    Raises:
        InvalidRequest: a wanted name that no linear layer has; names those there are.
    """
    find_head: Any = getattr(model, "get_output_embeddings", None)
    head = find_head() if find_head is not None else None
    linear = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
    if wanted == "all-linear":
        return linear
    missing = [want for want in wanted if not any(_matches(name, want) for name in linear)]
    if missing:
        known = sorted({name.rpartition(".")[2] for name in linear})
        raise InvalidRequest(
            f"no linear layer is called {', '.join(missing)}",
            where="target_modules",
            hint=f"there are {', '.join(known)}",
        )
    return [name for name in linear if any(_matches(name, want) for want in wanted)]


def _matches(name: str, want: str) -> bool:
    return name == want or name.endswith("." + want)


def attach(
    model: nn.Module, targets: Sequence[str], *, rank: int, alpha: float, dropout: float, seed: int
) -> dict[str, LoraLinear]:
    """Freeze the model and put an adapter beside each target. Returns them by the name of the layer."""
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    adapters: dict[str, LoraLinear] = {}
    for name in targets:
        parent_name, _, own = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        base = getattr(parent, own)
        device = next(base.parameters()).device
        adapters[name] = LoraLinear(base, rank, alpha, dropout, generator, device)
        setattr(parent, own, adapters[name])
    return adapters


@contextmanager
def without_dropout(adapters: Mapping[str, LoraLinear]) -> Iterator[None]:
    """Compute with the whole adapters within this block; no random number is drawn."""
    for layer in adapters.values():
        layer.dropping = False
    try:
        yield
    finally:
        for layer in adapters.values():
            layer.dropping = layer.dropout > 0


def adapter_tensors(adapters: Mapping[str, LoraLinear]) -> dict[str, torch.Tensor]:
    """Return the adapter's tensors under PEFT's names."""
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in adapters.items():
        tensors[f"{_PEFT_PREFIX}{name}.lora_A.weight"] = layer.lora_a.detach().contiguous()
        tensors[f"{_PEFT_PREFIX}{name}.lora_B.weight"] = layer.lora_b.detach().contiguous()
    return tensors


def save_adapter(
    adapters: Mapping[str, LoraLinear], model: nn.Module, folder: Path, *, rank: int, alpha: float, dropout: float,
    base_name: str,
) -> None:  # fmt: skip
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``."""
    save_file(adapter_tensors(adapters), folder / ADAPTER_FILE, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_name, "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha, "lora_dropout": dropout, "bias": "none",
        "target_modules": _short_names(adapters, model), "inference_mode": True, "init_lora_weights": True,
        "fan_in_fan_out": any(isinstance(layer.base, Conv1D) for layer in adapters.values()),
    }  # fmt: skip
    (folder / ADAPTER_CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_adapter(adapters: Mapping[str, LoraLinear], folder: Path) -> None:
    """Fill adapters from a saved one.

    Raises:
        BadModel: it is of other layers or another rank.
    """
    saved = load_file(folder / ADAPTER_FILE)
    expected = adapter_tensors(adapters)
    if {n: t.shape for n, t in saved.items()} != {n: t.shape for n, t in expected.items()}:
        raise BadModel("the adapter does not fit the model", where=str(folder))
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(saved[name])


def _short_names(adapters: Mapping[str, LoraLinear], model: nn.Module) -> list[str]:
    """Return last parts of names where they mean exactly the adapted layers, else full names."""
    short = sorted({name.rpartition(".")[2] for name in adapters})
    meant = {
        name for name, module in model.named_modules()
        if name.rpartition(".")[2] in short and isinstance(module, LoraLinear | nn.Linear | Conv1D)
    }  # fmt: skip
    return short if meant == set(adapters) else sorted(adapters)
