"""The ``split`` kind: one dataset version becomes train, validation and test. Runs in a host process; torch-free.

Rows whose input is alike (the same words: see ``quality``) are never in two parts. Every row that is not test is compared with every
test row, before validation is taken from what is left: neither what is trained on nor what training is watched by may
stand in the test set. ``train + validation + test + dropped`` is the number of rows that came in.
"""

import hashlib
import json
import mmap
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from burnish.components.data_management.quality import NearIndex, PairSets, Part, alike_key, exact_key, row_text
from burnish.components.data_management.splits import cap, part_size, shuffled, take
from burnish.core.errors import BadData
from burnish.core.job import JobContext
from burnish.core.specs.base import ArtifactRef
from burnish.core.specs.data import (
    DATA_FILE,
    DATASET_CARD_FILE,
    DatasetCard,
    DatasetFormat,
    SplitResult,
    SplitSpec,
)

_STOP_EVERY = 2000  # rows


def split(spec: SplitSpec, context: JobContext) -> SplitResult:
    """Split a dataset. The same rows, spec and seed give the same parts, byte for byte.

    Raises:
        BadData: a part would be empty, the formats differ, or rows leak and ``on_leak`` is ``fail``.
    """
    rows = _load(spec, context)
    labels = rows.labels if spec.stratify and rows.form == "classification" else None
    order = shuffled(rows.keys, spec.seed)
    test, rest = _choose_test(spec, rows, order, labels)
    exact, near = _find_leaks(rows, rest, test, context)
    rest = _without_leaks(spec, rest, exact, near, context)
    wanted = part_size(len(rest), spec.validation)
    validation = take(rest, labels, wanted, rows.keys) if wanted else []
    chosen = set(validation)
    train = cap([position for position in rest if position not in chosen], labels, spec.max_train)
    validation = cap(validation, labels, _most_validation(spec, len(train)))
    _check_parts(spec, rows, train, validation, test, context)

    published = {
        name: _write(name, positions, rows, spec, context)
        for name, positions in (("train", train), ("validation", validation), ("test", test))
        if positions
    }
    kept = len(train) + len(validation) + len(test)
    return SplitResult(
        train=published["train"],
        validation=published.get("validation"),
        test=published["test"],
        train_rows=len(train),
        validation_rows=len(validation),
        test_rows=len(test),
        exact_leaks=len(exact),
        near_leaks=len(near),
        dropped=len(rows) - kept,
        format=rows.form,
        labels=_count_labels(rows, [*train, *validation, *test]),
    )


@dataclass
class _Rows:
    """All rows of the dataset, then those of the given test set: where they stand, and what they are known by."""

    form: DatasetFormat
    card: DatasetCard
    maps: list[mmap.mmap] = field(default_factory=list)
    first_of_test: int | None = None
    """Position of the given test set's first row."""
    file_of: "array[int]" = field(default_factory=lambda: array("B"))
    offsets: "array[int]" = field(default_factory=lambda: array("Q"))
    keys: list[bytes] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    part: Part = "input"

    def __len__(self) -> int:
        return len(self.offsets)


def _load(spec: SplitSpec, context: JobContext) -> _Rows:
    folder, card = _open(spec.dataset, context)
    rows = _Rows(card.format, card)
    total = card.rows
    sources = [folder]
    if spec.test_dataset is not None:
        test_folder, test_card = _open(spec.test_dataset, context)
        if test_card.format != card.format:
            raise BadData(
                f"the dataset is {card.format} and the test set {test_card.format}",
                where="test_dataset",
                hint="upload both in the same format",
            )
        rows.first_of_test = card.rows
        total += test_card.rows
        sources.append(test_folder)
    whole: list[bytes] = []
    for number, source in enumerate(sources):
        rows.maps.append(_map(source / DATA_FILE))
        for offset, row in _read(source / DATA_FILE):
            rows.file_of.append(number)
            rows.offsets.append(offset)
            rows.keys.append(alike_key(row_text(row, rows.form, "input")))
            whole.append(alike_key(row_text(row, rows.form, "all")))
            if rows.form == "classification":
                rows.labels.append(row["label"])
            _tick(len(rows), total, "reading", context)
    if len(set(rows.keys)) * 2 < len(set(whole)):
        # Many rows share one prompt ("Write a joke."): it does not tell rows apart, the answer does.
        context.log("most rows share their prompt with another; rows are compared with their completions")
        rows.keys, rows.part = whole, "all"
    return rows


def _open(artifact: ArtifactRef, context: JobContext) -> tuple[Path, DatasetCard]:
    folder = context.open(artifact)
    card = folder / DATASET_CARD_FILE
    if not card.is_file() or not (folder / DATA_FILE).is_file():
        raise BadData(
            f"{artifact.digest} is no dataset: {DATA_FILE} or {DATASET_CARD_FILE} is missing",
            hint="give a dataset version",
        )
    return folder, DatasetCard.model_validate_json(card.read_bytes())


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    offset = 0
    with path.open("rb") as file:
        for line in file:
            yield offset, json.loads(line)
            offset += len(line)


def _choose_test(
    spec: SplitSpec, rows: _Rows, order: Sequence[int], labels: list[str] | None
) -> tuple[list[int], list[int]]:
    """Return (test, what validation and train are taken from), both in order."""
    if (first := rows.first_of_test) is not None:
        given = [position for position in order if position >= first]
        return cap(given, labels, spec.max_test), [position for position in order if position < first]
    if spec.test <= 0:
        raise BadData("the test share is 0 and no test set is given", where="test", hint="set test, or test_dataset")
    share = take(order, labels, part_size(len(rows), spec.test), rows.keys)
    # What max_test cuts off stays unused: a larger max_test then leaves training as it was.
    in_share = set(share)
    return cap(share, labels, spec.max_test), [position for position in order if position not in in_share]


