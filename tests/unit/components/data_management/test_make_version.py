"""A file becomes the files of a dataset artifact, or an error and nothing."""

import gzip
import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from burnish.components.data_management.formats import Limits
from burnish.components.data_management.make_version import NewVersion, UploadOptions, make_version
from burnish.core.errors import InvalidRequest, TooLarge
from burnish.core.specs.data import DATA_FILE, DATASET_CARD_FILE, DatasetCard

ROWS = [
    {"text": "a great movie", "label": "good"},
    {"text": "a great movie ", "label": "good"},
    {"text": "a great movie", "label": "bad"},
    {"text": "the worst film that I have ever seen or heard of from anybody in all of my years", "label": "bad"},
    {"text": "the worst film that I have ever seen or heard of from anybody in all of my life", "label": "bad"},
]


def make(folder: Path, content: bytes | str, **options: object) -> NewVersion:
    upload = folder / "upload"
    upload.write_bytes(content.encode() if isinstance(content, str) else content)
    target = folder / "target"
    target.mkdir(exist_ok=True)
    return make_version(upload, UploadOptions.model_validate({"file_name": "../a.jsonl", **options}), target)


def lines(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_card_and_data(tmp_path: Path) -> None:
    card = make(tmp_path, lines(ROWS), licence="MIT").card
    data = (tmp_path / "target" / DATA_FILE).read_bytes()
    assert card == DatasetCard(
        format="classification", rows=5, rows_hash="sha256:" + hashlib.sha256(data).hexdigest(),
        labels={"bad": 3, "good": 2}, columns=("text", "label"), exact_duplicates=1, near_duplicates=1, near_checked=5,
        conflicting_labels=1, source="a.jsonl", licence="MIT",
    )  # fmt: skip
    assert [json.loads(line) for line in data.decode().splitlines()] == ROWS
    assert DatasetCard.model_validate_json((tmp_path / "target" / DATASET_CARD_FILE).read_bytes()) == card


def test_the_same_rows_from_any_file_are_the_same_data(tmp_path: Path) -> None:
    table = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), table)
    csv = "label;text\n" + "".join(f"{row['label']};{row['text']}\n" for row in ROWS)
    contents: dict[str, bytes | str] = {
        "a.jsonl": lines([dict(reversed(row.items())) for row in ROWS]),
        "a.jsonl.gz": gzip.compress(lines(ROWS).encode()),
        "a.csv": csv,
        "a.parquet": table.read_bytes(),
    }
    hashes = {make(tmp_path, content, file_name=name).card.rows_hash for name, content in contents.items()}
    assert len(hashes) == 1


def test_duplicates_can_be_dropped_and_are_counted(tmp_path: Path) -> None:
    card = make(tmp_path, lines(ROWS), duplicates="drop").card
    assert (card.rows, card.dropped, card.exact_duplicates) == (4, 1, 0)


def test_rows_that_differ_in_a_sign_alone_are_not_dropped(tmp_path: Path) -> None:
    texts = ["a < b", "a > b", "-5", "5", "Polish", "polish", "fine \U0001f600", "fine \U0001f621", "x  y", "x y"]
    rows = [{"text": text, "label": "x"} for text in texts]
    card = make(tmp_path, lines([*rows, *rows[:3]]), duplicates="drop").card
    assert (card.rows, card.dropped, card.exact_duplicates) == (10, 3, 0)
    kept = [json.loads(line) for line in (tmp_path / "target" / DATA_FILE).read_text().splitlines()]
    assert kept == rows
    signed = [{"text": "a < b", "label": "less"}, {"text": "a > b", "label": "more"}]
    assert make(tmp_path, lines(signed)).card.conflicting_labels == 0


def test_bad_rows_can_be_dropped_and_are_counted_and_named(tmp_path: Path) -> None:
    made = make(tmp_path, lines(ROWS) + "{broken\n" + '{"text": "", "label": "x"}\n' * 30, bad_rows="drop")
    assert (made.card.rows, made.card.dropped) == (5, 31)
    assert [problem.where for problem in made.dropped_rows[:2]] == ["line 6", "line 7, text"]
    assert len(made.dropped_rows) == 20


@pytest.mark.parametrize("content", ["{broken\n", '{"text": "", "label": "a"}\n'])
def test_only_bad_rows_is_an_error_either_way(tmp_path: Path, content: str) -> None:
    with pytest.raises(InvalidRequest, match="line 1"):
        make(tmp_path, content)
    with pytest.raises(InvalidRequest, match=r"no row of a.jsonl is left: 1 were bad: line 1") as caught:
        make(tmp_path, content, bad_rows="drop")
    assert str(caught.value.where).startswith("line 1")


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", "\n \n"), ("a.csv", "text,label\n"), ("a.csv", "\n")])
def test_no_rows_at_all(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(InvalidRequest, match=r"a.* has no rows"):
        make(tmp_path, content, file_name=name, bad_rows="drop")


def test_too_many_rows(tmp_path: Path) -> None:
    upload = tmp_path / "a.jsonl"
    upload.write_text(lines(ROWS))
    with pytest.raises(TooLarge, match=r"more than 3 rows"):
        make_version(upload, UploadOptions(file_name="a.jsonl"), tmp_path, Limits(rows=3))


@pytest.mark.parametrize("store_schema", [True, False])
def test_a_parquet_dictionary_bomb_is_stopped_while_it_unfolds(tmp_path: Path, store_schema: bool) -> None:
    path = tmp_path / "a.parquet"
    count = 200 if store_schema else 20_000  # the writer unfolds it too if the schema says dictionary
    index = pa.array([0] * count, pa.int32())
    table = pa.table({"text": pa.DictionaryArray.from_arrays(index, pa.array(["a" * 1_000_000]))})
    pq.write_table(table, path, store_schema=store_schema)
    assert path.stat().st_size < 2_000_000
    options = UploadOptions(file_name="a.parquet")
    with pytest.raises(TooLarge, match=r"bytes of rows by row 20|hold [0-9]+ bytes"):
        make_version(path, options, tmp_path, Limits(total_bytes=20_000_000))
    with pytest.raises(TooLarge, match=r"row 1 has 1000012 bytes; a row has at most 100000|hold [0-9]+ bytes"):
        make_version(path, options, tmp_path, Limits(line_bytes=100_000))
