"""Just enough of JSON Schema to check a reference before anything runs: what lies at a path, and can it fit there."""

from collections.abc import Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]

_OF_VALUE = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
_MAX_OPTIONS = 100
"""Of what may lie at one place; where there are more, anything may."""


class NoSuchField(Exception):
    """A path leaves the schema."""

    def __init__(self, part: str | int, known: Sequence[str]) -> None:
        super().__init__(str(part))
        self.part = part
        self.known = known


def at(root: Schema, path: Sequence[str | int]) -> list[Schema] | None:
    """Return what may lie at ``path``; None where the schema allows anything, or too much to follow.

    Raises:
        NoSuchField: nothing can lie there.
    """
    options = _options(root, [root])
    for part in path:
        if options is None:
            return None
        found: list[Any] = []
        known: list[str] = []
        for option in options:
            below = _below(option, part, known)
            if below is None:
                return None
            found += below
        if not found:
            raise NoSuchField(part, known)
        options = _options(root, found)
    return options


def _below(option: Schema, part: str | int, known: list[str]) -> list[Any] | None:
    """Return the schema of a part, if there can be one; None for any."""
    types = _types(option)
    if types is None or (
        not option.get("properties") and "object" in types and option.get("additionalProperties", True) is True
    ):
        return None
    if isinstance(part, int):
        items = option.get("items")
        return [] if "array" not in types else None if not isinstance(items, Mapping) else [items]
    properties = option.get("properties", {})
    known += properties
    if part in properties:
        return [properties[part]]
    extra = option.get("additionalProperties", False)
    if "object" in types and isinstance(extra, Mapping):
        return [extra]
    return None if "object" in types and extra is True else []


def _options(root: Schema, schemas: Sequence[Any]) -> list[Schema] | None:
    """Return the alternatives of schemas, references followed; None where they allow anything, or too much.

    Schemas come from third parties. No reference is followed twice, which would tell nothing new: so this takes no
    longer than to read the schema once, however often it refers to itself.
    """
    found: list[Schema] = []
    followed: set[str] = set()
    waiting = list(reversed(schemas))
    while waiting:
        schema = waiting.pop()
        if not isinstance(schema, Mapping):  # a boolean
            return None
        if "$ref" in schema:
            if (reference := str(schema["$ref"])) not in followed:
                followed.add(reference)
                waiting.append(_target(root, reference))
        elif isinstance(alternatives := schema.get("anyOf") or schema.get("oneOf"), list):
            waiting += reversed(alternatives)
        elif isinstance(parts := schema.get("allOf"), list) and len(parts) == 1:
            waiting.append(parts[0])
        else:
            found.append(schema)
            if len(found) > _MAX_OPTIONS:
                return None
    return found or None


def _target(root: Schema, reference: str) -> Any:
    target: Any = root
    for part in reference.removeprefix("#/").split("/"):
        target = target.get(part, {}) if isinstance(target, Mapping) else {}
    return target


def _types(schema: Schema) -> set[str] | None:
    """Return the JSON types that a schema allows; None for any."""
    declared = schema.get("type")
    if isinstance(declared, str):
        return {declared}
    if isinstance(declared, list):
        return set(declared)
    if "const" in schema:
        return {of_value(schema["const"])}
    if isinstance(values := schema.get("enum"), list):
        return {of_value(value) for value in values}
    return {"object"} if "properties" in schema else None


def of_value(value: Any) -> str:
    """Return the JSON type of a value."""
    return "null" if value is None else _OF_VALUE.get(type(value), "object")


def types_of(options: list[Schema] | None) -> set[str] | None:
    """Return every JSON type among alternatives; None for any."""
    if options is None:
        return None
    found: set[str] = set()
    for option in options:
        types = _types(option)
        if types is None:
            return None
        found |= types
    return found


def fits(given: set[str] | None, wanted: set[str] | None) -> bool:
    """Tell whether a value of one of the ``given`` types may be one of the ``wanted``."""
    if given is None or wanted is None:
        return True
    numbers = {"integer", "number"}
    widened = given | (numbers if given & numbers else set())
    return bool((widened - {"null"}) & wanted) or ("null" in given and "null" in wanted)
