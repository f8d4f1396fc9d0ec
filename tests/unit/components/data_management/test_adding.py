"""What the texts of a query or form mean."""

import pytest

from burnish.components.data_management.adding import name_from, parse_columns, parse_fields
from burnish.core.errors import InvalidRequest


def test_fields_become_a_name_and_options() -> None:
    name, options = parse_fields(
        {"filename": "d/My Reviews.v2.csv.gz", "columns": "text=review", "licence": "", "bad_rows": "drop"}
    )
    assert name == "My-Reviews"
    assert (options.file_name, options.columns, options.licence, options.bad_rows) == (
        "My Reviews.v2.csv.gz", {"text": "review"}, None, "drop",
    )  # fmt: skip


def test_every_wrong_field_is_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_fields({"filename": "a.csv", "name": "-", "format": "poem", "bad_rows": "?", "odd": "1"})
    assert [problem.where for problem in caught.value.problems] == ["odd", "name", "format", "bad_rows"]


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"licence": "MIT\0"}, "licence"),
        ({"licence": "x" * 1001}, "licence"),
        ({"columns": '{"text": "\\ud800"}'}, "columns.text"),
        ({"columns": '{"\\ud800": "text"}'}, "columns"),
        ({"columns": "text=a\0"}, "columns.text"),
    ],
)
def test_what_no_database_keeps_is_refused(fields: dict[str, str], where: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_fields({"filename": "a.csv", **fields})
    assert caught.value.where == where
    caught.value.body().model_dump_json()


@pytest.mark.parametrize(
    ("file_name", "name"),
    [
        ("reviews.jsonl", "reviews"),
        ("a b/c!.csv", "a-b-c"),
        (".hidden", ""),
        ("x" * 99, "x" * 63),
        ("\u00d6l.csv", "l"),
    ],
)
def test_names_from_file_names(file_name: str, name: str) -> None:
    assert name_from(file_name) == name


@pytest.mark.parametrize("text", ['{"text": "a b", "label": "c"}', "text=a b,label=c", " text = a b , label = c "])
def test_columns(text: str) -> None:
    assert parse_columns(text) == {"text": "a b", "label": "c"}


@pytest.mark.parametrize("text", ["{", '{"a": 1}', "a", "a=", "=b", "a=b,,", "{" * 5000])
def test_wrong_columns(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_columns(text)
    assert caught.value.where == "columns"
