"""Which rows go where: deterministic, stable, by label, and with equal rows together. Pure functions over positions.

Rows are ordered by a hash of (seed, content). A part takes the first of that order, so adding rows to a dataset moves
few of the others, and a smaller part is a prefix of a larger one.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence


def shuffled(keys: Sequence[bytes], seed: int) -> list[int]:
    """Return the positions ordered by the hash of seed and key; equal keys stand together, in their own order."""
    salt = str(seed).encode()
    rank = {key: hashlib.blake2b(key, key=salt, digest_size=16).digest() for key in set(keys)}
    return sorted(range(len(keys)), key=lambda position: (rank[keys[position]], position))


def take(order: Sequence[int], labels: Sequence[str] | None, count: int, keys: Sequence[bytes]) -> list[int]:
    """Return about ``count`` positions from the front of ``order``, in that order.

    Args:
        order: Positions, equal keys together.
        labels: Label of every position, to keep the shares of the labels; None to ignore them.
        count: Positions wanted. Exact when no key stands twice; else groups of equal keys that would pass it are
            passed over, so the result may be a little smaller, and never larger unless the first group alone is.
        keys: Key of every position.
    """
    groups = _groups(order, keys)
    if count <= 0 or not groups:
        return []
    sizes: Counter[str] = Counter()
    for group in groups:
        sizes[labels[group[0]] if labels else ""] += len(group)
    wanted = apportion(sizes, count)
    taken: Counter[str] = Counter()
    chosen: list[int] = []
    for group in groups:
        label = labels[group[0]] if labels else ""
        if taken[label] + len(group) <= wanted[label]:
            taken[label] += len(group)
            chosen.extend(group)
    return chosen or list(groups[0])


def cap(order: Sequence[int], labels: Sequence[str] | None, most: int | None) -> list[int]:
    """Return at most ``most`` positions from the front of ``order``, keeping the shares of the labels."""
    if most is None or len(order) <= most:
        return list(order)
    sizes = Counter(labels[position] if labels else "" for position in order)
    left = apportion(sizes, most)
    chosen = []
    for position in order:
        label = labels[position] if labels else ""
        if left[label] > 0:
            left[label] -= 1
            chosen.append(position)
    return chosen


def apportion(sizes: Counter[str], count: int) -> dict[str, int]:
    """Share ``count`` among labels by their sizes (largest remainder); each of two rows or more gets one if it can be."""
    total = sum(sizes.values())
    count = min(count, total)
    exact = {label: count * size / total for label, size in sizes.items()}
    shares = {label: int(value) for label, value in exact.items()}
    by_remainder = sorted(sizes, key=lambda label: (shares[label] - exact[label], label))
    for label in by_remainder[: count - sum(shares.values())]:
        shares[label] += 1
    for label in sorted(sizes):
        richest = max(sorted(shares), key=lambda other: shares[other])
        if shares[label] == 0 and sizes[label] > 1 and shares[richest] > 1:
            shares[label] += 1
            shares[richest] -= 1
    return shares


def part_size(total: int, share: float) -> int:
    """Return how many of ``total`` rows a share is: rounded, at least one if any is asked for, never all."""
    return 0 if share <= 0 else min(max(1, round(total * share)), max(0, total - 1))


def _groups(order: Sequence[int], keys: Sequence[bytes]) -> list[list[int]]:
    groups: list[list[int]] = []
    for position in order:
        if groups and keys[groups[-1][0]] == keys[position]:
            groups[-1].append(position)
        else:
            groups.append([position])
    return groups
