"""From dataset rows to token ids with the supervised part marked.

Prompt and completion are tokenized apart, just as they are at inference, where the prompt ends before the first
generated token. The supervised part ends with the model's end-of-turn token, so that a tuned model stops.
"""

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from burnish.core.errors import BadData
from burnish.core.prompting import ChatMessage, default_instruction, to_example
from burnish.core.specs.data import DATA_FILE, DATASET_CARD_FILE, DatasetCard, DatasetFormat

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
)
"""For a tokenizer without a chat template: the messages' texts, one a line, the assistant's ended by EOS."""


TRAINING_DATE = date(2024, 7, 26)
"""The date that chat templates which write today's are told while they write training rows.

Any day's would do; a fixed one gives the same tokens whenever a training runs, goes on, or is run again.
"""


_FIXED_DATE = (
    "{% macro strftime_now(form) %}{% set text = namespace(value=form) %}{% for part in date_parts %}"
    "{% set text.value = text.value.replace(part, date_parts[part]) %}{% endfor %}{{ text.value }}{% endmacro %}\n"
)
"""Put before a template, hides the function that reads the clock. (Transformers passes templates no functions.)"""
_DATE_LETTERS = "aAbBdeHIjmMpSuUwWyYZ%"


@dataclass(frozen=True, slots=True)
class Example:
    """A row as the model sees it."""

    row: int
    """Its line in ``data.jsonl``, from 1."""
    ids: "array[int]"
    """Four bytes each: as many objects, the tokens of a large dataset would fill the memory."""
    start: int
    """Index of the first supervised token; all from here on are supervised. At least 1."""

    @property
    def supervised(self) -> int:
        """Number of tokens that the loss is taken over."""
        return len(self.ids) - self.start


@dataclass(frozen=True)
class EncodedData:
    """A dataset, tokenized."""

    examples: tuple[Example, ...]
    dropped: tuple[int, ...]
    """Rows left out because they were longer than the limit."""
    instruction: str | None

    @property
    def digest(self) -> str:
        """Hash of the kept rows' tokens and of where their supervised parts begin."""
        hashed = hashlib.sha256()
        for example in self.examples:
            hashed.update(f"{example.row},{example.start}:".encode() + example.ids.tobytes())
        return "sha256:" + hashed.hexdigest()


def read_dataset(folder: Path) -> tuple[DatasetCard, list[dict[str, Any]]]:
    """Return a dataset artifact's card and rows.

    Raises:
        BadData: files missing or unreadable; says the line.
    """
    try:
        card = DatasetCard.model_validate_json((folder / DATASET_CARD_FILE).read_text(encoding="utf-8"))
        lines = (folder / DATA_FILE).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise BadData(f"not a dataset artifact: {error}", where=str(folder)) from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BadData(f"line {number} is not JSON: {error}", where=f"{DATA_FILE}:{number}") from error
        if not isinstance(row, dict):
            raise BadData(f"line {number} is not an object", where=f"{DATA_FILE}:{number}")
        rows.append(row)
    return card, rows


