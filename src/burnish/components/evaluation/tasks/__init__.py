"""The plug point for ways to evaluate: a task is one torch-free file with a :class:`Task`, named in the list below.

Third parties offer theirs by entry points of the group ``burnish.tasks``.
"""

from importlib.metadata import entry_points

from burnish.components.evaluation.tasks import classification, generation, perplexity
from burnish.components.evaluation.tasks.base import Task

__all__ = ["Task", "tasks"]

_OURS = (classification.TASK, perplexity.TASK, generation.TASK)


def tasks() -> dict[str, Task]:
    """Return every task by name; ours cannot be replaced by another's of the same name."""
    found: dict[str, Task] = {}
    for entry in entry_points(group="burnish.tasks"):
        loaded = entry.load()
        if not isinstance(loaded, Task):
            raise TypeError(f"the entry point {entry.name} of burnish.tasks is not a Task")
        found[loaded.name] = loaded
    return found | {ours.name: ours for ours in _OURS}
