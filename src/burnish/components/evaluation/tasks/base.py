"""What a task is."""

from dataclasses import dataclass

from burnish.core.specs import DatasetFormat, EngineName


@dataclass(frozen=True)
class Task:
    """A way to evaluate, as the server knows it."""

    name: str
    summary: str
    """One line, for lists."""
    manual: str
    """Markdown: what it measures and how, and what each metric means."""
    run: str
    """``"module:function"``, called in a host as ``run(spec: EvaluationSpec, context: JobContext) -> EvaluationResult``."""
    headline: str
    """The metric that a gate judges by default."""
    formats: tuple[DatasetFormat, ...]
    """Rows that it can score."""
    engines: tuple[EngineName, ...]
    """Engines that it can score through."""
