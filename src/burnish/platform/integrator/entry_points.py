"""Components that installed Python packages offer: entry points of the group ``burnish.components``."""

import logging
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

log = logging.getLogger(__name__)

GROUP = "burnish.components"

Builder = Callable[[Any], Any]
"""Takes the process's JobRuntime and returns a Component; both are above this package."""


def component_builders() -> dict[str, Builder]:
    """Return what builds each offered component, by the entry point's name.

    One that cannot be loaded, is no callable, or bears a name that another has, is logged and left out.
    """
    found: dict[str, Builder] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda one: (one.name, one.value)):
        try:
            builder = point.load()
        except Exception:
            log.exception("the component %s (%s) cannot be loaded; it is left out", point.name, point.value)
            continue
        if not callable(builder):
            log.error("the component %s (%s) is no callable; it is left out", point.name, point.value)
        elif point.name in found:
            log.error("two packages offer a component %s; that of %s is left out", point.name, point.value)
        else:
            found[point.name] = builder
    return found
