"""What a component may say of itself."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.components.compression.kinds import KINDS as COMPRESSION
from burnish.components.data_management.kinds import KINDS as DATA
from burnish.components.evaluation.kinds import KINDS as EVALUATION
from burnish.components.fine_tuning.kinds import KINDS as TUNING
from burnish.core import offers
from burnish.core.errors import InvalidRequest
from burnish.core.offers import check_offer, route_problem, schema_problem
from burnish.core.protocol import Description
from burnish.platform.jobs.component_app import describe

OBJECT = {"type": "object", "properties": {"a": {"type": "string"}}}


def described(**changes: Any) -> Description:
    kind = {"name": "work", "spec_schema": OBJECT, "result_schema": OBJECT, **changes.pop("kind", {})}
    return Description.model_validate({"component_type": "theirs", "version": "1", "kinds": [kind], **changes})


@pytest.mark.parametrize(
    ("component_type", "kinds", "routes"),
    [
        ("compression", COMPRESSION, ()), ("data_management", DATA, ("/platform/datasets",)), ("evaluation", EVALUATION, ()),
        ("fine_tuning", TUNING, ()), ("model_serving", {}, ("/platform/deployments",)),
        ("hyperparameter_optimization", {}, ()),
    ],
)  # fmt: skip
def test_our_own_components_may_say_what_they_say(component_type: str, kinds: Any, routes: tuple[str, ...]) -> None:
    check_offer(describe(component_type, kinds, routes), {})


@pytest.mark.parametrize(
    ("changes", "where", "message"),
    [
        ({"component_type": "platform"}, "component_type", "kept for the platform"),
        ({"component_type": "Their s"}, "component_type", "no name"),
        ({"version": "1\x1b[31m"}, "version", "printable"),
        ({"version": ""}, "version", "1 to 50"),
        ({"kind": {"name": "a\nb"}}, "kinds[0].name", "no name of a kind"),
        ({"kind": {"name": ""}}, "kinds[0].name", "no name of a kind"),
        ({"kind": {"name": "../x"}}, "kinds[0].name", "no name of a kind"),
        ({"kind": {"summary": "red\x1b[0m"}}, "kinds[0].summary", "printable"),
        ({"kind": {"summary": "\u202egnp.exe"}}, "kinds[0].summary", "printable"),
        ({"kind": {"summary": "x" * 1001}}, "kinds[0].summary", "at most 1000"),
        ({"kind": {"permission": "p" * 101}}, "kinds[0].permission", "at most 100"),
        ({"kind": {"permission": "a:b\x1b"}}, "kinds[0].permission", "printable"),
        ({"kind": {"spec_schema": {}}}, "kinds[0].spec_schema", "no `type`"),
        ({"kind": {"spec_schema": {"type": "array"}}}, "kinds[0].spec_schema.type", "is an object"),
        ({"kind": {"result_schema": {"type": "object", "properties": []}}}, "kinds[0].result_schema.properties", "object of schemas"),
        ({"kind": {"spec_schema": {**OBJECT, "required": "a"}}}, "kinds[0].spec_schema.required", "list of names"),
        ({"kind": {"spec_schema": {**OBJECT, "x": "y" * (300 << 10)}}}, "kinds[0].spec_schema", "at most 256 KiB"),
        ({"routes": ["/platform/workflows"]}, "routes[0]", "platform's own"),
        ({"routes": ["/platform/theirs"] * 21}, "routes", "at most 20"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_at_its_place(changes: dict[str, Any], where: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_offer(described(**changes), {})
    assert refused.value.problems[0].where == where
    assert message in refused.value.problems[0].message
    assert "\x1b" not in refused.value.message
    assert "\n" not in refused.value.message


def test_two_kinds_have_two_names_and_there_are_not_too_many() -> None:
    one = described().kinds[0].model_dump()
    with pytest.raises(InvalidRequest, match="second kind is named 'work'"):
        check_offer(described(kinds=[one, one]), {})
    many = [{**one, "name": f"k{n}"} for n in range(201)]
    with pytest.raises(InvalidRequest, match="201 kinds; at most 200"):
        check_offer(described(kinds=many), {})
    check_offer(described(kinds=many[:200]), {})


@pytest.mark.parametrize(
    "prefix",
    [
        "/", "", "/v1", "/v1/chat", "/platform", "/platform/", "platform/x", "/platform/workflows", "/platform/workflows/run",
        "/platform/components", "/platform/kinds", "/platform/identity/jwks", "/docs", "/api", "/theirs", "/platform/../v1",
        "/platform/a/../workflows", "/platform/%77orkflows", "/platform/x?y", "/platform/x y", "/platform//workflows",
        "/platform/x\n", "/platform/" + "x" * 300, "/platform/datasets", "/platform/deployments/mine", "/platform/.hidden",
        "/platform/optimizer", "/platform/incidents/mine", "/platform/studies", "/platform/model-serving", "/platform/fine_tuning",
    ],
)  # fmt: skip
def test_routes_that_are_not_a_third_partys_are_refused(prefix: str) -> None:
    assert route_problem(prefix, "theirs", {})


def test_routes_of_its_own_are_granted_and_those_of_others_are_not() -> None:
    assert route_problem("/platform/theirs", "theirs", {}) is None
    assert route_problem("/platform/theirs/", "theirs", {"/platform/theirs": "theirs"}) is None
    assert route_problem("/platform/workflows_of_ours", "theirs", {}) is None
    taken = {"/platform/greetings": "other"}
    for prefix in ("/platform/greetings", "/platform/greetings/all"):
        assert "served by the component other" in str(route_problem(prefix, "theirs", taken))
    assert route_problem("/platform/greetings2", "theirs", taken) is None
    inside = {"/platform/deep/inside": "other"}
    assert "served by" in str(route_problem("/platform/deep", "theirs", inside))


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({**OBJECT, "properties": {"a": {"type": "strnig"}}}, ".properties.a.type"),
        ({**OBJECT, "properties": {"a": 7}}, ".properties.a"),
        ({**OBJECT, "properties": {"a": {"$ref": "#/$defs/B"}}}, ".properties.a.$ref"),
        ({**OBJECT, "properties": {"a": {"$ref": "http://169.254.169.254/x"}}}, ".properties.a.$ref"),
        ({**OBJECT, "properties": {"a": {"$ref": ["x"]}}}, ".properties.a.$ref"),
        ({**OBJECT, "properties": {"a": {"anyOf": []}}}, ".properties.a.anyOf"),
        ({**OBJECT, "properties": {"a": {"anyOf": {}}}}, ".properties.a.anyOf"),
        ({**OBJECT, "properties": {"a": {"enum": "x"}}}, ".properties.a.enum"),
        ({**OBJECT, "properties": {"a": {"title": "x\x00"}}}, ".properties.a.title"),
        ({**OBJECT, "properties": {"a\x1b": {}}}, ".properties"),
        ({**OBJECT, "additionalProperties": "no"}, ".additionalProperties"),
        ({**OBJECT, "$defs": {"B": {"items": 3}}}, ".$defs.B.items"),
        ({**OBJECT, "x": float("nan")}, ""),
    ],
)  # fmt: skip
def test_what_is_no_json_schema_is_found_at_its_place(schema: dict[str, Any], place: str) -> None:
    found = schema_problem(schema)
    assert found is not None
    assert found[0] == place


def test_a_schema_may_refer_to_itself_but_not_be_endless() -> None:
    assert schema_problem({**OBJECT, "properties": {"next": {"$ref": "#"}}}) is None
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(60):
        deep = {"type": "object", "properties": {"in": deep}}
    assert "deeper than" in str(schema_problem(deep))
    default: Any = 1
    for _ in range(98):
        default = [default]
    assert schema_problem({**OBJECT, "default": default}) is None
    assert "deeper than 100" in str(schema_problem({**OBJECT, "default": [[default]]}))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["type", "properties", "items", "$ref", "anyOf", "allOf", "required", "$defs", "enum", "title", "not", "x"]),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["type", "properties", "$defs", "anyOf", "items", "required"]), _JSON, max_size=4)
)
def test_no_schema_whatever_makes_the_check_fail_itself(schema: dict[str, Any]) -> None:
    found = schema_problem(schema)
    assert found is None or (isinstance(found[0], str) and found[1])


def test_the_same_schema_is_looked_through_once_and_a_changed_one_again() -> None:
    """Breaks with: a minute's work for every thousand instances that offer the same; a schema known by what it was."""
    schema: dict[str, Any] = {"type": "object", "properties": {"once": {"type": "string"}}}
    assert schema_problem(schema) is None
    before = offers._problem_in.cache_info()
    assert schema_problem({**schema}) is None
    after = offers._problem_in.cache_info()
    assert (after.hits - before.hits, after.misses - before.misses) == (1, 0)
    schema["properties"]["once"]["type"] = "text"
    assert schema_problem(schema) == (".properties.once.type", "'text' is no JSON type")
