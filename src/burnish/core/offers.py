"""What a component may say of itself: rules beyond the form of its `/describe`. Pure.

What it says goes into definitions, validation, the API's schema and the documentation, so it is looked at before any of
these sees it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from burnish.core.errors import FieldProblem, InvalidRequest
from burnish.core.protocol import COMPONENT_TYPES, Description, KindOffer, is_deeper

RESERVED_TYPE = "platform"
"""The engine's own steps are named by it."""

MAX_KINDS = 200
MAX_ROUTES = 20
MAX_SCHEMA_BYTES = 256 << 10
MAX_SCHEMA_DEPTH = 40
"""Of schemas in schemas."""
MAX_JSON_DEPTH = 100
"""Of whatever a schema holds, as a default; what is much deeper can be read and not be written again."""

PLATFORM_ROUTES = (
    "/v1", "/docs", "/api", "/openapi.json", "/assets", "/components", "/health", "/metrics", "/platform/audit",
    "/platform/auth", "/platform/components", "/platform/configuration", "/platform/deadlines", "/platform/doctor",
    "/platform/events", "/platform/health", "/platform/identity", "/platform/jobs", "/platform/keys", "/platform/kinds",
    "/platform/limits", "/platform/metrics", "/platform/models", "/platform/monitoring", "/platform/nodes",
    "/platform/projects", "/platform/ready", "/platform/roles", "/platform/secrets", "/platform/service-accounts",
    "/platform/sessions", "/platform/settings", "/platform/status", "/platform/users", "/platform/workflows",
    # what the vocabulary has names for and is not served yet
    "/platform/alerts", "/platform/aliases", "/platform/artifacts", "/platform/checkpoints", "/platform/detectors",
    "/platform/executions", "/platform/gateway", "/platform/incidents", "/platform/integrator", "/platform/lineage",
    "/platform/logs", "/platform/notifiers", "/platform/optimizer", "/platform/playbooks", "/platform/plugins",
    "/platform/rules", "/platform/signals", "/platform/traces", "/platform/ui", "/platform/usage", "/platform/webhooks",
)  # fmt: skip
"""Path prefixes that the platform answers itself, or keeps for itself."""

OWN_ROUTES: Mapping[str, str] = {
    "/platform/datasets": "data_management", "/platform/deployments": "model_serving", "/platform/replicas": "model_serving",
    "/platform/engines": "model_serving", "/platform/adapters": "fine_tuning", "/platform/recipes": "fine_tuning",
    "/platform/studies": "hyperparameter_optimization", "/platform/trials": "hyperparameter_optimization",
    "/platform/methods": "compression", "/platform/evaluations": "evaluation", "/platform/reports": "evaluation",
    "/platform/tasks": "evaluation",
    **{f"/platform/{one}": one for one in COMPONENT_TYPES},
    **{f"/platform/{one.replace('_', '-')}": one for one in COMPONENT_TYPES},
}  # fmt: skip
"""Path prefixes of our own components, which nobody else gets while they are away."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}")
_KIND = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")
_ROUTE = re.compile(r"(/[A-Za-z0-9._~-]+){2,6}/?")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""What must not stand in a text that is shown: control characters, and what turns the direction of writing."""
_TYPES = frozenset({"object", "array", "string", "integer", "number", "boolean", "null"})
_SCHEMAS_IN_MAPS = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")
_SCHEMAS_IN_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")


def check_offer(description: Description, taken: Mapping[str, str]) -> None:
    """Check a description.

    Args:
        description: a component's `/describe`.
        taken: path prefixes that other components serve, with their types.

    Raises:
        InvalidRequest: with everything that is wrong; the message says the first.
    """
    found = tuple(_problems(description, taken))
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        first = found[0]
        raise InvalidRequest(
            f"its /describe is refused: {first.where}: {first.message}{more}", where=first.where,
            hint=first.hint or "see the component protocol in the reference", problems=found[:50],
        )  # fmt: skip


def _problems(description: Description, taken: Mapping[str, str]) -> Iterator[FieldProblem]:
    name = description.component_type
    if not _NAME.fullmatch(name) or name == RESERVED_TYPE:
        why = "is kept for the platform" if name == RESERVED_TYPE else "is no name: small letters, digits and _"
        yield FieldProblem(where="component_type", message=f"{name[:100]!r} {why}")
    if not 1 <= len(description.version) <= 50 or _CONTROL.search(description.version):
        yield FieldProblem(where="version", message="a version has 1 to 50 printable characters")
    if len(description.kinds) > MAX_KINDS:
        yield FieldProblem(where="kinds", message=f"{len(description.kinds)} kinds; at most {MAX_KINDS} are listed")
        return
    names = [offer.name for offer in description.kinds]
    for position, offer in enumerate(description.kinds):
        if names.index(offer.name) != position:
            yield FieldProblem(where=f"kinds[{position}]", message=f"a second kind is named {offer.name[:100]!r}")
        yield from _kind_problems(offer, f"kinds[{position}]")
    if len(description.routes) > MAX_ROUTES:
        yield FieldProblem(
            where="routes", message=f"{len(description.routes)} routes; at most {MAX_ROUTES} are passed on"
        )
        return
    for position, prefix in enumerate(description.routes):
        problem = route_problem(prefix, name, taken)
        if problem is not None:
            yield FieldProblem(where=f"routes[{position}]", message=problem)


