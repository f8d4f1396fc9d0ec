"""The order in which examples are seen, and how a batch is cut into micro-batches. Pure functions of lengths and seed."""

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from burnish.ml.text import Example

_BUCKET_BATCHES = 32
_ROUND_TO = 8
_LEAST_PREFIX = 8


def plan_epoch(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return one epoch's batches of example indices, each index once, examples of like length together.

    Examples are shuffled, sorted by length within runs of 32 batches, cut into batches, and the batches shuffled:
    padding is small and the order is still random. The same arguments give the same plan on every machine.
    """
    draw = random.Random(f"{seed}:{epoch}")  # noqa: S311 - an order, not a secret
    order = list(range(len(lengths)))
    draw.shuffle(order)
    batches: list[list[int]] = []
    run = batch_size * _BUCKET_BATCHES
    for first in range(0, len(order), run):
        bucket = sorted(order[first : first + run], key=lambda index: lengths[index])
        batches.extend(bucket[at : at + batch_size] for at in range(0, len(bucket), batch_size))
    draw.shuffle(batches)
    return batches


class DataOrder:
    """A cursor over all steps' batches, epoch after epoch, with a running hash of what was seen."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.steps_an_epoch = -(-len(lengths) // batch_size)
        self.step = 0
        """Steps whose batches were given out."""
        self._hash = hashlib.sha256()
        self._endless = (
            batch for epoch in itertools.count() for batch in plan_epoch(tuple(lengths), batch_size, seed, epoch)
        )

    def until(self, last_step: int) -> Iterator[tuple[int, list[int]]]:
        """Yield ``(step, indices)`` for the steps from here to ``last_step`` (steps count from 1)."""
        while self.step < last_step:
            indices = next(self._endless)
            self.step += 1
            self._hash.update((",".join(map(str, indices)) + ";").encode())
            yield self.step, indices

    @property
    def digest(self) -> str:
        """Hash of the order of all examples seen so far."""
        return "sha256:" + self._hash.hexdigest()


@dataclass(frozen=True)
class MicroBatch:
    """Some examples of a batch, laid out for one forward pass.

    The first ``prefix`` tokens, equal in all rows, stand once; ``rows`` suffixes of ``width`` tokens follow, padded on
    the right. With ``prefix`` 0 this is an ordinary padded batch. Right padding needs no mask under causal attention.
    """

    examples: tuple[Example, ...]
    prefix: int
    width: int
    ids: torch.Tensor
    """int64 ``[prefix + rows * width]``"""
    positions: torch.Tensor
    """int64, like ``ids``: the position of each token in its own example"""
    predictors: torch.Tensor
    """int64 ``[supervised]``: index of the token whose output predicts each target"""
    targets: torch.Tensor
    """int64 ``[supervised]``"""
    owners: torch.Tensor
    """int64 ``[supervised]``: index into ``examples``"""

    @property
    def rows(self) -> int:
        """Number of examples."""
        return len(self.examples)

    @property
    def padded_ids(self) -> torch.Tensor:
        """int64 ``[rows, prefix + width]``: the same tokens with the prefix in every row."""
        suffixes = self.ids[self.prefix :].view(self.rows, self.width)
        return torch.cat([self.ids[: self.prefix].expand(self.rows, -1), suffixes], dim=1)

    @property
    def padded_predictors(self) -> torch.Tensor:
        """int64 ``[supervised]``: :attr:`predictors` as indices into ``padded_ids`` flattened."""
        inside = self.predictors - self.prefix
        return inside // self.width * (self.prefix + self.width) + self.prefix + inside % self.width


def micro_batches(
    batch: Sequence[Example], *, token_budget: int, pad: int, limit: int, share_prefix: bool
) -> list[MicroBatch]:
    """Cut a batch into micro-batches of at most about ``token_budget`` computed tokens (at least one example each).

    Args:
        batch: The examples of one optimizer step.
        token_budget: Tokens of a forward pass, padding included.
        pad: Padding token.
        limit: Longest position the model has; padding never goes past it.
        share_prefix: Compute a common beginning once.
    """
    ordered = sorted(batch, key=lambda example: len(example.ids))
    prefix = _common_prefix(ordered) if share_prefix and len(ordered) > 1 else 0
    cut: list[MicroBatch] = []
    held: list[Example] = []
    for example in ordered:
        width = _width(len(example.ids), prefix, limit)
        if held and prefix + (len(held) + 1) * width > token_budget:
            cut.append(lay_out(held, prefix, pad, limit))
            held = []
        held.append(example)
    cut.append(lay_out(held, prefix, pad, limit))
    return cut


def lay_out(examples: Sequence[Example], prefix: int, pad: int, limit: int) -> MicroBatch:
    """Return a micro-batch of these examples, whose first ``prefix`` tokens are equal and not supervised."""
    if len(examples) == 1:
        prefix = 0
    width = _width(max(len(example.ids) for example in examples), prefix, limit)
    ids = list(examples[0].ids[:prefix])
    predictors: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for row, example in enumerate(examples):
        suffix = example.ids[prefix:]
        first = prefix + row * width
        ids.extend(suffix)
        ids.extend([pad] * (width - len(suffix)))
        predictors.extend(range(first + example.start - prefix - 1, first + len(suffix) - 1))
        targets.extend(example.ids[example.start :])
        owners.extend([row] * example.supervised)
    inner = torch.arange(prefix, prefix + width).repeat(len(examples))
    return MicroBatch(
        examples=tuple(examples), prefix=prefix, width=width, ids=torch.tensor(ids),
        positions=torch.cat([torch.arange(prefix), inner]), predictors=torch.tensor(predictors),
        targets=torch.tensor(targets), owners=torch.tensor(owners),
    )  # fmt: skip


def _width(length: int, prefix: int, limit: int) -> int:
    """Round up to a multiple of 8: few shapes keep the allocator from growing with each new one."""
    return min(-(-(length - prefix) // _ROUND_TO) * _ROUND_TO, max(limit, length) - prefix)


def _common_prefix(examples: Sequence[Example]) -> int:
    """Return how many first tokens all share, leaving each row the token that predicts its first target."""
    low, high = min(e.ids for e in examples), max(e.ids for e in examples)
    shared = next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    shared = min(shared, min(e.start for e in examples) - 1)
    return shared if shared >= _LEAST_PREFIX else 0
