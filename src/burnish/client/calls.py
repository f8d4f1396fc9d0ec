"""An operation of the API as a value, without input or output: the method, the path and how the answer is read.

Sync and async differ only in who sends the :class:`Call`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from pydantic import TypeAdapter

from burnish.core.pages import Page

Answer = TypeVar("Answer")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """One request and how its answer is read."""

    method: str
    path: str
    read: Callable[[Any], Answer]
    query: Mapping[str, str | int | bool] = field(default_factory=dict)
    json: Any = None
    upload: Path | None = None
    """A file whose bytes are streamed as the body."""
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = 30.0

    @property
    def where(self) -> str:
        """What is asked, for error messages."""
        return f"{self.method} {self.path}"


def reader(model: type[Answer]) -> Callable[[Any], Answer]:
    """Return a function that validates an answer as ``model``."""
    return TypeAdapter(model).validate_python


def raw(answer: Any) -> Any:
    """Take the answer as it is: JSON values."""
    return answer


def nothing(_: Any) -> None:
    """Take an answer that says no more than that it is done."""


def listing(path: str, model: type[Item], after: str | None, limit: int, **filters: Any) -> Call[Page[Item]]:
    """List objects, newest first; ``after`` is the ``next`` of the page before."""
    query = given(after=after, limit=limit, **filters)
    return Call("GET", path, reader(Page[model]), query)  # type: ignore[valid-type]


def get(path: str) -> Call[Any]:
    """Read anything."""
    return Call("GET", path, raw)


def given(**values: Any) -> dict[str, Any]:
    """Return the values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def key_header(idempotency_key: str | None) -> dict[str, str]:
    """Return the header of an idempotency key, if there is one."""
    return {"idempotency-key": idempotency_key} if idempotency_key else {}


def quoted(value: str) -> str:
    """Return ``value`` as one path segment."""
    return quote(value, safe="")
