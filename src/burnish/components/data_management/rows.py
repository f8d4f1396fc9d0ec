"""From a file's records to canonical rows (``burnish.core.specs.data``): which format they are, and whether each fits.

Pure over iterators; nothing is held but the first records that the format is recognised by.
"""

import difflib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from burnish.components.data_management.formats.base import (
    MAX_COLUMNS,
    MAX_NAME_CHARACTERS,
    Problems,
    Record,
    show,
)
from burnish.components.data_management.formats.jsonl import NotJson, loads
from burnish.core.errors import FieldProblem, InvalidRequest
from burnish.core.specs.data import DatasetFormat

Row = dict[str, Any]

REQUIRED: Mapping[DatasetFormat, tuple[str, ...]] = {
    "chat": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "classification": ("text", "label"),
    "text": ("text",),
}
"""The columns of each format, in the order in which formats are recognised."""

OFTEN_CALLED: Mapping[str, tuple[str, ...]] = {
    "text": ("sentence", "review", "content", "body", "document", "tweet", "comment", "title", "sms", "utterance"),
    "label": ("labels", "sentiment", "class", "category", "target", "tag", "intent", "y", "rating"),
    "prompt": ("instruction", "question", "input", "query", "source", "context"),
    "completion": ("output", "response", "answer", "target", "summary", "reply", "chosen"),
    "messages": ("conversation", "conversations", "dialog", "dialogue", "chat", "turns"),
}
"""What other tools call these columns: said in errors, never assumed."""

MAX_LABELS = 1000
MAX_LABEL_CHARACTERS = 200
ROLES = ("system", "user", "assistant")
_LOOKED_AT = 100
_COMPARED = 500  # names, when one that is near is looked for


@dataclass(frozen=True)
class Schema:
    """How records become rows: the format and, for each of its columns, the file's column."""

    format: DatasetFormat
    columns: Mapping[str, str]
    found: tuple[str, ...]
    """The file's columns, as the first records have them."""


def recognise(
    records: Iterable[Record], wanted: DatasetFormat | None, mapping: Mapping[str, str], what: str
) -> tuple[Schema, Iterator[Record]]:
    """Return the schema and an iterator over all records again.

    Args:
        records: Read only as far as recognising needs.
        wanted: The format that was asked for, or None to recognise it.
        mapping: Canonical column to the file's column, for columns that are called otherwise.
        what: The file's name, for errors.

    Raises:
        InvalidRequest: no row, no such columns, or more than one way to read them.
    """
    rest = iter(records)
    first = list(itertools.islice(rest, _LOOKED_AT))
    if not first:
        raise InvalidRequest(f"{what} has no rows", where=what, hint="upload a file with at least one row")
    found = tuple(dict.fromkeys(name for record in first for name in record.values))
    schema = choose_schema(found, wanted, mapping, what)
    return schema, itertools.chain(first, rest)


def choose_schema(
    found: tuple[str, ...], wanted: DatasetFormat | None, mapping: Mapping[str, str], what: str
) -> Schema:
    """Return the schema for a file with these columns; see :func:`recognise`."""
    _check_mapping(found, wanted, mapping)
    formats = (wanted,) if wanted else tuple(REQUIRED)
    for form in formats:
        columns = {name: mapping.get(name, name) for name in REQUIRED[form]}
        if not set(columns.values()) <= set(found) or not set(mapping) <= set(columns):
            continue
        if form == "text" and wanted is None:
            _check_not_classification(found, what)
        return Schema(form, columns, found)
    raise _wrong_columns(found, wanted, mapping, what)


def canonical_rows(records: Iterable[Record], schema: Schema, problems: Problems) -> Iterator[tuple[int, Row]]:
    """Yield (number in the file, canonical row) for every record that fits; the others go to ``problems``.

    Raises:
        InvalidRequest: too many rows do not fit, classification has more than ``MAX_LABELS`` labels, or the rows
            together have more than ``MAX_COLUMNS`` columns.
    """
    make = _MAKERS[schema.format]
    own = set(schema.columns.values())
    labels: set[str] = set()
    columns: set[str] = set()
    for record in records:
        try:
            row = make(record.values, schema.columns)
            if extra := _extra(record.values, own):
                row["extra"] = extra
        except _BadValue as bad:
            problems.add(record.number, bad.message, column=bad.column, hint=bad.hint)
            continue
        if schema.format == "classification" and row["label"] not in labels:
            labels.add(row["label"])
            _check_label_count(labels, record.number, schema, problems)
        columns.update(extra)
        _check_column_count(columns, record.number, problems)
        yield record.number, row


