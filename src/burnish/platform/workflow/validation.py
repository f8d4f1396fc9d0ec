"""Everything that can be known at submit: kinds, fields, types, and what each component says of its steps.

All problems are found at once. Specs are resolved as far as parameters reach; what other steps produce is checked
against the JSON Schema of the producing kind's result, and left open when the component is asked.
"""

import asyncio
import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from burnish.core.errors import BurnishError, FieldProblem, all_errors
from burnish.core.protocol import JobRequest, KindOffer, Validation
from burnish.core.specs.base import Resources
from burnish.infra.artifact_store.references import problems_with
from burnish.infra.database import Database
from burnish.platform.identity import Principal
from burnish.platform.workflow import shapes
from burnish.platform.workflow.components import Components
from burnish.platform.workflow.definition import (
    ENGINE,
    MAX_ITEMS,
    MAX_PROBLEMS,
    Definition,
    Step,
    nearest,
    step_references,
)
from burnish.platform.workflow.engine_kinds import EngineKind
from burnish.platform.workflow.expressions import (
    ExpressionError,
    Path,
    Room,
    Scope,
    bare,
    condition,
    expressions,
    located,
    parse,
    paths,
    place_of,
    resolve,
    single,
)  # fmt: skip
from burnish.platform.workflow.offers import Known, OfferedNow, away_problem

_MANY = 50
"""Items of a `foreach` whose specs are each checked at submit."""


@dataclass(frozen=True)
class Ask:
    """One spec to check: of a step, or of one item of its `foreach`."""

    step: str
    spec: dict[str, Any]
    unresolved: tuple[str, ...]
    resources: dict[str, Any] | None = None


@dataclass(frozen=True)
class Estimate:
    """What a component said a step needs."""

    resources: Resources | None = None
    seconds: float | None = None


@dataclass
class Findings:
    """What validation found."""

    problems: list[FieldProblem] = field(default_factory=list)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    away: list[FieldProblem] = field(default_factory=list)
    """Steps whose component is known, but not there now: nothing that the submitter could mend."""
    forbidden: list[FieldProblem] = field(default_factory=list)
    """Steps that need a permission which the submitter lacks; among ``problems``, too."""


