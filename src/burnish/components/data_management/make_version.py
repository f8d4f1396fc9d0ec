"""From an uploaded file to the files of a dataset artifact, in one streamed pass."""

import hashlib
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field

from burnish.components.data_management.formats import Limits, Problems, choose_format, safe_name
from burnish.components.data_management.formats.base import TOTAL_SIZE
from burnish.components.data_management.quality import PairSets, exact_key, near_in, row_text
from burnish.components.data_management.rows import Row, Schema, canonical_rows, dump_row, recognise
from burnish.core.errors import FieldProblem, InvalidRequest, TooLarge
from burnish.core.specs.data import DATA_FILE, DATASET_CARD_FILE, DatasetCard, DatasetFormat


class UploadOptions(BaseModel):
    """What a user says about the file besides its bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file_name: str = Field(description="The name it was uploaded under; recorded, and a hint at its format")
    format: DatasetFormat | None = Field(default=None, description="Recognised by the columns if not given")
    columns: dict[str, str] = Field(default_factory=dict, description="Our column -> the file's column")
    licence: str | None = Field(default=None, max_length=1000)
    duplicates: Literal["keep", "drop"] = Field(
        default="keep",
        description="Rows equal to an earlier row, but for blanks at the ends of values; other columns do not count",
    )
    bad_rows: Literal["fail", "drop"] = Field(
        default="fail", description="Rows that cannot be read or lack a value: an error, or left out and counted"
    )


class NewVersion(BaseModel):
    """What came of a file."""

    model_config = ConfigDict(frozen=True)

    card: DatasetCard
    dropped_rows: tuple[FieldProblem, ...] = Field(
        default=(), description="The first rows that were left out as bad, and why"
    )


def make_version(upload: Path, options: UploadOptions, target: Path, limits: Limits | None = None) -> NewVersion:
    """Read ``upload`` and write ``data.jsonl`` and ``dataset.json`` into the empty folder ``target``.

    The same rows give the same bytes of ``data.jsonl``, whatever file format they came in. One row is held at a time;
    besides that about 250 bytes a row for finding duplicates.

    Raises:
        InvalidRequest: the file, its columns or its rows are wrong; the first 20 places are named.
        TooLarge, UnsupportedMedia: see ``formats``.
    """
    limits = limits or Limits()
    name = safe_name(options.file_name)
    reader = choose_format(upload, name, limits)
    problems = Problems(name, reader.unit, tolerant=options.bad_rows == "drop")
    records = reader.read(upload, limits, problems)
    if (first := next(records, None)) is None:
        problems.raise_if_any()
        raise _no_row(name, problems)
    try:
        schema, records = recognise(chain([first], records), options.format, options.columns, name)
    except InvalidRequest:
        problems.raise_if_any()  # the file is broken: that comes before what its columns are
        raise
    tally = _Tally(schema)
    with (target / DATA_FILE).open("wb") as out:
        for number, row in canonical_rows(records, schema, problems):
            size = tally.add(row, out, drop_duplicates=options.duplicates == "drop")
            _check_limits(size, tally, limits, f"{reader.unit} {number}")
    problems.raise_if_any()
    if not tally.rows:
        raise _no_row(name, problems)
    card = tally.card(name, options.licence, problems.count)
    (target / DATASET_CARD_FILE).write_text(card.model_dump_json(indent=2) + "\n")
    return NewVersion(card=card, dropped_rows=tuple(problems.found))


def _no_row(name: str, problems: Problems) -> InvalidRequest:
    if not problems.found:
        return InvalidRequest(f"{name} has no rows", where=name, hint="upload a file with at least one row")
    first = problems.found[0]
    return InvalidRequest(
        f"no row of {name} is left: {problems.count} were bad: {first.where}: {first.message}",
        where=first.where,
        hint=first.hint or "mend the rows and upload the file again",
        problems=problems.found,
    )


def _check_limits(size: int, tally: "_Tally", limits: Limits, where: str) -> None:
    """Check what was written: a row of a Parquet dictionary may be far larger than its share of the file."""
    if tally.rows > limits.rows:
        raise TooLarge(f"more than {limits.rows} rows", where=where, hint="upload the file in parts")
    if size > limits.line_bytes:
        raise TooLarge(f"{where} has {size} bytes; a row has at most {limits.line_bytes}", where=where)
    if tally.bytes > limits.total_bytes:
        raise TooLarge(f"more than {limits.total_bytes} bytes of rows by {where}", where=TOTAL_SIZE)


class _Tally:
    """Counts and hashes rows on their way to the file."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._hash = hashlib.sha256()
        self._seen: set[bytes] = set()
        self._label_of: dict[bytes, str] = {}
        self._labels: Counter[str] = Counter()
        self._extra: dict[str, None] = {}
        self._sets = PairSets()
        self._exact = 0
        self._conflicting = 0
        self._duplicates_dropped = 0
        self.rows = 0
        self.bytes = 0

    def add(self, row: Row, out: BinaryIO, *, drop_duplicates: bool) -> int:
        """Write the row unless it is a duplicate to drop; return the bytes written."""
        key = exact_key(row, self._schema.format, "all")
        if key in self._seen:
            if drop_duplicates:
                self._duplicates_dropped += 1
                return 0
            self._exact += 1
        else:
            self._seen.add(key)
            self._sets.add(row_text(row, self._schema.format, "all"))
        if self._schema.format == "classification":
            self._add_label(row)
        for name in row.get("extra", ()):
            self._extra.setdefault(name)
        line = dump_row(row).encode() + b"\n"
        self._hash.update(line)
        out.write(line)
        self.rows += 1
        self.bytes += len(line)
        return len(line)

    def card(self, source: str, licence: str | None, bad: int) -> DatasetCard:
        own = tuple(self._schema.columns)
        return DatasetCard(
            format=self._schema.format,
            rows=self.rows,
            rows_hash="sha256:" + self._hash.hexdigest(),
            labels={label: self._labels[label] for label in sorted(self._labels)},
            columns=(*own, *sorted(self._extra)),
            exact_duplicates=self._exact,
            near_duplicates=len(near_in(self._sets)),
            near_checked=self.rows - self._sets.unchecked,
            conflicting_labels=self._conflicting,
            dropped=bad + self._duplicates_dropped,
            source=source,
            licence=licence,
        )

    def _add_label(self, row: Row) -> None:
        label = row["label"]
        self._labels[label] += 1
        first = self._label_of.setdefault(exact_key(row, "classification", "input"), label)
        self._conflicting += first != label
