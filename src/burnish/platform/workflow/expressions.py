"""The ``${{ ... }}`` language of definitions: references, comparisons, and nothing that computes for long.

::

    ${{ parameters.rank }}                     a parameter
    ${{ steps.train.result.adapter }}          a field of a step's result; `null` where a skipped step has none
    ${{ steps.probe.state == "failed" }}       a step's state
    ${{ item }}, ${{ item.name }}, ${{ index }}  inside a step with `foreach`
    ${{ execution.id }}                        the execution that runs
    ==  !=  <  <=  >  >=  &&  ||  !  ( )        `&&` and `||` return one of their operands, as in Python
    "text", 'text', 1, 2.5, true, false, null  literals

A value that is one expression keeps its type; inside longer text an expression is written out (objects as JSON).
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from burnish.core.errors import BurnishError

MAX_EXPRESSION = 2_000
_MAX_NESTING = 50
MAX_WRITTEN = 2 << 20
"""Characters and values that the expressions of one spec may come to: steps that name steps could double without end."""
_LEAST_WRITTEN = 32 << 10
"""What each of many specs has, however many share that."""

Scope = Mapping[str, Any]
"""The roots: ``parameters``, ``steps``, ``execution``, and inside ``foreach`` also ``item`` and ``index``."""

ROOTS = ("parameters", "steps", "execution", "item", "index")


class ExpressionError(BurnishError):
    """An expression cannot be read, or cannot be evaluated with the values at hand."""

    code = "bad_expression"
    status = 422


@dataclass(frozen=True)
class Literal:
    """A value written out."""

    value: Any


@dataclass(frozen=True)
class Path:
    """A reference: a root and the keys or indexes below it."""

    parts: tuple[str | int, ...]

    def __str__(self) -> str:
        text = str(self.parts[0])
        for part in self.parts[1:]:
            text += f"[{part}]" if isinstance(part, int) else f".{part}"
        return text


@dataclass(frozen=True)
class Not:
    """``!operand``."""

    operand: "Node"


@dataclass(frozen=True)
class Binary:
    """``left operator right``."""

    operator: str
    left: "Node"
    right: "Node"


Node = Literal | Path | Not | Binary

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>-?\d+(?:\.\d+)?(?:[eE][-+]?\d{1,3})?)
    | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    | (?P<name>[A-Za-z_][A-Za-z0-9_-]*)
    | (?P<operator>==|!=|<=|>=|&&|\|\||[<>!().\[\]])
    )""",
    re.VERBOSE,
)
_OPENER = "${{"
_STOP = re.compile(r"""\}\}|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|["']""")
"""What matters inside an expression: its end, a whole text (which may hold anything), or a text without an end."""
_WORDS: Mapping[str, Any] = {"true": True, "false": False, "null": None}
_PRECEDENCE = {"||": 1, "&&": 2, "==": 3, "!=": 3, "<": 4, "<=": 4, ">": 4, ">=": 4}


