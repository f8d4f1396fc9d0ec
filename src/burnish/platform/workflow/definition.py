"""A workflow definition: the models of its YAML, and the graph that they make.

What is checked here needs nothing but the text: shape, names, cycles, and that every reference names a parameter or a
step. ``validation.py`` checks the rest against what the components offer.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from burnish.core.errors import FieldProblem, InvalidRequest
from burnish.core.specs.base import digest_of
from burnish.infra.storable import unstorable
from burnish.platform.workflow.expressions import (
    ROOTS,
    ExpressionError,
    Path,
    bare,
    expressions,
    parse,
    paths,
    references,
    texts,
)
from burnish.platform.workflow.reading import check_value, read_text

ENGINE = "platform"
"""The component whose kinds run inside the server."""
MAX_STEPS = 200
MAX_ITEMS = 1_000
MAX_PROBLEMS = 50
"""Told at once of one kind: to find what each of 10,000 wrong names was meant to be would take minutes."""

_NAME = r"^[A-Za-z][A-Za-z0-9_-]{0,63}$"
ParameterType = Literal["string", "integer", "number", "boolean", "list", "object", "dataset", "model"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Parameter(_Part):
    """What an execution is given."""

    type: ParameterType = "string"
    default: JsonValue = None
    required: bool = Field(default=False, description="Whether it must be given; else `default` (or null) stands")
    description: str = Field(default="", max_length=2_000)
    choices: tuple[JsonValue, ...] = Field(default=(), max_length=100, description="The values that are allowed")
    minimum: float | None = None
    maximum: float | None = None


class Retry(_Part):
    """What happens when an attempt fails."""

    attempts: int = Field(default=1, ge=1, le=20, description="Tries in all")
    backoff_seconds: float = Field(default=1.0, ge=0, le=3_600, description="Wait before the second try")
    factor: float = Field(default=2.0, ge=1, le=10, description="Each further wait is this much longer")
    max_seconds: float = Field(default=300.0, ge=0, le=86_400)
    on: tuple[str, ...] = Field(
        default=(), max_length=50, description="Error codes worth another try; by default those marked retryable"
    )

    def delay(self, tries: int) -> float:
        """Return the seconds to wait after ``tries`` failed tries."""
        return min(self.max_seconds, self.backoff_seconds * self.factor ** min(tries - 1, 60))


class Step(_Part):
    """A node of the graph."""

    component: str = Field(default=ENGINE, max_length=100, description="Component type; `platform` by default")
    kind: str = Field(min_length=1, max_length=100, description="Name of the component's job kind")
    needs: tuple[str, ...] = Field(default=(), max_length=MAX_STEPS)
    spec: dict[str, JsonValue] = Field(default_factory=dict, alias="with", description="The kind's spec")
    when: bool | str | None = Field(default=None, description="Skipped where this is false")
    retry: Retry = Field(default_factory=Retry)
    timeout: float | None = Field(
        default=None, gt=0, le=30 * 86_400, description="Seconds that an attempt may run, pauses left out"
    )
    foreach: list[JsonValue] | str | None = Field(default=None, description="A list, or an expression that gives one")
    cache: bool = Field(default=False, description="Re-use the result of an equal step of this project")
    resources: dict[str, JsonValue] | None = Field(default=None, description="Instead of what the kind asks for")
    priority: int = Field(default=0, ge=-100, le=100)
    description: str = Field(default="", max_length=2_000)


class _Shape(_Part):
    name: str = Field(pattern=_NAME, max_length=64)
    description: str = Field(default="", max_length=10_000)
    parameters: dict[str, Parameter] = Field(default_factory=dict, max_length=200)
    steps: dict[str, Step] = Field(min_length=1, max_length=MAX_STEPS)


@dataclass(frozen=True)
class Definition:
    """A definition whose graph is sound: every need exists, there is no cycle, every reference has a root."""

    name: str
    description: str
    parameters: Mapping[str, Parameter]
    steps: Mapping[str, Step]
    source: Mapping[str, Any]
    """What it was read from; rows keep this."""

    @cached_property
    def digest(self) -> str:
        """The hash of its source."""
        return digest_of(self.source)

    @cached_property
    def needs(self) -> Mapping[str, frozenset[str]]:
        """Steps that must have ended before a step starts: its ``needs`` and all that it refers to."""
        return {name: frozenset(step.needs) | _referred(step) for name, step in self.steps.items()}

    @cached_property
    def judged(self) -> Mapping[str, frozenset[str]]:
        """Steps whose ``state`` a step's ``when`` asks for: however they end, its ``when`` decides."""
        return {name: _judged(step) for name, step in self.steps.items()}

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Step names, each after all that it needs; ties in the order of the text."""
        done: dict[str, None] = {}
        while len(done) < len(self.steps):
            for name in self.steps:
                if name not in done and self.needs[name] <= done.keys():
                    done[name] = None
        return tuple(done)

    def descendants(self, names: Iterable[str]) -> frozenset[str]:
        """Return ``names`` and every step that needs one of them, directly or not."""
        found = set(names)
        for name in self.order:
            if self.needs[name] & found:
                found.add(name)
        return frozenset(found)


def read(source: str | Mapping[str, Any]) -> Definition:
    """Return the definition in YAML or JSON text, or in an object that was read from it.

    Raises:
        InvalidRequest: with every problem that the text alone shows, each with place and mend.
        TooLarge: longer than the limit.
    """
    if isinstance(source, str):
        data = read_text(source)
    else:
        data = dict(source)
        check_value(data)
    check_storable(data, "definition")
    shape, problems = _shape(data)
    if shape is None:
        raise refused(problems)
    problems = list(islice(chain(_unknown_needs(shape), _bad_references(shape)), MAX_PROBLEMS))
    if not problems:
        definition = Definition(shape.name, shape.description, shape.parameters, shape.steps, data)
        if (cycle := _cycle(definition.needs)) is None:
            return definition
        problems = [_cycle_problem(cycle)]
    raise refused(problems)


def refused(problems: Iterable[FieldProblem], what: str = "the definition") -> InvalidRequest:
    """Return the error that carries ``problems``; its message says the first."""
    found = tuple(problems)
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    first = found[0]
    return InvalidRequest(
        f"{what} cannot be run: {first.where}: {first.message}{more}",
        where=first.where, hint=first.hint or "mend each place in `problems`", problems=found,
    )  # fmt: skip


def check_storable(value: Any, where: str) -> None:
    """Refuse text that a database cannot keep.

    Raises:
        InvalidRequest: it has a NUL or half a surrogate in it; each place is named.
    """
    if problems := tuple(islice(unstorable(value, where), MAX_PROBLEMS)):
        raise refused(problems, "what was sent")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint that names what was probably meant, or what there is."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean `{close[0]}`?"
    return f"there is: {', '.join(names[:20])}" if names else "there is none"


def _shape(data: dict[str, Any]) -> tuple[_Shape | None, list[FieldProblem]]:
    steps = data.get("steps")
    if isinstance(steps, list):
        problems, named = _named_steps(steps)
        if problems:
            return None, problems
        data = {**data, "steps": named}
    names = [*(data.get("steps") or ()), *(data.get("parameters") or ())] if _are_maps(data) else []
    problems = [
        FieldProblem(
            where=f"{'steps' if name in data['steps'] else 'parameters'}.{name}", message=f"{name!r} is not a name",
            hint="a name begins with a letter and has letters, digits, `_` and `-`, at most 64",
        )
        for name in names if not re.match(_NAME, str(name))
    ][:MAX_PROBLEMS]  # fmt: skip
    try:
        return (None if problems else _Shape.model_validate(data)), problems
    except ValidationError as error:
        return None, [*problems, *field_problems(error, "", _Shape, data)]


def _are_maps(data: Mapping[str, Any]) -> bool:
    return all(isinstance(data.get(key) or {}, dict) for key in ("steps", "parameters"))


def _named_steps(steps: list[Any]) -> tuple[list[FieldProblem], dict[str, Any]]:
    problems, named = [], {}
    for position, step in enumerate(steps):
        name = step.get("name") if isinstance(step, dict) else None
        if not isinstance(name, str):
            problems.append(FieldProblem(where=f"steps[{position}]", message="a step in a list needs a `name`"))
        elif name in named:
            problems.append(FieldProblem(where=f"steps[{position}]", message=f"a second step is named {name!r}"))
        else:
            named[name] = {key: value for key, value in step.items() if key != "name"}
    return problems, named


def field_problems(
    error: ValidationError, prefix: str, model: type[BaseModel], value: Any = None
) -> list[FieldProblem]:
    """Return pydantic's complaints as problems with readable places, and the nearest name for an unknown field.

    ``value`` is what was validated: it tells the fields in a place from the alternatives of a union.
    """
    found: list[FieldProblem] = []
    for one in error.errors(include_url=False, include_context=False)[:MAX_PROBLEMS]:
        loc = _plain_loc(one["loc"], value, missing=one["type"] == "missing")
        where = prefix
        for part in loc:
            where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part)
        hint = None
        message = one["msg"][:1].lower() + one["msg"][1:]
        if one["type"] == "extra_forbidden" and loc:
            message = f"there is no field `{loc[-1]}`"
            hint = nearest(str(loc[-1]), _fields_at(model, loc[:-1]))
        elif one["type"] == "missing":
            message = "this field is missing"
        problem = FieldProblem(where=where or "definition", message=message, hint=hint)
        if problem not in found:
            found.append(problem)
    return found


def _plain_loc(loc: tuple[int | str, ...], value: Any, *, missing: bool) -> list[int | str]:
    """Return a location without the names of a union's alternatives: only parts that lie in ``value``."""
    found: list[int | str] = []
    for position, part in enumerate(loc):
        if isinstance(value, Mapping) and part in value:
            value = value[str(part)]
        elif isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
            value = value[part]
        elif position < len(loc) - 1 or not missing:
            continue
        found.append(part)
    return found


