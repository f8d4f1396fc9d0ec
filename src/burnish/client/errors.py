"""Problem responses become the typed errors that the server raised."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from burnish.core.errors import (
    BurnishError,
    Busy,
    Conflict,
    DeadlineExceeded,
    FieldProblem,
    Forbidden,
    InvalidRequest,
    MalformedRequest,
    NotFound,
    OutOfDisk,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnsupportedMedia,
    UpstreamFailed,
    error_class,
)


class NotReachable(Unavailable):
    """No server answers at the address that was asked."""

    code = "not_reachable"


class UnknownError(BurnishError):
    """The server answered with an error of a kind that this client does not know; the message is the server's."""

    code = "unknown_error"


def error_from_response(status: int, headers: dict[str, str], content: bytes, where: str) -> BurnishError:
    """Return the typed error for an answer with ``status`` >= 400.

    Args:
        status: The HTTP status.
        headers: With lower-case names.
        content: The body: RFC 9457 problem+json, OpenAI's error envelope, or anything else.
        where: What was asked, such as ``GET /platform/jobs``; used when the body names no place.
    """
    body = _parsed(content)
    if isinstance(envelope := body.get("error"), dict):  # OpenAI's form, under /v1
        body = {"detail": envelope.get("message"), "code": envelope.get("code"), "where": envelope.get("param")}
    message = str(body.get("detail") or body.get("title") or f"the server answered {status}")
    error = _error_class(body.get("code"), status)(
        message,
        hint=_text(body.get("hint")),
        where=_text(body.get("where")) or where,
        problems=_problems(body.get("problems")),
        retry_after=_seconds(headers.get("retry-after")),
    )
    error.add_note(f"HTTP {status}")
    return error


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


_BY_STATUS: Mapping[int, type[BurnishError]] = {
    error.status: error
    for error in (
        MalformedRequest, Unauthenticated, Forbidden, NotFound, Conflict, TooLarge, UnsupportedMedia, InvalidRequest, Busy,
        UpstreamFailed, Unavailable, DeadlineExceeded, OutOfDisk,
    )
}  # fmt: skip
"""What an answer means whose code is missing or of a newer server, or of OpenAI's."""


def _error_class(code: object, status: int) -> type[BurnishError]:
    if isinstance(code, str) and (known := error_class(code)) is not None:
        return known
    return _BY_STATUS.get(status, UnknownError)


def _problems(raw: object) -> list[FieldProblem]:
    found = []
    for item in raw if isinstance(raw, list) else []:
        try:
            found.append(FieldProblem.model_validate(item))
        except ValidationError:
            found.append(FieldProblem(where="", message=str(item)))
    return found


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _seconds(value: str | None) -> float | None:
    try:
        return float(value) if value is not None else None
    except ValueError:
        return None
