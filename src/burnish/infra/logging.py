"""Logs: one line a record, JSON or text, with the trace they belong to, secrets taken out where they are written.

Code logs with the standard library (``logging.getLogger(__name__)``); ``extra={...}`` becomes fields. What a request or
a job is about is bound once (:func:`bound`) and stands on every record below it, tasks included.
"""

import base64
import json
import logging
import re
import secrets
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal, TextIO
from urllib.parse import quote, quote_plus

import orjson

Level = Literal["debug", "info", "warning", "error"]

_context: ContextVar[Mapping[str, str]] = ContextVar("burnish_log_context", default=MappingProxyType({}))
_passed_on: ContextVar[tuple[str, str | None]] = ContextVar("burnish_trace", default=("01", None))
"""Flags and ``tracestate`` of the trace that this code works for: passed on, not logged."""

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {
    "message",
    "asctime",
    "taskName",
    "color_message",
    "checked",
}
_QUIET = {
    "uvicorn.access": logging.WARNING,
    "asyncio": logging.WARNING,
    "aiosqlite": logging.INFO,
    "alembic": logging.WARNING,
}

_HIDDEN = "***"
_SHORT = 5
_LONG = 500
_MOST_LINES = 200
_hidden_values: set[str] = set()
_known: re.Pattern[str] | None = None
_known_long: tuple[str, ...] = ()
_json_handler: "logging.StreamHandler[TextIO] | None" = None
"""Ours, if it writes JSON."""
_TELLING_NAME = r"(?:pass(?:word|wd|phrase)|secret(?:[_-]?key)?|api[_-]?key|access[_-]?key|private[_-]?key|token|authorization|cookie)"
_SECRET_FIELD = re.compile(rf"(?:^|[_-]){_TELLING_NAME}$", re.IGNORECASE)
# No text may take more time than in proportion to its length: anybody may write what is looked through here.
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), _HIDDEN),
    (re.compile(r"([a-z][a-z0-9+.-]{0,30}://[^\s:/@\"']*):[^\s@/\"']+@", re.IGNORECASE), rf"\1:{_HIDDEN}@"),
    (re.compile(r"\b((?i:bearer|basic))\s+(?=\S*[0-9A-Z._~+/=])[A-Za-z0-9._~+/=-]{6,}"), rf"\1 {_HIDDEN}"),
    (re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*"), _HIDDEN),
    (re.compile(r"\b(?:sk|bk|rk|pk|brn|burnish|hf|ghp|gho|ghs|glpat|xox[abps]|whsec)[-_][A-Za-z0-9_-]{12,}"), _HIDDEN),
    (re.compile(r"\bAKIA[A-Z0-9]{16}\b"), _HIDDEN),
    (re.compile(rf"((?<![A-Za-z]){_TELLING_NAME}[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic)\s+)?)(?!(?:bearer|basic)\s)(?!\*\*\*)[^\s\"',;&}}]{{3,}}", re.IGNORECASE), rf"\1{_HIDDEN}"),
)  # fmt: skip


def redact(text: str) -> str:
    """Return ``text`` without secrets: known values (:func:`hide`), and what looks like one (keys, tokens, passwords)."""
    text = redact_known(text)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def redact_known(text: str) -> str:
    """Return ``text`` without the values that this process knows to be secret. Costs nothing while there are none."""
    if _known is None:
        return text
    for form in _known_long:
        text = text.replace(form, _HIDDEN)
    return _known.sub(_HIDDEN, text)


def known_secrets() -> int:
    """Return how many values this process knows to be secret: what was redacted while there were fewer is so no more."""
    return len(_hidden_values)


def redact_known_fields(value: Any) -> Any:
    """Return JSON without the values that this process knows to be secret."""
    if _known is None:
        return value
    if isinstance(value, str):
        return redact_known(value)
    if isinstance(value, Mapping):
        return {redact_known(str(key)): redact_known_fields(inner) for key, inner in value.items()}
    return [redact_known_fields(inner) for inner in value] if isinstance(value, list | tuple) else value


