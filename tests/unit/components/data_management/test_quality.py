"""Duplicates: the index finds exactly what comparing all with all finds."""

import itertools
import random

import pytest

from burnish.components.data_management import quality
from burnish.components.data_management.quality import (
    NEAR,
    PairSets,
    alike_key,
    exact_key,
    near_duplicates,
    near_in,
    row_text,
    words,
)

VOCABULARY = [f"{a}{b}" for a, b in itertools.product("bcdfghklmnprst", "aeiou")]


def brute_force(texts: list[str]) -> list[int]:
    sets = []
    for text in texts:
        found = words(text)
        sets.append(set(zip(found, found[1:] or ["\0"], strict=False)))
    kept: list[int] = []
    near = []
    for position, own in enumerate(sets):
        if any(own and len(own & sets[other]) >= NEAR * len(own | sets[other]) for other in kept):
            near.append(position)
        else:
            kept.append(position)
    return near


def noisy_texts(seed: int, count: int = 300) -> list[str]:
    """Texts of 1 to 40 words, half of them earlier ones with a few words changed, added or lost."""
    source = random.Random(seed)
    texts: list[list[str]] = []
    for _ in range(count):
        if texts and source.random() < 0.5:
            copy = list(source.choice(texts[-40:]))
            for _ in range(source.randrange(3)):
                where = source.randrange(len(copy))
                copy[where : where + source.randrange(2)] = (
                    source.choices(VOCABULARY, k=source.randrange(2)) or copy[:1]
                )
            texts.append(copy)
        else:
            texts.append(source.choices(VOCABULARY, k=source.randrange(1, 41)))
    return [" ".join(text) for text in texts]


@pytest.mark.parametrize("seed", range(20))
def test_near_duplicates_equal_comparing_all_with_all(seed: int) -> None:
    texts = noisy_texts(seed)
    expected = brute_force(texts)
    assert near_duplicates(texts) == (expected, 0)
    assert len(expected) > 50


@pytest.mark.parametrize(
    ("one", "other", "exact", "alike"),
    [
        ("a great movie", " a great movie\n", True, True),
        ("a\r\nb", "a\nb", True, True),
        ("caf\u00e9", "cafe\u0301", True, True),
        ("?!", " ?!", True, True),
        ("A  great movie!", "a great\nMOVIE", False, True),
        ("Stra\u00dfe", "STRASSE", False, True),
        ("a < b", "a > b", False, True),
        ("-5", "5", False, True),
        ("x\u00b2", "x2", False, True),
        ("good \U0001f600", "good \U0001f621", False, True),
        ("if a:\n  b\nc", "if a:\n  b\n  c", False, True),
        ("\u5f88\u597d\u7684\u7535\u5f71", "\u5f88\u597d \u7684\u7535\u5f71", False, True),
        ("a great movie", "a great film", False, False),
        ("?!", "...", False, False),
    ],
)
def test_exact_is_equal_and_alike_is_the_same_words(one: str, other: str, exact: bool, alike: bool) -> None:
    keys = [exact_key({"text": text}, "text", "all") for text in (one, other)]
    assert (keys[0] == keys[1]) is exact
    assert (alike_key(one) == alike_key(other)) is alike


def test_values_are_compared_one_by_one() -> None:
    def prompted(prompt: str, completion: str) -> bytes:
        return exact_key({"prompt": prompt, "completion": completion}, "prompt_completion", "all")

    def said(*messages: tuple[str, str]) -> bytes:
        return exact_key({"messages": [{"role": r, "content": c} for r, c in messages]}, "chat", "all")

    assert prompted("a", "b\nc") != prompted("a\nb", "c")
    assert prompted("a ", "b") == prompted("a", " b")
    assert said(("user", "a"), ("assistant", "b")) != said(("user", "a\nb"))
    assert said(("system", "a"), ("user", "b")) != said(("user", "a"), ("user", "b"))
    labelled = {"text": "a", "label": "b"}
    assert exact_key(labelled, "classification", "input") == exact_key(
        {**labelled, "label": "c"}, "classification", "input"
    )
    assert exact_key(labelled, "classification", "all") == exact_key({**labelled, "extra": {}}, "classification", "all")


def test_scripts_without_spaces_are_compared_by_characters() -> None:
    text = "\u8fd9\u662f\u4e00\u90e8\u975e\u5e38\u597d\u7684\u7535\u5f71\u6211\u559c\u6b22\u5b83\u5e76\u4e14\u4f1a\u518d\u770b\u4e00\u6b21"
    assert near_duplicates([text, text[:-1]]) == ([1], 0)


def test_long_texts_are_compared_by_a_sample_of_their_pairs() -> None:
    source = random.Random(0)
    long = [f"w{source.randrange(5000)}" for _ in range(5000)]
    changed = list(long)
    for where in range(0, 5000, 100):
        changed[where] = "other"
    unlike = [f"w{source.randrange(5000)}" for _ in range(5000)]
    assert near_duplicates([" ".join(text) for text in (long, changed, unlike)]) == ([1], 0)


def test_what_is_beyond_the_limit_is_counted() -> None:
    sets = PairSets(max_pairs=10)
    for _ in range(5):
        sets.add("one two three four five six")
    assert sets.unchecked == 3
    assert near_in(sets) == [1]


def test_boilerplate_is_left_out() -> None:
    opening = " ".join(f"say{n}" for n in range(50))
    texts = [f"{opening} {' '.join(random.Random(n).choices(VOCABULARY, k=8))}" for n in range(200)]
    assert near_duplicates(texts) == ([], 0)
    assert near_duplicates([*texts, texts[17] + " so"]) == ([200], 0)


def test_many_alike_take_no_quadratic_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    original = quality.NearIndex._near

    def counted(self: quality.NearIndex, own: set[int], other: int) -> bool:
        nonlocal compared
        compared += 1
        return original(self, own, other)

    monkeypatch.setattr(quality.NearIndex, "_near", counted)
    source = random.Random(1)
    texts = [" ".join(source.choices("abcdefgh", k=20)) for _ in range(3000)]
    near_duplicates(texts)
    assert compared < 3000 * 210


def test_texts_of_rows() -> None:
    chat = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    assert row_text(chat, "chat", "input") == "q"
    assert row_text(chat, "chat", "all") == "q\na"
    assert row_text({"prompt": "p", "completion": "c"}, "prompt_completion", "all") == "p\nc"
    assert row_text({"text": "t", "label": "l"}, "classification", "input") == "t"
