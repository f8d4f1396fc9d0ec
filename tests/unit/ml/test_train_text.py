"""Rows become tokens: the answer and its end are supervised, the prompt never is."""

import sys
from datetime import date
from typing import Any

import pytest

from burnish.core.errors import BadData
from burnish.core.specs import DatasetCard, DatasetFormat
from burnish.ml import tiny
from burnish.ml.text import Example, encode, render
from tests.support.engines import QWEN3_TEMPLATE


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.build_tokenizer()


def _card(form: DatasetFormat, rows: list[dict[str, Any]]) -> DatasetCard:
    labels = {row["label"]: 1 for row in rows if "label" in row}
    return DatasetCard(format=form, rows=len(rows), rows_hash="sha256:0", labels=labels)


def _encode(tokenizer: Any, form: DatasetFormat, *rows: dict[str, Any], **options: Any) -> tuple[Example, ...]:
    return encode(list(rows), _card(form, list(rows)), tokenizer, max_length=256, **options).examples


def _parts(tokenizer: Any, example: Example) -> tuple[str, str]:
    return tokenizer.decode(example.ids[: example.start]), tokenizer.decode(example.ids[example.start :])


def test_classification_asks_with_the_labels(tokenizer: Any) -> None:
    rows = [{"text": "Fine.", "label": "positive"}, {"text": "Bad.", "label": "negative"}]
    first, second = _encode(tokenizer, "classification", *rows)
    instruction = "Classify the text. Answer with one of: negative, positive."
    assert _parts(tokenizer, first) == (
        f"<|im_start|>user\n{instruction}\n\nFine.<|im_end|>\n<|im_start|>assistant\n", "positive<|im_end|>",
    )  # fmt: skip
    assert second.row == 2
    (own, _) = _encode(tokenizer, "classification", *rows, instruction="Good or bad?")
    assert _parts(tokenizer, own)[0].startswith("<|im_start|>user\nGood or bad?\n\nFine.")


def test_prompt_completion(tokenizer: Any) -> None:
    (example,) = _encode(tokenizer, "prompt_completion", {"prompt": "Hi", "completion": " there "})
    assert _parts(tokenizer, example) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", " there <|im_end|>",
    )  # fmt: skip


def test_chat_supervises_the_last_answer_alone(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "S"}, {"role": "user", "content": "A"}, {"role": "assistant", "content": "B"},
        {"role": "user", "content": "C"}, {"role": "assistant", "content": "D"},
    ]  # fmt: skip
    (example,) = _encode(tokenizer, "chat", {"messages": messages})
    prompt, completion = _parts(tokenizer, example)
    assert prompt.endswith("B<|im_end|>\n<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n")
    assert completion == "D<|im_end|>"


def test_text_supervises_all_but_the_first_token(tokenizer: Any) -> None:
    (example,) = _encode(tokenizer, "text", {"text": "A film."})
    assert tokenizer.decode(example.ids) == "A film.<|im_end|>"
    assert example.start == 1
    assert example.supervised == len(example.ids) - 1


def test_without_a_template_messages_follow_one_another() -> None:
    tokenizer = tiny.build_tokenizer()
    tokenizer.chat_template = None
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"},
    ]
    (example,) = _encode(tokenizer, "chat", {"messages": messages})
    assert _parts(tokenizer, example) == ("S\nA\n", "B<|im_end|>")


def test_a_template_without_an_end_gets_one(tokenizer: Any) -> None:
    bare = tiny.build_tokenizer()
    bare.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (example,) = _encode(bare, "prompt_completion", {"prompt": "Hi", "completion": "there"})
    assert _parts(bare, example) == ("Hi", "there<|im_end|>")


def test_words_after_the_end_of_turn_stay_supervised(tokenizer: Any) -> None:
    odd = tiny.build_tokenizer()
    odd.chat_template = tokenizer.chat_template.replace("+ '\n' }}{% endfor", "+ '\nmore' }}{% endfor")
    (example,) = _encode(odd, "prompt_completion", {"prompt": "Hi", "completion": "there"})
    assert _parts(odd, example)[1] == "there<|im_end|>\nmore<|im_end|>"


def test_exactly_at_the_limit_is_kept(tokenizer: Any) -> None:
    row = {"text": "A film."}
    length = len(_encode(tokenizer, "text", row)[0].ids)
    data = encode([row, row], _card("text", [row, row]), tokenizer, max_length=length)
    assert (len(data.examples), data.dropped) == (2, ())
    longer = {"text": "A film.."}
    data = encode([row, longer], _card("text", [row, longer]), tokenizer, max_length=length)
    assert (len(data.examples), data.dropped) == (1, (2,))
    with pytest.raises(BadData, match="row 2"):
        encode([row, longer], _card("text", [row]), tokenizer, max_length=length, fail_on_truncation=True)


def test_a_template_that_thinks_is_told_not_to() -> None:
    thinking = tiny.build_tokenizer()
    thinking.chat_template = QWEN3_TEMPLATE
    (example,) = _encode(thinking, "prompt_completion", {"prompt": "Good?", "completion": "no"})
    assert _parts(thinking, example) == (
        "<|im_start|>user\nGood?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", "no<|im_end|>",
    )  # fmt: skip
    with pytest.raises(BadData, match="row 1: the chat template does not continue") as caught:
        _encode(thinking, "prompt_completion", {"prompt": "Good?", "completion": "<think>\nWell.\n</think>\n\nno"})
    assert "thinking part" in (caught.value.hint or "")


def test_words_that_the_template_puts_before_the_answer_are_refused(tokenizer: Any) -> None:
    odd = tiny.build_tokenizer()
    odd.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}<|im_start|><final>{% endif %}{{ m['content'] }}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    with pytest.raises(BadData, match="row 1: the chat template writes '<final>' between the prompt and the answer"):
        _encode(odd, "prompt_completion", {"prompt": "Hi", "completion": "there"})
    odd.chat_template = odd.chat_template.replace("<final>", " ")
    (example,) = _encode(odd, "prompt_completion", {"prompt": "Hi", "completion": "there"})
    assert _parts(odd, example)[1] == " there<|im_end|>"


def test_a_template_that_asks_for_the_date_is_told_a_fixed_one() -> None:
    dated = tiny.build_tokenizer()
    dated.chat_template = (
        "{%- macro head() -%}{{ strftime_now('%A %d %b %Y, 100%%') if strftime_now is defined else '-' }};{%- endmacro -%}"
        "  {{ head() }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    message: list[Any] = [{"role": "user", "content": "Hi"}]
    assert render(dated, message, answer=True, today=date(2024, 7, 26)) == "Friday 26 Jul 2024, 100%;Hi"
    assert "2024" not in render(dated, message, answer=True)


def test_tokens_take_a_few_bytes_each(tokenizer: Any) -> None:
    rows = [{"text": "A film. " * 4000}]
    (example,) = encode(rows, _card("text", rows), tokenizer, max_length=1 << 20).examples
    assert sys.getsizeof(example.ids) < 5 * len(example.ids)