@lru_cache(maxsize=4096)
def parse(text: str) -> Node:
    """Return the tree of one expression, given without its ``${{ }}``.

    Raises:
        ExpressionError: it is not one.
    """
    if len(text) > MAX_EXPRESSION:
        raise ExpressionError(f"an expression is longer than {MAX_EXPRESSION:,} characters")
    return _Parser(text).whole()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._split(text)
        self._at = 0
        self._nesting = 0

    def _split(self, text: str) -> list[tuple[str, str]]:
        tokens = []
        position, end = 0, len(text.rstrip())
        while position < end:
            match = _TOKEN.match(text, position)
            if match is None or match.lastgroup is None:
                raise self._wrong(f"cannot read {text[position : position + 12].strip()!r}")
            tokens.append((match.lastgroup, match.group(match.lastgroup)))
            position = match.end()
        return tokens

    def _wrong(self, message: str) -> ExpressionError:
        return ExpressionError(
            f"{message} in `{self._text.strip()}`",
            hint="an expression has references (`steps.train.result.adapter`), literals and == != < <= > >= && || !",
        )

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "its end")

    def _take(self) -> tuple[str, str]:
        token = self._peek()
        self._at += 1
        return token

    def whole(self) -> Node:
        if not self._tokens:
            raise self._wrong("nothing stands")
        node = self._binary(1)
        if self._peek()[0] != "end":
            raise self._wrong(f"{self._peek()[1]!r} is not expected")
        return node

    def _binary(self, lowest: int) -> Node:
        self._nesting += 1
        if self._nesting > _MAX_NESTING:
            raise self._wrong(f"more than {_MAX_NESTING} levels")
        left = self._unary()
        while (level := _PRECEDENCE.get(self._peek()[1] if self._peek()[0] == "operator" else "", 0)) >= lowest:
            operator = self._take()[1]
            left = Binary(operator, left, self._binary(level + 1))
        self._nesting -= 1
        return left

    def _unary(self) -> Node:
        negated = 0
        while self._peek() == ("operator", "!"):
            self._take()
            negated += 1
        node = self._atom()
        for _ in range(min(negated, 2 + negated % 2)):
            node = Not(node)
        return node

    def _atom(self) -> Node:
        group, text = self._take()
        if group == "number":
            return Literal(float(text) if any(c in text for c in ".eE") else int(text))
        if group == "text":
            return Literal(re.sub(r"\\(.)", r"\1", text[1:-1]))
        if group == "name":
            return Literal(_WORDS[text]) if text in _WORDS else self._path(text)
        if (group, text) == ("operator", "("):
            node = self._binary(1)
            if self._take() != ("operator", ")"):
                raise self._wrong("a `)` is missing")
            return node
        raise self._wrong(f"{text!r} is not expected")

    def _path(self, root: str) -> Path:
        parts: list[str | int] = [root]
        while self._peek() in {("operator", "."), ("operator", "[")}:
            opener = self._take()[1]
            group, text = self._take()
            if opener == "." and group == "name":
                parts.append(text)
            elif opener == "[" and group == "number" and text.isdigit():
                parts.append(int(text))
                if self._take() != ("operator", "]"):
                    raise self._wrong("a `]` is missing")
            elif opener == "[" and group == "text":
                parts.append(re.sub(r"\\(.)", r"\1", text[1:-1]))
                if self._take() != ("operator", "]"):
                    raise self._wrong("a `]` is missing")
            else:
                raise self._wrong(f"{text!r} cannot follow `{opener}`")
        return Path(tuple(parts))


def evaluate(node: Node, scope: Scope) -> Any:
    """Return the value of an expression.

    Raises:
        ExpressionError: a reference leads nowhere, or two values cannot be compared.
    """
    if isinstance(node, Literal):
        return node.value
    if isinstance(node, Path):
        return _follow(node, scope)
    if isinstance(node, Not):
        return not evaluate(node.operand, scope)
    left = evaluate(node.left, scope)
    if node.operator == "&&":
        return evaluate(node.right, scope) if left else left
    if node.operator == "||":
        return left if left else evaluate(node.right, scope)
    return _compare(node, left, evaluate(node.right, scope))