def _fields_at(model: type[BaseModel], loc: list[Any]) -> list[str]:
    """Return the field names of the model that ``loc`` leads to, as they are written in YAML."""
    current: Any = model
    for part in loc:
        fields = getattr(current, "model_fields", None)
        if fields is not None:
            named = {field.alias or name: field for name, field in fields.items()}
            current = named[part].annotation if part in named else None
        args = [a for a in getattr(current, "__args__", ()) if hasattr(a, "model_fields")]
        if args and (fields is None or not hasattr(current, "model_fields")):
            current = args[0] if fields is None else current
    if not hasattr(current, "model_fields"):
        inner = [a for a in getattr(current, "__args__", ()) if hasattr(a, "model_fields")]
        current = inner[0] if inner else None
    return [f.alias or n for n, f in current.model_fields.items()] if current is not None else []


def _unknown_needs(shape: _Shape) -> Iterator[FieldProblem]:
    for name, step in shape.steps.items():
        for position, need in enumerate(step.needs):
            if need not in shape.steps:
                yield FieldProblem(where=f"steps.{name}.needs[{position}]", message=f"there is no step {need!r}",
                                   hint=nearest(need, shape.steps))  # fmt: skip


def step_references(name: str, step: Step) -> list[tuple[str, Path]]:
    """Return ``(place, reference)`` for everything that a step refers to.

    Raises:
        ExpressionError: an expression cannot be read; ``where`` is its place.
    """
    place = f"steps.{name}"
    found = list(references(step.spec, f"{place}.with"))
    found += references(step.resources, f"{place}.resources")
    found += references(step.foreach, f"{place}.foreach")
    if isinstance(step.when, str):
        try:
            found += [(f"{place}.when", path) for path in paths(parse(bare(step.when)))]
        except ExpressionError as error:
            raise ExpressionError(error.message, hint=error.hint, where=f"{place}.when") from error
    return found


