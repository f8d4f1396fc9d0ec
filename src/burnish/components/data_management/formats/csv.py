"""CSV with a header line: comma, semicolon, tab or bar (whichever the header has most of), UTF-8. Optionally gzip or zstd.

Fields may be quoted with ``"`` and then hold line ends; ``""`` is a quote. Every record has as many fields as the
header. All values are text. Blank lines are skipped. Numbers in errors are those of the record's last line, as an
editor counts.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from burnish.components.data_management.formats.base import MAX_COLUMNS, Limits, Problems, Record, first_repeated, show
from burnish.components.data_management.formats.streams import Line, read_lines
from burnish.core.errors import InvalidRequest, TooLarge

DELIMITERS = ",;\t|"


class Csv:
    """Reader of CSV."""

    name = "csv"
    suffixes = (".csv", ".tsv")
    unit = "line"
    compressible = True

    def read(self, path: Path, limits: Limits, problems: Problems) -> Iterator[Record]:
        """Yield one record after the header; see :class:`~.base.FileFormat`."""
        lines = _LineFeed(read_lines(path, limits), limits)
        first = _first_line(lines)
        if first is None:
            return
        delimiter = max(DELIMITERS, key=first.count)
        csv.field_size_limit(limits.line_bytes)
        records = csv.reader(_chain(first, lines), delimiter=delimiter, strict=True)
        header = _header(_next(records, lines) or [], lines)
        while (fields := _next_after(records, lines)) is not None:
            if not fields:
                continue
            if len(fields) != len(header):
                problems.add(
                    lines.number,
                    f"{len(fields)} fields where the header has {len(header)}",
                    hint=f"fields are separated by {delimiter!r}; quote a field that holds one",
                )
                continue
            yield Record(lines.number, dict(zip(header, fields, strict=True)))


class _LineFeed:
    """Feeds lines to the csv module, and refuses a record that goes on and on (an unclosed quote)."""

    def __init__(self, lines: Iterator[Line], limits: Limits) -> None:
        self._lines = lines
        self._limit = limits.line_bytes
        self._record_bytes = 0
        self._started = 1
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number = line.number
        self._record_bytes += len(line.text) + 1
        if self._record_bytes > self._limit:
            raise TooLarge(
                f"the record that starts at line {self._started} is longer than {self._limit} bytes",
                where=f"line {self._started}",
                hint="is a quote not closed there?",
            )
        return line.text + "\n"

    def restart(self) -> None:
        """Say that a record has ended."""
        self._record_bytes = 0
        self._started = self.number + 1

    @property
    def started(self) -> int:
        """The line that the record at hand starts at."""
        return self._started


def _chain(first: str, lines: Iterator[str]) -> Iterator[str]:
    yield first
    yield from lines


def _first_line(lines: _LineFeed) -> str | None:
    for line in lines:
        if line.strip():
            return line
        lines.restart()
    return None


def _next_after(records: Iterator[list[str]], lines: _LineFeed) -> list[str] | None:
    lines.restart()
    return _next(records, lines)


def _next(records: Iterator[list[str]], lines: _LineFeed) -> list[str] | None:
    try:
        return next(records, None)
    except csv.Error as error:
        raise InvalidRequest(
            f"line {lines.started}: not CSV: {error}",
            where=f"line {lines.started}",
            hint="is a quote not closed or not doubled there?",
        ) from None


def _header(names: list[str], lines: _LineFeed) -> list[str]:
    header = [name.strip() for name in names]
    where = f"line {lines.started}"
    if len(header) > MAX_COLUMNS:
        raise InvalidRequest(f"{len(header)} columns; a row has at most {MAX_COLUMNS}", where=where)
    if "" in header:
        message = f"column {header.index('') + 1} has no name"
        raise InvalidRequest(message, where=where, hint="give the file a header line")
    if repeated := first_repeated(header):
        raise InvalidRequest(f"the column {show(repeated)} stands twice", where=where, hint="rename one of them")
    return header
