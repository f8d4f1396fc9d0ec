"""Which instance gets a call. Pure: what is known of the instances in, one of them out.

First those that are well before those that are degraded; of these those that have what is asked for loaded (a model)
before the rest; of these two at random, and of the two the one whose next call costs less (the power of two choices:
M. Mitzenmacher, 2001). The cost grows with the calls in progress from here, with the load that it reports, and with its
latency (peak EWMA, as in Finagle: a slow answer counts at once, and is forgotten slowly). Costs that are about equal
are decided by where it runs (inside this process first), then by weight.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from burnish.platform.integrator.schemas import Instance

ABOUT_EQUAL = 1.5
"""Costs that differ by no more than this factor are noise."""
FORGET_SECONDS = 10.0
"""After so long without a call a latency counts for a third (1/e)."""
_LEAST_SECONDS = 0.001
_LEAST_WEIGHT = 1e-9
_SAMPLES = 8
"""So many instances are drawn until two are found that may be called; then all are looked through."""

Random = Callable[[], float]


class PeakLatency:
    """A moving average of latencies that follows a rise at once and a fall slowly."""

    __slots__ = ("_at", "_value")

    def __init__(self, seconds: float, now: float) -> None:
        self._value, self._at = seconds, now

    def observe(self, seconds: float, now: float) -> None:
        """Take a latency into account."""
        weight = math.exp(-max(0.0, now - self._at) / FORGET_SECONDS)
        self._value = seconds if seconds > self._value else self._value * weight + seconds * (1 - weight)
        self._at = now

    def value(self, now: float) -> float:
        """Return the average; it shrinks while nobody calls, so that a slow instance is tried again."""
        return self._value * math.exp(-max(0.0, now - self._at) / FORGET_SECONDS)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An instance with what is known of it here."""

    instance: Instance
    in_progress: int = 0
    latency: float | None = None
    """Seconds until its answers begin; None: it has not been called lately."""
    embedded: bool = False


@dataclass(frozen=True)
class OfType:
    """The instances of one type that may be called, in the groups in which they are asked."""

    healthy: tuple[Instance, ...] = ()
    degraded: tuple[Instance, ...] = ()
    known: tuple[Instance, ...] = ()
    """All of them, whatever their state."""

    def groups(self, prefer: str | None) -> Sequence[Sequence[Instance]]:
        """Return the groups, best first."""
        groups = []
        for group in (self.healthy, self.degraded):
            if prefer is not None and (warm := tuple(one for one in group if prefer in one.warm)):
                groups.append(warm)
            groups.append(group)
        return groups


def pick(
    of_type: OfType, prefer: str | None, may: Callable[[Instance], bool], look: Callable[[Instance], Candidate],
    random: Random,
) -> Instance | None:  # fmt: skip
    """Return the instance for a call, None if ``may`` allows none."""
    for group in of_type.groups(prefer):
        first, second = _two(group, may, random)
        if first is not None:
            return first if second is None else better(look(first), look(second), random).instance
    return None


def _two(
    group: Sequence[Instance], may: Callable[[Instance], bool], random: Random
) -> tuple[Instance | None, Instance | None]:
    """Return two different instances of a group at random, or those that there are."""
    size, found = len(group), dict[str, Instance]()
    if size == 1:
        return (group[0] if may(group[0]) else None), None
    if size > _SAMPLES:
        for _ in range(_SAMPLES):
            one = group[int(random() * size)]
            if one.weight > 0 and may(one):
                found[one.component_id] = one
                if len(found) == 2:
                    first, second = found.values()
                    return first, second
    start = int(random() * size) if size else 0
    rotated = (*group[start:], *group[:start])
    usable = [one for one in rotated if one.weight > 0 and may(one)] or [one for one in rotated if may(one)]
    if len(usable) < 2:
        return (usable[0] if usable else None), None
    if len(usable) == 2:
        return usable[0], usable[1]
    other = 1 + int(random() * (len(usable) - 1))
    return usable[0], usable[other]


def better(one: Candidate, other: Candidate, random: Random) -> Candidate:
    """Return the one of two whose next call costs less; about equal costs are decided by place, then by weight.

    One of less weight is chosen for its cost alone only if the call would not take it beyond its share: that it has
    nothing to do while the other has something does not make it cheaper.
    """
    known = [found.latency for found in (one, other) if found.latency is not None]
    unknown = min(known, default=_LEAST_SECONDS)
    heavier = max(one.instance.weight, other.instance.weight, _LEAST_WEIGHT)
    weight = max(one.instance.weight / heavier, _LEAST_WEIGHT)
    others_weight = max(other.instance.weight / heavier, _LEAST_WEIGHT)
    (cost, whole), (others, others_whole) = costs_of(one, weight, unknown), costs_of(other, others_weight, unknown)
    if cost > others_whole * ABOUT_EQUAL:
        return other
    if others > whole * ABOUT_EQUAL:
        return one
    if one.embedded != other.embedded:
        return one if one.embedded else other
    return one if random() * (weight + others_weight) < weight else other


def costs_of(candidate: Candidate, weight: float = 1.0, unknown: float = _LEAST_SECONDS) -> tuple[float, float]:
    """Return what the next call costs there: behind those in progress, and when it counts against the weight as they do.

    Args:
        candidate: the instance.
        weight: more than 0, at most 1: then both are the same.
        unknown: the latency of one that has not been called.
    """
    latency = candidate.latency if candidate.latency is not None else unknown
    each = max(latency, _LEAST_SECONDS) * (1 + candidate.instance.load)
    return (candidate.in_progress / weight + 1) * each, (candidate.in_progress + 1) / weight * each