def _bad_references(shape: _Shape) -> Iterator[FieldProblem]:
    for name, step in shape.steps.items():
        for place, text in _expression_texts(name, step):
            try:
                found = [path for one in ([bare(text)] if place == f"steps.{name}.when" else expressions(text))
                         for path in paths(parse(one))]  # fmt: skip
            except ExpressionError as error:
                yield FieldProblem(where=place, message=error.message, hint=error.hint)
                continue
            yield from (problem for path in found if (problem := _bad_reference(shape, name, place, path)))
        if isinstance(step.foreach, str) and not list(texts(step.foreach)):
            yield FieldProblem(where=f"steps.{name}.foreach", message="this is text, not a list",
                               hint="write `${{ parameters.some_list }}`, or a list")  # fmt: skip


def _expression_texts(name: str, step: Step) -> Iterator[tuple[str, str]]:
    """Yield what has expressions in a step with its place; a ``when`` is one, with or without its braces."""
    place = f"steps.{name}"
    for value, field in ((step.spec, "with"), (step.resources, "resources"), (step.foreach, "foreach")):
        yield from texts(value, f"{place}.{field}")
    if isinstance(step.when, str):
        yield f"{place}.when", step.when


def _bad_reference(shape: _Shape, name: str, place: str, path: Path) -> FieldProblem | None:
    root, rest = path.parts[0], path.parts[1:]
    if root not in ROOTS:
        return FieldProblem(where=place, message=f"`{path}` begins with nothing that is known",
                            hint=nearest(str(root), ROOTS))  # fmt: skip
    if root in {"item", "index"}:
        inside = shape.steps[name].foreach is not None and not place.endswith((".foreach", ".when"))
        return None if inside else FieldProblem(
            where=place, message=f"`{root}` exists only inside a step with `foreach`", hint="give the step a `foreach`"
        )  # fmt: skip
    if root == "execution":
        known = rest in {("id",), ("project_id",)}
        return None if known else FieldProblem(where=place, message=f"there is no `{path}`",
                                               hint="there is: execution.id, execution.project_id")  # fmt: skip
    if not rest:
        return FieldProblem(where=place, message=f"`{root}` alone is not a value", hint=f"name one: `{root}.NAME`")
    known_names = shape.parameters if root == "parameters" else shape.steps
    if rest[0] not in known_names:
        return FieldProblem(where=place, message=f"there is no {str(root)[:-1]} `{rest[0]}`",
                            hint=nearest(str(rest[0]), known_names))  # fmt: skip
    if root == "steps" and (len(rest) < 2 or rest[1] not in {"result", "state"}):
        return FieldProblem(where=place, message=f"`{path}` names neither a result nor a state",
                            hint=f"write `steps.{rest[0]}.result...` or `steps.{rest[0]}.state`")  # fmt: skip
    return None


