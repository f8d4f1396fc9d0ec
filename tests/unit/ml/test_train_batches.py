"""The order of data, micro-batches and the optimizer, as pure things."""

import itertools
from array import array

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.ml.batches import DataOrder, lay_out, micro_batches, plan_epoch
from burnish.ml.optimizer import FlatAdamW, learning_rate_at
from burnish.ml.text import Example


@given(st.lists(st.integers(1, 300), min_size=1, max_size=200), st.integers(1, 17), st.integers(0, 5))
def test_an_epoch_has_each_example_once(lengths: list[int], batch_size: int, epoch: int) -> None:
    plan = plan_epoch(lengths, batch_size, 7, epoch)
    assert sorted(itertools.chain.from_iterable(plan)) == list(range(len(lengths)))
    assert len(plan) <= -(-len(lengths) // batch_size) + len(lengths) // (batch_size * 32)
    assert plan == plan_epoch(lengths, batch_size, 7, epoch)


def test_batches_have_like_lengths_and_epochs_differ() -> None:
    lengths = [at * 37 % 101 for at in range(256)]
    plan = plan_epoch(lengths, 8, 0, 0)
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in plan)
    assert padded < 1.1 * sum(lengths)
    assert plan != plan_epoch(lengths, 8, 0, 1)
    assert plan != plan_epoch(lengths, 8, 1, 0)


def test_the_order_does_not_depend_on_where_one_stops() -> None:
    lengths = list(range(10, 33))
    whole, halves = DataOrder(lengths, 4, 0), DataOrder(lengths, 4, 0)
    expected = list(whole.until(15))
    assert [step for step, _ in expected] == list(range(1, 16))
    assert list(halves.until(7)) + list(halves.until(15)) == expected
    assert halves.digest == whole.digest
    assert DataOrder(lengths, 4, 1).digest == DataOrder(lengths, 4, 0).digest  # nothing seen yet
    assert whole.steps_an_epoch == 6


_EXAMPLES = st.lists(
    st.tuples(st.lists(st.integers(10, 20), min_size=1, max_size=30), st.lists(st.integers(10, 20), min_size=1, max_size=5)),
    min_size=1, max_size=12,
)  # fmt: skip


@settings(deadline=None)
@given(_EXAMPLES, st.integers(0, 12), st.integers(16, 400), st.booleans())
def test_micro_batches_keep_every_target_with_its_context(
    parts: list[tuple[list[int], list[int]]], shared: int, budget: int, share: bool
) -> None:
    common = [5] * shared
    batch = [
        Example(row, array("i", (*common, *p, *c)), len(common) + len(p)) for row, (p, c) in enumerate(parts, start=1)
    ]
    seen: dict[int, list[int]] = {}
    for micro in micro_batches(batch, token_budget=budget, pad=0, limit=1000, share_prefix=share):
        assert len(micro.ids) == micro.prefix + micro.rows * micro.width
        assert micro.rows == 1 or len(micro.ids) <= budget
        padded = micro.padded_ids
        for at, example in enumerate(micro.examples):
            assert padded[at, : len(example.ids)].tolist() == list(example.ids)
        columns = micro.prefix + micro.width
        for owner, target, flat, place in zip(
            micro.owners.tolist(), micro.targets.tolist(), micro.predictors.tolist(), micro.padded_predictors.tolist(),
            strict=True,
        ):  # fmt: skip
            example = micro.examples[owner]
            row, column = divmod(place, columns)
            assert row == owner
            assert int(micro.positions[flat]) == column
            assert example.ids[column + 1] == target
            assert int(micro.ids[flat]) == example.ids[column]
            seen.setdefault(example.row, []).append(target)
    assert seen == {example.row: list(example.ids[example.start :]) for example in batch}


def test_a_shared_prefix_never_takes_the_token_that_predicts_the_first_target() -> None:
    batch = [Example(row, array("i", [*range(1, 10), 9 + row]), 9) for row in (1, 2)]
    (micro,) = micro_batches(batch, token_budget=100, pad=0, limit=100, share_prefix=True)
    assert micro.prefix == 8


def test_padding_stays_inside_the_positions_of_the_model() -> None:
    micro = lay_out([Example(1, array("i", range(10)), 5)], 0, 0, 11)
    assert micro.width == 11


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_flat_optimizer_is_adamw(decay: float) -> None:
    torch.manual_seed(0)
    ours = [
        torch.nn.Parameter(torch.randn(4, 3)),
        torch.nn.Parameter(torch.randn(5)),
        torch.nn.Parameter(torch.randn(2, 2)),
    ]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    groups = [
        {"params": [p for p in theirs if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in theirs if p.ndim < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=0.01)
    flat = FlatAdamW(ours, weight_decay=decay)
    for _ in range(20):
        grads = [torch.randn_like(p) for p in ours]
        for mine, other, grad in zip(ours, theirs, grads, strict=True):
            assert mine.grad is not None
            mine.grad.add_(grad)
            other.grad = grad.clone()
        norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        assert flat.clip(1.0) == pytest.approx(float(norm), rel=1e-5)
        reference.step()
        flat.update(0.01)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.detach(), other.detach(), atol=1e-6, rtol=1e-5)


def test_schedules() -> None:
    linear = [learning_rate_at(step, 10, 1.0, "linear", 0.2) for step in range(1, 11)]
    assert linear[:3] == [0.5, 1.0, 1.0]
    assert linear == sorted(linear[:2]) + sorted(linear[2:], reverse=True)
    assert linear[-1] == pytest.approx(0.125)
    assert learning_rate_at(3, 10, 1.0, "constant", 0) == 1.0
    assert learning_rate_at(6, 10, 1.0, "cosine", 0) == pytest.approx(0.5)
    assert learning_rate_at(1, 1, 1.0, "linear", 0.5) == 1.0
