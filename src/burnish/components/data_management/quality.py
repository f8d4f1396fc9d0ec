r"""What is the same twice: exact and near duplicates, and rows of one set that stand in another (leaks).

Exact: equal value by value, but for Unicode composition (NFC), ``\r\n`` for ``\n``, and blanks at the ends. What is
dropped as a duplicate is that: ``a < b`` and ``a > b``, ``-5`` and ``5``, two indentations of a program are not equal.
Alike: the same words, whatever their case, punctuation and signs; alike rows stay together in a split. Near: alike,
or the sets of word pairs of two texts have a Jaccard similarity of at least ``NEAR``; in a sentence of twenty words
that is one word changed. Near pairs are found without comparing all with all by prefix filtering (Bayardo, Ma, Srikant 2007,
"Scaling up all pairs similarity search"): pairs of words are ordered from rare to common, and two texts that are near
share one of their rarest. That is exact, unlike MinHash, and for text it is faster in plain Python.

Everything here is deterministic: no random seeds, and no use of Python's salted ``hash``.
"""

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from burnish.core.specs.data import DatasetFormat

NEAR = 0.75
"""Jaccard similarity of word pairs from which on two texts are nearly equal."""

MAX_PAIRS = 512
"""Of a longer text, this many word pairs (those with the smallest hashes) stand for it."""

MAX_TOTAL_PAIRS = 30_000_000
"""Word pairs held for one search: 240 MB. Rows beyond are not looked at, and counted as such."""

_CANDIDATES = 200
_UNSPACED = "぀-ヿ㐀-鿿가-힣฀-໿"  # scripts without spaces: a character is a word
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_BUCKETS = 1 << 24
_OFTEN = 20
_MIX = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1

Part = Literal["input", "all"]


def row_text(row: Mapping[str, Any], form: DatasetFormat, part: Part) -> str:
    """Return a canonical row's text: ``input`` is what a model is asked, ``all`` has the answer too."""
    if form == "classification":
        return str(row["text"]) if part == "input" else f"{row['text']}\n{row['label']}"
    if form == "prompt_completion":
        return str(row["prompt"]) if part == "input" else f"{row['prompt']}\n{row['completion']}"
    if form == "chat":
        messages = row["messages"][:-1] if part == "input" else row["messages"]
        return "\n".join(message["content"] for message in messages)
    return str(row["text"])


