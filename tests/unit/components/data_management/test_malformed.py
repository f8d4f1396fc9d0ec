"""Whatever the bytes: a version whose data is taken again as it is, or a typed error with a place."""

import gzip
import io
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from burnish.components.data_management.formats import Limits, Problems
from burnish.components.data_management.formats.parquet import Parquet
from burnish.components.data_management.make_version import NewVersion, UploadOptions, make_version
from burnish.core.errors import BurnishError, InvalidRequest, TooLarge
from burnish.core.specs.data import DATA_FILE

JSONL = (
    b'{"text": "one, \xc3\x96l \\u00e9 \\ud83d\\ude00", "label": "a", "n": [1, 2.5e3, null, {"k": "v"}]}\n'
    b'{"text": "two", "label": 3}\n'
)
CHAT = (
    b'{"messages": "[{\\"role\\": \\"user\\", \\"content\\": \\"hi\\"}, '
    b'{\\"role\\": \\"assistant\\", \\"content\\": \\"yo\\"}]"}\n'
)
CSV = b'text,label\n"one, two",a\n"say ""hi""\nthere",b\n'
PIECES = [
    b'"', b'""', b"\\", b"\\u", b"\\ud800", b"\\u0000", b"{", b"}", b"[", b"]", b",", b":", b";", b"\t", b"\n", b"\r",
    b"\0", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"1e999", b"NaN", b"null",
    b"1" * 5000, b"[" * 70, b'{"a":' * 70, b"PAR1", b'"extra": {"text": 1},', b'"label": ', b'"messages": ',
]  # fmt: skip


def parquet(table: pa.Table, **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return bytes(sink.getvalue().to_pybytes())


TABLE = pa.table({"text": ["a b", "\u00d6l", "c"], "n": [1.5, None, 2], "day": pa.array([1, 2, 3], pa.date32())})
SEEDS = [
    ("a.jsonl", JSONL),
    ("a.jsonl", CHAT),
    ("a.csv", CSV),
    ("a.jsonl.gz", gzip.compress(JSONL)),
    ("a.jsonl.zst", zstd(JSONL * 20)),
    ("a.parquet", parquet(TABLE)),
    ("a.parquet", parquet(TABLE, store_schema=False, compression="none", use_dictionary=False)),
]


def mutated(source: random.Random, seed: bytes) -> bytes:
    content = bytearray(seed)
    for _ in range(source.choice([1, 1, 2, 4])):
        where, length = source.randrange(len(content) + 1), source.choice([1, 2, 4, 40])
        piece = source.choice(PIECES)
        match source.randrange(6):
            case 0:
                content[where : where + 1] = bytes([source.randrange(256)])
            case 1:
                content[where:where] = piece
            case 2:
                del content[where : where + length]
            case 3:
                content[where:where] = content[where : where + length] * 100
            case 4:
                del content[where:]
            case _:
                content[where : where + length] = source.choice([b"\xff", b"\0", b"\x80"]) * length
    return bytes(content)


def make(folder: Path, name: str, content: bytes, **options: Any) -> NewVersion:
    (folder / "upload").write_bytes(content)
    (folder / "target").mkdir(exist_ok=True)
    return make_version(folder / "upload", UploadOptions(file_name=name, **options), folder / "target")


def attempt(folder: Path, name: str, content: bytes, **options: Any) -> NewVersion | BurnishError:
    try:
        return make(folder, name, content, **options)
    except BurnishError as error:
        return error


@pytest.mark.parametrize(("name", "seed"), SEEDS, ids=[f"{n}-{name}" for n, (name, _) in enumerate(SEEDS)])
def test_mutated_files_are_read_or_refused_with_a_place(tmp_path: Path, name: str, seed: bytes) -> None:
    assert make(tmp_path, name, seed).card.rows > 0
    refused = 0
    for number in range(150):
        source = random.Random(number)
        made = attempt(tmp_path, name, mutated(source, seed), bad_rows=source.choice(["fail", "drop"]))
        if isinstance(made, BurnishError):
            refused += 1
            assert made.status in (413, 415, 422), (number, made)
            assert made.where, (number, made)
            assert len(made.body().model_dump_json()) < 20_000, number
            continue
        data = (tmp_path / "target" / DATA_FILE).read_bytes()
        again = make(tmp_path, "again.jsonl", data, format=made.card.format)
        assert again.card.rows_hash == made.card.rows_hash, number
    assert refused > 50


def not_utf8(values: bytes) -> pa.Array:
    """One text for each byte of ``values``, as a writer that checks nothing leaves them."""
    offsets = pa.array(range(len(values) + 1), pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.string(), len(values), [None, offsets, pa.py_buffer(values)])


@pytest.mark.parametrize(
    ("column", "place"),
    [
        (not_utf8(b"a\xffb"), "row 2, n"),
        (pa.array([0, 2**31 - 1, 1], pa.date32()), "row 2, n"),
        (pa.array([0, 2**62, 1], pa.timestamp("ms")), "row 2, n"),
        (pa.array([0, 1, 2], pa.timestamp("ms", tz="Nowhere/None")), "row 1, n"),
    ],
)
def test_parquet_values_without_a_form_are_named_and_can_be_left_out(
    tmp_path: Path, column: pa.Array, place: str
) -> None:
    content = parquet(pa.table({"text": ["a", "b", "c"], "n": column}))
    with pytest.raises(InvalidRequest, match="cannot be read") as caught:
        make(tmp_path, "a.parquet", content)
    assert caught.value.where == place
    if place == "row 2, n":
        made = make(tmp_path, "a.parquet", content, bad_rows="drop")
        assert (made.card.rows, made.card.dropped) == (2, 1)


def test_a_deep_parquet_schema_is_refused(tmp_path: Path) -> None:
    column: pa.Array = pa.array([1, 2])
    for _ in range(90):
        column = pa.StructArray.from_arrays([column], ["s"])
    content = parquet(pa.table({"text": ["a", "b"], "n": column}))
    with pytest.raises(InvalidRequest, match="nested more than 64 deep") as caught:
        make(tmp_path, "a.parquet", content)
    assert caught.value.where == "'n'"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (pa.ArrowInvalid(""), InvalidRequest),
        (RuntimeError("odd"), InvalidRequest),
        (pa.ArrowMemoryError("malloc of size 99 failed"), TooLarge),
        (MemoryError(), MemoryError),
        (OSError(5, "the disk"), OSError),
    ],
)
def test_what_pyarrow_raises_is_told_apart_by_whose_fault_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[Exception]
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(pq, "ParquetFile", fail)
    with pytest.raises(expected) as caught:
        list(Parquet().read(tmp_path, Limits(), Problems("a.parquet", "row")))
    if isinstance(caught.value, BurnishError):
        assert caught.value.where == "a.parquet"
        assert caught.value.message
