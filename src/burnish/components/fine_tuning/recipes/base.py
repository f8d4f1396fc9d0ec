"""What a recipe is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from burnish.core.specs import FineTuningSpec, Resources

Method = Literal["lora", "qlora", "full"]


@dataclass(frozen=True)
class Recipe:
    """A way to train, as the server knows it."""

    name: str
    summary: str
    """One line, for lists."""
    manual: str
    """Markdown: what it does, when to use it, what its fields mean to it."""
    run: str
    """``"module:function"``; resolved by the host process alone."""
    methods: tuple[Method, ...]
    resources: Callable[[FineTuningSpec], Resources]
    """What a training needs, from the spec alone."""
    seconds: Callable[[FineTuningSpec], float | None]
    """About how long it runs; None if unknown."""
