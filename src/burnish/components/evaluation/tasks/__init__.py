"""The plug point for ways to evaluate: a task is one torch-free file with a :class:`Task`, named in the list below.

Third parties offer theirs by entry points of the group ``burnish.tasks``.
"""

from burnish.components.evaluation.tasks import classification, generation, perplexity
from burnish.components.evaluation.tasks.base import Task
from burnish.core.plug_points import plugged

__all__ = ["Task", "tasks"]

_OURS = (classification.TASK, perplexity.TASK, generation.TASK)


def tasks() -> dict[str, Task]:
    """Return every task by name; ours cannot be replaced by another's of the same name."""
    return plugged(Task, "burnish.tasks", _OURS)
