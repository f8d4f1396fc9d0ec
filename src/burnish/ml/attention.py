"""Attention by batched matrix products, registered with Transformers' attention interface under :data:`NAME`.

On a CPU, the backward pass of PyTorch's fused bf16 attention is many times slower than plain products at training
lengths. Query heads that share a key head are folded into rows, so that keys are never repeated. The layout of
the tokens (a shared prefix once, then padded suffixes) comes from :func:`layout`, because the models in between
know only one flat sequence.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface

NAME = "burnish_products"


@dataclass(frozen=True)
class Layout:
    """How a flat sequence is made up: ``prefix`` tokens, then ``rows`` suffixes of ``width`` tokens."""

    prefix: int
    rows: int
    width: int
    masks: dict[tuple[int, int, int, int | None, torch.dtype], torch.Tensor] = field(
        default_factory=dict, compare=False
    )

    def mask(self, queries: int, offset: int, groups: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """Return ``[groups * queries, offset + queries]``: 0 where a query may look, -inf where not."""
        key = (queries, offset, groups, window, dtype)
        if key not in self.masks:
            at = torch.arange(offset, offset + queries)[:, None]
            to = torch.arange(offset + queries)[None, :]
            hidden = to > at if window is None else (to > at) | (to <= at - window)
            mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
            self.masks[key] = mask.repeat(groups, 1)
        return self.masks[key]


_current: ContextVar[Layout | None] = ContextVar("burnish_attention_layout", default=None)


@contextmanager
def layout(prefix: int, rows: int, width: int) -> Iterator[None]:
    """Tell attention, within this block, how the flat sequence is made up."""
    token = _current.set(Layout(prefix, rows, width))
    try:
        yield
    finally:
        _current.reset(token)


def products_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, scaling: float | None = None, dropout: float = 0.0,
    sliding_window: int | None = None, softcap: float | None = None, **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Causal attention over a flat sequence; the signature is Transformers'.

    Args:
        module: The attention layer, unused.
        query: ``[1, heads, tokens, size]``
        key: ``[1, key_heads, tokens, size]``
        value: As ``key``.
        attention_mask: None; the layout says who sees whom.
        scaling: Of the scores; ``size ** -0.5`` by default.
        dropout: Must be 0.
        sliding_window: Tokens a query looks back, itself included.
        softcap: Scores become ``cap * tanh(score / cap)``.
        kwargs: What other implementations take.

    Returns:
        ``[1, tokens, heads, size]`` and None.
    """
    made = _current.get()
    if made is None or attention_mask is not None or dropout or kwargs.get("s_aux") is not None:
        raise RuntimeError(f"{NAME} is for training within layout(), without mask, dropout or sinks")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    heads, key_heads, size = query.shape[1], key.shape[1], query.shape[-1]
    groups = heads // key_heads
    prefix, rows, width = made.prefix, made.rows, made.width
    query = (
        query[0].view(key_heads, groups, -1, size)
        if query[0].is_contiguous()
        else query[0].unflatten(0, (key_heads, groups))
    )
    key, value = key[0], value[0]
    outputs = []
    if prefix:
        own = query[:, :, :prefix].reshape(key_heads, groups * prefix, size)
        mask = made.mask(prefix, 0, groups, sliding_window, query.dtype)
        seen = _attend(own, key[:, :prefix], value[:, :prefix], mask, scale, softcap)
        outputs.append(seen.view(key_heads, groups, prefix, size).permute(2, 0, 1, 3))
    suffix = query[:, :, prefix:].unflatten(2, (rows, width)).permute(2, 0, 1, 3, 4)
    folded = suffix.reshape(rows * key_heads, groups * width, size)
    mask = made.mask(width, prefix, groups, sliding_window, query.dtype)
    seen = _attend(folded, _spread(key, made), _spread(value, made), mask, scale, softcap)
    seen = seen.view(rows, key_heads, groups, width, size).permute(0, 3, 1, 2, 4)
    outputs.append(seen.reshape(rows * width, key_heads, groups, size))
    whole = torch.cat(outputs) if prefix else outputs[0]
    return whole.reshape(1, -1, heads, size), None


def _spread(part: torch.Tensor, made: Layout) -> torch.Tensor:
    """From ``[key_heads, tokens, size]`` to ``[rows * key_heads, prefix + width, size]``: each row with the prefix."""
    key_heads, _, size = part.shape
    suffix = part[:, made.prefix :].unflatten(1, (made.rows, made.width)).permute(1, 0, 2, 3)
    if made.prefix:
        prefix = part[:, : made.prefix].unsqueeze(0).expand(made.rows, -1, -1, -1)
        suffix = torch.cat([prefix, suffix], dim=2)
    return suffix.reshape(made.rows * key_heads, made.prefix + made.width, size)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float, softcap: float | None
) -> torch.Tensor:
    """Return ``softmax(query key^T * scale + mask) value``; all ``[batch, rows, size]``, mask ``[query rows, key rows]``."""
    if softcap is None:
        scores = torch.baddbmm(mask.expand(query.shape[0], -1, -1), query, key.transpose(1, 2), alpha=scale)
    else:
        scores = torch.bmm(query, key.transpose(1, 2)) * scale
        scores = torch.tanh(scores / softcap) * softcap + mask
    return torch.bmm(torch.softmax(scores, dim=-1), value)


AttentionInterface.register(NAME, products_attention)
