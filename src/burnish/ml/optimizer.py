"""AdamW over one flat buffer: clipping, the update and a checkpoint are a few operations, whatever the layer count."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn


class FlatAdamW:
    """AdamW (Loshchilov and Hutter, 2019) on float32 parameters that become views of one buffer.

    Gradients accumulate into views of one buffer, too. Parameters with one dimension (biases, norms) do not decay.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], *, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
    ) -> None:  # fmt: skip
        # Those that decay come first, so that decay is one operation on a slice.
        ordered = sorted(parameters, key=lambda parameter: parameter.ndim < 2)
        device = ordered[0].device
        self._count = sum(parameter.numel() for parameter in ordered)
        self._decaying = sum(parameter.numel() for parameter in ordered if parameter.ndim >= 2)
        self._weight_decay = weight_decay
        self._betas = betas
        self._epsilon = epsilon
        self.values = torch.empty(self._count, device=device)
        self.gradient = torch.zeros(self._count, device=device)
        self.first = torch.zeros(self._count, device=device)
        self.second = torch.zeros(self._count, device=device)
        self.updates = 0
        at = 0
        for parameter in ordered:
            end = at + parameter.numel()
            self.values[at:end].copy_(parameter.detach().reshape(-1))
            parameter.data = self.values[at:end].view(parameter.shape)
            parameter.grad = self.gradient[at:end].view(parameter.shape)
            at = end

    def clip(self, limit: float) -> float:
        """Scale the gradient to a norm of at most ``limit``; return the norm that it had."""
        norm = float(torch.linalg.vector_norm(self.gradient))
        if math.isfinite(norm) and norm > limit:
            self.gradient.mul_(limit / (norm + 1e-6))
        return norm

    @torch.no_grad()
    def update(self, learning_rate: float) -> None:
        """Take one step, then zero the gradient."""
        self.updates += 1
        one, two = self._betas
        if self._weight_decay:
            self.values[: self._decaying].mul_(1 - learning_rate * self._weight_decay)
        self.first.lerp_(self.gradient, 1 - one)
        self.second.mul_(two).addcmul_(self.gradient, self.gradient, value=1 - two)
        scale = math.sqrt(1 - two**self.updates)
        divisor = self.second.sqrt().div_(scale).add_(self._epsilon)
        self.values.addcdiv_(self.first, divisor, value=-learning_rate / (1 - one**self.updates))
        self.gradient.zero_()

    def state(self) -> dict[str, torch.Tensor]:
        """Return the tensors that a checkpoint keeps, values included."""
        return {"values": self.values, "first": self.first, "second": self.second}

    def restore(self, state: dict[str, torch.Tensor], updates: int) -> None:
        """Take up a checkpoint's tensors."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.updates = updates


def learning_rate_at(
    step: int, total: int, peak: float, schedule: Literal["constant", "linear", "cosine"], warmup: float
) -> float:
    """Return the learning rate of a step (from 1): a linear rise over ``warmup * total`` steps, then the schedule's fall."""
    rising = math.ceil(warmup * total)
    if step <= rising:
        return peak * step / rising
    if schedule == "constant":
        return peak
    done = (step - 1 - rising) / max(1, total - rising)
    return peak * (1 - done) if schedule == "linear" else peak * 0.5 * (1 + math.cos(math.pi * done))
