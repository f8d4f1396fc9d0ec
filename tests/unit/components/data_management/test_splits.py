"""Properties of splits over random datasets."""

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from burnish.components.data_management.splits import apportion, cap, part_size, shuffled, take

KEYS = st.lists(st.integers(0, 200).map(lambda number: str(number).encode()), min_size=1, max_size=200)
SIZES = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 500), min_size=1)


@given(KEYS, st.integers())
def test_an_order_is_a_permutation_with_equal_keys_together(keys: list[bytes], seed: int) -> None:
    order = shuffled(keys, seed)
    assert sorted(order) == list(range(len(keys)))
    seen = [keys[position] for position in order]
    changes = sum(one != other for one, other in itertools.pairwise(seen))
    assert changes == len(set(keys)) - 1


@given(KEYS, st.integers(0, 300), st.integers(), st.booleans())
def test_what_is_taken_leaves_no_equal_key_behind(keys: list[bytes], count: int, seed: int, stratify: bool) -> None:
    order = shuffled(keys, seed)
    labels = [str(len(key)) for key in keys] if stratify else None
    taken = take(order, labels, count, keys)
    assert len(taken) == len(set(taken))
    rest = set(order) - set(taken)
    assert not {keys[position] for position in taken} & {keys[position] for position in rest}
    assert bool(taken) == (count > 0)
    if len(set(keys)) == len(keys):
        assert len(taken) == min(count, len(keys))


@given(SIZES, st.integers(0, 3000))
def test_shares_sum_up_never_exceed_and_are_fair(sizes: dict[str, int], count: int) -> None:
    shares = apportion(Counter(sizes), count)
    total = sum(sizes.values())
    assert sum(shares.values()) == min(count, total)
    for label, size in sizes.items():
        assert 0 <= shares[label] <= size
        assert abs(shares[label] - min(count, total) * size / total) < 1 + len(sizes)


@given(KEYS, st.integers(1, 300))
def test_a_cap_takes_a_prefix_of_each_label(keys: list[bytes], most: int) -> None:
    labels = [str(len(key)) for key in keys]
    order = shuffled(keys, 0)
    kept = cap(order, labels, most)
    assert len(kept) == min(most, len(order))
    for label in set(labels):
        of_label = [position for position in order if labels[position] == label]
        chosen = [position for position in kept if labels[position] == label]
        assert chosen == of_label[: len(chosen)]


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_part_sizes(total: int, share: float) -> None:
    size = part_size(total, share)
    assert 0 <= size <= max(0, total - 1)
    assert (size == 0) == (share == 0 or total < 2)