class Validator:
    """Checks a definition with its parameters against what is offered."""

    def __init__(
        self, components: Components, kinds: Mapping[str, EngineKind], database: Database, known: Known | None = None
    ) -> None:
        self._components = components
        self._database = database
        self._known = known or OfferedNow(components)
        self._kinds = kinds
        self._own = {(ENGINE, name): kind.offer(name) for name, kind in kinds.items()}

    async def check(self, definition: Definition, parameters: Mapping[str, Any], principal: Principal) -> Findings:
        """Return all problems, each with its place, and what each step would need.

        ``parameters`` lacks those that were given wrongly: what hangs on them is left open.
        """
        offers, away = {**self._known.kinds(), **self._own}, self._known.away()
        if any((s.component, s.kind) not in offers or s.component in away for s in definition.steps.values()):
            await self._components.refresh()  # what offers it may have come this moment
            offers, away = {**self._known.kinds(), **self._own}, self._known.away()
        findings = Findings()
        findings.forbidden = self.lacking(definition, definition.steps, principal)
        findings.problems += findings.forbidden
        asks: list[Ask] = []
        specs: list[tuple[str, dict[str, Any]]] = []
        for name, step in definition.steps.items():
            offer = offers.get((step.component, step.kind))
            if offer is None:
                findings.problems.append(_unknown_kind(name, step, offers))
                continue
            findings.problems += islice(_reference_problems(definition, name, step, offers), MAX_PROBLEMS)
            scope = {"parameters": parameters, "execution": {"id": "", "project_id": principal.project_id}}
            findings.problems += _retry_problems(name, step)
            if _never_runs(name, step, scope, findings.problems):
                continue
            for ask in _asks(name, step, scope, findings.problems):
                specs.append((f"steps.{name}.with", ask.spec))
                findings.problems += islice(_type_problems(definition, ask, step, offer, offers), MAX_PROBLEMS)
                if step.component == ENGINE:
                    place = f"steps.{name}.with"
                    findings.problems += self._kinds[step.kind].problems(ask.spec, ask.unresolved, place)
                elif step.component not in away:
                    asks.append(ask)
            if step.component in away:
                place = f"steps.{name}.component"
                findings.away.append(away_problem(place, step.component, away[step.component]))
        async with self._database.read() as session:
            for place, spec in specs:
                findings.problems += await problems_with(session, principal.project_id, spec, place)
        answers = await asyncio.gather(*(self._ask(definition.steps[a.step], a, principal) for a in asks))
        for ask, (problems, estimate) in zip(asks, answers, strict=True):
            findings.problems += problems
            findings.estimates[ask.step] = estimate
        findings.problems = list(dict.fromkeys(findings.problems))
        return findings

    def lacking(self, definition: Definition, steps: Iterable[str], principal: Principal) -> list[FieldProblem]:
        """Return the steps whose work needs a permission that the caller lacks, each with its name."""
        offers = {**self._known.kinds(), **self._own}
        found = []
        for name in steps:
            step = definition.steps[name]
            offer = offers.get((step.component, step.kind))
            if offer is not None and offer.permission is not None and not principal.may(offer.permission):
                message = f"step {name} ({step.kind}) needs the permission {offer.permission}, which {principal.subject} lacks"
                found.append(
                    FieldProblem(
                        where=f"steps.{name}", message=message, hint="ask an administrator for a role that has it"
                    )
                )
        return found

    async def _ask(self, step: Step, ask: Ask, principal: Principal) -> tuple[list[FieldProblem], Estimate]:
        place = f"steps.{ask.step}"
        try:
            resources = None if ask.resources is None else Resources.model_validate(ask.resources)
        except ValueError as error:
            problem = FieldProblem(where=f"{place}.resources", message=str(error).splitlines()[-2].strip())
            return [problem], Estimate()
        request = JobRequest(
            kind=step.kind, spec=ask.spec, project_id=principal.project_id, priority=step.priority,
            resources=resources, partial=bool(ask.unresolved), unresolved=ask.unresolved,
        )  # fmt: skip
        try:
            answer = Validation.model_validate(
                await self._components.call(
                    step.component,
                    "POST",
                    "/jobs/validate",
                    request.model_dump(mode="json"),
                    principal=principal.acting(),
                )
            )
        except BurnishError as error:
            if error.retryable:
                raise
            return [FieldProblem(where=place, message=error.message, hint=error.hint)], Estimate()
        problems = [_placed(problem, f"{place}.with") for problem in answer.problems]
        return problems, Estimate(answer.resources, answer.seconds)


def _placed(problem: FieldProblem, place: str) -> FieldProblem:
    inner = problem.where.removeprefix("spec").removeprefix(".")
    joint = "" if not inner or inner.startswith("[") else "."
    return problem.model_copy(update={"where": f"{place}{joint}{inner}"})


def _unknown_kind(name: str, step: Step, offers: Mapping[tuple[str, str], KindOffer]) -> FieldProblem:
    components = {component for component, _ in offers}
    if step.component not in components:
        return FieldProblem(where=f"steps.{name}.component", message=f"no component {step.component!r} is running",
                            hint=nearest(step.component, components))  # fmt: skip
    known = [kind for component, kind in offers if component == step.component]
    elsewhere = sorted(component for component, kind in offers if kind == step.kind)
    hint = f"`component: {elsewhere[0]}` offers it" if elsewhere else nearest(step.kind, known)
    return FieldProblem(where=f"steps.{name}.kind", message=f"{step.component} has no kind {step.kind!r}", hint=hint)


def _never_runs(name: str, step: Step, scope: Scope, problems: list[FieldProblem]) -> bool:
    """Tell whether ``when`` is known to be false; a ``when`` that cannot be evaluated goes to ``problems``."""
    try:
        return step.when is not None and not condition(step.when, scope)
    except ExpressionError as error:
        if not _later([bare(str(step.when))], scope):
            problems.append(FieldProblem(where=f"steps.{name}.when", message=error.message, hint=error.hint))
        return False


