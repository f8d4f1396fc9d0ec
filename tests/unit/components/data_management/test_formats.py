"""Readers on good and bad files: what they yield, and the place that each error names."""

import gzip
import json
import pickle
import resource
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from burnish.components.data_management.formats import FORMATS, Limits, Problems, choose_format, safe_name
from burnish.core.errors import BurnishError, InvalidRequest, TooLarge, UnsupportedMedia

ROWS = [
    {"text": "one, two", "label": "a"},
    {"text": 'say "hi"\nthere', "label": "b"},
    {"text": "drei Öl", "label": "a"},
]


def read(path: Path, name: str | None = None, limits: Limits | None = None) -> list[tuple[int, dict[str, Any]]]:
    limits = limits or Limits()
    reader = choose_format(path, name or path.name, limits)
    problems = Problems(path.name, reader.unit)
    records = [(record.number, record.values) for record in reader.read(path, limits, problems)]
    problems.raise_if_any()
    return records


def file(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(rows: list[dict[str, Any]], end: str = "\n") -> bytes:
    return end.join(json.dumps(row, ensure_ascii=False) for row in rows).encode() + end.encode()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return bytes(sink.getvalue().to_pybytes())


CSV = 'text,label\n"one, two",a\n"say ""hi""\nthere",b\ndrei Öl,a\n'


@pytest.mark.parametrize(
    ("name", "content", "numbers"),
    [
        ("a.jsonl", jsonl(ROWS), [1, 2, 3]),
        ("a.jsonl", jsonl(ROWS, "\r\n"), [1, 2, 3]),
        ("a.jsonl", jsonl(ROWS).rstrip(), [1, 2, 3]),
        ("a.jsonl", b"\xef\xbb\xbf" + jsonl(ROWS), [1, 2, 3]),
        ("a.jsonl", b"\n\n" + jsonl(ROWS, "\n \n"), [3, 5, 7]),
        ("a.ndjson.gz", gzip.compress(jsonl(ROWS)), [1, 2, 3]),
        ("a.jsonl.zst", zstd(jsonl(ROWS)), [1, 2, 3]),
        ("no-ending", jsonl(ROWS), [1, 2, 3]),
        ("a.csv", CSV.encode(), [2, 4, 5]),
        ("a.csv", b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode(), [2, 4, 5]),
        ("a.tsv", CSV.replace("one, two", "one\t two").replace(",", "\t").encode(), [2, 4, 5]),
        ("a.csv.gz", gzip.compress(CSV.encode()), [2, 4, 5]),
        ("a.csv", "\n \r\n" + CSV, [4, 6, 7]),
    ],
)
def test_text_formats_yield_the_same_rows(tmp_path: Path, name: str, content: bytes, numbers: list[int]) -> None:
    records = read(file(tmp_path, name, content))
    assert [number for number, _ in records] == numbers
    normal = [{key: value.replace("\t", ",").replace("\r\n", "\n") for key, value in row.items()} for _, row in records]
    assert normal == ROWS


def test_parquet_yields_json_values(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": ["a", "b"],
            "messages": [[{"role": "user", "content": "x"}], []],
            "score": [0.5, float("nan")],
            "day": pa.array([0, 1], pa.date32()),
            "price": pa.array([1, 2], pa.int32()).cast(pa.decimal128(10, 0)),
        }
    )
    path = tmp_path / "a.parquet"
    pq.write_table(table, path)
    assert read(path) == [
        (
            1,
            {
                "text": "a",
                "messages": [{"role": "user", "content": "x"}],
                "score": 0.5,
                "day": "1970-01-01",
                "price": "1",
            },
        ),
        (2, {"text": "b", "messages": [], "score": None, "day": "1970-01-02", "price": "2"}),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', "not JSON: Unterminated string"),
        (b'{"text": }', "not JSON: Expecting value at column 10"),
        (b'["a"]', "an array, not an object"),
        (b'"a"', "a string, not an object"),
        (b"3", "a number or boolean, not an object"),
        (b"null", "null, not an object"),
        (b"{}", "an empty object"),
        (b'{"text": "a", "text": "b"}', "the key 'text' stands twice"),
        (b'{"x": {"a": 1, "a": 1}}', "the key 'a' stands twice"),
        (b'{"x": NaN}', "NaN is not JSON"),
        (b'{"x": -Infinity}', "-Infinity is not JSON"),
        (b'{"text": "\\ud800"}', "lone surrogate"),
        (b'{"x": ' + b"[" * 200_000, "nested too deeply"),
        (b'{"x": ' + b"1" * 5000 + b"}", "not JSON that can be kept"),
        (b'{"x": ' + b"[" * 64 + b"]" * 64 + b"}", "nested too deeply: more than 64"),
        (b'{"x": ' + b'{"y":' * 990 + b"1" + b"}" * 990 + b"}", "nested too deeply"),
        (b'{"x": 1e999}', "the number 1e999 is too large"),
        (b'{"x": -' + b"9" * 5000 + b".0}", "the number -9999999999999999999 is too large"),
        (b'{"": 1}', "a column has no name"),
        (b'{"x": {"' + b"k" * 9999 + b'": 1, "' + b"k" * 9999 + b'": 1}}', "stands twice"),
    ],
)
def test_broken_json_lines_are_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = file(tmp_path, "a.jsonl", jsonl(ROWS[:2]) + line + b"\n" + jsonl(ROWS[2:]))
    with pytest.raises(InvalidRequest) as caught:
        read(path)
    assert message in caught.value.message
    assert [problem.where for problem in caught.value.problems] == ["line 3"]
    assert caught.value.hint