def _compare(node: Binary, left: Any, right: Any) -> bool:
    if node.operator in {"==", "!="}:
        equal = left == right and isinstance(left, bool) == isinstance(right, bool)
        return equal if node.operator == "==" else not equal
    comparable = all(isinstance(side, int | float) and not isinstance(side, bool) for side in (left, right))
    if not comparable and not (isinstance(left, str) and isinstance(right, str)):
        raise ExpressionError(
            f"`{node.operator}` cannot compare {_kind(left)} with {_kind(right)}",
            hint="compare two numbers or two texts",
        )
    return bool({"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[node.operator])


def _follow(path: Path, scope: Scope) -> Any:
    value: Any = scope
    for position, part in enumerate(path.parts):
        if value is None:
            return None
        missing = False
        if isinstance(value, Mapping) and isinstance(part, str):
            missing = part not in value
        elif isinstance(value, list | tuple) and isinstance(part, int):
            missing = part >= len(value)
        else:
            missing = True
        if missing:
            parent = str(Path(path.parts[:position])) if position else "an expression"
            known = ", ".join(sorted(map(str, value))[:12]) if isinstance(value, Mapping) else _kind(value)
            raise ExpressionError(f"`{path}` leads nowhere: {parent} has no `{part}`", hint=f"it has: {known}")
        value = value[part]
    return value


def _kind(value: Any) -> str:
    names = {bool: "a truth value", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), "a value")


def expressions(text: str) -> list[str]:
    """Return the expressions that stand in ``text``, without their ``${{ }}``.

    Raises:
        ExpressionError: a ``${{`` is not closed.
    """
    pieces = _pieces(text)
    if _OPENER in pieces[-1]:
        raise ExpressionError(f"a `${{{{` is not closed in {text[:80]!r}", hint="end it with `}}`")
    return pieces[1::2]


def single(text: str) -> str | None:
    """Return the one expression that ``text`` consists of, or None."""
    pieces = _pieces(text.strip())
    return pieces[1] if len(pieces) == 3 and not pieces[0] and not pieces[2] else None


def _pieces(text: str) -> list[str]:
    """Return plain text and expressions in turn, plain text first and last; read once, in time linear in its length.

    After an expression that is not closed all is plain text.
    """
    found: list[str] = []
    plain = 0
    while (start := text.find(_OPENER, plain)) >= 0:
        stop = _STOP.search(text, start + len(_OPENER))
        while stop is not None and len(stop.group()) > 1 and stop.group() != "}}":
            stop = _STOP.search(text, stop.end())
        if stop is None or stop.group() != "}}":
            break
        found += [text[plain:start], text[start + len(_OPENER) : stop.start()]]
        plain = stop.end()
    return [*found, text[plain:]]


def paths(node: Node) -> Iterator[Path]:
    """Yield every reference in an expression."""
    if isinstance(node, Path):
        yield node
    elif isinstance(node, Not):
        yield from paths(node.operand)
    elif isinstance(node, Binary):
        yield from paths(node.left)
        yield from paths(node.right)


def references(value: Any, where: str = "") -> Iterator[tuple[str, Path]]:
    """Yield ``(place, reference)`` for every reference inside a JSON value.

    Raises:
        ExpressionError: an expression cannot be read; ``where`` is its place.
    """
    for at, text in texts(value, where):
        try:
            for expression in expressions(text):
                for path in paths(parse(expression)):
                    yield at, path
        except ExpressionError as error:
            raise ExpressionError(error.message, hint=error.hint, where=at) from error


def texts(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield ``(place, text)`` for every string with an expression in it inside a JSON value."""
    for parts, text in located(value):
        yield place_of(parts, where), text


def located(value: Any, parts: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield ``(keys and indexes, text)`` for every string with an expression in it inside a JSON value."""
    if isinstance(value, str):
        if _OPENER in value:
            yield parts, value
    elif isinstance(value, Mapping):
        for key, child in value.items():
            yield from located(child, (*parts, str(key)))
    elif isinstance(value, list | tuple):
        for position, child in enumerate(value):
            yield from located(child, (*parts, position))


def place_of(parts: Iterable[str | int], where: str = "") -> str:
    """Return keys and indexes as a reader writes them, below ``where``: ``rules[0].than``. Not to be read back."""
    for part in parts:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else part
    return where


def resolve(value: Any, scope: Scope, room: "Room | None" = None) -> Any:
    """Return ``value`` with every expression in it replaced by what it stands for.

    Raises:
        ExpressionError: see :func:`evaluate`; or there is no ``room`` for what they stand for together.
    """
    return _resolve(value, scope, room or Room())


class Room:
    """What is left for what expressions stand for: :data:`MAX_WRITTEN`, or a part of it where ``shares`` specs share it."""

    def __init__(self, shares: int = 1) -> None:
        self._most = self._left = max(_LEAST_WRITTEN, MAX_WRITTEN // max(1, shares))

    def take(self, value: Any) -> Any:
        """Return the value if there is room for it."""
        self._left -= size_of(value, self._left)
        if self._left < 0:
            raise ExpressionError(
                f"its expressions stand for more than {self._most:,} characters and values",
                hint="refer to single fields, or hand data on as an artifact",
            )
        return value


def size_of(value: Any, most: int) -> int:
    """Return how many characters and values JSON data has; of more than ``most``, only that it is more."""
    size, level = 0, [value]
    while level and size <= most:
        one = level.pop()
        size += 1
        if isinstance(one, str):
            size += len(one)
        elif isinstance(one, int):
            size += one.bit_length() // 3
        elif isinstance(one, Mapping):
            size += sum(len(str(key)) for key in one)
            level += one.values()
        elif isinstance(one, list | tuple):
            level += one
    return size


def _resolve(value: Any, scope: Scope, room: Room) -> Any:
    if isinstance(value, str):
        return _resolve_text(value, scope, room) if "${{" in value else value
    if isinstance(value, Mapping):
        return {key: _resolve(child, scope, room) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_resolve(child, scope, room) for child in value]
    return value


def _resolve_text(text: str, scope: Scope, room: Room) -> Any:
    whole = single(text)
    if whole is not None:
        return room.take(evaluate(parse(whole), scope))
    pieces = _pieces(text)
    pieces[1::2] = [_written(room.take(evaluate(parse(expression), scope))) for expression in pieces[1::2]]
    return "".join(pieces)


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def condition(value: Any, scope: Scope) -> bool:
    """Tell whether a ``when`` holds: a truth value, or an expression with or without its ``${{ }}``.

    Raises:
        ExpressionError: see :func:`evaluate`.
    """
    if isinstance(value, str):
        return bool(evaluate(parse(bare(value)), scope))
    return bool(value)


def bare(text: str) -> str:
    """Return a ``when``'s expression without its ``${{ }}``."""
    whole = single(text)
    return text if whole is None else whole
