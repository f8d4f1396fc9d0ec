"""Errors as RFC 9457 ``application/problem+json``: the one form of every error outside ``/v1``."""

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from burnish.core.errors import BurnishError, ErrorBody, all_errors, error_class
from burnish.infra.logging import redact_known_fields

MEDIA_TYPE = "application/problem+json"

PROBLEM_SCHEMA: dict[str, Any] = {
    "title": "Problem",
    "description": "What happened (`detail`), to what (`where`), what to do next (`hint`); `code` is stable.",
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "retryable"],
    "properties": {
        "type": {
            "type": "string",
            "description": "`urn:burnish:error:<code>`",
            "example": "urn:burnish:error:not_found",
        },
        "title": {"type": "string", "description": "The status in words"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What happened, to what"},
        "code": {"type": "string", "description": "Stable; the documentation has a page of all codes"},
        "hint": {"type": ["string", "null"], "description": "What to do next"},
        "where": {"type": ["string", "null"], "description": "The place in what was sent, or the object"},
        "retryable": {"type": "boolean", "description": "Whether the same request may succeed later"},
        "problems": {
            "type": "array",
            "description": "Each thing that is wrong and where it stands",
            "items": {
                "type": "object",
                "required": ["where", "message"],
                "properties": {
                    "where": {"type": "string"},
                    "message": {"type": "string"},
                    "hint": {"type": ["string", "null"]},
                },
            },
        },
        "trace_id": {"type": ["string", "null"], "description": "Names this request in the logs"},
    },
}


def problem_body(error: BurnishError, trace_id: str | None = None) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Return ``(status, headers, body)`` of the response to a request that failed with ``error``."""
    headers = {"content-type": MEDIA_TYPE}
    retry_after = error.retry_after
    if retry_after is None and error.status in (429, 503):
        retry_after = 1.0
    if retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after)))
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    return error.status, headers, _document(error.body(), error.status, trace_id)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI ``responses`` for error statuses, each with its codes: ``responses=problems(404, 409)``."""
    return {status: _response(status) for status in statuses}


def error_from_problem(document: Mapping[str, Any], status: int) -> BurnishError:
    """Return the typed error that a problem document (of a component, say) stands for.

    An unknown code becomes a plain error of that status; a document that is none, one that says so.
    """
    try:
        body = ErrorBody.model_validate({**document, "message": document.get("detail") or document.get("message")})
    except ValueError:
        body = ErrorBody(code="", message=f"an answer with status {status} that explains nothing")
    found = error_class(body.code)
    if found is None:
        same = (cls for cls in all_errors() if cls.status == status and cls.__module__ == BurnishError.__module__)
        found = next((cls for cls in same if cls is not BurnishError), BurnishError)
    return found(body.message, hint=body.hint, where=body.where, problems=body.problems)


def _document(body: ErrorBody, status: int, trace_id: str | None) -> dict[str, Any]:
    document = redact_known_fields(body.model_dump(mode="json"))
    message = document.pop("message")
    return {
        "type": f"urn:burnish:error:{body.code}", "title": _title(status), "status": status, "detail": message,
        **document, "trace_id": trace_id,
    }  # fmt: skip


def _response(status: int) -> dict[str, Any]:
    errors = [cls for cls in all_errors() if cls.status == status]
    lines = [f"`{cls.code}`: {(cls.__doc__ or '').strip().splitlines()[0]}" for cls in errors]
    example = _document(
        ErrorBody(code=errors[0].code if errors else "internal", message="what happened, to what", hint="what to do next"),
        status, "4bf92f3577b34da6a3ce929d0e0e4736",
    )  # fmt: skip
    response: dict[str, Any] = {
        "description": "\n\n".join(lines) or _title(status),
        "content": {MEDIA_TYPE: {"schema": PROBLEM_SCHEMA, "example": example}},
    }
    if status in (429, 503):
        seconds = {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds after which to try again"}
        response["headers"] = {"Retry-After": seconds}
    return response


def _title(status: int) -> str:
    return HTTPStatus(status).phrase