def _referred(step: Step) -> frozenset[str]:
    return frozenset(str(path.parts[1]) for _, path in step_references("", step) if path.parts[0] == "steps")


def _judged(step: Step) -> frozenset[str]:
    if not isinstance(step.when, str):
        return frozenset()
    found = paths(parse(bare(step.when)))
    return frozenset(str(p.parts[1]) for p in found if p.parts[0] == "steps" and p.parts[2:3] == ("state",))


def _cycle(needs: Mapping[str, frozenset[str]]) -> list[str] | None:
    """Return the steps of a cycle, the first again at the end; None where there is none."""
    settled: set[str] = set()
    for start in needs:
        trail: list[str] = []
        stack = [(start, iter(sorted(needs[start])))] if start not in settled else []
        trail = [start] if stack else []
        while stack:
            name, rest = stack[-1]
            following = next((n for n in rest if n not in settled), None)
            if following is None:
                settled.add(name)
                stack.pop()
                trail.pop()
            elif following in trail:
                return [*trail[trail.index(following) :], following]
            else:
                trail.append(following)
                stack.append((following, iter(sorted(needs[following]))))
    return None


def _cycle_problem(cycle: list[str]) -> FieldProblem:
    text = " needs ".join(cycle)
    return FieldProblem(where=f"steps.{cycle[0]}.needs", message=f"the steps go round in a circle: {text}",
                        hint=f"take one of these needs (or references) away: {', '.join(cycle[:-1])}")  # fmt: skip