def hide(value: str) -> None:
    """Keep a value out of all logs and errors of this process from now on, also in base64, hexadecimal and quoted forms.

    Values of up to five characters are left alone: they would blot out ordinary text. Of a text of several lines (a
    private key) each longer line is hidden too.
    """
    global _known, _known_long
    new = {value, value.strip(), *(line for line in value.splitlines()[:_MOST_LINES] if len(line) > 2 * _SHORT)}
    new = {one for one in new if len(one) > _SHORT} - _hidden_values
    if not new:
        return
    _hidden_values.update(new)
    forms = sorted({form for one in _hidden_values for form in _forms(one)}, key=len, reverse=True)
    _known_long = tuple(form for form in forms if len(form) > _LONG)  # a pattern of them takes seconds to compile
    _known = re.compile("|".join(re.escape(form) for form in forms if len(form) <= _LONG) or r"(?!)")


def _forms(value: str) -> Iterator[str]:
    """Yield a value as it stands in JSON, in a ``repr``, in a URL, and encoded; cut to what no neighbour changes."""
    data = value.encode("utf-8", "surrogatepass")
    yield value
    yield repr(value)[1:-1]
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield quote(data)
    yield quote(data, safe="")
    yield quote_plus(data)
    yield data.hex()
    yield data.hex().upper()
    for shift in range(3):  # inside a longer text that is encoded whole, a value begins at any of three places
        coded = base64.b64encode(b"\0" * shift + data).decode()
        inner = coded[(0, 2, 3)[shift] : len(coded) - (0, 3, 2)[(shift + len(data)) % 3]]
        if len(inner) > _SHORT:
            yield inner
            yield inner.translate(str.maketrans("+/", "-_"))


def redact_fields(value: Any, name: str = "") -> Any:
    """Return JSON without secrets: fields with a telling name go whole, other texts by :func:`redact`."""
    if isinstance(value, Mapping):
        return {str(key): redact_fields(inner, str(key)) for key, inner in value.items()}
    if name and _SECRET_FIELD.search(name) and isinstance(value, str | bytes):
        return _HIDDEN
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list | tuple):
        return [redact_fields(inner) for inner in value]
    return value


@contextmanager
def bound(**fields: str | None) -> Iterator[None]:
    """Put fields (``trace_id``, ``request_id``, ``project_id``, ...) on every record logged inside."""
    token = _context.set({**_context.get(), **{name: value for name, value in fields.items() if value is not None}})
    try:
        yield
    finally:
        _context.reset(token)


def bind(**fields: str) -> None:
    """Put fields on every record that this task logs from here on: for tasks that end with what they are about."""
    _context.set({**_context.get(), **fields})


def bind_only(**fields: str) -> None:
    """Like :func:`bind`, without what whoever started this task had bound."""
    _context.set(fields)


def context() -> Mapping[str, str]:
    """Return the fields bound here."""
    return _context.get()


def trace_id() -> str | None:
    """Return the trace that this code works for, if any."""
    return _context.get().get("trace_id")


def new_trace_id() -> str:
    """Return 32 hexadecimal characters."""
    return secrets.token_hex(16)


_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(?:-.*)?")
_KNOWN_FLAGS = 0x03
"""Sampled, and that the trace id is random; what other bits will mean, nobody knows."""


def trace_of(traceparent: str | None) -> tuple[str, str] | None:
    """Return the trace id and the flags, to pass on, of a W3C ``traceparent`` header; None: there is none, or no valid one."""
    match = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent)
    return None if match is None else (match[1], f"{int(match[2], 16) & _KNOWN_FLAGS:02x}")


def trace_id_of(traceparent: str | None) -> str | None:
    """Return the trace id of a W3C ``traceparent`` header, or None if there is none or it is malformed."""
    found = trace_of(traceparent)
    return None if found is None else found[0]


def bind_trace(flags: str, state: str | None) -> None:
    """Have the calls that this task makes from here on say what its own caller said of the trace besides its id."""
    _passed_on.set((flags, state))


@contextmanager
def tracing(traceparent: str | None, tracestate: str | None) -> Iterator[None]:
    """Work for the trace of these headers inside, if they are valid; else for the one that was worked for."""
    found = trace_of(traceparent)
    if found is None:
        yield
        return
    token = _passed_on.set((found[1], tracestate or None))
    try:
        with bound(trace_id=found[0]):
            yield
    finally:
        _passed_on.reset(token)


def trace_headers() -> dict[str, str]:
    """Return the headers of a call that continues the trace that this code works for with a new span, or begins one.

    Flags and state are those of who began it, as W3C Trace Context has it.
    """
    trace = trace_id()
    flags, state = _passed_on.get() if trace is not None else ("01", None)
    headers = {"traceparent": f"00-{trace or new_trace_id()}-{secrets.token_hex(8)}-{flags}"}
    return headers if state is None else {**headers, "tracestate": state}