def test_nesting_is_taken_up_to_the_limit(tmp_path: Path) -> None:
    line = b'{"x": ' + b"[" * 63 + b"]" * 63 + b', "flat": ' + b"[" + b"[]," * 99 + b"1]}"
    assert len(read(file(tmp_path, "a.jsonl", line))) == 1


def test_very_many_columns_are_refused_at_once(tmp_path: Path) -> None:
    """In a time that is linear in their number: comparing each with each would take an hour."""
    many, wide = 400_000, pa.table({f"c{n}": ["x"] for n in range(3000)})
    pq.write_table(wide, tmp_path / "a.parquet")
    object_ = "{" + ",".join(f'"c{n}":1' for n in range(many)) + "}"
    header = ",".join(f"c{n}" for n in range(many))
    start = time.process_time()
    for name, content, message in (
        ("a.jsonl", object_, "line 1: 400000 columns; a row has at most 2000"),
        ("a.jsonl", f'{{"x": {object_[:-1]}, "c399999": 1}}}}', "the key 'c399999' stands twice"),
        ("a.csv", f"{header}\na,b\n", "400000 columns; a row has at most 2000"),
        ("a.parquet", (tmp_path / "a.parquet").read_bytes(), "3000 columns; a row has at most 2000"),
    ):
        with pytest.raises(InvalidRequest, match=message) as caught:
            read(file(tmp_path, name, content))
        assert caught.value.where
        assert len(caught.value.message) < 500
    assert time.process_time() - start < 30


