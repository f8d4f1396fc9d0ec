"""Plug points: what is offered at one, by name; ours, and what other installed packages bring."""

import difflib
from collections.abc import Collection, Iterable
from importlib.metadata import entry_points
from typing import Protocol, TypeVar

from burnish.core.errors import FieldProblem


class Named(Protocol):
    """What is offered at a plug point."""

    @property
    def name(self) -> str:
        """What specs call it."""


Plug = TypeVar("Plug", bound=Named)


def plugged(kind: type[Plug], group: str, ours: Iterable[Plug]) -> dict[str, Plug]:
    """Return by name what is offered: by entry points of ``group``, and ours, which cannot be replaced by another's.

    Raises:
        TypeError: an entry point is of another kind.
    """
    found: dict[str, Plug] = {}
    for entry in entry_points(group=group):
        loaded = entry.load()
        if not isinstance(loaded, kind):
            raise TypeError(f"the entry point {entry.name} of {group} is not a {kind.__name__}")
        found[loaded.name] = loaded
    return found | {one.name: one for one in ours}


def none_called(field: str, name: str, known: Collection[str]) -> FieldProblem:
    """Return the problem of a spec whose ``field`` names nothing that is known; its hint names what is."""
    hint = did_you_mean(name, known, f"there are {', '.join(sorted(known))}")
    return FieldProblem(where=f"spec.{field}", message=f"no {field} is called {name!r}", hint=hint)


def did_you_mean(name: str, known: Collection[str], there_are: str) -> str:
    """Return the hint to a name that is not known: the known one that is close, if any, and ``there_are``."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? {there_are}" if near else there_are
