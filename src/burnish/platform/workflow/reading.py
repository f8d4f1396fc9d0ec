"""Reads a definition's text: a small, strict YAML 1.2 (and so JSON), with the line of everything that is wrong.

Built from the parser's events instead of ``yaml.safe_load``: keys such as ``on`` stay strings, a key given twice is an
error, aliases are expanded against a budget (no alias bomb), nesting is bounded before anything recurses, and tags,
merge keys, dates and other non-JSON values are refused.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from burnish.core.errors import FieldProblem, InvalidRequest, TooLarge

MAX_BYTES = 256 * 1024
MAX_DEPTH = 40
MAX_VALUES = 20_000

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL = re.compile(r"^(~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?[0-9]{1,19}$")
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,4})?$")


def read_text(text: str, source: str = "definition") -> dict[str, Any]:
    """Return the mapping that ``text`` holds.

    Raises:
        TooLarge: more than 256 KiB.
        InvalidRequest: not YAML, not a mapping, or more than the limits allow; the place is a line.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise TooLarge(f"the {source} is longer than {MAX_BYTES // 1024} KiB", hint="split it, or use `foreach`")
    try:
        value = _Reader(text, source).document()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}" if mark is not None else source
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise _refused(line, f"this is not YAML: {problem}", "check indentation and quotes") from error
    if not isinstance(value, dict):
        raise _refused("line 1", f"the {source} must be a mapping with `name` and `steps`", None)
    check_value(value, source)  # aliases may have made it longer than its text
    return value


def check_value(value: object, source: str = "definition") -> None:
    """Bound the nesting, the number of values and the length of all texts of something that came as JSON.

    Raises:
        InvalidRequest: deeper than 40 levels or more than 20,000 values.
        TooLarge: texts and names together of more than 256 KiB.
    """
    count = size = 0
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        count += len(level)
        if count > MAX_VALUES:
            raise _refused(source, f"more than {MAX_VALUES:,} values", "split it")
        size += sum(_length(one) for one in level)
        if size > MAX_BYTES:
            raise TooLarge(f"the {source} is longer than {MAX_BYTES // 1024} KiB", hint="split it, or use `foreach`")
        level = [child for one in level for child in _children(one)]
        if not level:
            return
    raise _refused(source, f"nested deeper than {MAX_DEPTH} levels", "flatten it")


def _children(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value


def _length(value: object) -> int:
    """Return the bytes of a text, or of the names in a mapping."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    return sum(_length(str(key)) for key in value) if isinstance(value, dict) else 0


def _refused(where: str, message: str, hint: str | None) -> InvalidRequest:
    problem = FieldProblem(where=where, message=message, hint=hint)
    return InvalidRequest(f"{where}: {message}", where=where, hint=hint, problems=[problem])


class _Reader:
    """One pass over the events of one document."""

    def __init__(self, text: str, source: str) -> None:
        self._events: Iterator[Any] = iter(yaml.parse(text, Loader=_Loader))
        self._source = source
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._values = 0

    def document(self) -> Any:
        value: Any = None
        seen = False
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if seen:
                    raise self._at(event, "a second document begins here", "keep one definition a file")
                seen = True
                value = self._value(next(self._events), 0)
        return value

    def _at(self, event: Any, message: str, hint: str) -> InvalidRequest:
        return _refused(f"line {event.start_mark.line + 1}", message, hint)

    def _count(self, event: Any, number: int) -> None:
        self._values += number
        if self._values > MAX_VALUES:
            raise self._at(event, f"more than {MAX_VALUES:,} values, aliases expanded", "write it without aliases")

    def _value(self, event: Any, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise self._at(event, f"nested deeper than {MAX_DEPTH} levels", "flatten it")
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise self._at(
                    event,
                    f"alias *{event.anchor} stands for nothing (or for itself)",
                    "name an anchor (&name) that ends before it",
                )
            value, size = self._anchors[event.anchor]
            self._count(event, size)
            return value
        tag = getattr(event, "tag", None)
        if tag is not None and tag != "!" and not tag.startswith("tag:yaml.org,2002:"):
            raise self._at(event, f"tag {tag!r} is not allowed", "write plain values")
        if tag is not None and tag.rsplit(":", 1)[-1] not in {"!", "str", "map", "seq"}:
            raise self._at(event, f"tag {tag!r} is not allowed", "write plain values")
        before = self._values
        self._count(event, 1)
        if isinstance(event, yaml.ScalarEvent):
            value = event.value if not event.implicit[0] or tag is not None else self._plain(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._sequence(depth)
        else:
            value = self._mapping(depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, self._values - before)
        return value

    def _sequence(self, depth: int) -> list[Any]:
        found = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            found.append(self._value(event, depth + 1))
        return found

    def _mapping(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._at(event, "a key must be plain text", "quote it")
            key = event.value
            if key == "<<":
                raise self._at(event, "merge keys (`<<`) are not allowed", "repeat the fields")
            if key in found:
                raise self._at(event, f"`{key}` is given twice", "keep one of them")
            found[key] = self._value(next(self._events), depth + 1)
        return found

    def _plain(self, event: Any) -> Any:
        text: str = event.value
        if _NULL.match(text):
            return None
        if _BOOL.match(text):
            return text.lower() == "true"
        if _INT.match(text):
            return int(text)
        if _FLOAT.match(text) and any(character.isdigit() for character in text):
            number = float(text)
            if number in (float("inf"), float("-inf")):
                raise self._at(event, f"{text} is too large a number", "quote it, if it is a text")
            return number
        return text
