"""The configuration file: YAML, in which every value keeps the line it stands on.

Sections stand at the top level; ``environments: {production: {gateway: {...}}, eu: {inherits: production, ...}}`` has
what holds in one environment only, with environments of one's own.
"""

import hashlib
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import JsonValue

from burnish.core.configuration import nested
from burnish.core.errors import FieldProblem, InvalidRequest
from burnish.platform.configuration.environments import BUILT_IN, Environment, problems_of, valid_name
from burnish.platform.configuration.layers import Composed, Layer, LayerName, Placed, compose, flatten, wrong_values
from burnish.platform.configuration.layers import Path as Path_

_LARGEST_BYTES = 1 << 20
_DEEPEST = 20
_MOST_VALUES = 100_000
_COLLECTIONS = frozenset({"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"})


@dataclass(frozen=True)
class ConfigurationFile:
    """What a file says, whole: nothing of it is used when it has ``problems``."""

    values: Mapping[str, Placed] = field(default_factory=dict)
    environments: Mapping[str, Environment] = field(default_factory=lambda: BUILT_IN)
    problems: tuple[FieldProblem, ...] = ()
    digest: str = ""
    """Of its bytes: equal digests, equal files."""


class _Loader(yaml.SafeLoader):
    """YAML with numbers as everyone writes them: PyYAML takes ``1e-3`` for text."""


_FLOAT = "tag:yaml.org,2002:float"
_EXPONENT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


class _Dumper(yaml.SafeDumper):
    """YAML that :class:`_Loader` reads as the same values."""


