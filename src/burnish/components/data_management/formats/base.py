"""What every file format shares: records, limits, and the list of what is wrong with a file."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

from burnish.core.errors import FieldProblem, InvalidRequest

MAX_PROBLEMS = 20

MAX_COLUMNS = 2000
"""Of one row and of the whole file. Data with more is no text with a label."""

MAX_NAME_CHARACTERS = 200
"""Of a column's name."""

MAX_DEPTH = 64
"""Of lists and objects in one another: far below what any JSON reader on a row's way stumbles over."""

TOTAL_SIZE = "total size"
"""``where`` of the :class:`~burnish.core.errors.TooLarge` about ``Limits.total_bytes``."""


class Record(NamedTuple):
    """One row as it stands in the file: its number (from 1, as an editor or a reader counts) and its columns."""

    number: int
    values: dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """Caps on what is read from one file. Passing one is :class:`~burnish.core.errors.TooLarge`."""

    line_bytes: int = 8 << 20
    """One line, or one quoted CSV record, or one Parquet row."""
    rows: int = 5_000_000
    total_bytes: int = 20 << 30
    """After decompression."""
    ratio: int = 200
    """Decompressed bytes by compressed byte, looked at once ``ratio_from_bytes`` have come out."""
    ratio_from_bytes: int = 64 << 20
    row_group_bytes: int = 1 << 30
    """Uncompressed size of one Parquet row group."""


class Problems:
    """Collects what is wrong with rows, with their places, and gives up after ``limit`` of them.

    Args:
        what: The file's name for people.
        unit: ``line`` or ``row``: how places are numbered.
        tolerant: Count the bad rows and go on, rather than raise.
    """

    def __init__(self, what: str, unit: str = "line", *, tolerant: bool = False, limit: int = MAX_PROBLEMS) -> None:
        self.what = what
        self.unit = unit
        self.tolerant = tolerant
        self.limit = limit
        self.found: list[FieldProblem] = []
        self.count = 0

    def add(self, number: int, message: str, *, column: str | None = None, hint: str | None = None) -> None:
        """Note a bad row.

        Raises:
            InvalidRequest: it is the last of ``limit`` and the file is not read tolerantly.
        """
        self.count += 1
        if len(self.found) < self.limit:
            place = f"{self.unit} {number}" + (f", {column[:MAX_NAME_CHARACTERS]}" if column else "")
            self.found.append(FieldProblem(where=place, message=message, hint=hint))
        if self.count >= self.limit and not self.tolerant:
            self._refuse(f"{self.what} has at least {self.count} bad {self.unit}s; reading stopped there")

    def raise_if_any(self) -> None:
        """Raise :class:`InvalidRequest` with everything that was found, unless nothing was or it is tolerated."""
        if self.found and not self.tolerant:
            many = f"{self.count} bad {self.unit}s" if self.count > 1 else f"a bad {self.unit}"
            self._refuse(f"{self.what} has {many}")

    def _refuse(self, message: str) -> NoReturn:
        first = self.found[0]
        raise InvalidRequest(
            f"{message}: {first.where}: {first.message}",
            where=first.where,
            hint=first.hint or "mend the file and upload it again; nothing of it was kept",
            problems=self.found,
        )


def first_repeated(names: Iterable[str]) -> str | None:
    """Return the first name that stood before, or None."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def show(value: object) -> str:
    """Return ``value`` as Python writes it, cut to 60 characters."""
    text = repr(value[:100] if isinstance(value, str) else value)
    return text if len(text) <= 60 else text[:57] + "..."


class FileFormat(Protocol):
    """A way to read rows from a file. The module's docstring is its manual."""

    @property
    def name(self) -> str:
        """The format's name: ``jsonl``."""

    @property
    def suffixes(self) -> Sequence[str]:
        """Endings of file names, with the dot, without a compression's."""

    @property
    def unit(self) -> str:
        """How places are numbered: ``line`` or ``row``."""

    @property
    def compressible(self) -> bool:
        """Whether the file may be wrapped in gzip or zstd."""

    def read(self, path: Path, limits: Limits, problems: Problems) -> Iterator[Record]:
        """Yield the file's rows in order, holding one (or one small batch) at a time.

        Bad rows go to ``problems`` and are left out. Column names are unique, non-empty strings.

        Raises:
            InvalidRequest: the file is not of this format, not UTF-8, or has too many bad rows.
            TooLarge: a limit is passed; nothing of that size was read into memory.
        """
