"""The plug point for ways to train: a recipe is one torch-free file with a :class:`Recipe`, named in the list below.

A recipe's ``run`` is called in a host as ``run(spec: FineTuningSpec, context: JobContext) -> FineTuningResult``.
Third parties offer theirs by entry points of the group ``burnish.recipes``.
"""

from burnish.components.fine_tuning.recipes import sft
from burnish.components.fine_tuning.recipes.base import Method, Recipe
from burnish.core.errors import InvalidRequest
from burnish.core.plug_points import plugged

__all__ = ["Method", "Recipe", "recipe", "recipes"]

_OURS = (sft.RECIPE,)


def recipes() -> dict[str, Recipe]:
    """Return every recipe by name; ours cannot be replaced by another's of the same name."""
    return plugged(Recipe, "burnish.recipes", _OURS)


def recipe(name: str) -> Recipe:
    """Return a recipe.

    Raises:
        InvalidRequest: there is none of this name; names those there are.
    """
    known = recipes()
    if name not in known:
        raise InvalidRequest(
            f"no recipe is called {name!r}", where="spec.recipe", hint=f"there are {', '.join(sorted(known))}"
        )
    return known[name]
