"""What is wrong with a job before it is accepted, each problem placed as ``spec.<path>``."""

import asyncio
import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from burnish.core.errors import BurnishError, FieldProblem
from burnish.core.protocol import JobRequest, Validation
from burnish.core.specs.base import Resources
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.artifact_store.protocol import ArtifactStore
from burnish.infra.artifact_store.references import not_there, references_in
from burnish.infra.database import Database
from burnish.infra.storable import unstorable
from burnish.platform.jobs import store
from burnish.platform.jobs.admission import Capacity, never_fits
from burnish.platform.jobs.schemas import Check, Kind

MAX_PROBLEMS = 50
"""Told of what a spec's form has wrong; to find what is near a name takes long."""


async def validate(
    request: JobRequest, kinds: Mapping[str, Kind], database: Database, artifact_store: ArtifactStore,
    component_type: str = "",
) -> tuple[Validation, Any]:  # fmt: skip
    """Check a job completely. Returns what to answer, and the parsed spec (None if it is wrong or incomplete).

    What it asks for is held against the nodes that offer ``component_type``.
    """
    kind = kinds.get(request.kind)
    if kind is None:
        return Validation(problems=(_unknown_kind(request.kind, kinds),)), None
    unresolved = tuple(request.unresolved) if request.partial else ()
    given = _without(request.spec, unresolved)
    if odd := tuple(unstorable(given, "spec")):
        return Validation(problems=odd), None
    parsed, problems = _parse(kind, given, unresolved)
    problems += await _missing_artifacts(given, request.project_id, database, artifact_store)
    if kind.check is not None and not problems:
        check = Check(given, parsed, request.project_id, unresolved, database, artifact_store)
        problems += await kind.check(check)
    if parsed is None or problems:
        return Validation(problems=tuple(problems)), None
    try:
        complete: BaseModel = parsed if kind.complete is None else await asyncio.to_thread(kind.complete, parsed)
        nodes = await _capacities(database, component_type) if kind.run is not None else []
        resources = request.resources or _at_most_a_node(kind.resources(complete), nodes)
    except BurnishError as error:
        problem = FieldProblem(where=error.where or "spec", message=error.message, hint=error.hint)
        return Validation(problems=(problem, *error.problems)), None
    problems += _too_large(resources, nodes)
    spec = complete.model_dump(mode="json")
    seconds = kind.seconds(complete)
    return Validation(problems=tuple(problems), spec=spec, resources=resources, seconds=seconds), complete


def _unknown_kind(name: str, kinds: Mapping[str, Kind]) -> FieldProblem:
    close = difflib.get_close_matches(name, kinds, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"this component offers: {', '.join(sorted(kinds)) or 'nothing'}"
    return FieldProblem(where="kind", message=f"unknown kind {name!r}", hint=hint)


def _parse(kind: Kind, given: dict[str, Any], unresolved: Sequence[str]) -> tuple[BaseModel | None, list[FieldProblem]]:
    try:
        return kind.spec.model_validate(given), []
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        told = (_problem(kind.spec, detail) for detail in details if not _excused(detail, unresolved))
        return None, list(islice(told, MAX_PROBLEMS))


def _excused(detail: ErrorDetails, unresolved: Sequence[str]) -> bool:
    """Tell whether the error is about a field that is filled in later: at it, below it, or in what holds it."""
    path = ".".join(str(part) for part in detail["loc"])
    for field in unresolved:
        below = path == field or path.startswith(f"{field}.")
        holds = not path or field.startswith(f"{path}.")
        if below or (holds and detail["type"] != "extra_forbidden"):
            return True
    return False


def _problem(model: type[BaseModel], detail: ErrorDetails) -> FieldProblem:
    path = [str(part) for part in detail["loc"]]
    where = ".".join(["spec", *path])
    if detail["type"] == "extra_forbidden":
        known = _fields_at(model, detail["loc"][:-1])
        close = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known fields: {', '.join(sorted(known))}"
        return FieldProblem(where=where, message=f"there is no field {path[-1]!r} here", hint=hint)
    message = detail["msg"].removeprefix("Value error, ")
    return FieldProblem(where=where, message=message[:1].lower() + message[1:])


def _fields_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Return the names of the fields of the model that stands at ``location`` inside ``model``."""
    current: type[BaseModel] | None = model
    for part in location:
        if current is None or not isinstance(part, str):
            continue
        field = current.model_fields.get(part)
        current = None if field is None else next(_models_in(field.annotation), None)
    return [] if current is None else list(current.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, list, tuple, dict) or get_args(annotation):
        for inner in get_args(annotation):
            yield from _models_in(inner)


def _without(spec: Mapping[str, Any], unresolved: Sequence[str]) -> dict[str, Any]:
    """Return a copy of ``spec`` without the fields that are not there yet."""
    copied: dict[str, Any] = _copy(spec)
    for path in unresolved:
        parts = path.split(".")
        holder: Any = copied
        for part in parts[:-1]:
            holder = _inside(holder, part)
        if isinstance(holder, dict):
            holder.pop(parts[-1], None)
    return copied


def _inside(holder: Any, part: str) -> Any:
    if isinstance(holder, dict):
        return holder.get(part)
    if isinstance(holder, list) and part.isdigit() and int(part) < len(holder):
        return holder[int(part)]
    return None


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _copy(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(inner) for inner in value]
    return value


async def _missing_artifacts(
    given: dict[str, Any], project_id: str, database: Database, artifact_store: ArtifactStore
) -> list[FieldProblem]:
    references = list(references_in(given, "spec"))
    if not references:
        return []
    there = await asyncio.to_thread(lambda: {ref.digest: artifact_store.renew(ref.digest) for _, ref in references})
    async with database.read() as session:
        known = await artifacts.known(session, project_id, there)
    problems = []
    for where, reference in references:
        found = known.get(reference.digest)
        if found is None or not there[reference.digest]:
            problems.append(not_there(where, reference.digest))
        elif found.ref.kind != reference.kind:
            message = f"artifact {reference.digest} is a {found.ref.kind}, not a {reference.kind}"
            problems.append(FieldProblem(where=where, message=message))
    return problems


async def _capacities(database: Database, component_type: str) -> list[Capacity]:
    async with database.read() as session:
        nodes = await store.nodes_that_offer(session, component_type)
    return [Capacity(n.cpus, n.memory_bytes, n.gpus, n.disk_bytes) for n in nodes]


def _at_most_a_node(resources: Resources, nodes: Sequence[Capacity]) -> Resources:
    """Return what a kind asks for by itself with no more cores than the largest node has: it then takes longer."""
    cpus = max((node.cpus for node in nodes), default=resources.cpus)
    return resources.model_copy(update={"cpus": min(resources.cpus, cpus)})


def _too_large(resources: Resources, nodes: Sequence[Capacity]) -> list[FieldProblem]:
    return [
        FieldProblem(where=f"resources.{name}", message=f"the job {message}", hint=hint)
        for name, message, hint in never_fits(resources, nodes)
    ]
