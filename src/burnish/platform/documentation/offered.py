"""What third parties' components bring into the API's document: their kinds' schemas, their routes. Pure.

Nothing of it is trusted: what does not fit is left out, and never keeps the rest from being shown.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from burnish.core.protocol import KindOffer
from burnish.platform.identity.permission import permission_relayed

_SCHEMAS = "#/components/schemas/"
_DEFINITIONS = ("#/$defs/", "#/definitions/")
_METHODS = frozenset({"get", "put", "post", "delete", "patch"})
_PATH = re.compile(r"(/[A-Za-z0-9._~{}:-]+)+/?")
_MAX_PATHS = 500
_KEPT = ("summary", "description", "parameters", "requestBody", "deprecated")
_KEPT_OF_RESPONSE = ("description", "headers", "content")
"""What an operation may say. Not where its requests go (`servers`, `callbacks`, `links`) or what they show (`security`):
clients that are generated from the document send their key there."""


def kind_schemas(kinds: Mapping[tuple[str, str], KindOffer]) -> dict[str, Any]:
    """Return the schemas of kinds by names such as ``echo_metric.measure.spec``, their own definitions beside them."""
    found: dict[str, Any] = {}
    for (component_type, name), offer in sorted(kinds.items()):
        for part, schema in (("spec", offer.spec_schema), ("result", offer.result_schema)):
            found.update(_hoisted(f"{component_type}.{name}.{part}", schema))
    return found


def _hoisted(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = {}
    for word in ("$defs", "definitions"):
        own.update(schema.get(word) or {})
    places = {inner: f"{name}.{re.sub(r'[^A-Za-z0-9._-]', '_', inner)}" for inner in own}
    plain = {key: value for key, value in schema.items() if key not in ("$defs", "definitions", "$schema", "$id")}
    found = {name: _referring(plain, name, places)}
    found.update({places[inner]: _referring(value, name, places) for inner, value in own.items()})
    return found


def _referring(value: Any, name: str, places: Mapping[str, str]) -> Any:
    """Return the value with its references changed from inside a schema to inside the document."""
    if isinstance(value, Mapping):
        reference = value.get("$ref")
        if isinstance(reference, str) and _target(reference, name, places) is None:
            return {}  # what it refers to cannot be told here
        return {key: _referring(inner, name, places) for key, inner in value.items()}
    if isinstance(value, list):
        return [_referring(inner, name, places) for inner in value]
    return (_target(value, name, places) or value) if isinstance(value, str) and value.startswith("#") else value


def _target(reference: str, name: str, places: Mapping[str, str]) -> str | None:
    if reference == "#":
        return f"{_SCHEMAS}{name}"
    for prefix in _DEFINITIONS:
        inner = reference.removeprefix(prefix)
        if inner != reference and inner in places:
            return f"{_SCHEMAS}{places[inner]}"
    return None


def third_party(document: Any, component_type: str) -> dict[str, Any]:
    """Return what can be shown of a third party's OpenAPI document: sound operations, under the component's own tag."""
    if not isinstance(document, Mapping) or not isinstance(document.get("paths"), Mapping):
        return {"paths": {}}
    parts = document.get("components")
    schemas = parts.get("schemas") if isinstance(parts, Mapping) else None
    sound = {
        str(name): schema for name, schema in (schemas if isinstance(schemas, Mapping) else {}).items()
        if isinstance(schema, Mapping)
    }  # fmt: skip
    paths: dict[str, Any] = {}
    for path, item in list(document["paths"].items())[:_MAX_PATHS]:
        if not isinstance(path, str) or not _PATH.fullmatch(path) or not isinstance(item, Mapping):
            continue
        kept = {
            method: _own(operation, f"{method} {path}", component_type)
            for method, operation in item.items() if method in _METHODS and _is_sound(operation, sound)
        }  # fmt: skip
        if kept:
            paths[path] = kept
    return {"paths": paths, "components": {"schemas": sound}, "tags": [{"name": component_type}]}


def _is_sound(operation: Any, schemas: Mapping[str, Any]) -> bool:
    if not isinstance(operation, Mapping):
        return False
    responses = operation.get("responses")
    if not isinstance(responses, Mapping) or not responses:
        return False
    if not all(re.fullmatch(r"[1-5][0-9]{2}|default", str(status)) for status in responses):
        return False
    if not all(isinstance(one, Mapping) for one in responses.values()):
        return False
    if not isinstance(operation.get("parameters", []), list):
        return False
    try:
        text = json.dumps([operation, *(_reached(operation, schemas))])
    except (TypeError, ValueError, RecursionError):
        return False
    names = re.findall(r'"\$ref": "([^"]*)"', text)
    return all(name.startswith(_SCHEMAS) and name.removeprefix(_SCHEMAS) in schemas for name in names)


def _reached(operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> list[Any]:
    """Return every schema that the operation refers to, directly or not."""
    seen: dict[str, Any] = {}
    queue = [operation]
    while queue:
        for name in re.findall(rf'"\$ref": "{re.escape(_SCHEMAS)}([^"]*)"', json.dumps(queue.pop())):
            if name in schemas and name not in seen:
                seen[name] = schemas[name]
                queue.append(schemas[name])
    return list(seen.values())


def _own(operation: Mapping[str, Any], place: str, component_type: str) -> dict[str, Any]:
    name = str(operation.get("operationId") or place)
    identifier = re.sub(r"[^A-Za-z0-9]+", "_", f"{component_type}_{name}").strip("_")[:200]
    needed = permission_relayed(component_type, place.partition(" ")[0].upper())
    kept = {word: operation[word] for word in _KEPT if word in operation}
    kept["responses"] = {
        str(status): {word: told[word] for word in _KEPT_OF_RESPONSE if word in told}
        for status, told in operation["responses"].items()
    }
    return {**kept, "tags": [component_type], "operationId": identifier, "x-permission": needed}