def dump_row(row: Row) -> str:
    r"""Return the row as its line of ``data.jsonl``, without the ``\n``: equal rows are equal lines."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


class _BadValue(Exception):
    def __init__(self, column: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.column, self.message, self.hint = column, message, hint


def _text(values: Mapping[str, Any], column: str) -> str:
    if column not in values:
        near = _nearest(column, values, 0.6)
        raise _BadValue(column, "missing", f"the row has {near!r}" if near else None)
    value = values[column]
    if value is None:
        raise _BadValue(column, "missing (null)")
    if not isinstance(value, str):
        raise _BadValue(column, f"{_kind(value)} where text is expected: {show(value)}")
    if not value.strip():
        raise _BadValue(column, "empty")
    if "\0" in value:
        raise _BadValue(column, "holds a NUL character", "was the file converted from UTF-16?")
    return value


def _label(values: Mapping[str, Any], column: str) -> str:
    value = values.get(column)
    if isinstance(value, bool):
        label = str(value).lower()
    elif isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        label = str(int(value))
    else:
        label = _text(values, column).strip()
    if len(label) > MAX_LABEL_CHARACTERS:
        raise _BadValue(column, f"{len(label)} characters; a label has at most {MAX_LABEL_CHARACTERS}")
    return label


def _classification(values: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    return {"text": _text(values, columns["text"]), "label": _label(values, columns["label"])}


def _prompt_completion(values: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    for name in REQUIRED["prompt_completion"]:
        if isinstance(values.get(columns[name]), list):
            hint = "use the chat format: one `messages` list that ends with the assistant's"
            raise _BadValue(columns[name], "a list of messages where text is expected", hint)
    return {name: _text(values, columns[name]) for name in REQUIRED["prompt_completion"]}


def _plain_text(values: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    return {"text": _text(values, columns["text"])}


def _chat(values: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    column = columns["messages"]
    value = values.get(column)
    if isinstance(value, str):  # CSV has no lists
        try:
            value = loads(value)
        except NotJson as error:
            raise _BadValue(column, f"text that is not a JSON list: {show(value)}: {error}", error.hint) from None
    if not isinstance(value, list) or not value:
        raise _BadValue(column, "missing" if value is None else f"{_kind(value)} where a list of messages is expected")
    messages = [_message(message, f"{column}.{position}") for position, message in enumerate(value)]
    for position, message in enumerate(messages[1:], 1):
        if message["role"] == "system":
            raise _BadValue(f"{column}.{position}", "a system message that is not the first")
    if messages[-1]["role"] != "assistant":
        hint = "end each conversation with the answer to learn"
        raise _BadValue(column, f"the last message is the {messages[-1]['role']}'s, not the assistant's", hint)
    if len(messages) == 1 or messages[-2]["role"] == "system":
        raise _BadValue(column, "the assistant answers nobody: there is no user message before its last one")
    return {"messages": messages}


def _message(message: Any, place: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise _BadValue(place, f"{_kind(message)} where a message is expected")
    unknown = sorted(key for key, value in message.items() if key not in ("role", "content") and value is not None)
    if unknown:
        hint = "ShareGPT's from/value are role/content here" if {"from", "value"} & set(unknown) else None
        raise _BadValue(place, f"{show(unknown[0])} is not supported: a message has `role` and `content`", hint)
    role = message.get("role")
    if role not in ROLES:
        raise _BadValue(f"{place}.role", f"{show(role)} is not one of {', '.join(ROLES)}")
    return {"role": role, "content": _text({"content": _joined_parts(message.get("content"))}, "content")}


def _joined_parts(content: Any) -> Any:
    """Return OpenAI's list of text parts as one text, anything else as it is."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    joined = [text for text in texts if isinstance(text, str)]
    return "".join(joined) if len(joined) == len(content) else content


_MAKERS = {
    "classification": _classification,
    "prompt_completion": _prompt_completion,
    "chat": _chat,
    "text": _plain_text,
}


def _extra(values: Mapping[str, Any], own: set[str]) -> dict[str, Any]:
    """Return the other columns, sorted. A downloaded version has them under ``extra`` already."""
    extra = {name: value for name, value in values.items() if name not in own}
    inner = extra.get("extra")
    if isinstance(inner, dict):
        extra = {**inner, **{name: value for name, value in extra.items() if name != "extra"}}
    for name, value in extra.items():
        if len(name) > MAX_NAME_CHARACTERS:
            raise _BadValue(name, f"a column's name has {len(name)} characters; at most {MAX_NAME_CHARACTERS}")
        if "\0" in name or (isinstance(value, str) and "\0" in value):
            raise _BadValue(name.replace("\0", ""), "holds a NUL character", "was the file converted from UTF-16?")
    return {name: extra[name] for name in sorted(extra)}


