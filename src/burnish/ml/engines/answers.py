"""From tokens to the pieces of text that clients get: whole characters only, and nothing from a stop string on."""

from collections.abc import Sequence
from typing import Any

_REPLACEMENT = "\ufffd"


class AnswerText:
    """The text of one choice as it grows."""

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._ids: list[int] = []
        self._sent = 0
        self.stopped = False
        """A stop string was generated: the text ends before it."""

    @property
    def tokens(self) -> int:
        """Tokens so far."""
        return len(self._ids)

    def add(self, token: int) -> str:
        """Add a token and return the text that is now certain and was not given before."""
        self._ids.append(token)
        text = self._text()
        places = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if places:
            self.stopped = True
            return self._give(text, min(places))
        end = len(text.rstrip(_REPLACEMENT)) if text.endswith(_REPLACEMENT) else len(text)
        return self._give(text, end - self._held(text[:end]))

    def rest(self) -> str:
        """Return what was held back, at the end of an answer that no stop string ended."""
        text = self._text()
        return "" if self.stopped else self._give(text, len(text))

    def _text(self) -> str:
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _held(self, text: str) -> int:
        """Return how many characters at the end may be the beginning of a stop string."""
        longest = max((len(stop) for stop in self._stops), default=0)
        for length in range(min(longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0

    def _give(self, text: str, end: int) -> str:
        piece = text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece
