"""Caller tokens: whose they are, how long they hold, and that a clock which is set does not take them away."""

import dataclasses
import time

import pytest

from burnish.core.errors import Unauthenticated
from burnish.platform.identity import CallerTokens, Principal, principal

SOMEONE = Principal("someone", "project", frozenset({"developer"}))


@dataclasses.dataclass
class Clock:
    """Stands for the ``time`` module of what signs."""

    wall: float
    age: float = 1_000.0

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.age


@pytest.fixture
def tokens() -> CallerTokens:
    return CallerTokens(b"k" * 32)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What signs has this clock; what verifies has the real one."""
    found = Clock(time.time())
    monkeypatch.setattr(principal, "time", found)
    return found


def test_a_token_carries_its_principal_to_its_audience_only(tokens: CallerTokens) -> None:
    token = tokens.sign(SOMEONE, "evaluation")
    assert tokens.verify(token, "evaluation") == SOMEONE
    for other, audience in ((tokens, "compression"), (CallerTokens(b"x" * 32), "evaluation")):
        with pytest.raises(Unauthenticated):
            other.verify(token, audience)


@pytest.mark.parametrize(("ahead", "holds"), [(3_600, True), (2, True), (-50, True), (-80, True), (-100, False)])
def test_clocks_may_differ_a_little_and_be_set_back_by_any_time(
    tokens: CallerTokens, clock: Clock, ahead: float, holds: bool
) -> None:
    """Of the signer's clock against the verifier's; a token holds for 60 s, and 30 s more for clocks that differ."""
    clock.wall += ahead
    token = tokens.sign(SOMEONE, "evaluation")
    if holds:
        assert tokens.verify(token, "evaluation") == SOMEONE
        return
    with pytest.raises(Unauthenticated, match="expired"):
        tokens.verify(token, "evaluation")


def test_a_token_is_used_again_for_half_its_time_whatever_the_wall_clock_says(
    tokens: CallerTokens, clock: Clock
) -> None:
    first = tokens.sign(SOMEONE, "evaluation")
    clock.wall, clock.age = clock.wall + 29, clock.age + 29
    assert tokens.sign(SOMEONE, "evaluation") == first
    clock.wall -= 3_600  # set back: by the wall clock alone it would be re-used for an hour
    again = tokens.sign(SOMEONE, "evaluation")
    assert again != first
    clock.wall, clock.age = clock.wall + 31, clock.age + 31
    assert tokens.sign(SOMEONE, "evaluation") != again


def test_a_clock_set_forward_past_a_tokens_end_does_not_leave_it_in_use(tokens: CallerTokens, clock: Clock) -> None:
    clock.wall -= 3_600
    tokens.sign(SOMEONE, "evaluation")
    clock.wall += 3_600
    assert tokens.verify(tokens.sign(SOMEONE, "evaluation"), "evaluation") == SOMEONE
