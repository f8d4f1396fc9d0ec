"""RMSNorm with a frozen weight as one autograd node: it keeps its input alone, and computes the rest again.

Transformers' own spells it in operations that each keep float32 tensors for the backward pass: at 135M weights they
are a tenth of a training step's memory.
"""

from typing import Any

import torch
from torch import nn

_SAME = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "Phi3RMSNorm")
"""Classes that compute ``weight * (x / rms(x))``, the quotient in float32 and rounded before the product."""


class FrozenRmsNorm(nn.Module):
    """What the classes in ``_SAME`` compute, with a weight that is not trained."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalized input, of the same shape and dtype."""
        y: torch.Tensor = _RmsNorm.apply(x, self.weight.detach(), self.epsilon)
        return y


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        wide = x.float()
        inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, inverse)
        return weight * (wide * inverse).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        grad = (grads[0] * weight).float()
        unit = x.float().mul_(inverse)
        along = (grad * unit).mean(-1, keepdim=True)
        return grad.sub_(unit.mul_(along)).mul_(inverse).to(x.dtype), None, None


def freeze_norms(model: nn.Module) -> int:
    """Replace the norms that :class:`FrozenRmsNorm` computes alike, where they are frozen; return how many."""
    found = [
        (name, module) for name, module in model.named_modules()
        if type(module).__name__ in _SAME and not module.weight.requires_grad
    ]  # fmt: skip
    for name, module in found:
        parent, _, own = name.rpartition(".")
        epsilon: Any = module.variance_epsilon
        weight: Any = module.weight
        setattr(model.get_submodule(parent), own, FrozenRmsNorm(weight, float(epsilon)))
    return len(found)
