"""The plug point for ways to compress: a method is one torch-free file with a :class:`Method`, named in the list below.

A method's ``run`` is called in a host as ``run(spec: CompressionSpec, context: JobContext) -> CompressionResult``.
Third parties offer theirs by entry points of the group ``burnish.methods``.
"""

from importlib.metadata import entry_points

from burnish.components.compression.methods import gguf
from burnish.components.compression.methods.base import Method

__all__ = ["Method", "methods"]

_OURS = (gguf.METHOD,)


def methods() -> dict[str, Method]:
    """Return every method by name; ours cannot be replaced by another's of the same name."""
    found: dict[str, Method] = {}
    for entry in entry_points(group="burnish.methods"):
        loaded = entry.load()
        if not isinstance(loaded, Method):
            raise TypeError(f"the entry point {entry.name} of burnish.methods is not a Method")
        found[loaded.name] = loaded
    return found | {ours.name: ours for ours in _OURS}
