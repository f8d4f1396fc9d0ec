"""Environments: named sets of values, of which each process is in one (``BURNISH_ENVIRONMENT``).

``development``, ``staging`` and ``production`` are always there; a file may say what holds in them, and add its own,
which may inherit from another: what holds there holds here, in the file and in the database, unless it is set here.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from burnish.core.errors import FieldProblem, NotFound
from burnish.platform.configuration.layers import Placed, nearest

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"


@dataclass(frozen=True)
class Environment:
    """One environment, as the file has it."""

    name: str
    inherits: str | None = None
    values: Mapping[str, Placed] = field(default_factory=dict)
    origin: str = "Burnish itself"


BUILT_IN: Mapping[str, Environment] = MappingProxyType(
    {name: Environment(name) for name in ("development", "staging", "production")}
)


def valid_name(name: str) -> bool:
    """Tell whether an environment can be called so."""
    return re.fullmatch(NAME_PATTERN, name) is not None


def problems_of(environments: Mapping[str, Environment]) -> Iterator[FieldProblem]:
    """Yield what is wrong with how environments inherit: a name that there is not, a circle."""
    reported: set[str] = set()
    for one in environments.values():
        path = [one.name]
        while (parent := environments[path[-1]].inherits) is not None:
            if parent not in environments:
                if path[-1] == one.name:
                    yield FieldProblem(
                        where=one.origin,
                        message=f"environment {one.name} inherits from {parent!r}, which there is not",
                        hint=_known(parent, environments),
                    )
                break
            if parent in path:
                circle = path[path.index(parent) :]
                if not reported & set(circle):
                    reported |= set(circle)
                    message = f"environments inherit in a circle: {' -> '.join([*circle, parent])}"
                    yield FieldProblem(where=environments[circle[0]].origin, message=message)
                break
            path.append(parent)


def find(environments: Mapping[str, Environment], name: str) -> Environment:
    """Return an environment.

    Raises:
        NotFound: there is none of that name; the hint has the nearest.
    """
    if name not in environments:
        raise NotFound(f"there is no environment {name[:100]!r}", where="environment", hint=_known(name, environments))
    return environments[name]


def _known(name: str, environments: Mapping[str, Environment]) -> str:
    near = nearest(name, environments)
    return f"did you mean {near}?" if near else f"there are: {', '.join(environments)}; a file may add others"
