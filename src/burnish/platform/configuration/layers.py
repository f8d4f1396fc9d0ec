"""Putting a configuration together from its layers. Pure: values in, values and problems out.

A layer gives values to some keys; for each key the highest layer that has it wins: the defaults < the file < the
environment < the database < the process's own variables. A map or a list is one value: a higher layer replaces it
whole.
"""

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydantic import JsonValue, ValidationError

from burnish.core.configuration import Configuration, nested, schema, sections
from burnish.core.configuration_rules import problems_of
from burnish.core.errors import FieldProblem
from burnish.infra.storable import unstorable


class LayerName(StrEnum):
    """The layers, from the lowest to the highest."""

    DEFAULTS = "defaults"
    FILE = "file"
    ENVIRONMENT = "environment"
    DATABASE = "database"
    PROCESS = "process"


@dataclass(frozen=True)
class Placed:
    """A value that a layer gives to a key, and where it stands (a file's line, a version, a variable)."""

    value: JsonValue
    origin: str
    version: tuple[str, int] | None = None
    """In the database: the environment and the number of the version that gave the key this value."""


@dataclass(frozen=True)
class Layer:
    """Values by key. Several layers may have one name: of an environment and of those that it inherits from."""

    name: LayerName
    values: Mapping[str, Placed]


@dataclass(frozen=True)
class Composed:
    """What the layers give together; ``configuration`` is None when there are ``problems``."""

    configuration: Configuration | None
    problems: tuple[FieldProblem, ...]
    crossed: Configuration | None
    """With problems, when each value is right by itself and only some do not fit each other: all of them, as they are."""
    winners: Mapping[str, tuple[LayerName, Placed]]
    """By key: the layer that won, and its value."""


Path = tuple[str, ...]

MAX_PROBLEMS = 50

REFERENCES = frozenset({"identity.oidc.client_secret"})
"""Keys whose value refers to a secret."""
_REFER = "it is kept as a secret, never as it is: set it by `burnish secret set NAME` and write secret://NAME here"
"""Of a key whose value refers to a secret."""


def default_layer() -> Layer:
    """Return the layer that has every key."""
    return Layer(LayerName.DEFAULTS, {key: Placed(one.default, "Burnish itself") for key, one in schema().items()})


def compose(layers: Sequence[Layer]) -> Composed:
    """Put layers together, the lowest first, over the defaults.

    Every problem of every layer is found at once, also of values that a higher layer hides: they would come to light
    when that one is taken away. What fields must be to each other is judged of the outcome alone.
    """
    layers = [default_layer(), *layers]
    winners = {key: (layer.name, placed) for layer in layers for key, placed in layer.values.items()}
    problems = [problem for layer in layers[1:] for problem in wrong_values(layer)]
    if problems:
        return Composed(None, tuple(dict.fromkeys(problems)), None, winners)
    configuration = parse({key: placed.value for key, (_, placed) in winners.items()})
    if crossed := tuple(_at_origin(problem, winners) for problem in problems_of(configuration)):
        return Composed(None, crossed, configuration, winners)
    return Composed(configuration, (), None, winners)


def parse(values: Mapping[str, JsonValue]) -> Configuration:
    """Return the configuration that has these values, by key. Raises pydantic's ValidationError."""
    whole = {key: one.default for key, one in schema().items()} | dict(values)
    return Configuration.model_validate_json(json.dumps(nested(whole)), strict=True)


def flatten(
    given: Mapping[str, JsonValue], place: Callable[[Path], str], prefix: Path = ()
) -> tuple[dict[str, Placed], list[FieldProblem]]:
    """Return the values of sections within sections by key, and a problem for each name that is none, of 50 at most.

    Beyond those nothing is read: what has problems is refused as a whole.

    Args:
        given: sections; a name may also be a whole key (``gateway.per_key.burst``).
        place: says where the name at a path stands, for people.
        prefix: the path of ``given`` itself.
    """
    values: dict[str, Placed] = {}
    problems: list[FieldProblem] = []
    for path, key, value in _fields(given, prefix, ""):
        if len(problems) == MAX_PROBLEMS:  # what is near a name takes long to find
            break
        if key in schema():
            if key in values:
                problems.append(FieldProblem(where=place(path), message=f"{key} is given twice"))
            values[key] = Placed(value, place(path))
        elif key in sections():
            hint = f"its keys: {', '.join(sorted(_below(key)))}"
            problems.append(FieldProblem(where=place(path), message=f"{key} is a section, not a value", hint=hint))
        else:
            problems.append(
                FieldProblem(where=place(path), message=f"there is no key {key[:100]!r}", hint=suggestion(key))
            )
    return values, problems


