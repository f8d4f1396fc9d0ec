r"""JSON Lines: one JSON object a line, UTF-8, ended by ``\n`` or ``\r\n``. Optionally gzip or zstd.

Blank lines are skipped. A byte-order mark is. ``NaN`` and ``Infinity`` are not JSON and refused, as are a key that
stands twice in one object (which of the two was meant?), numbers too large to be held, lone surrogates, NUL characters,
and lists and objects nested more than 64 deep. A JSON array is not JSON
Lines: ``jq -c '.[]' array.json > rows.jsonl`` makes it so.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from burnish.components.data_management.formats.base import (
    MAX_COLUMNS,
    MAX_DEPTH,
    Limits,
    Problems,
    Record,
    first_repeated,
    show,
)
from burnish.components.data_management.formats.streams import read_lines


class JsonLines:
    """Reader of JSON Lines."""

    name = "jsonl"
    suffixes = (".jsonl", ".ndjson", ".json")
    unit = "line"
    compressible = True

    def read(self, path: Path, limits: Limits, problems: Problems) -> Iterator[Record]:
        """Yield one record a line; see :class:`~.base.FileFormat`."""
        for line in read_lines(path, limits):
            if not line.text.strip():
                continue
            if values := parse_object(line.text, line.number, problems):
                yield Record(line.number, values)


def parse_object(text: str, number: int, problems: Problems) -> dict[str, Any] | None:
    """Return the JSON object in ``text``, or None after noting in ``problems`` why it is none."""
    try:
        value = loads(text)
    except NotJson as error:
        problems.add(number, str(error), hint=error.hint)
        return None
    if not isinstance(value, dict):
        kind = {list: "an array", str: "a string", type(None): "null"}.get(type(value), "a number or boolean")
        hint = "for a file that is one array: jq -c '.[]' array.json > rows.jsonl" if isinstance(value, list) else None
        problems.add(number, f"{kind}, not an object", hint=hint)
        return None
    if not value:
        problems.add(number, "an empty object")
        return None
    if len(value) > MAX_COLUMNS:
        problems.add(number, f"{len(value)} columns; a row has at most {MAX_COLUMNS}")
        return None
    if "" in value:
        problems.add(number, "a column has no name")
        return None
    return value


class NotJson(ValueError):
    """A text that is no JSON that can be kept; ``hint`` says what to do, where that is known."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def loads(text: str) -> Any:
    """Return the JSON value in ``text``: one that can be written again as UTF-8 JSON.

    Raises:
        NotJson: and nothing else, whatever the text.
    """
    try:
        value = _DECODER.decode(text)
    except NotJson:
        raise
    except json.JSONDecodeError as error:
        hint = "the line ends too early: was the file cut?" if error.pos >= len(text.rstrip()) else None
        raise NotJson(f"not JSON: {error.msg} at column {error.pos + 1}", hint) from None
    except RecursionError:
        raise NotJson(_TOO_DEEP) from None
    except ValueError as error:  # an integer of thousands of digits
        raise NotJson(f"not JSON that can be kept: {error}") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _too_deep(value):
        raise NotJson(_TOO_DEEP)
    if "\\u" in text and not _encodable(value):
        raise NotJson("holds a lone surrogate, which is no character", "write such characters unescaped")
    return value


_TOO_DEEP = f"nested too deeply: more than {MAX_DEPTH} lists and objects in one another"


def _too_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        inside = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [one for many in inside for one in many]
    return any(isinstance(one, dict | list) for one in level)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise NotJson(f"the key {show(first_repeated(name for name, _ in pairs))} stands twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NotJson(f"the number {text[:20]} is too large to be held", "write it as text")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise NotJson(f"{name} is not JSON; write null or leave the column out")


def _encodable(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse_constant)
