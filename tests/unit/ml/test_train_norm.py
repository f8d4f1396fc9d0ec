"""The frozen norm is Transformers' own, forward to the bit and backward to rounding."""

from pathlib import Path

import pytest
import torch

from burnish.ml import tiny
from burnish.ml.model import load_model
from burnish.ml.norm import FrozenRmsNorm, freeze_norms


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3", "phi3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_norms_compute_the_same(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = tiny.build(architecture, tmp_path)
    plain, frozen = load_model(folder, dtype), load_model(folder, dtype).requires_grad_(False)
    assert freeze_norms(frozen) == (9 if architecture == "qwen3" else 5)
    own, theirs = frozen.model.norm, plain.model.norm
    assert isinstance(own, FrozenRmsNorm)
    torch.manual_seed(0)
    x = torch.randn(3, 7, 32).to(dtype)
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    upstream = torch.randn(3, 7, 32).to(dtype)
    ours, reference = own(mine), theirs(other)
    assert torch.equal(ours, reference)
    ours.backward(upstream)
    reference.backward(upstream)
    assert mine.grad is not None
    torch.testing.assert_close(mine.grad, other.grad, atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=1e-2)


@pytest.mark.parametrize("architecture", ["gemma2", "olmo2", "gpt2"])
def test_other_norms_and_trained_ones_stay(architecture: str, tmp_path: Path) -> None:
    assert freeze_norms(load_model(tiny.build(architecture, tmp_path / "a"), "auto").requires_grad_(False)) == 0
    assert freeze_norms(load_model(tiny.build("llama", tmp_path / "b"), "auto")) == 0
