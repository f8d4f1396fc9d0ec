"""Text that every database can keep: PostgreSQL takes no NUL, and neither takes half a surrogate pair."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from burnish.core.errors import FieldProblem

NO_NUL = r"^[^\x00]*$"
"""The pattern by which a schema says so of a text that is refused here, in words; half a surrogate is no text to begin with."""


def storable(text: str) -> bool:
    """Tell whether a database can keep the text."""
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def cleaned_text(text: str) -> str:
    """Return the text with every character that a database cannot keep replaced."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def cleaned(value: Any) -> Any:
    """Return JSON data that every database keeps, for what nobody is left to be asked about (an error, a result).

    Texts and names lose the characters that cannot be stored; a number that JSON has no form for becomes null.
    """
    if isinstance(value, str):
        return cleaned_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {cleaned_text(str(name)): cleaned(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(inner) for inner in value]
    return value


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