def _most_validation(spec: SplitSpec, train: int) -> int | None:
    """Return how many rows validation keeps when ``max_train`` cut training: the share of what was kept."""
    return None if spec.max_train is None else max(1, round(train * spec.validation / (1 - spec.validation)))


def _find_leaks(
    rows: _Rows, rest: Sequence[int], test: Sequence[int], context: JobContext
) -> tuple[list[int], list[int]]:
    """Return the positions of ``rest`` that are (equal, nearly equal) to a test row. Alike is nearly equal."""
    test_keys = {rows.keys[position] for position in test}
    alike = [position for position in rest if rows.keys[position] in test_keys]
    equal_keys = {_exact_key(rows, position) for position in test} if alike else set()
    exact = [position for position in alike if _exact_key(rows, position) in equal_keys]
    found, equal = set(alike), set(exact)
    near = [position for position in alike if position not in equal]
    sets, index_of = PairSets(), {}
    in_question = [*test, *(position for position in rest if position not in found)]
    for done, position in enumerate(in_question):
        sets.add(row_text(_row_at(rows, position), rows.form, rows.part))
        index_of[position] = done
        _tick(done, len(in_question), "looking for leaks", context)
    if sets.unchecked:
        context.log(
            f"{sets.unchecked} rows were not looked at for near leaks: the texts are too long together", "warning"
        )
    index = NearIndex(sets)
    for position in test:
        index.add(index_of[position])
    for done, position in enumerate(in_question[len(test) :]):
        if index.find(index_of[position]) is not None:
            near.append(position)
        _tick(done, len(rest), "comparing with the test set", context)
    return exact, near


def _without_leaks(
    spec: SplitSpec, rest: list[int], exact: Sequence[int], near: Sequence[int], context: JobContext
) -> list[int]:
    leaks = {*exact, *near}
    if not leaks or spec.on_leak == "report":
        return rest
    message = f"{len(exact)} rows equal a test row and {len(near)} nearly do"
    if spec.on_leak == "fail":
        raise BadData(
            message, where="on_leak", hint="mend the data, or use on_leak=drop_from_train to leave those rows out"
        )
    context.log(f"{message}: left out of training")
    return [position for position in rest if position not in leaks]


def _check_parts(
    spec: SplitSpec,
    rows: _Rows,
    train: Sequence[int],
    validation: Sequence[int],
    test: Sequence[int],
    context: JobContext,
) -> None:
    for name, positions in (("train", train), ("test", test)):
        if not positions:
            raise BadData(
                f"no row is left for {name}: {len(rows)} rows came in",
                where=name,
                hint="add rows, or ask for smaller shares",
            )
    if spec.validation > 0 and not validation:
        raise BadData("no row is left for validation", where="validation", hint="add rows, or set validation=0")
    if rows.form == "classification":
        learnt = {rows.labels[position] for position in train}
        unseen = sorted({rows.labels[position] for position in test} - learnt)
        if unseen:
            context.log(f"the test set has labels that training has not: {', '.join(unseen[:20])}", "warning")


def _write(name: str, positions: Sequence[int], rows: _Rows, spec: SplitSpec, context: JobContext) -> ArtifactRef:
    """Publish the rows at ``positions``, in that order (which is a shuffle: the first n are a fair sample)."""
    staged = context.stage(name)
    hashed = hashlib.sha256()
    seen: set[bytes] = set()
    with (staged / DATA_FILE).open("wb") as out:
        for done, position in enumerate(positions):
            line = _line_at(rows, position)
            hashed.update(line)
            out.write(line)
            seen.add(exact_key(json.loads(line), rows.form, "all"))
            _tick(done, len(positions), f"writing {name}", context)
    card = DatasetCard(
        format=rows.form,
        rows=len(positions),
        rows_hash="sha256:" + hashed.hexdigest(),
        labels=_count_labels(rows, positions),
        columns=rows.card.columns,
        exact_duplicates=len(positions) - len(seen),
        source=f"{name} of {rows.card.source}",
        licence=rows.card.licence,
    )
    (staged / DATASET_CARD_FILE).write_text(card.model_dump_json(indent=2) + "\n")
    metadata = {"rows": card.rows, "part": name, "rows_hash": card.rows_hash, "seed": spec.seed}
    return context.publish(staged, "dataset", metadata)


def _row_at(rows: _Rows, position: int) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(_line_at(rows, position))
    return row


def _exact_key(rows: _Rows, position: int) -> bytes:
    return exact_key(_row_at(rows, position), rows.form, rows.part)


def _line_at(rows: _Rows, position: int) -> bytes:
    mapped = rows.maps[rows.file_of[position]]
    start = rows.offsets[position]
    end = mapped.find(b"\n", start)
    return bytes(mapped[start : end + 1])


def _count_labels(rows: _Rows, positions: Sequence[int]) -> dict[str, int]:
    """Return the count of every label that came in, zero where these rows have none of it.

    The default instruction of a prompt lists a card's labels: training and test must be asked the same question.
    """
    if not rows.labels:
        return {}
    counts = Counter(rows.labels[position] for position in positions)
    return {label: counts[label] for label in sorted(set(rows.labels))}


def _tick(done: int, total: int, phase: str, context: JobContext) -> None:
    if done % _STOP_EVERY == 0:
        context.check_stop()
        context.progress(done, total, phase=phase, unit="rows")