def _later(texts_: Iterable[str], scope: Scope) -> bool:
    """Tell whether expressions ask for what is not known yet, or for a parameter that was given wrongly (told elsewhere)."""
    asked = [path.parts for text in texts_ for path in paths(parse(text))]
    return any(parts[0] in _COME_LATER or _is_wrong(parts, scope) for parts in asked)


def _retry_problems(name: str, step: Step) -> Iterator[FieldProblem]:
    """Yield misspelt error codes. A component of somebody else's may have codes of its own, unless they look like ours."""
    known = {error.code for error in all_errors()}
    for position, code in enumerate(step.retry.on[:MAX_PROBLEMS]):
        close = difflib.get_close_matches(code, known, n=1, cutoff=0.75)
        if code not in known and (close or step.component == ENGINE):
            yield FieldProblem(where=f"steps.{name}.retry.on[{position}]", message=f"there is no error code {code!r}",
                               hint=nearest(code, known))  # fmt: skip


def _reference_problems(
    definition: Definition, name: str, step: Step, offers: Mapping[tuple[str, str], KindOffer]
) -> Iterator[FieldProblem]:
    for place, path in step_references(name, step):
        try:
            _schema_of(definition, path, offers)
        except shapes.NoSuchField as error:
            yield FieldProblem(where=place, message=f"`{path}` leads nowhere: there is no `{error.part}`",
                               hint=nearest(str(error.part), error.known))  # fmt: skip


def _schema_of(
    definition: Definition, path: Path, offers: Mapping[tuple[str, str], KindOffer]
) -> list[shapes.Schema] | None:
    """Return what may lie at a reference; None where that is not known."""
    root, rest = path.parts[0], path.parts[1:]
    if root == "parameters":
        return _parameter_schema(definition.parameters[str(rest[0])].type, rest[1:])
    if root != "steps":
        return None
    if rest[1] == "state":
        if len(rest) > 2:
            raise shapes.NoSuchField(rest[2], [])
        return [{"type": "string"}]
    producer = definition.steps[str(rest[0])]
    offer = offers.get((producer.component, producer.kind))
    below = rest[2:]
    if offer is None:
        return None
    if producer.foreach is None:
        return shapes.at(offer.result_schema, below)
    if not below:
        return [{"type": "array", "items": {}}]
    if not isinstance(below[0], int):
        raise shapes.NoSuchField(below[0], ["[0]"])
    return shapes.at(offer.result_schema, below[1:])


_ANY_TEXT = {"type": ["string", "null"]}
_ARTIFACT = {"type": "object", "properties": {"digest": {"type": "string"}, "kind": {"type": "string"},
             "size_bytes": {"type": "integer"}}}  # fmt: skip
_NULL_OR_ARTIFACT = {"anyOf": [_ARTIFACT, {"type": "null"}]}
_PARAMETERS: Mapping[str, shapes.Schema] = {
    "string": {"type": "string"}, "integer": {"type": "integer"}, "number": {"type": "number"},
    "boolean": {"type": "boolean"}, "list": {"type": "array"}, "object": {"type": "object"},
    "dataset": {"type": "object", "additionalProperties": True,
                "properties": {"name": _ANY_TEXT, "version": {}, "artifact": _ARTIFACT}},
    "model": {"type": "object", "additionalProperties": False,
              "properties": {"name": _ANY_TEXT, "version": {"type": ["integer", "null"]}, "source": _ANY_TEXT,
                             "artifact": _NULL_OR_ARTIFACT, "adapter": _NULL_OR_ARTIFACT}},
}  # fmt: skip


def _parameter_schema(kind: str, path: tuple[str | int, ...]) -> list[shapes.Schema] | None:
    if kind in {"list", "object"} and path:
        return None
    return shapes.at(_PARAMETERS[kind], path)


