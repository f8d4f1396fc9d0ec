r"""JSON Lines: one JSON object a line, UTF-8, ended by ``\n`` or ``\r\n``. Optionally gzip or zstd.

Blank lines are skipped. A byte-order mark is. ``NaN`` and ``Infinity`` are not JSON and refused, as are a key that
stands twice in one object (which of the two was meant?), lone surrogates and NUL characters. A JSON array is not JSON
Lines: ``jq -c '.[]' array.json > rows.jsonl`` makes it so.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from burnish.components.data_management.formats.base import Limits, Problems, Record
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
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        hint = "the line ends too early: was the file cut?" if error.pos >= len(text.rstrip()) else None
        problems.add(number, f"not JSON: {error.msg} at column {error.pos + 1}", hint=hint)
        return None
    except _NotAllowed as error:
        problems.add(number, str(error))
        return None
    except RecursionError:
        problems.add(number, "nested too deeply")
        return None
    except ValueError as error:  # an integer of thousands of digits
        problems.add(number, f"not JSON that can be kept: {error}")
        return None
    if not isinstance(value, dict):
        kind = {list: "an array", str: "a string", type(None): "null"}.get(type(value), "a number or boolean")
        hint = "for a file that is one array: jq -c '.[]' array.json > rows.jsonl" if isinstance(value, list) else None
        problems.add(number, f"{kind}, not an object", hint=hint)
        return None
    if not value:
        problems.add(number, "an empty object")
        return None
    if "\\u" in text and not _encodable(value):
        problems.add(number, "holds a lone surrogate, which is no character", hint="write such characters unescaped")
        return None
    return value


class _NotAllowed(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _NotAllowed(f"the key {twice!r} stands twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise _NotAllowed(f"{name} is not JSON; write null or leave the column out")


def _encodable(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)
