"""Caller tokens: whose they are, how long they hold, and that a clock which is set does not take them away."""

import dataclasses
import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from burnish.core.errors import Unauthenticated
from burnish.platform.identity import CallerTokens, CallerVerifier, Principal, principal

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


def test_a_token_that_was_sent_to_an_instance_is_believed_by_no_other(tokens: CallerTokens) -> None:
    """Breaks with: an instance that passes on, to another of its type, what it was sent."""
    token = tokens.sign(SOMEONE, "evaluation", instance="one")
    verifier = CallerVerifier(tokens.public_jwks())
    assert verifier.verify(token, "evaluation", {"one", "more"}) == SOMEONE
    for others in ({"two"}, set[str]()):  # now it is in memory, too
        with pytest.raises(Unauthenticated, match="another instance"):
            verifier.verify(token, "evaluation", others)
    assert verifier.verify(token, "evaluation", {"one"}) == SOMEONE
    with pytest.raises(Unauthenticated):
        verifier.verify(token, "compression", {"one"})


def test_one_of_an_older_platform_and_one_for_an_older_component_go_on(tokens: CallerTokens) -> None:
    plain, bound = tokens.sign(SOMEONE, "evaluation"), tokens.sign(SOMEONE, "evaluation", instance="one")
    assert plain != bound
    assert tokens.verify(plain, "evaluation", {"one"}) == SOMEONE
    assert tokens.verify(bound, "evaluation") == SOMEONE, "who does not know its id looks at the type alone"
    assert jwt.decode(bound, options={"verify_signature": False})["aud"] == "evaluation"


def test_tokens_are_signed_once_for_each_caller_and_instance(tokens: CallerTokens) -> None:
    first = {name: tokens.sign(SOMEONE, "evaluation", instance=name) for name in ("one", "two")}
    assert len(set(first.values())) == 2
    assert {name: tokens.sign(SOMEONE, "evaluation", instance=name) for name in first} == first


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


WHOLE = Principal(
    "ada", "ml", frozenset({"engineer"}), frozenset({"model:read"}), frozenset({"viewer"}), "key_1", ("echo-1", "echo")
)


def test_the_public_key_is_enough_to_verify_everything_that_a_token_carries(tokens: CallerTokens) -> None:
    verifier = CallerVerifier(tokens.public_jwks())
    token = tokens.sign(WHOLE, "evaluation")
    assert verifier.verify(token, "evaluation") == WHOLE
    assert verifier.verify(token, "evaluation") == WHOLE, "from memory"
    with pytest.raises(Unauthenticated):
        verifier.verify(token, "compression")
    assert not any("d" in key for key in tokens.public_jwks()["keys"]), "the private part stays here"
    with pytest.raises(ValueError, match="no Ed25519 key"):
        CallerVerifier({"keys": []})


def test_forged_tokens_are_refused(tokens: CallerTokens) -> None:
    """Breaks with: taking the algorithm from the token, or a key that the token brings."""
    good = tokens.sign(SOMEONE, "evaluation")
    header, claims, signature = good.split(".")
    kid = tokens.public_jwks()["keys"][0]["kid"]
    body = jwt.decode(good, options={"verify_signature": False})
    raised = {**body, "rol": ["administrator"], "evw": ["administrator"]}
    other = Ed25519PrivateKey.generate()
    forged = [
        jwt.encode(raised, "", algorithm="none", headers={"kid": kid}),
        jwt.encode(raised, tokens.public_jwks()["keys"][0]["x"] * 2, algorithm="HS256", headers={"kid": kid}),
        jwt.encode(raised, other, algorithm="EdDSA", headers={"kid": kid}),
        jwt.encode(raised, other, algorithm="EdDSA", headers={"kid": "mine"}),
        jwt.encode(raised, other, algorithm="EdDSA"),
        f"{header}.{claims}.",
        f"{header}.{claims[:-4]}AAAA.{signature}",
        "", "a.b.c", "é" * 40, good[:-8],
    ]  # fmt: skip
    for token in forged:
        with pytest.raises(Unauthenticated):
            tokens.verify(token, "evaluation")


def test_a_token_that_was_verified_before_still_expires(tokens: CallerTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tokens.sign(SOMEONE, "evaluation", ttl=5)
    assert tokens.verify(token, "evaluation") == SOMEONE
    late = Clock(time.time() + 6)
    monkeypatch.setattr(principal, "time", late)
    assert tokens.verify(token, "evaluation") == SOMEONE, "within what clocks may differ"
    token = tokens.sign(SOMEONE, "compression", ttl=-60)
    with pytest.raises(Unauthenticated, match="expired"):
        tokens.verify(token, "compression")
