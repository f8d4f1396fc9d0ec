"""What a method is."""

from collections.abc import Callable
from dataclasses import dataclass

from burnish.core.specs import CompressionSpec, Resources, Spec


@dataclass(frozen=True)
class Method:
    """A way to compress, as the server knows it."""

    name: str
    summary: str
    """One line, for lists."""
    manual: str
    """Markdown: what it does, when to use it, what it costs."""
    params: type[Spec]
    """Its own parameters, with their defaults and descriptions."""
    run: str
    """``"module:function"``; resolved by the host process alone."""
    needs: tuple[str, ...]
    """Python modules without which it cannot run here; they are looked for and not imported."""
    resources: Callable[[CompressionSpec], Resources]
    """What it needs, from the spec alone."""
    seconds: Callable[[CompressionSpec], float | None]
    """About how long it runs; None if unknown."""
