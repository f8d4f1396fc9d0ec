"""The job kind of the compression component: ``compress``."""

import difflib
from importlib.util import find_spec
from typing import Any

from pydantic import ValidationError

from burnish.components.compression.methods import Method, methods
from burnish.core.errors import FieldProblem
from burnish.core.plug_points import did_you_mean, none_called
from burnish.core.specs import CompressionResult, CompressionSpec, Resources
from burnish.platform.jobs.schemas import Check, Kind
from burnish.platform.jobs.validation import MAX_PROBLEMS


def method_of(spec: CompressionSpec) -> Method:
    """Return the spec's method, which `check_compression` has found to exist."""
    return methods()[spec.method]


def compression_resources(spec: CompressionSpec) -> Resources:
    """Return what the spec's method says that it needs."""
    return method_of(spec).resources(spec)


def compression_seconds(spec: CompressionSpec) -> float | None:
    """Return about how long it takes."""
    return method_of(spec).seconds(spec)


def compression_function(spec: CompressionSpec) -> str:
    """Return the method's function, as ``module:function``."""
    return method_of(spec).run


async def check_compression(check: Check) -> list[FieldProblem]:
    """Check the method, its parameters, what it needs here, and the kinds of the artifacts."""
    problems = _wrong_kind(check.spec.get("model"), "model") + _wrong_kind(check.spec.get("adapter"), "adapter")
    if "method" in check.unresolved:
        return problems
    known = methods()
    name = str(check.spec.get("method", "gguf"))
    if name not in known:
        return [*problems, none_called("method", name, known)]
    missing = [module for module in known[name].needs if find_spec(module) is None]
    if missing:
        problems.append(
            FieldProblem(
                where="spec.method", message=f"method {name} needs {', '.join(missing)}, which is not installed here",
                hint="pip install 'burnish[ml]'",
            )
        )  # fmt: skip
    return problems + _params_problems(known[name], check)


def _params_problems(method: Method, check: Check) -> list[FieldProblem]:
    params: Any = check.spec.get("params", {})
    if not isinstance(params, dict) or any(path == "params" or path.startswith("params.") for path in check.unresolved):
        return []  # the schema tells of what is no object; what is not there yet is checked when it is
    try:
        method.params.model_validate(params)
    except ValidationError as error:
        return [_param_problem(method, dict(problem)) for problem in error.errors(include_url=False)[:MAX_PROBLEMS]]
    return []


def _param_problem(method: Method, problem: dict[str, Any]) -> FieldProblem:
    place = ".".join(str(part) for part in problem["loc"])
    fields = method.params.model_fields
    hint = None
    if problem["type"] == "extra_forbidden":
        hint = did_you_mean(place, fields, f"{method.name} has {', '.join(fields) or 'none'}")
        message = f"method {method.name} has no parameter {place!r}"
        return FieldProblem(where=f"spec.params.{place}", message=message, hint=hint)
    if problem["type"] == "literal_error":
        choices = str(problem["ctx"]["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        near = difflib.get_close_matches(str(problem["input"]), choices, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else None
    return FieldProblem(where=f"spec.params.{place}", message=str(problem["msg"]), hint=hint)


def _wrong_kind(value: Any, name: str) -> list[FieldProblem]:
    found = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(found, str) or found == name:
        return []
    hint = "compress the model that it was made from" if found == "gguf" else None
    return [FieldProblem(where=f"spec.{name}", message=f"an artifact of kind {found}, not {name}", hint=hint)]


KINDS: dict[str, Kind] = {
    "compress": Kind(
        spec=CompressionSpec, result=CompressionResult, run=compression_function,
        summary="Make a model smaller; an adapter is merged into it first",
        resources=compression_resources, check=check_compression, seconds=compression_seconds,
    ),
}  # fmt: skip
