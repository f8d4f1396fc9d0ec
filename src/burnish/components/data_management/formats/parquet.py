"""Parquet. Numbers in errors are rows, from 1.

Sizes are looked at in the file's metadata before anything is decoded, and counted again while rows are read. Dates
become ISO 8601 text, decimals text; NaN becomes null, since JSON has none; columns of bytes are refused.
"""

import datetime
import decimal
import math
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from burnish.components.data_management.formats.base import (
    MAX_COLUMNS,
    MAX_DEPTH,
    TOTAL_SIZE,
    Limits,
    Problems,
    Record,
    first_repeated,
    show,
)
from burnish.core.errors import BurnishError, InvalidRequest, TooLarge

MAGIC = b"PAR1"
_BATCH = 64  # rows: with rows of the largest allowed size that is half a gigabyte


class Parquet:
    """Reader of Parquet."""

    name = "parquet"
    suffixes = (".parquet", ".pq")
    unit = "row"
    compressible = False

    def read(self, path: Path, limits: Limits, problems: Problems) -> Iterator[Record]:
        """Yield the rows; see :class:`~.base.FileFormat`."""
        import pyarrow.parquet as pq  # here, because a server that reads no such file should not pay for it

        try:
            with pq.ParquetFile(path, memory_map=False, thrift_string_size_limit=64 << 20) as file:
                _check_metadata(file.metadata, path.stat().st_size, limits, problems.what)
                _check_schema(file.schema_arrow)
                yield from _rows(file, limits, problems)
        except BurnishError:
            raise
        except Exception as error:  # what pyarrow raises for a broken file is of many kinds
            raise _unreadable(error, problems.what) from None


def _unreadable(error: Exception, where: str) -> Exception:
    """Return what to raise for an error of pyarrow: itself, if it is not the file's fault."""
    said = " ".join(str(error).split())[:300] or type(error).__name__
    if type(error).__name__ == "ArrowMemoryError":
        return TooLarge(f"the file asks for more memory than there is: {said}", where=where, hint="was the file cut?")
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
        return error
    return InvalidRequest(
        f"not a readable Parquet file: {said}",
        where=where,
        hint="was the file cut, or is it another format by this name?",
    )


def _check_metadata(metadata: Any, size: int, limits: Limits, where: str) -> None:
    if metadata.num_rows > limits.rows:
        raise TooLarge(f"the file has {metadata.num_rows} rows; at most {limits.rows} are taken", where=where)
    groups = [metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)]
    total = sum(groups)
    if total > limits.total_bytes or (total > limits.ratio_from_bytes and total > limits.ratio * size):
        raise TooLarge(
            f"the file's {size} bytes say that they hold {total} bytes of values",
            where=where,
            hint=f"at most {limits.total_bytes} bytes and {limits.ratio} to 1 are taken",
        )
    if groups and max(groups) > limits.row_group_bytes:
        raise TooLarge(
            f"a row group holds {max(groups)} bytes; at most {limits.row_group_bytes} are taken",
            where=f"row group {groups.index(max(groups)) + 1}",
            hint="write the file with smaller row groups",
        )


def _check_schema(schema: Any) -> None:
    names = list(schema.names)
    if len(names) > MAX_COLUMNS:
        raise InvalidRequest(f"{len(names)} columns; a row has at most {MAX_COLUMNS}", where="columns")
    if "" in names:
        raise InvalidRequest("a column has no name", where=f"column {names.index('') + 1}")
    if (repeated := first_repeated(names)) is not None:
        raise InvalidRequest(f"the column {show(repeated)} stands twice", where="columns", hint="rename one of them")
    for name, level in zip(names, schema.types, strict=True):
        types = [level]
        for _ in range(MAX_DEPTH):
            types = [one.field(index).type for one in types for index in range(one.num_fields)]
        if types:
            raise InvalidRequest(f"nested more than {MAX_DEPTH} deep", where=show(name), hint="leave the column out")


def _rows(file: Any, limits: Limits, problems: Problems) -> Iterator[Record]:
    number, total = 0, 0
    batches = iter(file.iter_batches(batch_size=_BATCH, use_threads=False))
    while (batch := _next(batches, number)) is not None:
        total += batch.nbytes
        if total > limits.total_bytes:
            raise TooLarge(f"the rows up to {number + len(batch)} hold {total} bytes", where=TOTAL_SIZE)
        if batch.nbytes > limits.line_bytes * _BATCH:
            raise TooLarge(
                f"rows {number + 1} to {number + len(batch)} hold {batch.nbytes} bytes", where=f"row {number + 1}"
            )
        for values in _values(batch, number, problems):
            number += 1
            if values is not None:
                yield Record(number, {name: _plain(value, name, number) for name, value in values.items()})


def _next(batches: Iterator[Any], number: int) -> Any:
    try:
        return next(batches, None)
    except Exception as error:
        raise _unreadable(error, f"row {number + 1} or soon after") from None


def _values(batch: Any, before: int, problems: Problems) -> Iterator[dict[str, Any] | None]:
    """Yield each row's values, or None where one of them has no form here, which is noted."""
    try:
        yield from batch.to_pylist()
        return
    except MemoryError:
        raise
    except Exception:  # text that is not UTF-8, a date in the year 20000, ...: below it is found which
        rows = range(len(batch))
    for row in rows:
        values: dict[str, Any] | None = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                value = column[row].as_py()
            except Exception as error:
                hint = "mend the value, or leave the column out"
                problems.add(before + row + 1, f"cannot be read: {str(error)[:200]}", column=name, hint=hint)
                values = None
                break
            assert values is not None
            values[name] = value
        yield values


def _plain(value: Any, column: str, number: int) -> Any:
    """Return ``value`` as JSON has it."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_plain(item, column, number) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item, column, number) for key, item in value.items()}
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, (decimal.Decimal, uuid.UUID)):
        return str(value)
    raise InvalidRequest(
        f"the column {column!r} holds {type(value).__name__}, which has no place in a row of text",
        where=f"row {number}, {column}",
        hint="leave the column out",
    )
