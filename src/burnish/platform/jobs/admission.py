"""Which queued jobs start now, and in words why the others wait. Pure: no clock, no database.

Priority, then first come first served. A job that does not fit lets smaller ones behind it pass, but only for so
long: once it has waited ``patience_seconds`` at the head, what it lacks is reserved for it, so that no stream of small
jobs starves a big one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from burnish.core.specs.base import Resources

PATIENCE_SECONDS = 30.0
_DIMENSIONS = ("cpus", "memory_bytes", "gpus", "disk_bytes")


@dataclass(frozen=True)
class Capacity:
    """What a node has, or has left."""

    cpus: int
    memory_bytes: int
    gpus: int = 0
    disk_bytes: int = 0

    def less(self, need: Resources) -> "Capacity":
        """Return what is left when ``need`` is taken; may be negative."""
        return Capacity(
            self.cpus - need.cpus, self.memory_bytes - need.memory_bytes,
            self.gpus - need.gpus, self.disk_bytes - need.disk_bytes,
        )  # fmt: skip

    def lacking(self, need: Resources) -> list[str]:
        """Return the dimensions in which ``need`` does not fit."""
        return [name for name in _DIMENSIONS if getattr(need, name) > max(0, getattr(self, name))]


@dataclass(frozen=True)
class Waiting:
    """A queued job, in the queue's order."""

    job_id: str
    need: Resources
    waited_seconds: float


@dataclass(frozen=True)
class Holding:
    """A job or claim that holds resources."""

    owner_id: str
    need: Resources


@dataclass(frozen=True)
class Admission:
    """What to do: ids to start in this order, and the reasons of those that wait."""

    start: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)


def admit(
    queue: Sequence[Waiting], holding: Sequence[Holding], node: Capacity, patience_seconds: float = PATIENCE_SECONDS
) -> Admission:
    """Decide about the whole queue (sorted: priority, then time)."""
    free = node
    for holder in holding:
        free = free.less(holder.need)
    held = list(holding)
    reserved: list[Waiting] = []
    start: list[str] = []
    reasons: dict[str, str] = {}
    for job in queue:
        if lacking := free.lacking(job.need):
            reasons[job.job_id] = _reason(lacking, job.need, free, node, held)
            if job.waited_seconds >= patience_seconds and not node.lacking(job.need):
                reserved.append(job)
        elif blocker := next((head for head in reserved if _delays(job.need, head.need, free)), None):
            reasons[job.job_id] = f"waits its turn: {blocker.job_id} came first and what it needs is kept for it"
        else:
            start.append(job.job_id)
            free = free.less(job.need)
            held.append(Holding(job.job_id, job.need))
    return Admission(tuple(start), reasons)


def never_fits(need: Resources, nodes: Sequence[Capacity]) -> list[tuple[str, str, str]]:
    """Return ``(dimension, message, hint)`` for what no node could ever give; empty if some node could."""
    if not nodes or any(not _lasting(node.lacking(need)) for node in nodes):
        return []
    best = max(nodes, key=lambda node: (-len(node.lacking(need)), node.cpus, node.memory_bytes))
    return [
        (
            name,
            f"asks for {_amount(name, getattr(need, name))}; the largest node has {_amount(name, getattr(best, name))}",
            "ask for less, or run the server on a larger machine (BURNISH_CPUS and BURNISH_MEMORY_BYTES limit it)",
        )
        for name in _lasting(best.lacking(need))
    ]


def _lasting(lacking: list[str]) -> list[str]:
    """Disk can be freed; the rest of a machine does not grow by waiting."""
    return [name for name in lacking if name != "disk_bytes"]


def _delays(need: Resources, head: Resources, free: Capacity) -> bool:
    """Tell whether starting ``need`` takes something that ``head`` waits for, or will need."""
    return any(
        getattr(need, name) > 0 and getattr(free, name) - getattr(need, name) < getattr(head, name)
        for name in _DIMENSIONS
        if getattr(head, name) > 0
    )


def _reason(lacking: list[str], need: Resources, free: Capacity, node: Capacity, held: Sequence[Holding]) -> str:
    if impossible := node.lacking(need):
        parts = [
            f"{_amount(name, getattr(need, name))} (the node has {_amount(name, getattr(node, name))})"
            for name in impossible
        ]
        return f"needs {' and '.join(parts)}"
    name = lacking[0]
    wants = " and ".join(_amount(one, getattr(need, one)) for one in lacking)
    holders = sorted((h for h in held if getattr(h.need, name) > 0), key=lambda h: -int(getattr(h.need, name)))
    who = ", ".join(
        f"{holder.owner_id} holds {_amount(name, getattr(holder.need, name), short=True)}" for holder in holders[:3]
    )
    more = f" and {len(holders) - 3} more" if len(holders) > 3 else ""
    return (
        f"waits for {wants}; {who}{more}"
        if who
        else f"waits for {wants}; {_amount(name, max(0, getattr(free, name)))} is free"
    )


def _amount(name: str, value: int, *, short: bool = False) -> str:
    if name in ("cpus", "gpus"):
        return f"{value}" if short else f"{value} {name[:-1] if value == 1 else name}"
    unit = f"{value / (1 << 30):.1f} GiB" if value >= 1 << 30 else f"{value / (1 << 20):.0f} MiB"
    return unit if short else f"{unit} of {'memory' if name == 'memory_bytes' else 'disk'}"
