"""Which instance gets a call. Pure.

Healthy before degraded; inside this process before over the network; then the one with the least to do (calls in
progress from here, and the load that it reported), ties by id.
"""

from collections.abc import Iterable, Mapping, Set

from burnish.core.states import InstanceState
from burnish.platform.integrator.schemas import Instance

_USABLE = {InstanceState.HEALTHY: 0, InstanceState.DEGRADED: 1}


def order(
    instances: Iterable[Instance], in_progress: Mapping[str, int], embedded: Set[str], avoid: Set[str] = frozenset()
) -> list[Instance]:
    """Return the instances that may be called, best first. Those in ``avoid`` (just failed) come last."""
    usable = [one for one in instances if one.status in _USABLE and one.description is not None]

    def key(one: Instance) -> tuple[bool, int, bool, float, str]:
        busy = in_progress.get(one.component_id, 0) + one.load
        return (
            one.component_id in avoid,
            _USABLE[one.status],
            one.component_id not in embedded,
            busy,
            one.component_id,
        )

    return sorted(usable, key=key)
