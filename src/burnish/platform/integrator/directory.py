"""Everything that a process knows of the instances at one moment: an immutable snapshot with its indexes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from burnish.core.protocol import Description, KindOffer
from burnish.core.states import InstanceState
from burnish.platform.integrator.balancing import OfType
from burnish.platform.integrator.schemas import Instance

_CALLABLE = frozenset({InstanceState.HEALTHY, InstanceState.DEGRADED})
_GONE = frozenset({InstanceState.LOST, InstanceState.DRAINING})


@dataclass(frozen=True)
class Directory:
    """The instances, and the tables by which a call is routed without looking through them."""

    instances: Mapping[str, Instance] = field(default_factory=dict)
    by_type: Mapping[str, OfType] = field(default_factory=dict)
    prefixes: Mapping[str, str] = field(default_factory=dict)
    """The type that serves the paths below a prefix."""
    kinds: Mapping[tuple[str, str], KindOffer] = field(default_factory=dict)
    types: frozenset[str] = frozenset()
    ours: frozenset[str] = frozenset()
    """The ids of those inside processes of Burnish's own."""

    @classmethod
    def of(cls, instances: Iterable[Instance]) -> "Directory":
        """Index instances."""
        every = {one.component_id: one for one in instances}
        grouped: dict[str, list[Instance]] = {}
        for one in every.values():
            grouped.setdefault(one.component_type, []).append(one)
        prefixes: dict[str, str] = {}
        kinds: dict[tuple[str, str], KindOffer] = {}
        for component_type, found in grouped.items():
            for description in _distinct(one for one in found if one.status not in _GONE):
                kinds.update({(component_type, offer.name): offer for offer in description.kinds})
            for description in _distinct(found):
                prefixes.update({prefix.rstrip("/"): component_type for prefix in description.routes})
        return cls(
            instances=every, by_type={name: _of_type(found) for name, found in grouped.items()}, prefixes=prefixes,
            kinds=kinds, types=frozenset(one.component_type for one in every.values() if one.status not in _GONE),
            ours=frozenset(one.component_id for one in every.values() if one.ours),
        )  # fmt: skip

    def route_of(self, path: str) -> str | None:
        """Return the type that serves a path: that of the longest prefix."""
        end = len(path)
        while end > 0:
            if (found := self.prefixes.get(path[:end])) is not None:
                return found
            end = path.rfind("/", 0, end)
        return None


def _distinct(found: Iterable[Instance]) -> list[Description]:
    """Return each description once; many instances share one."""
    return list({id(one.description): one.description for one in found if one.description is not None}.values())


def _of_type(found: list[Instance]) -> OfType:
    """Group them: one whose last health check failed is not called healthy, though its state may still be."""
    usable = [one for one in found if one.description is not None and one.status in _CALLABLE]
    well = {one.component_id for one in usable if one.status is InstanceState.HEALTHY and not one.failures}
    return OfType(
        healthy=tuple(one for one in usable if one.component_id in well),
        degraded=tuple(one for one in usable if one.component_id not in well), known=tuple(found),
    )  # fmt: skip
