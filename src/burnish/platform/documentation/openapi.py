"""One OpenAPI document from the platform's own and the components' parts of it."""

import asyncio
import json
import logging
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import orjson

from burnish.core.errors import BurnishError
from burnish.core.protocol import COMPONENT_TYPES, KindOffer
from burnish.infra.problems import MEDIA_TYPE, PROBLEM_SCHEMA, problems
from burnish.infra.storable import NO_NUL
from burnish.platform.documentation.offered import kind_schemas, third_party
from burnish.platform.identity.principal import LOCAL
from burnish.platform.integrator import Integrator

log = logging.getLogger(__name__)

Part = tuple[str, tuple[str, ...], Mapping[str, Any]]
"""Name, path prefixes and OpenAPI document of a component."""

_ASK_SECONDS = 3.0
_SCHEMAS = "#/components/schemas/"
_METHODS = frozenset({"get", "put", "post", "delete", "patch"})
_ANY = (400, 401, 403, 421, 429, 500)
"""What the gateway may answer to any request."""
_WITH_BODY = (413, 422)
_RELAYED = (502, 503, 504)
"""What it may answer for a component that it cannot reach."""


async def merged(
    own: Mapping[str, Any], openai: Mapping[str, Any], routes: "ComponentRoutes",
    kinds: Mapping[tuple[str, str], KindOffer] = MappingProxyType({}),
) -> dict[str, Any]:  # fmt: skip
    """Return the whole API: the platform's routes, ``/v1``, those of every component that is known, its kinds."""
    parts: list[Part] = [("openai", ("/v1",), openai), *await routes.read(own)]
    relayed = [prefix for _, prefixes, _ in parts[1:] for prefix in prefixes]
    document = merge(own, parts)
    document["components"]["schemas"] |= kind_schemas(kinds)
    return completed(document, relayed)


class ComponentRoutes:
    """What components say of their routes: asked anew each time, and kept for when one does not answer, or not in time."""

    def __init__(self, integrator: Integrator) -> None:
        self._integrator = integrator
        self._seen: dict[str, Part] = {}

    async def read(self, own: Mapping[str, Any]) -> list[Part]:
        """Return the part of every component type that is known and has routes which fit beside ``own``."""
        types = sorted(self._integrator.types())
        asked = await asyncio.gather(*(self._ask(one) for one in types))
        self._seen = {part[0]: part for part in asked if part is not None and self._is_fit(own, part)}
        return list(self._seen.values())

    async def _ask(self, component_type: str) -> Part | None:
        """Return the routes of a component as it tells them, else as it last did; None if it has none."""
        try:
            description = await self._integrator.describe(component_type)
            if not description.routes:
                return None
            document = await self._integrator.call(
                component_type, "GET", "/openapi.json", principal=LOCAL.acting(), timeout=_ASK_SECONDS
            )
        except BurnishError as error:
            seen = self._seen.get(component_type)
            left = "left out" if seen is None else "shown as they were last read"
            log.warning("the routes of %s cannot be read and are %s: %s", component_type, left, error.message)
            return seen
        if component_type not in COMPONENT_TYPES:
            document = third_party(document, component_type)
        return component_type, description.routes, document

    def _is_fit(self, own: Mapping[str, Any], part: Part) -> bool:
        return part[0] in COMPONENT_TYPES or part is self._seen.get(part[0]) or _fits(own, part)


def _fits(own: Mapping[str, Any], part: Part) -> bool:
    """Tell whether a third party's routes can be written into the document at all."""
    try:
        orjson.dumps(completed(merge(own, [part])))
    except Exception:
        log.warning("the routes of %s are left out: its /openapi.json is none", part[0], exc_info=True)
        return False
    return True


def merge(own: Mapping[str, Any], parts: Iterable[Part]) -> dict[str, Any]:
    """Return ``own`` with the paths of each part that begin with one of its prefixes, and the schemas they use.

    Args:
        own: the platform's document.
        parts: (name, path prefixes, document) of each component. Two schemas of one name that differ get the
            component's name in front.
    """
    paths = dict(own.get("paths", {}))
    schemas = dict(own.get("components", {}).get("schemas", {}))
    tags = list(own.get("tags", []))
    for name, prefixes, document in parts:
        kept = {
            path: item
            for path, item in document.get("paths", {}).items()
            if any(path == prefix or path.startswith(prefix.rstrip("/") + "/") for prefix in prefixes)
        }
        theirs: Mapping[str, Any] = document.get("components", {}).get("schemas", {})
        needed = _reachable(kept, theirs)
        renames = {one: f"{name}_{one}" for one in needed if one in schemas and schemas[one] != theirs[one]}
        kept = _renamed(kept, renames)
        for one in needed:
            schemas[renames.get(one, one)] = _renamed(theirs[one], renames)
        paths.update(kept)
        tags += [tag for tag in document.get("tags", []) if tag not in tags]
    merged = {**own, "paths": dict(sorted(paths.items()))}
    merged["components"] = {**own.get("components", {}), "schemas": dict(sorted(schemas.items()))}
    return {**merged, "tags": tags} if tags else merged


