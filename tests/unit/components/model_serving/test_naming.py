"""Which deployment a name means."""

from datetime import UTC, datetime

import pytest

from burnish.components.model_serving.naming import Ambiguous, Route, contested, table_of
from burnish.core.specs.base import ArtifactRef
from burnish.core.specs.serving import DeploySpec

MODEL = ArtifactRef(digest="sha256:" + "0" * 64, kind="gguf")


def route(name: str, version: str | None, created: int = 0) -> Route:
    spec = DeploySpec(deployment=name, model=MODEL, model_version=version)
    return Route("default", f"id-{name}", name, 1, spec, created, ())


def at(second: int) -> datetime:
    return datetime.fromtimestamp(second, UTC)


def meanings(
    *routes: Route, served: dict[tuple[str, str], datetime] | None = None, **aliases: dict[str, int]
) -> dict[str, object]:
    table = table_of(routes, aliases, served or {})
    return {name: found.choices if isinstance(found, Ambiguous) else found.deployment for name, found in table.items()}


def test_a_deployment_goes_by_its_name_its_version_and_the_aliases_that_point_at_it() -> None:
    assert meanings(route("dep", "m@2"), route("own", None), m={"production": 2}) == {
        "dep": "dep", "m@2": "dep", "m@production": "dep", "production": "dep", "own": "own",
    }  # fmt: skip


@pytest.mark.parametrize("points_at", [1, 3])
def test_an_alias_of_a_version_that_is_served_nowhere_stays_with_what_serves_the_model(points_at: int) -> None:
    found = meanings(route("dep", "m@2"), m={"production": points_at})
    assert (found["m@production"], found["production"]) == ("dep", "dep")
    assert f"m@{points_at}" not in found, "who asks for a version gets that version or nothing"


def test_an_alias_leads_to_its_version_wherever_that_is_served() -> None:
    routes = route("m", "m@3"), route("other", "m@2")
    assert meanings(*routes, m={"production": 2})["m@production"] == "other"
    assert meanings(*routes, m={"production": 3})["m@production"] == "m"
    assert contested(routes, {"m": {"production": 2}}) == set()


def test_after_a_roll_back_an_alias_stays_where_its_version_was_served_last() -> None:
    routes = route("staging", "m@3", created=1), route("live", "m@1", created=2)
    assert contested(routes, {"m": {"production": 2}}) == {"id-staging", "id-live"}
    served = {("id-staging", "m@2"): at(10), ("id-live", "m@2"): at(20), ("id-staging", "m@3"): at(30)}
    assert meanings(*routes, served=served, m={"production": 2})["production"] == "live"


def test_of_deployments_that_are_alike_the_models_own_is_taken_then_the_oldest() -> None:
    routes = route("a", "m@1", created=2), route("b", "m@1", created=1), route("c", "m@1", created=3)
    for order in (routes, routes[::-1]):
        found = meanings(*order, m={"production": 1, "next": 2})
        assert {found[name] for name in ("m@1", "m@production", "production", "m@next")} == {"b"}
        found = meanings(*order, route("m", "m@1", created=9), m={"production": 1, "next": 2})
        assert {found[name] for name in ("m@1", "m@production", "production", "m@next")} == {"m"}


def test_an_alias_of_several_models_is_ambiguous_alone() -> None:
    found = meanings(route("x", "m@1"), route("y", "n@1"), m={"production": 1}, n={"production": 4, "next": 1})
    assert found["production"] == ("m@production", "n@production")
    assert (found["m@production"], found["n@production"], found["next"]) == ("x", "y", "y")


def test_a_deployments_own_name_is_the_strongest() -> None:
    found = meanings(route("production", "n@1"), route("x", "m@1"), m={"production": 1}, n={"production": 1})
    assert (found["production"], found["m@production"]) == ("production", "x")
