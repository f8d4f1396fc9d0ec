"""The split kind, run as a host runs it but on a plain folder."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from burnish.components.data_management.make_version import UploadOptions, make_version
from burnish.components.data_management.split_job import split
from burnish.core.errors import BadData
from burnish.core.job import Stopped
from burnish.core.specs.base import ArtifactRef
from burnish.core.specs.data import DATA_FILE, DATASET_CARD_FILE, DatasetCard, SplitSpec
from burnish.testing import LocalJobContext

ADJECTIVES = [
    "grand",
    "dull",
    "warm",
    "cold",
    "sharp",
    "slow",
    "witty",
    "bleak",
    "tender",
    "loud",
    "quiet",
    "odd",
    "plain",
    "rich",
    "thin",
    "bold",
    "shy",
]
NOUNS = [
    "story",
    "plot",
    "scene",
    "actor",
    "score",
    "camera",
    "ending",
    "script",
    "cast",
    "tone",
    "joke",
    "trip",
    "song",
    "frame",
    "role",
    "pace",
    "voice",
]


def sentence(number: int) -> str:
    """A sentence that is near no other: its word pairs differ."""
    first, second = ADJECTIVES[number % 17], NOUNS[number // 17 % 17]
    return f"w{number} {first} x{number} {second} y{number} with z{number} and q{number}"


def classification(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"text": sentence(n), "label": "good" if n % 4 else "bad", "n": n} for n in range(start, start + count)]


def add(context: LocalJobContext, rows: list[dict[str, Any]], name: str = "rows") -> ArtifactRef:
    upload = context.root / f"{name}.jsonl"
    upload.write_text("".join(json.dumps(row) + "\n" for row in rows))
    staged = context.stage(name)
    make_version(upload, UploadOptions(file_name=upload.name), staged)
    return context.publish(staged, "dataset")


def card_of(context: LocalJobContext, artifact: ArtifactRef | None) -> DatasetCard:
    assert artifact is not None
    return DatasetCard.model_validate_json((context.open(artifact) / DATASET_CARD_FILE).read_bytes())


def read(context: LocalJobContext, artifact: ArtifactRef | None) -> list[dict[str, Any]]:
    assert artifact is not None
    return [json.loads(line) for line in (context.open(artifact) / DATA_FILE).read_text().splitlines()]


@pytest.fixture
def context(tmp_path: Path) -> LocalJobContext:
    return LocalJobContext(tmp_path)


def texts(rows: list[dict[str, Any]]) -> list[str]:
    return [row["text"] for row in rows]


def test_parts_are_disjoint_complete_sized_and_keep_label_shares(context: LocalJobContext) -> None:
    rows = classification(400)
    result = split(SplitSpec(dataset=add(context, rows), validation=0.1, test=0.25), context)

    train, validation, test = (read(context, part) for part in (result.train, result.validation, result.test))
    assert (len(train), len(validation), len(test)) == (270, 30, 100)
    assert (result.train_rows, result.validation_rows, result.test_rows, result.dropped) == (270, 30, 100, 0)
    assert sorted(texts(train + validation + test)) == sorted(texts(rows))
    assert sum(row["label"] == "bad" for row in test) == 25
    assert result.labels == {"bad": 100, "good": 300}
    assert train[0]["extra"].keys() == {"n"}


def test_same_spec_gives_the_same_artifacts_and_another_seed_others(tmp_path: Path) -> None:
    one, two = LocalJobContext(tmp_path / "1"), LocalJobContext(tmp_path / "2", job_id="job_other")
    for root in (one, two):
        root.root.mkdir()
    spec = SplitSpec(dataset=add(one, classification(100)))
    assert add(two, classification(100)) == spec.dataset
    first = split(spec, one)
    assert split(spec, two) == first
    assert split(spec.model_copy(update={"seed": 1}), one).test != first.test


def test_cards_of_the_parts_are_right(context: LocalJobContext) -> None:
    result = split(SplitSpec(dataset=add(context, classification(100))), context)
    card = card_of(context, result.test)
    assert (card.rows, card.labels, card.format) == (20, {"bad": 5, "good": 15}, "classification")
    assert card.source == "test of rows.jsonl"


def test_adding_rows_moves_few(context: LocalJobContext) -> None:
    before = split(SplitSpec(dataset=add(context, classification(400))), context)
    after = split(SplitSpec(dataset=add(context, classification(420))), context)
    old, new = set(texts(read(context, before.test))), set(texts(read(context, after.test)))
    assert len(old) == 80
    assert len(old & new) >= 72


def test_a_row_of_the_same_words_is_a_near_leak_not_an_exact_one(context: LocalJobContext) -> None:
    rows = [{"text": text} for text in ("5 - 3", "so?!", "?", *(sentence(n) for n in range(20)))]
    tests = [{"text": text} for text in ("5 + 3", "SO", "!")]
    spec = SplitSpec(dataset=add(context, rows), test_dataset=add(context, tests, "test"), validation=0)
    result = split(spec.model_copy(update={"on_leak": "report"}), context)
    assert (result.exact_leaks, result.near_leaks, result.train_rows) == (0, 2, 23)


def test_a_parts_card_counts_rows_that_are_equal(context: LocalJobContext) -> None:
    rows = [{"text": text} for n in range(10) for text in (sentence(n), sentence(n).upper(), sentence(n))]
    result = split(SplitSpec(dataset=add(context, rows), validation=0, test=0.4), context)
    assert card_of(context, result.test).exact_duplicates == result.test_rows // 3 == 4


def test_equal_rows_are_never_in_two_parts(context: LocalJobContext) -> None:
    rows = classification(60) + [{**row, "text": row["text"].upper() + "!"} for row in classification(60)]
    result = split(SplitSpec(dataset=add(context, rows), validation=0.2, test=0.3), context)
    parts = [
        {text.rstrip("!").lower() for text in texts(read(context, part))}
        for part in (result.train, result.validation, result.test)
    ]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert result.exact_leaks == 0
    assert result.test_rows == 34  # 9 and 27 were wanted, and pairs of equal rows stay whole


def test_caps_cut_prefixes_and_leave_the_other_parts_as_they_were(context: LocalJobContext) -> None:
    dataset = add(context, classification(400))
    whole = split(SplitSpec(dataset=dataset, validation=0), context)
    cut = split(SplitSpec(dataset=dataset, validation=0, max_test=20), context)
    assert cut.test_rows == 20
    assert cut.train == whole.train
    assert set(texts(read(context, cut.test))) < set(texts(read(context, whole.test)))
    assert cut.dropped == 60
    small = split(SplitSpec(dataset=dataset, max_train=95), context)
    assert (small.train_rows, small.validation_rows) == (95, 5)
    assert sum(row["label"] == "bad" for row in read(context, small.train)) == pytest.approx(24, abs=1)
    assert small.train_rows + small.validation_rows + small.test_rows + small.dropped == 400


def test_leaks_into_a_given_test_set_are_found_and_dropped(context: LocalJobContext) -> None:
    rows = classification(50)
    tests = [
        {"text": rows[3]["text"] + " ", "label": "good"},
        {"text": rows[5]["text"].upper() + " !!", "label": "good"},
        {"text": rows[7]["text"] + " indeed", "label": "good"},
        *classification(10, start=1000),
    ]
    spec = SplitSpec(dataset=add(context, rows), test_dataset=add(context, tests, "test"), validation=0)
    result = split(spec, context)
    assert (result.exact_leaks, result.near_leaks) == (1, 2)
    assert (result.train_rows, result.test_rows, result.dropped) == (47, 13, 3)
    assert not {rows[3]["text"], rows[5]["text"], rows[7]["text"]} & set(texts(read(context, result.train)))

    reported = split(spec.model_copy(update={"on_leak": "report"}), context)
    assert (reported.exact_leaks, reported.near_leaks, reported.train_rows) == (1, 2, 50)

    with pytest.raises(BadData, match="1 rows equal a test row and 2 nearly do"):
        split(spec.model_copy(update={"on_leak": "fail"}), context)


def test_near_rows_of_the_own_split_do_not_leak_into_validation_either(context: LocalJobContext) -> None:
    rows = classification(100)
    near = [{**row, "text": row["text"] + " really"} for row in rows]
    result = split(SplitSpec(dataset=add(context, rows + near), validation=0.2), context)
    test = {text.removesuffix(" really") for text in texts(read(context, result.test))}
    others = texts(read(context, result.train)) + texts(read(context, result.validation))
    assert not test & {text.removesuffix(" really") for text in others}
    assert result.near_leaks == result.dropped > 20


def test_a_shared_instruction_does_not_make_all_rows_leaks(context: LocalJobContext) -> None:
    instruction = " ".join(f"step{n}" for n in range(60))
    rows = [{"prompt": f"{instruction} {sentence(n)}", "completion": "yes"} for n in range(100)]
    result = split(SplitSpec(dataset=add(context, rows), validation=0), context)
    assert (result.exact_leaks, result.near_leaks, result.train_rows) == (0, 0, 80)


def test_one_prompt_for_all_rows_is_told_apart_by_completions(context: LocalJobContext) -> None:
    rows = [{"prompt": "Write a joke.", "completion": sentence(n)} for n in range(50)]
    result = split(SplitSpec(dataset=add(context, rows), validation=0), context)
    assert (result.train_rows, result.test_rows) == (40, 10)


def test_chat_and_text_split_too(context: LocalJobContext) -> None:
    chats = [
        {"messages": [{"role": "user", "content": sentence(n)}, {"role": "assistant", "content": "ok"}]}
        for n in range(20)
    ]
    assert split(SplitSpec(dataset=add(context, chats)), context).test_rows == 4
    plain = [{"text": sentence(n)} for n in range(20)]
    assert split(SplitSpec(dataset=add(context, plain)), context).labels == {}


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (1, {}, "no row is left for test"),
        (10, {"test": 0.0}, "no test set is given"),
        (2, {"validation": 0.5}, "no row is left for validation"),
    ],
)
def test_parts_that_would_be_empty_are_errors(
    context: LocalJobContext, rows: int, changes: dict[str, float], message: str
) -> None:
    dataset = add(context, classification(rows))
    with pytest.raises(BadData, match=message):
        split(SplitSpec(dataset=dataset).model_copy(update=changes), context)


def test_formats_must_agree_and_other_artifacts_are_refused(context: LocalJobContext) -> None:
    labelled, plain = add(context, classification(10)), add(context, [{"text": sentence(1)}], "plain")
    with pytest.raises(BadData, match="classification and the test set text"):
        split(SplitSpec(dataset=labelled, test_dataset=plain), context)
    staged = context.stage("model")
    (staged / "config.json").write_text("{}")
    with pytest.raises(BadData, match="is no dataset"):
        split(SplitSpec(dataset=context.publish(staged, "model")), context)


def test_labels_that_training_has_not_are_said(context: LocalJobContext) -> None:
    tests = add(context, [{"text": "an unseen thing", "label": "new"}], "test")
    split(SplitSpec(dataset=add(context, classification(20)), test_dataset=tests), context)
    assert ("warning", "the test set has labels that training has not: new") in context.logs


def test_every_part_names_all_labels_so_that_all_are_asked_the_same_question(context: LocalJobContext) -> None:
    rows = [*classification(40), {"text": "a lonely mixed thing", "label": "mixed"}]
    tests = add(context, [{"text": "an unseen thing", "label": "new"}], "test")
    for spec in (
        SplitSpec(dataset=add(context, rows), validation=0.1),
        SplitSpec(dataset=add(context, rows), validation=0.1, test_dataset=tests),
    ):
        result = split(spec, context)
        parts = (result.train, result.validation, result.test)
        cards = [card_of(context, part) for part in parts]
        counted = [Counter(row["label"] for row in read(context, part)) for part in parts]
        expected = {"bad", "good", "mixed"} | ({"new"} if spec.test_dataset else set())
        assert [set(card.labels) for card in cards] == [expected] * 3
        assert any(0 in card.labels.values() for card in cards)
        assert [+Counter(card.labels) for card in cards] == counted
        assert set(result.labels) == expected


def test_it_stops_when_asked(context: LocalJobContext) -> None:
    dataset = add(context, classification(10))
    context.request_stop("cancel")
    with pytest.raises(Stopped):
        split(SplitSpec(dataset=dataset), context)
    assert len(context.published) == 1
