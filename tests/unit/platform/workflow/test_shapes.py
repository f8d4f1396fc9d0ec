"""What lies at a path of a schema: third parties write schemas, so none of them may take long."""

from typing import Any

import pytest

from burnish.core.offers import schema_problem
from burnish.platform.workflow.shapes import NoSuchField, at, types_of
from tests.support.effort import calls_of

TEXT, NUMBER = {"type": "string"}, {"type": "number"}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


NESTED = {
    **_object(one={"$ref": "#/$defs/one"}, list={"type": "array", "items": {"anyOf": [TEXT, {"type": "null"}]}}, any=True),
    "$defs": {"one": {"anyOf": [_object(inner=NUMBER), {"$ref": "#/$defs/two"}]}, "two": _object(inner={"allOf": [TEXT]})},
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "types"),
    [
        ([], {"object"}), (["one"], {"object"}), (["one", "inner"], {"number", "string"}), (["list", 3], {"string", "null"}),
        (["any"], None), (["any", "below", 1], None),
    ],
)  # fmt: skip
def test_what_lies_at_a_path(path: list[str | int], types: set[str] | None) -> None:
    assert types_of(at(NESTED, path)) == types


@pytest.mark.parametrize("path", [["two"], ["one", "outer"], ["list", "x"]])
def test_where_nothing_can_lie(path: list[str | int]) -> None:
    with pytest.raises(NoSuchField):
        at(NESTED, path)


def _layers(count: int, wide: int) -> dict[str, Any]:
    """Each layer is the next one, many times; the last is an object."""
    layers: dict[str, Any] = {
        f"l{number}": {"anyOf": [{"$ref": f"#/properties/l{number + 1}"}] * wide} for number in range(count)
    }
    return _object(**layers, **{f"l{count}": _object(a=TEXT)})


def _inline(depth: int) -> dict[str, Any]:
    return {"anyOf": [_inline(depth - 1), _inline(depth - 1)]} if depth else _object(a={"$ref": "#/properties/tree"})


HOSTILE = [
    (_object(a={"anyOf": [{"$ref": "#/properties/a"}] * 30}), ["a"], None),
    (_object(a={"$ref": "#/properties/a"}), ["a", "b"], None),
    (_layers(12, 10), ["l0", "a"], {"string"}),
    (_layers(3000, 1), ["l0", "a"], {"string"}),  # deeper than Python calls itself
    (_object(tree=_inline(10)), ["tree", *["a"] * 12], None),
]


@pytest.mark.parametrize(
    ("schema", "path", "types"), HOSTILE, ids=["itself", "nothing else", "layers", "chain", "tree"]
)
def test_a_schema_that_is_made_to_take_long_does_not(
    schema: dict[str, Any], path: list[str | int], types: set[str] | None
) -> None:
    """Breaks with: following a reference as often as it stands there, or a list of alternatives without an end."""
    assert schema_problem(schema) is None, "it can be offered"
    assert types_of(at(schema, path)) == types
    assert calls_of(lambda: at(schema, path)) < 200_000
