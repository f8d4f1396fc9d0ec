"""The definitions that come with Burnish, by name."""

from collections.abc import Mapping
from functools import lru_cache
from importlib import resources

from burnish.core.errors import NotFound
from burnish.platform.workflow.definition import Definition, nearest, read


@lru_cache(maxsize=1)
def definitions() -> Mapping[str, Definition]:
    """Return every definition in this package's folder ``definitions``."""
    folder = resources.files(__package__) / "definitions"
    texts = sorted(path.read_text("utf-8") for path in folder.iterdir() if path.name.endswith(".yaml"))
    return {definition.name: definition for definition in map(read, texts)}


def definition_named(name: str) -> Definition:
    """Return the definition of this name.

    Raises:
        NotFound: there is none; the hint names the nearest.
    """
    found = definitions().get(name)
    if found is None:
        raise NotFound(f"no definition is named {name!r}", where="workflow_type", hint=nearest(name, definitions()))
    return found