def _check_label_count(labels: set[str], number: int, schema: Schema, problems: Problems) -> None:
    if len(labels) > MAX_LABELS:
        column = schema.columns["label"]
        raise InvalidRequest(
            f"{problems.what} has more than {MAX_LABELS} different labels by {problems.unit} {number}",
            where=f"{problems.unit} {number}, {column}",
            hint=f"is {column!r} really the label? Name another with columns label=..., or use prompt_completion",
        )


def _check_column_count(columns: set[str], number: int, problems: Problems) -> None:
    if len(columns) > MAX_COLUMNS:
        raise InvalidRequest(
            f"{problems.what} has more than {MAX_COLUMNS} different columns by {problems.unit} {number}",
            where=f"{problems.unit} {number}",
            hint="are names of columns really values? Put such data into one column, as a list or an object",
        )


def _check_mapping(found: tuple[str, ...], wanted: DatasetFormat | None, mapping: Mapping[str, str]) -> None:
    known = REQUIRED[wanted] if wanted else tuple(dict.fromkeys(itertools.chain(*REQUIRED.values())))
    problems = []
    for name, theirs in mapping.items():
        if name not in known:
            message = f"{name!r} is no column of {wanted or 'any format'}; columns are {', '.join(known)}"
            problems.append(FieldProblem(where=f"columns.{name}", message=message, hint=_nearest_hint(name, known)))
        elif theirs not in found:
            message = f"the file has no column {theirs!r}; it has {', '.join(map(show, found[:50]))}"
            problems.append(FieldProblem(where=f"columns.{name}", message=message, hint=_nearest_hint(theirs, found)))
    if problems:
        raise InvalidRequest(problems[0].message, where=problems[0].where, hint=problems[0].hint, problems=problems)


def _nearest_hint(name: str, known: tuple[str, ...]) -> str | None:
    near = _nearest(name, known, 0.5)
    return f"did you mean {near!r}?" if near else None


def _nearest(name: str, known: Iterable[str], cutoff: float) -> str | None:
    """Return the name most like ``name``. Only so many and such short ones are compared: it is slow."""
    some = [other for other in itertools.islice(known, _COMPARED) if len(other) <= MAX_NAME_CHARACTERS]
    return next(iter(difflib.get_close_matches(name[:MAX_NAME_CHARACTERS], some, 1, cutoff)), None)


def _check_not_classification(found: tuple[str, ...], what: str) -> None:
    lowered = {name.lower(): name for name in found}
    likely = next((lowered[name] for name in ("label", *OFTEN_CALLED["label"]) if name in lowered), None)
    if likely:
        raise InvalidRequest(
            f"{what} has `text` and {likely!r}: plain text, or classification by {likely!r}?",
            where="format",
            hint=f"say format=text, or columns label={likely}",
        )


def _wrong_columns(
    found: tuple[str, ...], wanted: DatasetFormat | None, mapping: Mapping[str, str], what: str
) -> InvalidRequest:
    if wanted:
        expected = f"{wanted} needs {' and '.join(REQUIRED[wanted])}"
    else:
        expected = "expected one of: " + "; ".join(f"{name} ({', '.join(REQUIRED[name])})" for name in REQUIRED)
    formats = [wanted] if wanted else list(REQUIRED)
    guesses = [guess for form in formats if (guess := _guess(found, form, mapping))]
    best = min(guesses, key=lambda guess: (guess[0], -len(guess[1])), default=None)
    hint = "rename the columns, or say which is which with columns"
    if best:
        hint = "did you mean columns " + ", ".join(f"{name}={theirs}" for name, theirs in best[1].items()) + "?"
    return InvalidRequest(
        f"{what} has the columns {', '.join(map(show, found[:50]))}; {expected}", where="columns", hint=hint
    )


def _guess(
    found: tuple[str, ...], form: DatasetFormat, mapping: Mapping[str, str]
) -> tuple[int, dict[str, str]] | None:
    """Return (columns still missing, canonical -> the file's column) by what columns are often called and by likeness."""
    lowered = {name.lower(): name for name in found[:_COMPARED]}
    chosen: dict[str, str] = {}
    for name in REQUIRED[form]:
        near = _nearest(name, lowered, 0.75)
        called = [other for other in (name, *OFTEN_CALLED[name], near) if other in lowered]
        theirs = mapping.get(name) or next((lowered[other] for other in called), None)
        if theirs and theirs not in chosen.values():
            chosen[name] = theirs
    guessed = {name: theirs for name, theirs in chosen.items() if name != theirs}
    return (len(REQUIRED[form]) - len(chosen), guessed) if guessed else None


def _kind(value: object) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object", str: "text"}
    return names.get(type(value), type(value).__name__)
