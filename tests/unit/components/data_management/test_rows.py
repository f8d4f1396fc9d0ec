"""Recognising formats, canonical rows, and what an error says about wrong columns and values."""

import time
from typing import Any

import pytest

from burnish.components.data_management.formats import Problems, Record
from burnish.components.data_management.rows import Row, canonical_rows, choose_schema, dump_row, recognise
from burnish.core.errors import InvalidRequest
from burnish.core.specs.data import DatasetFormat


def rows(*values: dict[str, Any], form: DatasetFormat | None = None, **columns: str) -> list[Row]:
    problems = Problems("a.jsonl")
    records = [Record(number, value) for number, value in enumerate(values, 1)]
    schema, again = recognise(records, form, columns, "a.jsonl")
    found = [row for _, row in canonical_rows(again, schema, problems)]
    problems.raise_if_any()
    return found


@pytest.mark.parametrize(
    ("found", "form"),
    [
        (("text", "label"), "classification"),
        (("prompt", "completion"), "prompt_completion"),
        (("messages", "text", "label"), "chat"),
        (("text",), "text"),
        (("text", "source", "id"), "text"),
    ],
)
def test_the_format_is_recognised_by_columns(found: tuple[str, ...], form: str) -> None:
    assert choose_schema(found, None, {}, "x").format == form


def test_columns_can_be_named() -> None:
    assert rows({"review": "fine", "stars": 5, "id": 7}, text="review", label="stars") == [
        {"text": "fine", "label": "5", "extra": {"id": 7}}
    ]


@pytest.mark.parametrize(("value", "label"), [(1, "1"), (True, "true"), (2.0, "2"), (" good ", "good")])
def test_labels_become_text(value: object, label: str) -> None:
    assert rows({"text": "a", "label": value})[0]["label"] == label


def test_other_columns_are_kept_sorted_and_survive_a_second_upload() -> None:
    once = rows({"z": 1, "text": "a", "b": None, "label": "x"})
    assert dump_row(once[0]) == '{"text":"a","label":"x","extra":{"b":null,"z":1}}'
    assert rows(*once) == once