def words(text: str) -> list[str]:
    """Return the text's words: normalised (NFKC), case-folded, without punctuation."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _WORD.findall(text.casefold())


def exact_key(row: Mapping[str, Any], form: DatasetFormat, part: Part) -> bytes:
    """Return 16 bytes that are equal for canonical rows whose ``part`` is exactly equal (see above)."""
    return _digest("\0".join(map(_composed, _values(row, form, part))))  # no value holds a NUL


def alike_key(text: str) -> bytes:
    """Return 16 bytes that are equal for texts of the same words. A text without any word is like itself alone.

    Rows with equal :func:`exact_key` have texts with equal keys here.
    """
    found = words(text)
    return _digest(" ".join(found) if found else "".join(_composed(text).split()))


def _values(row: Mapping[str, Any], form: DatasetFormat, part: Part) -> list[str]:
    if form == "chat":
        messages = row["messages"][:-1] if part == "input" else row["messages"]
        return [message[name] for message in messages for name in ("role", "content")]
    names = {"classification": ("text", "label"), "prompt_completion": ("prompt", "completion"), "text": ("text",)}
    return [row[name] for name in names[form][: 1 if part == "input" else None]]


def _composed(text: str) -> str:
    return (text if text.isascii() else unicodedata.normalize("NFC", text)).replace("\r\n", "\n").strip()


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class PairSets:
    """The word pairs of many texts, numbered in the order they were added, compactly (8 bytes a pair).

    Pairs that stand in more than a fifth of the texts (and in twenty) are boilerplate, such as an instruction that
    opens every prompt: they say nothing of how alike two rows are, and are left out when texts are compared.
    """

    def __init__(self, max_pairs: int = MAX_TOTAL_PAIRS) -> None:
        self._numbers: dict[str, int] = {}
        self._pairs = array("Q")
        self._starts = array("Q", [0])
        self._counts = bytearray(_BUCKETS)  # texts by bucket of pairs, up to _OFTEN
        self._often: dict[int, int] = {}  # and from there on
        self._boilerplate: frozenset[int] | None = None
        self._max = max_pairs
        self.unchecked = 0
        """Texts beyond ``max_pairs``: they have no pairs here and are near nothing."""

    def __len__(self) -> int:
        return len(self._starts) - 1

    def add(self, text: str) -> None:
        """Add a text; all texts before the first comparison. One word alone is a pair with nothing."""
        assert self._boilerplate is None, "texts are added before they are compared"
        if len(self._pairs) >= self._max:
            self.unchecked += 1
            self._starts.append(len(self._pairs))
            return
        numbers = self._numbers
        ids = [numbers.setdefault(word, len(numbers) + 1) for word in words(text)]
        pairs = {((a << 32 | b) * _MIX) & _MASK for a, b in zip(ids, ids[1:] or [0], strict=False)}
        kept = sorted(pairs)[:MAX_PAIRS] if len(pairs) > MAX_PAIRS else pairs
        counts, often = self._counts, self._often
        for pair in kept:
            bucket = pair >> 40
            if counts[bucket] < _OFTEN:
                counts[bucket] += 1
            else:
                often[bucket] = often.get(bucket, _OFTEN) + 1
        self._pairs.extend(kept)
        self._starts.append(len(self._pairs))

    def get(self, index: int) -> Sequence[int]:
        """Return a text's pairs without boilerplate, in no order."""
        pairs = self._pairs[self._starts[index] : self._starts[index + 1]]
        if self._boilerplate is None:
            most = max(_OFTEN, len(self) // 5)
            self._boilerplate = frozenset(bucket for bucket, count in self._often.items() if count > most)
        if not self._boilerplate:
            return pairs
        return [pair for pair in pairs if pair >> 40 not in self._boilerplate]

    def prefix(self, pairs: Sequence[int]) -> list[int]:
        """Return the rarest pairs: any set that is near this one shares at least one of them.

        Pairs that no other text has cannot be shared and are left out.
        """
        length = len(pairs) - _at_least(len(pairs)) + 1
        counts, often = self._counts, self._often
        rarest = sorted(pairs, key=lambda pair: (often.get(pair >> 40) or counts[pair >> 40], pair))[:length]
        return [pair for pair in rarest if counts[pair >> 40] > 1]


class NearIndex:
    """Texts of one :class:`PairSets` that others are looked up against. Add all texts to the sets first."""

    def __init__(self, sets: PairSets) -> None:
        self._sets = sets
        self._postings: dict[int, list[int]] = {}

    def add(self, index: int) -> None:
        """Make text ``index`` findable."""
        for pair in self._sets.prefix(self._sets.get(index)):
            self._postings.setdefault(pair, []).append(index)

    def find(self, index: int) -> int | None:
        """Return a findable text that is near text ``index``, or None. Of very many candidates 200 are compared."""
        pairs = self._sets.get(index)
        if not pairs:
            return None
        own = set(pairs)
        seen: set[int] = set()
        for pair in self._sets.prefix(pairs):
            for other in self._postings.get(pair, ()):
                if other in seen:
                    continue
                seen.add(other)
                if self._near(own, other):
                    return other
                if len(seen) >= _CANDIDATES:
                    return None
        return None

    def _near(self, own: set[int], other: int) -> bool:
        theirs = self._sets.get(other)
        smaller, larger = sorted((len(own), len(theirs)))
        if smaller < NEAR * larger:
            return False
        common = len(own.intersection(theirs))
        return common >= NEAR * (len(own) + len(theirs) - common)


def near_duplicates(texts: Iterable[str]) -> tuple[list[int], int]:
    """Return (positions of texts that are near an earlier one that is not itself such, texts not looked at).

    Exactly equal texts count as near too: leave them out before if they are to be counted apart.
    """
    sets = PairSets()
    for text in texts:
        sets.add(text)
    return near_in(sets), sets.unchecked


def near_in(sets: PairSets) -> list[int]:
    """Return positions of texts that are near an earlier one that is not itself such."""
    index = NearIndex(sets)
    found = []
    for position in range(len(sets)):
        if index.find(position) is None:
            index.add(position)
        else:
            found.append(position)
    return found


def _at_least(length: int) -> int:
    """Return how many of its ``length`` pairs a set shares at least with any set that is near it."""
    return -int(-NEAR * length // 1)