def configure(level: Level = "info", format: Literal["json", "text"] = "json", stream: TextIO | None = None) -> None:  # noqa: A002
    """Send every log of this process to ``stream`` (stderr by default) in this format. May be called again."""
    global _json_handler
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        if getattr(old, "burnish", False):
            root.removeHandler(old)
    handler.burnish = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    _json_handler = handler if format == "json" else None
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    # No format shows them, and finding them out costs every record system calls.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    set_level(level)


def set_level(level: Level) -> None:
    """Log this and what is worse from now on; chatty libraries only what matters."""
    root = logging.getLogger()
    root.setLevel(level.upper())
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(max(least, root.level))


def tell(logger: logging.Logger, message: str, fields: Mapping[str, Any], *, clean: bool = False) -> None:
    """Log at INFO what happens so often that a record of its own would cost more than what it tells.

    While nobody but our JSON handler listens, the same line is written without one.

    Args:
        logger: as whom.
        message: the message; whoever makes it redacted it, and the fields, as far as patterns go.
        fields: what the line says besides, and besides what is bound.
        clean: there is no value in it, nor in what is bound, that this process knows to be secret.
    """
    if not logger.isEnabledFor(logging.INFO):
        return
    handler = _json_handler
    if handler is not None and _hears_alone(handler, logger):
        line = _json_line(time.time(), "info", logger.name, message, fields)
        try:
            with handler.lock or nullcontext():
                handler.stream.write((line if clean else redact_known(line)) + "\n")
                handler.stream.flush()
        except (OSError, ValueError):  # a stream that is full or closed: as logging answers for it, below
            pass
        else:
            return
    # Not through logger.info(): finding out on which line of code this is costs as much as the rest.
    logger.handle(
        logger.makeRecord(logger.name, logging.INFO, __file__, 0, message, (), None, None, {"checked": fields})
    )


def _hears_alone(handler: logging.Handler, logger: logging.Logger) -> bool:
    """Tell whether a handler of the root, and no other, gets what a logger logs."""
    one: logging.Logger | None = logger
    while one is not None:
        if one.parent is None:
            return one.handlers == [handler] and not handler.filters
        if one.handlers or one.filters or not one.propagate:
            return False
        one = one.parent
    return False


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``, what is bound, what was given as extra."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. A record with ``checked`` was redacted by whoever made it, as far as patterns go; these are its fields."""
        checked: Mapping[str, Any] | None = record.__dict__.get("checked")
        message = record.getMessage() if checked is not None else redact(record.getMessage())
        fields = checked if checked is not None else redact_fields(_extra(record))
        if trouble := _trouble(record):
            fields = {**fields, "exception": redact(trouble)}
        return redact_known(_json_line(record.created, record.levelname.lower(), record.name, message, fields))


def _json_line(created: float, level: str, name: str, message: str, fields: Mapping[str, Any]) -> str:
    document = {
        "time": _stamp(created), "level": level, "logger": name, "message": message, **_context.get(), **fields
    }  # fmt: skip
    return orjson.dumps(document, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def _stamp(created: float) -> str:
    return f"{_second(int(created))}.{int(created % 1 * 1000):03d}+00:00"


@lru_cache(4)
def _second(created: int) -> str:
    return datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class TextFormatter(logging.Formatter):
    """What a person reads in a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback below it."""
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = {**_context.get(), **_extra(record), **record.__dict__.get("checked", {})}
        tail = "".join(f" {name}={value}" for name, value in fields.items() if value is not None)
        said = _UNPRINTABLE.sub(_escaped, f"{record.getMessage()}{tail}")
        line = f"{time} {record.levelname.lower():7} {record.name.removeprefix('burnish.')}: {said}"
        if trouble := _trouble(record):
            line += f"\n{trouble}"
        return redact_known(line) if "checked" in record.__dict__ else redact(line)


_UNPRINTABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
"""What would begin a line of its own in a terminal, or command it."""


def _escaped(found: re.Match[str]) -> str:
    return "\n    " if found[0] == "\n" else found[0].encode("unicode_escape").decode()


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in record.__dict__.items() if name not in _STANDARD}


def _trouble(record: logging.LogRecord) -> str | None:
    if record.exc_info and record.exc_info[0] is not None:
        return "".join(traceback.format_exception(*record.exc_info)).rstrip()
    return record.exc_text