def test_reading_stops_after_twenty_bad_lines(tmp_path: Path) -> None:
    path = file(tmp_path, "a.jsonl", b"{broken\n" * 1000)
    with pytest.raises(
        InvalidRequest, match="at least 20 bad lines; reading stopped there: line 1: not JSON"
    ) as caught:
        read(path)
    assert [problem.where for problem in caught.value.problems] == [f"line {n}" for n in range(1, 21)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_not_utf8_says_line_and_byte(tmp_path: Path, name: str) -> None:
    head = jsonl(ROWS[:1]) if name == "a.jsonl" else b"text,label\n"
    path = file(tmp_path, name, head + b'{"text": "caf\xe9"}\n')
    with pytest.raises(InvalidRequest, match="line 2 is not UTF-8: byte 0xe9 at column 14") as caught:
        read(path)
    assert caught.value.where == f"line 2, byte {len(head) + 13}"
    assert "iconv" in str(caught.value.hint)


def test_utf16_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="the file is UTF-16, not UTF-8"):
        read(file(tmp_path, "a.csv", CSV.encode("utf-16")))


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", b""), ("a.csv", b""), ("a.jsonl.gz", gzip.compress(b"")), ("a.parquet", b"")]
)
def test_empty_files(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(InvalidRequest, match="the file is empty"):
        read(file(tmp_path, name, content))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\na,b,c\n", "line 2: 3 fields where the header has 2"),
        ("a.csv", "text,text\na,b\n", "the column 'text' stands twice"),
        ("a.csv", "text,\na,b\n", "column 2 has no name"),
        ("a.csv", 'text,label\na,b\n"never closed,b\nc,d\n', "line 3: not CSV: unexpected end of data"),
        ("a.csv", 'text,label\n"a"b,c\n', "line 2: not CSV"),
        ("a.csv", '"text,label\n', "line 1: not CSV: unexpected end of data"),
        ("a.csv", '"text" ,label\na,b\n', "line 1: not CSV: ',' expected after"),
        ("a.csv", '\n\n"text" ,label\na,b\n', "line 3: not CSV"),
        ("a.csv", "\n\ntext,text\na,b\n", "the column 'text' stands twice"),
        ("a.jsonl.gz", gzip.compress(jsonl(ROWS))[:-12], "broken or cut"),
        ("a.jsonl.gz", gzip.compress(jsonl(ROWS * 99))[:40] + b"\0" * 20, "broken or cut"),
        ("a.jsonl.zst", zstd(jsonl(ROWS * 9999))[:-9], "broken or cut"),
        ("a.parquet", b"PAR1 and nothing PAR1", "not a readable Parquet file"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes | str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        read(file(tmp_path, name, content))
    assert caught.value.where


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"PK\x03\x04rest", "ZIP archive or an Excel sheet"),
        ("a.csv", pickle.dumps({"a": 1}), "a pickle"),
        ("a.parquet", b"text,label\n", "the name says Parquet and the bytes do not"),
        ("a.parquet.gz", gzip.compress(b"PAR1...."), "Parquet inside gzip"),
        ("a.bin", b"whatever", "no ending that is known"),
        ("a.jsonl", b"GGUF\x03", "a GGUF model"),
    ],
)
def test_other_kinds_of_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(UnsupportedMedia, match=message):
        read(file(tmp_path, name, content))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_two_gigabyte_line_is_refused_without_being_read(tmp_path: Path, name: str) -> None:
    path = file(tmp_path, name, "text,label\n" if name == "a.csv" else jsonl(ROWS[:1]))
    with path.open("r+b") as out:
        out.truncate(2 << 30)  # sparse: a line of NULs
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TooLarge, match="line 2 is longer than 8388608 bytes") as caught:
        read(path)
    assert caught.value.where == "line 2"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_an_unclosed_quote_does_not_swallow_the_file(tmp_path: Path) -> None:
    path = file(tmp_path, "a.csv", 'text,label\n"open,b\n' + "x,y\n" * 10_000)
    with pytest.raises(TooLarge, match="the record that starts at line 2 is longer than 4096 bytes"):
        read(path, limits=Limits(line_bytes=4096))


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_decompression_bombs_are_stopped_at_the_ratio(tmp_path: Path, pack: Any) -> None:
    line = b'{"text": "' + b"a" * 1000 + b'"}\n'
    path = file(tmp_path, "a.jsonl", pack(line * 20_000))
    with pytest.raises(TooLarge, match="over 20 to 1"):
        read(path, limits=Limits(ratio=20, ratio_from_bytes=1 << 20))
    with pytest.raises(TooLarge, match="more than 5000000 bytes once decompressed"):
        read(path, limits=Limits(total_bytes=5_000_000, ratio=10_000))


def test_a_parquet_bomb_is_refused_by_its_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a" * 100_000] * 300}), path, compression="zstd", use_dictionary=False)
    with pytest.raises(TooLarge, match="bytes say that they hold"):
        read(path, limits=Limits(ratio_from_bytes=1 << 20))
    with pytest.raises(TooLarge, match="a row group holds"):
        read(path, limits=Limits(row_group_bytes=1 << 20))
    with pytest.raises(TooLarge, match="300 rows; at most 10"):
        read(path, limits=Limits(rows=10))


def test_parquet_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [b"\x89PNG"]}), path)
    with pytest.raises(InvalidRequest, match="the column 'image' holds bytes") as caught:
        read(path)
    assert caught.value.where == "row 1, image"


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("reviews.jsonl", "reviews.jsonl"),
        ("../../etc/passwd", "passwd"),
        ("C:\\data\\..\\x.csv", "x.csv"),
        ("..", "upload"),
        ("a/..", "upload"),
        ("", "upload"),
        ("a\0b\n\x1b[31m.csv", "ab[31m.csv"),
        ("x" * 500, "x" * 200),
        ("Öl.csv", "Öl.csv"),
    ],
)
def test_names_are_never_paths(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_every_format_has_a_manual_and_its_own_endings() -> None:
    import sys

    endings = [ending for form in FORMATS for ending in form.suffixes]
    assert len(endings) == len(set(endings))
    for form in FORMATS:
        assert len(sys.modules[type(form).__module__].__doc__ or "") > 100


@pytest.mark.parametrize("error", [InvalidRequest, TooLarge, UnsupportedMedia])
def test_errors_of_files_are_expected_failures(error: type[BurnishError]) -> None:
    assert 400 <= error.status < 500
