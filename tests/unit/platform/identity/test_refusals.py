"""What was refused is bounded, and nobody keeps what others are refused out of the log."""

import time

import pytest

from burnish.platform.identity.refusals import Refusal, Refusals


def actors(found: Refusals) -> list[str]:
    return [one.actor for one in found.take()[0]]


def test_one_actor_takes_a_share_of_the_log_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks with: one bound for all, which one tenant's refusals use up for everybody."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    found = Refusals()
    for number in range(125):
        found.add(Refusal("red", "request:refused", object_id=f"thing:{number}"))
    found.add(Refusal("blue", "request:refused", object_id="model:deploy"))
    told, dropped = found.take()
    assert [one.actor for one in told] == ["red"] * 30 + ["blue"]
    assert dropped == 95
    for number in range(100):
        found.add(Refusal(f"user-{number}", "request:refused"))
    assert len(actors(found)) == 120 - 31, "and all together as before"
    now[0] += 60
    found.add(Refusal("red", "request:refused", object_id="again"))
    assert actors(found) == ["red"], "a minute later it begins anew"
