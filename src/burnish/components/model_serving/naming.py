"""Which deployment a model's name means. Pure: no clock, no rows.

From the strongest: a deployment's own name; a version (``m@3``), which is what a deployment serves at the moment; an
alias of a model (``m@production``); an alias alone (``production``), while only one of the served models has it.

An alias leads to its version where that is served. Where it is not, what serves the model goes on answering: between
the switch to a new version and its promotion, and after a roll back of the deployment, the alias names a version that
runs nowhere, and its clients are not to notice. Of several deployments of the model it is then the one that served the
alias's version last, as that is where its clients were answered. Of several that are alike, it is the one that is named
as the model, else the oldest.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from burnish.core.openai import RequestRefused
from burnish.core.specs.serving import DeploySpec


@dataclass(frozen=True)
class Target:
    """A replica that may get requests."""

    replica_id: str
    socket: Path


@dataclass(frozen=True)
class Route:
    """A deployment that gets requests."""

    project_id: str
    deployment_id: str
    deployment: str
    revision: int
    spec: DeploySpec
    created: int
    """Unix time of the deployment's making."""
    targets: tuple[Target, ...]
    """On this node."""
    elsewhere: tuple[str, ...] = ()
    """URLs of the processes of other nodes that have replicas of it."""

    @property
    def model(self) -> str | None:
        """Name of the registry's model that is served."""
        return None if self.spec.model_version is None else self.spec.model_version.partition("@")[0]


@dataclass(frozen=True)
class Ambiguous:
    """A name that several served models have."""

    choices: tuple[str, ...]
    """What to say instead."""


class AmbiguousName(RequestRefused):
    """An alias alone does not say which model is meant."""

    code = "model_ambiguous"
    openai_code = "model_ambiguous"


Aliases = Mapping[str, Mapping[str, int]]
"""Model -> alias -> number of the version that it points at."""
Served = Mapping[tuple[str, str], datetime]
"""``(deployment's id, version)`` -> when it last began to serve that version."""


def table_of(routes: Sequence[Route], aliases: Aliases, served: Served) -> dict[str, Route | Ambiguous]:
    """Return what each name means in one project.

    Args:
        routes: the project's deployments that get requests.
        aliases: the aliases of the models that they serve.
        served: what the deployments among ``routes`` that :func:`contested` names served before.
    """
    table: dict[str, Route | Ambiguous] = {}
    bare: dict[str, dict[str, Route]] = {}
    for model, alias, number in _each(aliases):
        of_model = [route for route in routes if route.model == model]
        if of_model:
            route = _serving(of_model, f"{model}@{number}") or _last_to_serve(of_model, f"{model}@{number}", served)
            bare.setdefault(alias, {})[f"{model}@{alias}"] = route
    for alias, found in bare.items():
        table[alias] = next(iter(found.values())) if len(found) == 1 else Ambiguous(tuple(sorted(found)))
    for found in bare.values():
        table.update(found)
    for version in {route.spec.model_version for route in routes if route.spec.model_version is not None}:
        table[version] = min((route for route in routes if route.spec.model_version == version), key=_rank)
    table.update((route.deployment, route) for route in routes)
    return table


def contested(routes: Sequence[Route], aliases: Aliases) -> Collection[str]:
    """Return the ids of deployments among which an alias has to choose by what they served before."""
    found: set[str] = set()
    for model, _, number in _each(aliases):
        of_model = [route for route in routes if route.model == model]
        if len(of_model) > 1 and _serving(of_model, f"{model}@{number}") is None:
            found.update(route.deployment_id for route in of_model)
    return found


def _each(aliases: Aliases) -> Iterator[tuple[str, str, int]]:
    for model, numbers in aliases.items():
        for alias, number in numbers.items():
            yield model, alias, number


def _serving(routes: Sequence[Route], version: str) -> Route | None:
    return min((route for route in routes if route.spec.model_version == version), key=_rank, default=None)


def _last_to_serve(routes: Sequence[Route], version: str, served: Served) -> Route:
    def order(route: Route) -> tuple[float, tuple[bool, int, str]]:
        last = served.get((route.deployment_id, version))
        return (0.0 if last is None else -last.timestamp(), _rank(route))

    return min(routes, key=order)


def _rank(route: Route) -> tuple[bool, int, str]:
    """Order deployments of one model: the one that is named as the model, then by age."""
    return (route.deployment != route.model, route.created, route.deployment)