def _asks(name: str, step: Step, scope: Scope, problems: list[FieldProblem]) -> list[Ask]:
    """Return the specs of a step to check; expression problems that show already go to ``problems``."""
    scopes: list[dict[str, Any]] = [dict(scope)]
    if step.foreach is not None:
        where = f"steps.{name}.foreach"
        known = True
        try:
            values = resolve(step.foreach, scope)
        except ExpressionError as error:
            values, known = None, False
            if not _later((one for _, text in located(step.foreach) for one in expressions(text)), scope):
                problems.append(FieldProblem(where=where, message=error.message, hint=error.hint))
        if known and not isinstance(values, list | tuple):
            problems.append(FieldProblem(where=where, message="this is not a list", hint="refer to a list"))
        elif known and len(values) > MAX_ITEMS:
            problems.append(FieldProblem(where=where, message=f"{len(values):,} values; at most {MAX_ITEMS:,} are allowed",
                                         hint="split the list"))  # fmt: skip
        elif values:
            scopes = [{**scope, "item": value, "index": index} for index, value in enumerate(values[:_MANY])]
    found = []
    for one in scopes:
        unresolved: list[str] = []
        room = Room(len(scopes))
        spec = _partly(step.spec, one, "", unresolved, f"steps.{name}.with", problems, room)
        later: list[str] = []
        resources = _partly(step.resources or {}, one, "", later, f"steps.{name}.resources", problems, room)
        found.append(Ask(name, spec, tuple(unresolved), resources if step.resources and not later else None))
    return found


_LATER = object()


def _partly(
    value: Any, scope: Scope, path: str, unresolved: list[str], place: str, problems: list[FieldProblem], room: Room
) -> Any:
    """Resolve what the scope reaches. Fields that wait for a step are left out and named in ``unresolved``."""
    if isinstance(value, Mapping):
        found = {}
        for key, child in value.items():
            below = f"{path}.{key}" if path else str(key)
            inner = _partly(child, scope, below, unresolved, f"{place}.{key}", problems, room)
            if inner is _LATER:
                unresolved.append(below)
            else:
                found[key] = inner
        return found
    if isinstance(value, list | tuple):
        before = len(unresolved)
        items = [
            _partly(v, scope, f"{path}[{i}]", unresolved, f"{place}[{i}]", problems, room) for i, v in enumerate(value)
        ]
        if any(item is _LATER for item in items) or len(unresolved) > before:
            del unresolved[before:]
            return _LATER  # a list with a hole has other positions: the whole list comes later
        return items
    if not isinstance(value, str) or "${{" not in value:
        return value
    try:
        return resolve(value, scope, room)
    except ExpressionError as error:
        if _later(expressions(value), scope):
            return _LATER
        problems.append(FieldProblem(where=place, message=error.message, hint=error.hint))
        return _LATER


_COME_LATER = frozenset({"steps", "item", "index"})


def _is_wrong(parts: tuple[str | int, ...], scope: Scope) -> bool:
    """Tell whether a reference is to a parameter that was given wrongly, which is told elsewhere."""
    return parts[0] == "parameters" and parts[1] not in scope["parameters"]


def _type_problems(
    definition: Definition, ask: Ask, step: Step, offer: KindOffer, offers: Mapping[tuple[str, str], KindOffer]
) -> Iterator[FieldProblem]:
    """Check that what another step produces fits the field that it is meant for."""
    for parts, text in located(step.spec):
        where = place_of(parts, f"steps.{ask.step}.with")
        node = parse(whole) if (whole := single(text)) is not None else None
        if not isinstance(node, Path) or node.parts[0] != "steps":
            continue
        try:
            given = shapes.types_of(_schema_of(definition, node, offers))
            wanted = shapes.types_of(shapes.at(offer.spec_schema, parts))
        except shapes.NoSuchField as error:
            if error.part in parts:
                yield FieldProblem(where=where, message=f"{step.kind} has no field `{error.part}`",
                                   hint=nearest(str(error.part), error.known))  # fmt: skip
            continue
        if not shapes.fits(given, wanted):
            yield FieldProblem(
                where=where,
                message=f"`{node}` is {' or '.join(sorted(given or ()))}, but {' or '.join(sorted(wanted or ()))} is wanted",
                hint="refer to another field of the result",
            )