def _number(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    return dumper.represent_scalar(_FLOAT, repr(value))


_Dumper.add_representer(float, _number)
for _form in (_Loader, _Dumper):
    _form.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+0123456789."))


def write_values(values: Mapping[str, JsonValue]) -> str:
    """Return values by key as YAML that :func:`document_values` reads as the same."""
    if not values:
        return "{}\n"
    return str(yaml.dump(nested(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))


def read_value(text: str) -> JsonValue:
    """Return one value that is written as YAML.

    Raises:
        ValueError: it is not, with the reason.
    """
    value, _ = _read(text)
    return value


def read_file(path: Path) -> ConfigurationFile:
    """Read a file; a file that cannot be read has one problem that says why."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            return ConfigurationFile(problems=(_problem(str(path), "is not a file"),))
        size = about.st_size
        if size > _LARGEST_BYTES:
            return ConfigurationFile(problems=(_problem(str(path), f"has {size} bytes; 1 MiB is the most"),))
        content = path.read_bytes()
    except OSError as error:
        return ConfigurationFile(problems=(_problem(str(path), f"cannot be read: {error.strerror}"),))
    return parse(content, str(path))


def parse(content: bytes, name: str) -> ConfigurationFile:
    """Read a file's content; ``name`` is what places in it are called after."""
    digest = hashlib.sha256(content).hexdigest()
    try:
        given, lines = _read(content.decode("utf-8-sig"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = name if mark is None else f"{name}:{mark.line + 1}"
        return ConfigurationFile(problems=(_problem(at, f"is not YAML: {_reason(error)}"),), digest=digest)
    except ValueError as error:
        return ConfigurationFile(problems=(_problem(name, f"cannot be read: {error}"),), digest=digest)
    if given is None:
        return ConfigurationFile(digest=digest)
    if not isinstance(given, dict):
        return ConfigurationFile(problems=(_problem(f"{name}:1", "is not a mapping of sections"),), digest=digest)
    return _understood(given, lines, name, digest)


def document_values(text: str, name: str) -> dict[str, Placed]:
    """Return the values of a document without environments (what ``export`` wrote).

    Raises:
        InvalidRequest: it cannot be read, or names what there is not; ``problems`` has every place.
    """
    found = parse(text.encode("utf-8", "surrogatepass"), name)
    problems = found.problems
    if not problems and found.environments != BUILT_IN:
        hint = "give it as BURNISH_CONFIG, or import the part of one environment"
        problems = (FieldProblem(where=name, message="has environments; a version is of one", hint=hint),)
    if problems:
        raise InvalidRequest(problems[0].message, where=problems[0].where, hint=problems[0].hint, problems=problems)
    return dict(found.values)


def check_file(path: Path) -> tuple[FieldProblem, ...]:
    """Return everything that is wrong with a file, in whichever environment, without a server."""
    found = read_file(path)
    if found.problems:
        return found.problems
    outcomes = [compose(layers_of(found, name)) for name in found.environments]
    return tuple(dict.fromkeys(problem for outcome in outcomes for problem in outcome.problems))


def layers_of(file: ConfigurationFile, environment: str) -> list[Layer]:
    """Return the file's layers for an environment that it knows: its own, and those of what it inherits from."""
    chain = chain_of(file.environments, environment)
    own = [Layer(LayerName.ENVIRONMENT, file.environments[name].values) for name in chain]
    return [Layer(LayerName.FILE, file.values), *own]


def chain_of(environments: Mapping[str, Environment], name: str) -> tuple[str, ...]:
    """Return an environment with all that it inherits from, the farthest first."""
    chain = [name]
    while (parent := environments[chain[-1]].inherits) is not None:
        chain.append(parent)
    return tuple(reversed(chain))


def composed(file: ConfigurationFile, environment: str) -> Composed:
    """Return what a file gives in an environment."""
    return compose(layers_of(file, environment))


def _understood(given: dict[str, Any], lines: Mapping[Path_, int], name: str, digest: str) -> ConfigurationFile:
    def place(path: Path_) -> str:
        return f"{name}:{lines.get(path, 1)}"

    environments = given.pop("environments", None)
    values, problems = flatten(given, place)
    found = dict(BUILT_IN)
    if environments is not None and not isinstance(environments, dict):
        problems.append(_problem(place(("environments",)), "environments is not a mapping of names to sections"))
        environments = None
    for own, content in (environments or {}).items():
        path = ("environments", str(own))
        if not valid_name(str(own)):
            problems.append(_problem(place(path), f"{own!r} is no name: letters, digits, - and _, at most 63"))
        elif content is not None and not isinstance(content, dict):
            problems.append(_problem(place(path), f"environment {own} is not a mapping of sections"))
        else:
            inside = dict(content or {})
            inherits = inside.pop("inherits", None)
            set_, wrong = flatten(inside, place, path)
            problems += wrong
            at = place((*path, "inherits")) if inherits is not None else place(path)
            found[str(own)] = Environment(str(own), None if inherits is None else str(inherits), set_, at)
    problems += problems_of(found)
    problems += wrong_values(Layer(LayerName.FILE, values))
    problems += [one for own in found.values() for one in wrong_values(Layer(LayerName.ENVIRONMENT, own.values))]
    return ConfigurationFile(values, found, tuple(problems), digest)


def _read(text: str) -> tuple[JsonValue, dict[Path_, int]]:
    """Return the value of a YAML text and the line of each name in it. Raises YAMLError and other ValueErrors."""
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise ValueError(" ".join(str(error).split())) from error
    reader = _Reader(loader)
    try:
        node = loader.get_single_node()
        value = None if node is None else reader.value(node, ())
    except yaml.MarkedYAMLError:
        raise
    except yaml.YAMLError as error:
        raise ValueError(str(error).splitlines()[0]) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    finally:
        cast(Any, loader).dispose()
    return value, reader.lines


class _Reader:
    """Turns nodes into JSON values, and notes the line of every name."""

    def __init__(self, loader: _Loader) -> None:
        self._construct: Callable[[yaml.Node], Any] = cast(Any, loader).construct_object
        self._count = 0
        self.lines: dict[Path_, int] = {}

    def value(self, node: yaml.Node, path: Path_) -> JsonValue:
        self._count += 1
        if len(path) > _DEEPEST or self._count > _MOST_VALUES:  # aliases may multiply, or contain themselves
            much = f"more than {_MOST_VALUES} values, or nested deeper than {_DEEPEST} levels"
            raise yaml.MarkedYAMLError(problem=much, problem_mark=node.start_mark)
        if isinstance(node, yaml.CollectionNode) and node.tag not in _COLLECTIONS:
            raise yaml.MarkedYAMLError(problem=f"the tag {node.tag} means nothing here", problem_mark=node.start_mark)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(one, (*path, str(index))) for index, one in enumerate(node.value)]
        try:
            value: JsonValue = self._construct(node)
        except ValueError as error:  # a date that there is not, a number of 5,000 digits
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from error
        if value is not None and not isinstance(value, str | int | float | bool):
            value = str(node.value)  # a date, say: there is no such setting, and its text is what was meant
        return value

    def _mapping(self, node: yaml.MappingNode, path: Path_) -> dict[str, JsonValue]:
        found: dict[str, JsonValue] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem="names are plain texts", problem_mark=key_node.start_mark)
            key = str(key_node.value)
            if key in found:
                raise yaml.MarkedYAMLError(problem=f"{key!r} is given twice", problem_mark=key_node.start_mark)
            self.lines[(*path, key)] = key_node.start_mark.line + 1
            found[key] = self.value(value_node, (*path, key))
        return found


def _problem(where: str, message: str) -> FieldProblem:
    return FieldProblem(where=where, message=message)


def _reason(error: yaml.MarkedYAMLError) -> str:
    return " ".join(part for part in (error.context, error.problem) if part)