def route_problem(prefix: str, component_type: str, taken: Mapping[str, str]) -> str | None:
    """Return why a component may not have a path prefix, None if it may."""
    if not _ROUTE.fullmatch(prefix) or len(prefix) > 200 or "/." in prefix:
        return f"{prefix[:100]!r} is no path prefix: write /platform/<name>, letters, digits and . _ ~ -"
    plain = prefix.rstrip("/")
    if not plain.startswith("/platform/"):
        return f"{plain} does not lie under /platform/"
    for reserved in PLATFORM_ROUTES:
        if _overlap(plain, reserved):
            return f"{plain} is the platform's own ({reserved})"
    for other, owner in {**OWN_ROUTES, **taken}.items():
        if owner != component_type and _overlap(plain, other.rstrip("/")):
            return f"{plain} is served by the component {owner} ({other})"
    return None


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


def _kind_problems(offer: KindOffer, where: str) -> Iterator[FieldProblem]:
    if not _KIND.fullmatch(offer.name):
        yield FieldProblem(
            where=f"{where}.name", message=f"{offer.name[:100]!r} is no name of a kind",
            hint="it begins with a letter and has letters, digits and . _ -, at most 100",
        )  # fmt: skip
    if len(offer.summary) > 1000 or _CONTROL.search(offer.summary):
        yield FieldProblem(where=f"{where}.summary", message="a summary has at most 1000 printable characters")
    if offer.permission is not None and (len(offer.permission) > 100 or _CONTROL.search(offer.permission)):
        yield FieldProblem(where=f"{where}.permission", message="a permission has at most 100 printable characters")
    for part, schema in (("spec_schema", offer.spec_schema), ("result_schema", offer.result_schema)):
        problem = schema_problem(schema)
        if problem is not None:
            yield FieldProblem(where=f"{where}.{part}{problem[0]}", message=problem[1])


def schema_problem(schema: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the place and the reason why this is no JSON Schema of an object, None if it is one.

    References must lead into the same schema: nothing is fetched from elsewhere.
    """
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        return "", f"it is no JSON: {error}"
    if len(text) > MAX_SCHEMA_BYTES:
        return "", f"the schema has {len(text) >> 10} KiB; at most {MAX_SCHEMA_BYTES >> 10} KiB are kept"
    return _problem_in(text)


@lru_cache(maxsize=128)
def _problem_in(text: str) -> tuple[str, str] | None:
    """Look through a schema, once: every instance of a type offers the same, and says so again every minute."""
    deep = "", f"what it holds is nested deeper than {MAX_JSON_DEPTH} levels"
    try:
        schema = json.loads(text)
    except RecursionError:
        return deep
    if is_deeper(schema, MAX_JSON_DEPTH):
        return deep
    if "type" not in schema and not {"$ref", "anyOf", "oneOf", "allOf", "properties"} & schema.keys():
        return "", "this is no JSON Schema of an object: it has no `type`"
    if schema.get("type", "object") != "object":
        return ".type", f"a spec or result is an object, not {str(schema['type'])[:100]!r}"
    return next(_bad_parts(schema, schema, "", 0), None)


def _bad_parts(root: Mapping[str, Any], schema: Any, place: str, depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        yield place, f"a schema is an object or a boolean, not {type(schema).__name__}"
        return
    if depth > MAX_SCHEMA_DEPTH:
        yield place, f"the schema is deeper than {MAX_SCHEMA_DEPTH}"
        return
    yield from _bad_words(root, schema, place)
    for word in _SCHEMAS_IN_MAPS:
        inner = schema.get(word, {})
        if not isinstance(inner, Mapping):
            yield f"{place}.{word}", "this is an object of schemas"
            continue
        for name, one in inner.items():
            if _CONTROL.search(name) or len(name) > 200:
                yield f"{place}.{word}", "a field's name has at most 200 printable characters"
            yield from _bad_parts(root, one, f"{place}.{word}.{name}", depth + 1)
    for word in _SCHEMAS_IN_LISTS:
        listed = schema.get(word, [])
        if not isinstance(listed, list) or (word in schema and not listed):
            yield f"{place}.{word}", "this is a list of schemas"
            continue
        for position, one in enumerate(listed):
            yield from _bad_parts(root, one, f"{place}.{word}[{position}]", depth + 1)
    for word in _SCHEMAS:
        if word in schema:
            yield from _bad_parts(root, schema[word], f"{place}.{word}", depth + 1)


def _bad_words(root: Mapping[str, Any], schema: Mapping[str, Any], place: str) -> Iterator[tuple[str, str]]:
    declared = schema.get("type", [])
    types = declared if isinstance(declared, list) else [declared]
    if any(not isinstance(one, str) or one not in _TYPES for one in types):
        yield f"{place}.type", f"{str(declared)[:100]!r} is no JSON type"
    required = schema.get("required", [])
    if not isinstance(required, list) or any(not isinstance(one, str) for one in required):
        yield f"{place}.required", "this is a list of names"
    for word in ("title", "description"):
        if not isinstance(schema.get(word, ""), str) or _CONTROL.search(schema.get(word, "")):
            yield f"{place}.{word}", "this is printable text"
    if "enum" in schema and not isinstance(schema["enum"], list):
        yield f"{place}.enum", "this is a list of values"
    reference = schema.get("$ref")
    if reference is not None and not _leads_somewhere(root, reference):
        yield f"{place}.$ref", f"{str(reference)[:100]!r} leads nowhere in this schema"


def _leads_somewhere(root: Mapping[str, Any], reference: Any) -> bool:
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return bool(reference == "#")
    target: Any = root
    for part in reference.removeprefix("#/").split("/"):
        target = target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, Mapping) else None
    return isinstance(target, Mapping | bool)
