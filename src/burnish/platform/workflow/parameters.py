"""From the parameters that were sent to what the expressions see: types, limits, datasets and models resolved."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from burnish.core.errors import BurnishError, FieldProblem, NotFound
from burnish.platform.identity import Principal
from burnish.platform.workflow.components import Components
from burnish.platform.workflow.definition import MAX_PROBLEMS, Definition, Parameter, nearest

ModelFinder = Callable[[str, str], Awaitable[Mapping[str, Any] | None]]
"""``(project id, reference)`` -> the registry's version, or None where the registry knows no model of that name.

Raises NotFound where it knows the model but not that version or alias."""

_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "list": (list,), "object": (dict,),
    "dataset": (str,), "model": (str,),
}  # fmt: skip


@dataclass(frozen=True)
class Resolver:
    """Fills in, checks and resolves parameters."""

    components: Components
    find_model: ModelFinder

    async def resolve(
        self, definition: Definition, given: Mapping[str, Any], principal: Principal
    ) -> tuple[dict[str, Any], list[FieldProblem]]:
        """Return every parameter's value and what is wrong with what was given."""
        problems = [
            FieldProblem(where=f"parameters.{name}", message=f"{definition.name} has no parameter `{name}`",
                         hint=nearest(name, definition.parameters))
            for name in islice((n for n in given if n not in definition.parameters), MAX_PROBLEMS)
        ]  # fmt: skip
        values: dict[str, Any] = {}
        for name, parameter in definition.parameters.items():
            place = f"parameters.{name}"
            value = given.get(name, parameter.default)
            values[name] = value
            if value is None:
                if parameter.required:
                    problems.append(_missing(place, parameter))
                continue
            if problem := _wrong(place, parameter, value):
                problems.append(problem)
                continue
            try:
                values[name] = await self._referred(parameter, value, principal)
            except BurnishError as error:
                if error.retryable:
                    raise
                problems.append(FieldProblem(where=place, message=error.message, hint=error.hint))
        return values, problems

    async def _referred(self, parameter: Parameter, value: Any, principal: Principal) -> Any:
        if parameter.type == "dataset":
            found = await self.components.call(
                "data_management", "GET", "/platform/datasets/resolve", principal=principal, query={"ref": value}
            )
            return {key: found.get(key) for key in ("name", "version", "artifact")}
        if parameter.type == "model":
            known = await self.find_model(principal.project_id, value)
            if known is not None:
                return dict(known)
            if "@" in value and "/" not in value:
                raise NotFound(f"the registry has no model {value!r}", hint="`burnish model list` shows what it has")
            return {"source": value, "artifact": None, "adapter": None, "name": None, "version": None}
        return value


def _missing(place: str, parameter: Parameter) -> FieldProblem:
    return FieldProblem(where=place, message="this parameter must be given", hint=_asked(parameter))


def _asked(parameter: Parameter) -> str:
    kind = (
        f"the name of a {parameter.type}"
        if parameter.type in {"dataset", "model"}
        else f"a value of type {parameter.type}"
    )
    return f"give {kind}" + (f": {parameter.description}" if parameter.description else "")


def _wrong(place: str, parameter: Parameter, value: Any) -> FieldProblem | None:
    kinds = _TYPES[parameter.type]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        article = "a name" if parameter.type in {"dataset", "model"} else f"of type {parameter.type}"
        return FieldProblem(where=place, message=f"{_short(value)} is not {article}", hint=_asked(parameter))
    if parameter.choices and value not in parameter.choices:
        known = [str(choice) for choice in parameter.choices]
        return FieldProblem(where=place, message=f"{_short(value)} is not one of the choices",
                            hint=f"{nearest(str(value), known)}; there is: {', '.join(known)}")  # fmt: skip
    if parameter.minimum is not None and isinstance(value, int | float) and value < parameter.minimum:
        return FieldProblem(where=place, message=f"{value} is below the minimum, {parameter.minimum:g}")
    if parameter.maximum is not None and isinstance(value, int | float) and value > parameter.maximum:
        return FieldProblem(where=place, message=f"{value} is above the maximum, {parameter.maximum:g}")
    if isinstance(value, str) and (len(value) > 10_000 or "\0" in value):
        return FieldProblem(where=place, message="this text is too long, or has a NUL in it", hint="shorten it")
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
