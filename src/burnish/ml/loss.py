"""Losses of supervised tokens, with logits computed only where they are supervised."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone knows
from transformers import PreTrainedModel

from burnish.ml import attention
from burnish.ml.batches import MicroBatch, lay_out
from burnish.ml.text import Example

_LONGEST_FLAT = 1024
"""Beyond this the score matrices of plain products cost more memory than they save time."""


def token_losses(model: PreTrainedModel, micro: MicroBatch, *, flat: bool, autocast: bool = False) -> torch.Tensor:
    """Return the cross-entropy of each supervised token.

    Args:
        model: A causal language model; ``flat`` needs :func:`use_flat`.
        micro: What to compute.
        flat: One sequence with a shared prefix, or an ordinary padded batch.
        autocast: Multiply in bfloat16 with float32 weights.

    Returns:
        float32 ``[supervised]``, in the order of ``micro.targets``.
    """
    device = next(model.parameters()).device
    cast: AbstractContextManager[object] = torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext()
    with cast:
        logits = _flat_logits(model, micro) if flat else _padded_logits(model, micro, device)
    return F.cross_entropy(logits.float(), micro.targets.to(device), reduction="none")


def _flat_logits(model: PreTrainedModel, micro: MicroBatch) -> torch.Tensor:
    with attention.layout(micro.prefix, micro.rows, micro.width):
        output = model(
            input_ids=micro.ids[None], position_ids=micro.positions[None], logits_to_keep=micro.predictors,
            use_cache=False,
        )  # fmt: skip
    logits: torch.Tensor = output.logits[0]
    return logits


def _padded_logits(model: PreTrainedModel, micro: MicroBatch, device: torch.device) -> torch.Tensor:
    ids = micro.padded_ids.to(device)
    rows, columns = micro.padded_predictors // ids.shape[1], micro.padded_predictors % ids.shape[1]
    kept, places = torch.unique(columns, return_inverse=True)
    output = model(input_ids=ids, logits_to_keep=kept.to(device), use_cache=False)
    logits: torch.Tensor = output.logits[rows.to(device), places.to(device)]
    return logits


def use_flat(model: PreTrainedModel, examples: list[Example], pad: int, limit: int) -> bool:
    """Switch the model to flat sequences if it computes the same with them; tell whether it does.

    Models whose attention does not go through Transformers' interface, or whose layers mix tokens in other ways, keep
    the ordinary path: two of the examples at hand decide it.
    """
    device = next(model.parameters()).device
    longest = max(len(example.ids) for example in examples)
    if device.type != "cpu" or longest > _LONGEST_FLAT or not getattr(model, "_supports_attention_backend", False):
        return False
    shortest = sorted(examples, key=lambda example: len(example.ids))[:2]
    probe = lay_out(shortest, _shared(shortest), pad, limit)
    before = model.config._attn_implementation
    with torch.no_grad():
        expected = token_losses(model, probe, flat=False)
        model.set_attn_implementation(attention.NAME)
        found = token_losses(model, probe, flat=True)
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.15
    if torch.allclose(found, expected, atol=tolerance, rtol=tolerance):
        return True
    model.set_attn_implementation(before)
    return False


def _shared(examples: list[Example]) -> int:
    """Return how many first tokens the probe's examples share, short of what is supervised."""
    shared = 0
    for tokens in zip(*(example.ids for example in examples), strict=False):
        if len(set(tokens)) > 1:
            break
        shared += 1
    return min(shared, *(example.start - 1 for example in examples))
