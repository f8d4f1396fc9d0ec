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

from burnish.components.data_management.formats.base import TOTAL_SIZE, Limits, Problems, Record
from burnish.core.errors import InvalidRequest, TooLarge

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
        import pyarrow as pa  # here, because a server that reads no such file should not pay for it
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path, memory_map=False, thrift_string_size_limit=64 << 20) as file:
                _check_metadata(file.metadata, path.stat().st_size, limits)
                _check_schema(file.schema_arrow)
                yield from _rows(file, limits)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise InvalidRequest(
                f"not a readable Parquet file: {str(error).splitlines()[0][:300]}",
                hint="was the file cut, or is it another format by this name?",
            ) from None


def _check_metadata(metadata: Any, size: int, limits: Limits) -> None:
    if metadata.num_rows > limits.rows:
        raise TooLarge(f"the file has {metadata.num_rows} rows; at most {limits.rows} are taken")
    groups = [metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)]
    total = sum(groups)
    if total > limits.total_bytes or (total > limits.ratio_from_bytes and total > limits.ratio * size):
        raise TooLarge(
            f"the file's {size} bytes say that they hold {total} bytes of values",
            hint=f"at most {limits.total_bytes} bytes and {limits.ratio} to 1 are taken",
        )
    if groups and max(groups) > limits.row_group_bytes:
        raise TooLarge(
            f"a row group holds {max(groups)} bytes; at most {limits.row_group_bytes} are taken",
            hint="write the file with smaller row groups",
        )


def _check_schema(schema: Any) -> None:
    names = list(schema.names)
    for position, name in enumerate(names):
        if not name or name in names[:position]:
            raise InvalidRequest(f"the column name {name!r} is empty or stands twice", where=f"column {position + 1}")


def _rows(file: Any, limits: Limits) -> Iterator[Record]:
    number, total = 0, 0
    for batch in file.iter_batches(batch_size=_BATCH, use_threads=False):
        total += batch.nbytes
        if total > limits.total_bytes:
            raise TooLarge(f"the rows up to {number + len(batch)} hold {total} bytes", where=TOTAL_SIZE)
        if batch.nbytes > limits.line_bytes * _BATCH:
            raise TooLarge(
                f"rows {number + 1} to {number + len(batch)} hold {batch.nbytes} bytes", where=f"row {number + 1}"
            )
        for values in batch.to_pylist():
            number += 1
            yield Record(number, {name: _plain(value, name, number) for name, value in values.items()})


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