def secured(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with the credentials that each operation takes, for a server with authentication on."""
    made: dict[str, Any] = json.loads(json.dumps(document))
    schemes = made.setdefault("components", {}).setdefault("securitySchemes", {})
    schemes["key"] = {"type": "http", "scheme": "bearer", "description": "An API key, `bk_...`"}
    schemes["session"] = {
        "type": "apiKey",
        "in": "cookie",
        "name": "burnish_session",
        "description": "A login of the page",
    }
    for item in made["paths"].values():
        for method in _METHODS & item.keys():
            is_open = item[method].get("x-permission") == "open"
            item[method]["security"] = [] if is_open else [{"key": []}, {"session": []}]
    return made


def completed(document: Mapping[str, Any], relayed: Iterable[str] = ()) -> dict[str, Any]:
    """Return the document with what no route says by itself.

    Each operation outside ``/v1`` names every error that it may answer with, all of one form (a reference to
    ``components/responses``); each page of a list has an example, made of the example of its items; text in a URL has no
    NUL, which the gateway refuses.

    Args:
        document: the merged document.
        relayed: prefixes of the paths that components serve.
    """
    made: dict[str, Any] = json.loads(json.dumps(document))
    prefixes = tuple(relayed)
    shared: dict[str, Any] = {}
    for path, item in made["paths"].items():
        for method in _METHODS & item.keys():
            _bar_nul(item[method].get("parameters", ()))
            if path.startswith("/v1/"):
                continue
            _name_errors(item[method], shared, _RELAYED if path.startswith(prefixes) else ())
    parts = made.setdefault("components", {})
    schemas = parts.setdefault("schemas", {})
    schemas["Problem"] = PROBLEM_SCHEMA
    parts["responses"] = dict(sorted(shared.items()))
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own form, which is never sent
        schemas.pop(name, None)
    for schema in schemas.values():
        _exemplify(schema, schemas)
    return made


def _bar_nul(parameters: Iterable[dict[str, Any]]) -> None:
    """Say of each text that stands in the URL, and whose form nothing else tells, that no NUL is in it."""
    for parameter in parameters:
        schema = parameter.get("schema", {})
        if parameter.get("in") in {"path", "query"}:
            for one in (schema, schema.get("items", {}), *schema.get("anyOf", ())):
                if one.get("type") == "string" and not one.keys() & {"pattern", "enum", "const", "format"}:
                    one["pattern"] = NO_NUL


def _name_errors(operation: dict[str, Any], shared: dict[str, Any], more: tuple[int, ...]) -> None:
    responses = operation["responses"]
    declared = {
        int(status)
        for status, response in responses.items()
        if status.isdigit() and int(status) >= 400 and "ReadyView" not in json.dumps(response)
    }
    takes = (
        *_ANY,
        *more,
        *(_WITH_BODY if "requestBody" in operation else ()),
        *((422,) if operation.get("parameters") else ()),
    )
    own = {int(status) for status in responses if status.isdigit()} - declared
    for status in sorted((declared | set(takes)) - own):
        name = f"Problem{status}"
        if name not in shared:
            response = problems(status)[status]
            response["content"][MEDIA_TYPE]["schema"] = {"$ref": f"{_SCHEMAS}Problem"}
            shared[name] = response
        responses[str(status)] = {"$ref": f"#/components/responses/{name}"}
    operation["responses"] = dict(sorted(responses.items()))


def _exemplify(schema: dict[str, Any], schemas: Mapping[str, Any]) -> None:
    """Give a page of items that have an example one of its own."""
    properties = schema.get("properties", {})
    if set(properties) != {"data", "has_more", "next"} or "example" in schema or "examples" in schema:
        return
    item = schemas.get(properties["data"].get("items", {}).get("$ref", "").removeprefix(_SCHEMAS), {})
    found = item.get("examples") or ([item["example"]] if "example" in item else [])
    if found:
        schema["examples"] = [{"data": found[:1], "has_more": False, "next": None}]


def _reachable(paths: Mapping[str, Any], schemas: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    queue = list(_references(paths))
    while queue:
        name = queue.pop()
        if name in found or name not in schemas:
            continue
        found.append(name)
        queue.extend(_references(schemas[name]))
    return sorted(found)


def _references(value: Any) -> Iterable[str]:
    if isinstance(value, Mapping):
        reference = value.get("$ref")
        if isinstance(reference, str) and reference.startswith(_SCHEMAS):
            yield reference.removeprefix(_SCHEMAS)
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def _renamed(value: Any, renames: Mapping[str, str]) -> Any:
    if not renames:
        return value
    text = json.dumps(value)
    for old, new in renames.items():
        text = text.replace(f'"{_SCHEMAS}{old}"', f'"{_SCHEMAS}{new}"')
    return json.loads(text)
