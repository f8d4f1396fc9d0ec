"""Text that every database can keep: PostgreSQL takes no NUL, and neither takes half a surrogate pair."""

from collections.abc import Iterator, Mapping
from typing import Any

from burnish.core.errors import FieldProblem


def storable(text: str) -> bool:
    """Tell whether a database can keep the text."""
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def unstorable(value: Any, where: str) -> Iterator[FieldProblem]:
    """Yield a problem for each text in JSON data, keys included, that a database cannot keep."""
    if isinstance(value, str):
        if not storable(value):
            yield FieldProblem(
                where=where, message="holds a character that cannot be stored (NUL, or half a surrogate)"
            )
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if not storable(str(name)):
                yield FieldProblem(where=where, message="has a name with a character that cannot be stored")
            else:
                yield from unstorable(inner, f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from unstorable(inner, f"{where}.{index}")
