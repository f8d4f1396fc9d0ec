"""What the audit log keeps of a text: no more than fits, no secret, and at little cost."""

import pytest

from burnish.infra import logging as own_logging
from burnish.platform.identity import audit


def test_of_a_long_text_no_more_is_looked_through_than_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks with: a path of 60 kB that costs more than its request; half a secret, cut in two."""
    seen: list[int] = []
    redact = own_logging.redact

    def counted(text: str) -> str:
        seen.append(len(text))
        return redact(text)

    monkeypatch.setattr(own_logging, "redact", counted)
    line = "x" * 240 + " password=hunter22 " + "y" * 1_000_000
    kept = audit._text(line)
    assert (len(kept), "hunter22" in kept) == (255, False)
    details = audit._plain({"deep": [{"reason": line}], "api_key": "abc", "ratio": 0.5, "many": 2, "all": True})
    assert (len(details["deep"][0]["reason"]), details["api_key"]) == (4000, "***")
    assert (details["ratio"], details["many"], details["all"]) == ("0.5", 2, True)
    assert max(seen) < 13_000
