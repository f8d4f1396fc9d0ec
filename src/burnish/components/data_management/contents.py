"""Looking into a version's rows. Synchronous file work: call it from a thread."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from burnish.components.data_management.schemas import Difference, Preview
from burnish.core.errors import TooLarge
from burnish.core.specs.data import DATA_FILE

_PREVIEW_BYTES = 4 << 20
_EXAMPLES = 20
_EXAMPLE_BYTES = 1 << 20
MAX_DIFF_ROWS = 1_000_000


def preview(folder: Path, total: int, offset: int, limit: int) -> Preview:
    """Return up to ``limit`` rows from ``offset`` on, and at most four megabytes of them (one row at least)."""
    rows: list[dict[str, Any]] = []
    size = 0
    for line in islice(_lines(folder) if offset < total else (), offset, offset + limit):
        size += len(line)
        if rows and size > _PREVIEW_BYTES:
            break
        rows.append(json.loads(line))
    after = offset + len(rows)
    return Preview(rows=rows, offset=offset, total=total, next=after if rows and after < total else None)


def difference(a: tuple[int, Path], b: tuple[int, Path]) -> Difference:
    """Compare versions, given as (number, folder): how many rows, equal ones counted, are in one alone.

    Raises:
        TooLarge: one has more than ``MAX_DIFF_ROWS`` rows.
    """
    only_b, kept_b = _alone(_counts(a[1]), b[1])
    only_a, _ = _alone(_counts(b[1]), a[1])
    return Difference(
        a=a[0],
        b=b[0],
        added=only_b[0],
        removed=only_a[0],
        kept=kept_b,
        added_rows=only_b[1],
        removed_rows=only_a[1],
    )


def _counts(folder: Path) -> Counter[bytes]:
    counts: Counter[bytes] = Counter()
    for number, line in enumerate(_lines(folder)):
        if number >= MAX_DIFF_ROWS:
            raise TooLarge(f"a version has more than {MAX_DIFF_ROWS} rows", hint="download both and compare them")
        counts[hashlib.blake2b(line, digest_size=16).digest()] += 1
    return counts


def _alone(others: Counter[bytes], folder: Path) -> tuple[tuple[int, list[dict[str, Any]]], int]:
    """Return ((rows that ``others`` lacks, the first of them), rows that it has)."""
    alone, kept, size = 0, 0, 0
    rows: list[dict[str, Any]] = []
    for line in _lines(folder):
        key = hashlib.blake2b(line, digest_size=16).digest()
        if others[key] > 0:
            others[key] -= 1
            kept += 1
            continue
        alone += 1
        size += len(line)
        if len(rows) < _EXAMPLES and size <= _EXAMPLE_BYTES:
            rows.append(json.loads(line))
    return (alone, rows), kept


def _lines(folder: Path) -> Iterator[bytes]:
    with (folder / DATA_FILE).open("rb") as file:
        yield from file