def suggestion(key: str) -> str:
    """Return what a reader can do about a key that there is not: the nearest one, or where the keys are listed."""
    if key in sections():
        return f"it is a section; its keys: {', '.join(sorted(_below(key)))}"
    near = nearest(key, [*schema(), *sections()])
    return f"did you mean {near}?" if near else "`burnish config show` lists every key"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like ``name``; None if none is."""
    known = list(known)
    found = difflib.get_close_matches(name[:200], known, n=1, cutoff=0.6)
    if not found:  # the last part alone may be right, or nearly: `max_inflight`, `limits.per_key`
        ends = {one.rsplit(".", 1)[-1]: one for one in known}
        last = difflib.get_close_matches(name[:200].rsplit(".", 1)[-1], list(ends), n=1, cutoff=0.75)
        found = [ends[one] for one in last]
    return found[0] if found else None


def changed_keys(old: Mapping[str, JsonValue], new: Mapping[str, JsonValue]) -> list[str]:
    """Return the keys whose values differ, in the schema's order; a key that one lacks differs."""
    known = [*schema(), *sorted((old.keys() | new.keys()) - schema().keys())]
    missing = object()
    return [key for key in known if not same(old.get(key, missing), new.get(key, missing))]


def same(one: object, other: object) -> bool:
    """Tell whether two JSON values are the same one: ``1`` and ``1.0`` are, ``1`` and ``true`` are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def _fields(given: Mapping[str, JsonValue], path: Path, prefix: str) -> Iterator[tuple[Path, str, JsonValue]]:
    for name, value in given.items():
        here, key = (*path, str(name)), f"{prefix}{name}"
        if isinstance(value, Mapping) and key in sections():
            yield from _fields(value, here, f"{key}.")
        elif value is None and key in sections():
            continue  # `gateway:` with nothing below it
        else:
            yield here, key, value


def _below(section: str) -> Iterator[str]:
    return (key for key in schema() if key.startswith(f"{section}."))


def wrong_values(layer: Layer) -> Iterator[FieldProblem]:
    """Judge each of a layer's values by itself; yield what is wrong."""
    for key, placed in layer.values.items():
        if odd := next(unstorable(placed.value, key), None):
            yield FieldProblem(where=placed.origin, message=f"{key} {odd.message}")
    large = {key for key, placed in layer.values.items() if _too_large(placed.value)}
    for key in sorted(large):
        yield FieldProblem(
            where=layer.values[key].origin, message=f"{key}: a number beyond 2^63", hint=_what_it_is(key)
        )
    try:
        parse({key: placed.value for key, placed in layer.values.items() if key not in large})
    except ValidationError as error:
        for found in error.errors(include_url=False, include_input=False):
            key, inner = _key_of(tuple(map(str, found["loc"])))
            origin = layer.values[key].origin if key in layer.values else layer.name
            at = f"{key}[{']['.join(inner)}]" if inner else key
            said = _REFER if found["type"] == "string_pattern_mismatch" and key in REFERENCES else found["msg"]
            yield FieldProblem(where=origin, message=f"{at}: {said}", hint=_what_it_is(key))


def _too_large(value: JsonValue) -> bool:
    if isinstance(value, int):
        return abs(value) >= 1 << 63
    if isinstance(value, Mapping):
        return any(map(_too_large, value.values()))
    return isinstance(value, list | tuple) and any(map(_too_large, value))


def _key_of(location: Path) -> tuple[str, Path]:
    for length in range(len(location), 0, -1):
        if (key := ".".join(location[:length])) in schema():
            return key, location[length:]
    return ".".join(location), ()


def _what_it_is(key: str) -> str | None:
    setting = schema().get(key)
    return None if setting is None else f"{setting.description}; by default {json.dumps(setting.default)}"


def _at_origin(problem: FieldProblem, winners: Mapping[str, tuple[LayerName, Placed]]) -> FieldProblem:
    layer, placed = winners[problem.where]
    where = placed.origin if layer != LayerName.DEFAULTS else problem.where
    return problem.model_copy(update={"where": where, "message": f"{problem.where}: {problem.message}"})
