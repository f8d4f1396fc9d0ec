"""The plug point for ways to compress: a method is one torch-free file with a :class:`Method`, named in the list below.

A method's ``run`` is called in a host as ``run(spec: CompressionSpec, context: JobContext) -> CompressionResult``.
Third parties offer theirs by entry points of the group ``burnish.methods``.
"""

from burnish.components.compression.methods import gguf
from burnish.components.compression.methods.base import Method
from burnish.core.plug_points import plugged

__all__ = ["Method", "methods"]

_OURS = (gguf.METHOD,)


def methods() -> dict[str, Method]:
    """Return every method by name; ours cannot be replaced by another's of the same name."""
    return plugged(Method, "burnish.methods", _OURS)