@pytest.mark.parametrize(
    ("found", "wanted", "message", "hint"),
    [
        (("sentence", "sentiment"), None, "columns 'sentence', 'sentiment'", "text=sentence, label=sentiment"),
        (("texts", "lable"), "classification", "classification needs text and label", "text=texts, label=lable"),
        (("instruction", "output"), None, "expected one of: chat (messages)", "prompt=instruction, completion=output"),
        (("conversations",), "chat", "chat needs messages", "messages=conversations"),
        (("foo", "bar"), None, "columns 'foo', 'bar'", "say which is which"),
    ],
)
def test_wrong_columns_say_what_is_there_what_is_expected_and_what_is_near(
    found: tuple[str, ...], wanted: DatasetFormat | None, message: str, hint: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        choose_schema(found, wanted, {}, "a.jsonl")
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


def test_text_beside_something_like_a_label_is_not_guessed() -> None:
    with pytest.raises(InvalidRequest, match="plain text, or classification by 'Sentiment'") as caught:
        choose_schema(("text", "Sentiment"), None, {}, "a.jsonl")
    assert caught.value.hint == "say format=text, or columns label=Sentiment"
    assert choose_schema(("text", "Sentiment"), "text", {}, "a.jsonl").format == "text"


@pytest.mark.parametrize(
    ("mapping", "message", "hint"),
    [
        ({"text": "revew"}, "no column 'revew'; it has 'review', 'label'", "did you mean 'review'?"),
        ({"txt": "review"}, "'txt' is no column of any format", "did you mean 'text'?"),
    ],
)
def test_a_wrong_mapping_points_at_its_entry(mapping: dict[str, str], message: str, hint: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        choose_schema(("review", "label"), None, mapping, "a.jsonl")
    assert message in caught.value.message
    assert caught.value.hint == hint
    assert str(caught.value.where).startswith("columns.")


USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}


@pytest.mark.parametrize(
    ("row", "where", "message"),
    [
        ({"text": "", "label": "x"}, "line 2, text", "empty"),
        ({"text": " \n", "label": "x"}, "line 2, text", "empty"),
        ({"text": None, "label": "x"}, "line 2, text", "missing (null)"),
        ({"txt": "a", "label": "x"}, "line 2, text", "missing"),
        ({"text": 3, "label": "x"}, "line 2, text", "a number where text is expected: 3"),
        ({"text": ["a"], "label": "x"}, "line 2, text", "a list where text is expected"),
        ({"text": "a\0b", "label": "x"}, "line 2, text", "NUL"),
        ({"text": "a", "label": "x", "n": "\0"}, "line 2, n", "NUL"),
        ({"text": "a", "label": None}, "line 2, label", "missing (null)"),
        ({"text": "a", "label": 0.5}, "line 2, label", "a number where text is expected: 0.5"),
        ({"text": "a", "label": "y" * 201}, "line 2, label", "201 characters"),
        ({"text": "a", "label": 10**300}, "line 2, label", "301 characters"),
        ({"text": "a", "label": "x", "n" * 201: 1}, "line 2, " + "n" * 200, "name has 201 characters"),
    ],
)
def test_bad_values_are_named_by_line_and_column(row: dict[str, Any], where: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        rows({"text": "a", "label": "x"}, row)
    assert caught.value.problems[0].where == where
    assert message in caught.value.problems[0].message


@pytest.mark.parametrize(
    ("messages", "where", "message"),
    [
        (None, "messages", "missing"),
        ([], "messages", "a list where a list of messages is expected"),
        ("not json", "messages", "text that is not a JSON list"),
        ('[{"role": "user", "content": "\\ud800"}]', "messages", "a lone surrogate"),
        ("[" * 100_000, "messages", "nested too deeply"),
        ("[" * 200 + "]" * 200, "messages", "nested too deeply"),
        ("[1e999]", "messages", "too large to be held"),
        ("[NaN]", "messages", "NaN is not JSON"),
        ([USER], "messages", "the last message is the user's"),
        ([ANSWER], "messages", "the assistant answers nobody"),
        ([USER, {"role": "system", "content": "x"}, ANSWER], "messages.1", "a system message that is not the first"),
        ([USER, {"role": "tool", "content": "x"}, ANSWER], "messages.1.role", "'tool' is not one of"),
        ([{"from": "human", "value": "x"}], "messages.0", "'from' is not supported"),
        ([USER, {**ANSWER, "tool_calls": [1]}], "messages.1", "'tool_calls' is not supported"),
        ([USER, {"role": "assistant", "content": ""}], "content", "empty"),
        ([USER, "yes"], "messages.1", "text where a message is expected"),
    ],
)
def test_bad_conversations(messages: object, where: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        rows({"messages": messages}, form="chat")
    assert caught.value.problems[0].where == f"line 1, {where}"
    assert message in caught.value.problems[0].message


def test_conversations_come_as_lists_json_text_or_parts() -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}
    text = '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes", "name": null}]'
    expected = {"messages": [USER, ANSWER]}
    assert rows({"messages": [parts, ANSWER]}, {"messages": text}) == [expected, expected]


def test_messages_as_prompt_point_to_chat() -> None:
    with pytest.raises(InvalidRequest, match="a list of messages where text is expected") as caught:
        rows({"prompt": [USER], "completion": [ANSWER]})
    assert "chat" in str(caught.value.hint)


def test_a_column_of_free_text_is_not_taken_for_a_label() -> None:
    with pytest.raises(InvalidRequest, match="more than 1000 different labels by line 1001"):
        rows(*({"text": "a", "label": f"l{n}"} for n in range(1200)))


def test_names_that_are_values_are_not_taken_for_columns() -> None:
    with pytest.raises(InvalidRequest, match="more than 2000 different columns by line 2001"):
        rows(*({"text": "a", f"user {n}": n} for n in range(2100)), form="text")


def test_a_near_name_is_looked_for_among_few_and_short_ones() -> None:
    row = {**{f"texts {n}" + "s" * 5000: 1 for n in range(300)}, **{f"texts {n}": 1 for n in range(1500)}}
    start = time.process_time()
    with pytest.raises(InvalidRequest, match="missing"):
        rows({"text": "a"}, *[row] * 20, form="text")
    assert time.process_time() - start < 10


def test_no_rows() -> None:
    with pytest.raises(InvalidRequest, match="has no rows"):
        rows()