def chat_template(tokenizer: Any) -> str:
    """Return the tokenizer's own chat template, or the plain one."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return str(template) if template is not None else PLAIN_TEMPLATE


def render(
    tokenizer: Any, messages: Sequence[ChatMessage], *, answer: bool, thinking: bool = False, today: date | None = None
) -> str:  # fmt: skip
    """Return the prompt text that a chat template makes of messages.

    Args:
        tokenizer: Has the template; without one, the plain template is used.
        messages: The conversation.
        answer: Make it ready for the assistant's turn.
        thinking: Let a model that can think begin with that; otherwise its prompt ends with an empty thinking part.
        today: What a template that asks for the date is told; by default it reads the clock.

    Raises:
        BadData: the template refuses these messages; the message carries its own words.
    """
    template, told = chat_template(tokenizer), {}
    if today is not None and "strftime_now" in template:
        template = _FIXED_DATE + template
        told = {"date_parts": {f"%{letter}": today.strftime(f"%{letter}") for letter in _DATE_LETTERS}}
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=answer, chat_template=template,
            enable_thinking=thinking, **told,
        )  # fmt: skip
    except Exception as error:
        raise BadData(
            f"the model's chat template refuses the messages: {error}",
            hint="some templates take no system message, or want user and assistant in turn",
        ) from error
    return str(text)


def encode(
    rows: Sequence[Mapping[str, Any]], card: DatasetCard, tokenizer: Any, *, max_length: int,
    instruction: str | None = None, fail_on_truncation: bool = False,
) -> EncodedData:  # fmt: skip
    """Tokenize a dataset's rows.

    Args:
        rows: Canonical rows of ``card.format``.
        card: The dataset's card; its labels make the default instruction.
        tokenizer: A Transformers tokenizer.
        max_length: Tokens an example may have. Longer ones are dropped and counted, never cut.
        instruction: Set before each classification text.
        fail_on_truncation: Make a longer example an error.

    Raises:
        BadData: no rows, a row without something to learn, a row too long (if asked), a template that fails.
    """
    if not rows:
        raise BadData("the dataset has no rows")
    if card.format == "classification" and instruction is None:
        labels = card.labels or {str(row.get("label")): 1 for row in rows}
        instruction = default_instruction(labels)
    encoder = _Encoder(tokenizer, card.format, instruction)
    examples: list[Example] = []
    dropped: list[int] = []
    for example in encoder.encode(rows):
        if len(example.ids) <= max_length:
            examples.append(example)
        elif fail_on_truncation:
            raise BadData(
                f"row {example.row} has {len(example.ids)} tokens, more than max_length {max_length}",
                where=f"{DATA_FILE}:{example.row}",
                hint="raise max_length, shorten the row, or set on_truncation to drop",
            )
        else:
            dropped.append(example.row)
    if not examples:
        raise BadData(
            f"all {len(dropped)} rows are longer than max_length {max_length}",
            hint="raise max_length: nothing is left to train on",
        )
    return EncodedData(tuple(examples), tuple(dropped), instruction)


class _Encoder:
    """Tokenizes rows of one format with one tokenizer."""

    _CHUNK = 256

    def __init__(self, tokenizer: Any, form: DatasetFormat, instruction: str | None) -> None:
        self._tokenizer = tokenizer
        self._form = form
        self._instruction = instruction
        self._ends = {tokenizer.eos_token_id, *tokenizer.all_special_ids}
        added = tokenizer("a")["input_ids"]
        has_bos = tokenizer.bos_token_id is not None and added and added[0] == tokenizer.bos_token_id
        # A chat template writes its own beginning-of-text token; plain text and the plain template need ours.
        self._bos = [tokenizer.bos_token_id] if has_bos and (form == "text" or tokenizer.chat_template is None) else []

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Example]:
        for first in range(0, len(rows), self._CHUNK):
            chunk = rows[first : first + self._CHUNK]
            pairs = [self._texts(row, first + offset + 1) for offset, row in enumerate(chunk)]
            prompts = self._tokens([prompt for prompt, _ in pairs])
            completions = self._tokens([completion for _, completion in pairs])
            for offset, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
                yield self._example(first + offset + 1, self._bos + prompt, completion)

    def _texts(self, row: Mapping[str, Any], number: int) -> tuple[str, str]:
        """Return prompt text and completion text; their sum is what the template makes of the whole conversation."""
        where = f"{DATA_FILE}:{number}"
        if self._form == "text":
            text = str(row.get("text", ""))
            if not text.strip():
                raise BadData(f"row {number} is empty", where=where)
            return "", text
        try:
            example = to_example(row, self._form, self._instruction, where)
            if not example["completion"].strip():
                raise BadData(f"row {number} has an empty completion: nothing to learn", where=where)
            prompt = render(self._tokenizer, example["prompt"], answer=True, today=TRAINING_DATE)
            answer: ChatMessage = {"role": "assistant", "content": example["completion"]}
            whole = render(self._tokenizer, [*example["prompt"], answer], answer=False, today=TRAINING_DATE)
        except KeyError as error:
            raise BadData(f"row {number} has no {error.args[0]}", where=where) from error
        except BadData as error:
            raise BadData(f"row {number}: {error.message}", where=where, hint=error.hint) from error
        return prompt, _continuation(prompt, whole, example["completion"].strip(), number)

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        encoded: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return encoded

    def _example(self, number: int, prompt: list[int], completion: list[int]) -> Example:
        # What follows the end-of-turn token (often a newline) is never generated: it is not taught either.
        last = next((i for i in range(len(completion) - 1, -1, -1) if completion[i] in self._ends), None)
        tail = completion[last + 1 :] if last is not None else completion
        if last is not None and not self._tokenizer.decode(tail).strip():
            completion = completion[: last + 1]
        else:
            completion = [*completion, self._tokenizer.eos_token_id]
        ids = prompt + completion
        # The first token of a text has nothing to be predicted from.
        start = max(1, len(prompt))
        if len(ids) <= start:
            raise BadData(f"row {number} leaves no token to learn", where=f"{DATA_FILE}:{number}")
        return Example(number, array("i", ids), start)


def _continuation(prompt: str, whole: str, answer: str, number: int) -> str:
    """Return what ``whole`` adds to ``prompt``: the answer and what ends it, with at most blank space before.

    Anything else before the answer (a thinking part, a channel) would be taught, while an evaluation asks for the
    answer where the prompt ends.
    """
    where = f"{DATA_FILE}:{number}"
    if not whole.startswith(prompt):
        raise BadData(
            f"row {number}: the chat template does not continue the prompt when the answer is added", where=where,
            hint="use a template whose prompt, with add_generation_prompt, begins the whole conversation, and answers "
            "without a thinking part of their own",
        )  # fmt: skip
    completion = whole[len(prompt) :]
    if answer not in completion:
        raise BadData(f"row {number}: the chat template leaves the answer out", where=where)
    if not completion.lstrip().startswith(answer):
        before = completion[: completion.index(answer)]
        raise BadData(
            f"row {number}: the chat template writes {before!r} between the prompt and the answer", where=where,
            hint="use a template whose prompt, with add_generation_prompt and enable_thinking=False, ends where the "
            "answer begins",
        )  # fmt: skip
    return completion
