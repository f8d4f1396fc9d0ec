"""The gate: each rule by its numbers, evidence that is not comparable, and how often it errs."""

import dataclasses
import random
from typing import Any

import pytest
from pydantic import TypeAdapter

from burnish.core.errors import BurnishError
from burnish.core.specs import ArtifactRef, Estimate, EvaluationResult, ServedAs
from burnish.platform.workflow.expressions import resolve
from burnish.platform.workflow.gate import GateEvidence, Rule, RuleVerdict, Scored, Verdict, judge
from burnish.platform.workflow.library import definition_named

RULES: TypeAdapter[tuple[Rule, ...]] = TypeAdapter(tuple[Rule, ...])


def _ref(name: str) -> ArtifactRef:
    return ArtifactRef(digest="sha256:" + name.encode().hex().ljust(64, "0")[:64], kind="gguf", size_bytes=1)


def scored(
    label: str,
    scores: list[float],
    *,
    size: int = 50,
    ids: list[str] | None = None,
    dataset: str = "test",
    p95: float = 0.1,
) -> Scored:
    n = len(scores)
    value = sum(scores) / n
    result = EvaluationResult(
        task="classification", label=label, headline="accuracy", metrics={"accuracy": Estimate(value=value, low=value - 0.02, high=value + 0.02, n=n)},
        dataset=_ref(dataset), examples=_ref("examples" + label),
        served=ServedAs(
            engine="llama_cpp", model=_ref(label), dtype="q8_0", size_bytes=size, memory_bytes=1, tokens_per_second=1,
            latency_p50_seconds=p95 / 2, latency_p95_seconds=p95, load_seconds=1,
        ),
    )  # fmt: skip
    return Scored(result, tuple(ids or [f"e{i}" for i in range(n)]), tuple(scores))


def evidence(
    candidate: str = "compressed", reference: int | None = 100, serving: str | None = None, **given: Scored | None
) -> GateEvidence:
    return GateEvidence(candidate, given, reference, None if serving is None else _ref(serving).digest)


def verdict_of(rule: dict[str, Any], found: GateEvidence) -> Verdict:
    return judge(RULES.validate_python([rule]), found)


def answers(n: int, right: int) -> list[float]:
    return [1.0] * right + [0.0] * (n - right)


@pytest.mark.parametrize(
    ("base", "candidate", "wanted"),
    [(200, 300, "pass"), (300, 200, "fail"), (300, 302, "inconclusive"), (300, 300, "inconclusive")],
)
def test_better_is_decided_by_the_interval(base: int, candidate: int, wanted: str) -> None:
    found = evidence(base=scored("base", answers(400, base)), compressed=scored("compressed", answers(400, candidate)))
    verdict = verdict_of({"type": "better", "than": "base"}, found)
    assert verdict.verdict == wanted
    sentence = verdict.rules[0].sentence
    assert "95 % interval" in sentence
    assert "400 examples" in sentence
    assert verdict.rules[0].comparison is not None


def test_a_gain_below_the_bar_fails_and_one_around_it_is_inconclusive() -> None:
    found = evidence(base=scored("base", answers(400, 200)), compressed=scored("compressed", answers(400, 240)))
    assert verdict_of({"type": "better", "than": "base", "min_gain": 0.3}, found).verdict == "fail"
    assert verdict_of({"type": "better", "than": "base", "min_gain": 0.1}, found).verdict == "inconclusive"


@pytest.mark.parametrize(("lost", "wanted"), [(0, "pass"), (4, "pass"), (20, "inconclusive"), (80, "fail")])
def test_not_worse_is_non_inferiority(lost: int, wanted: str) -> None:
    found = evidence(
        tuned=scored("tuned", answers(400, 320)), compressed=scored("compressed", answers(400, 320 - lost))
    )
    assert verdict_of({"type": "not_worse", "than": "tuned", "margin": 0.05}, found).verdict == wanted


def test_size_latency_and_value_rules_say_their_numbers() -> None:
    candidate = scored("compressed", answers(400, 320), size=55, p95=0.2)
    found = evidence(compressed=candidate, base=scored("base", answers(400, 320), size=110, p95=0.1))
    for rule, wanted in (
        ({"type": "max_size", "ratio": 0.6}, "pass"), ({"type": "max_size", "ratio": 0.5}, "fail"),
        ({"type": "max_size", "bytes": 54}, "fail"), ({"type": "max_size", "ratio": 0.5, "than": "base"}, "pass"),
        ({"type": "max_latency", "seconds": 0.25}, "pass"), ({"type": "max_latency", "seconds": 0.15}, "fail"),
        ({"type": "max_latency", "seconds": 0.15, "percentile": "p50"}, "pass"),
        ({"type": "max_latency", "ratio": 1.5, "than": "base"}, "fail"),
        ({"type": "min_value", "value": 0.7}, "pass"), ({"type": "min_value", "value": 0.79}, "inconclusive"),
        ({"type": "min_value", "value": 0.9}, "fail"),
    ):  # fmt: skip
        verdict = verdict_of(rule, found)
        assert verdict.verdict == wanted, rule
        assert verdict.rules[0].numbers["value"] is not None
        assert any(character.isdigit() for character in verdict.rules[0].sentence)


def test_of_perplexity_less_is_better() -> None:
    """Breaks with: a bound that is a minimum whatever the metric."""
    candidate = scored("compressed", answers(400, 320))
    better = candidate.result.model_copy(update={"higher_is_better": {candidate.result.headline: False}})
    found = evidence(compressed=dataclasses.replace(candidate, result=better))
    assert verdict_of({"type": "min_value", "value": 0.9}, found).verdict == "pass"
    assert verdict_of({"type": "min_value", "value": 0.7}, found).verdict == "fail"


@pytest.mark.parametrize(
    ("rule", "gained", "lost"),
    [({"type": "better", "min_gain": 0.05}, 0.12, 0.04), ({"type": "not_worse", "margin": 0.05}, 0.04, 0.06)],
)
def test_an_inconclusive_rule_says_how_many_examples_would_tell(
    rule: dict[str, Any], gained: float, lost: float
) -> None:
    """So many are enough, if the difference stays. Breaks with: a number for a difference of 0, not for the bar."""

    def judged(n: int) -> RuleVerdict:
        right, up, down = n // 2, round(gained * n), round(lost * n)
        base = [1.0] * (right + down) + [0.0] * (n - right - down)
        candidate = [1.0] * right + [0.0] * down + [1.0] * up + [0.0] * (n - right - down - up)
        found = evidence(base=scored("base", base), compressed=scored("compressed", candidate))
        return verdict_of({**rule, "than": "base"}, found).rules[0]

    first = judged(200)
    assert first.verdict == "inconclusive"
    asked = int(first.sentence.rpartition("about ")[2].partition(" ")[0].replace(",", ""))
    assert 400 < asked < 4000
    assert judged(asked).verdict == "pass"
    assert judged(asked // 3).verdict == "inconclusive"


def test_one_failing_rule_fails_and_the_sentence_names_it() -> None:
    found = evidence(compressed=scored("compressed", answers(400, 320)), base=scored("base", answers(400, 100)))
    verdict = judge(
        RULES.validate_python([{"type": "better", "than": "base"}, {"type": "max_size", "bytes": 1}]), found
    )
    assert verdict.verdict == "fail"
    assert "size" in verdict.sentence
    assert "better" not in verdict.sentence


def test_production_is_compared_only_where_something_else_is_there() -> None:
    rule = {"type": "better", "than": "production", "in_production": True}
    compressed = scored("compressed", answers(400, 320))
    none = verdict_of(rule, evidence(compressed=compressed))
    assert (none.verdict, "nothing is in production" in none.rules[0].sentence) == ("pass", True)
    same = verdict_of(rule, evidence(compressed=compressed, serving="compressed"))
    assert (same.verdict, "already in production" in same.rules[0].sentence) == ("pass", True)
    with pytest.raises(BurnishError, match="no evaluation 'production'"):
        verdict_of(rule, evidence(compressed=compressed, serving="other"))


def test_another_adapter_on_the_same_base_is_another_model() -> None:
    rule = {"type": "better", "than": "production", "in_production": True}

    def given(adapter: str | None, serving: str | None) -> GateEvidence:
        tuned = scored("base", answers(400, 320))
        served = tuned.result.served.model_copy(update={"adapter": None if adapter is None else _ref(adapter)})
        tuned = dataclasses.replace(tuned, result=tuned.result.model_copy(update={"served": served}))
        found = evidence(candidate="base", base=tuned, serving="base")
        return dataclasses.replace(found, in_production_adapter=None if serving is None else _ref(serving).digest)

    for adapter, serving in (("new", "old"), ("new", None), (None, "old")):
        with pytest.raises(BurnishError, match="no evaluation 'production'"):
            verdict_of(rule, given(adapter, serving))
    for same in ("old", None):
        assert "already in production" in verdict_of(rule, given(same, same)).rules[0].sentence


def test_what_is_compared_is_called_what_it_is() -> None:
    def by(headline: str, lower: bool) -> GateEvidence:
        found = {}
        for label, right in (("base", 200), ("compressed", 300)):
            one = scored(label, answers(400, right))
            more = {"headline": headline, "higher_is_better": {headline: not lower}}
            found[label] = dataclasses.replace(one, result=one.result.model_copy(update=more))
        return evidence(base=found["base"], compressed=found["compressed"])

    rule = {"type": "better", "than": "base"}
    for headline, lower, words in (
        ("perplexity", True, "log-likelihood a token (more is better, as less perplexity is) of compressed less base: +0"),
        ("accuracy", False, "accuracy of compressed less base: +0"),
        ("word_errors", True, "score (by word_errors) of compressed less base: +0"),
    ):  # fmt: skip
        assert words in verdict_of(rule, by(headline, lower)).rules[0].sentence


def test_what_stands_beside_the_candidate_is_compared_too() -> None:
    found = evidence(
        base=scored("base", answers(100, 50)), tuned=scored("tuned", answers(100, 90)),
        compressed=scored("compressed", answers(100, 88)), production=None,
    )  # fmt: skip
    (beside,) = verdict_of({"type": "better", "than": "base"}, found).beside
    assert (beside.baseline, beside.candidate) == ("base", "tuned")
    assert beside.difference == pytest.approx(0.4)
    assert 0.29 < beside.low < 0.4 < beside.high < 0.51


def test_what_is_missing_or_not_paired_is_an_error() -> None:
    compressed = scored("compressed", answers(100, 80))
    rule = {"type": "better", "than": "base"}
    for base, words in (
        (None, "no evaluation 'base'"), (scored("base", answers(99, 50)), "not paired"),
        (scored("base", answers(100, 50), ids=[f"x{i}" for i in range(100)]), "0 examples in common"),
        (scored("base", answers(100, 50), dataset="other"), "not evaluated alike"),
    ):  # fmt: skip
        with pytest.raises(BurnishError, match=words):
            verdict_of(rule, evidence(compressed=compressed, base=base))
    with pytest.raises(BurnishError, match="no evaluation"):
        verdict_of(rule, evidence(candidate="nobody", compressed=compressed, base=compressed))
    with pytest.raises(BurnishError, match="without rules"):
        judge((), evidence(compressed=compressed))


def shipped_rules() -> tuple[Rule, ...]:
    definition = definition_named("train-optimize-deploy")
    defaults = {name: parameter.default for name, parameter in definition.parameters.items()}
    rules = resolve(definition.steps["gate"].spec["rules"], {"parameters": defaults})
    return RULES.validate_python(rules)


def simulated(chance: random.Random, n: int, accuracies: dict[str, float], sameness: float) -> dict[str, Scored]:
    """Correlated answers: with probability ``sameness`` a model draws the example's own luck, else luck of its own."""
    shared = [chance.random() for _ in range(n)]
    found = {}
    for label, accuracy in accuracies.items():
        luck = [s if chance.random() < sameness else chance.random() for s in shared]
        found[label] = scored(label, [float(one < accuracy) for one in luck])
    return found


@pytest.mark.parametrize("production", [pytest.param(False, marks=pytest.mark.full), True])
def test_equal_models_are_promoted_at_most_once_in_twenty(production: bool) -> None:
    rules, chance = shipped_rules(), random.Random(1)
    promoted = 0
    for _ in range(1_000):
        labels = dict.fromkeys(["base", "tuned", "compressed", "production"], 0.7)
        found = simulated(chance, 400, labels, sameness=0.7)
        serving = _ref("production").digest if production else None
        given = GateEvidence("compressed", found, 100, serving)
        promoted += judge(rules, given).verdict == "pass"
    assert promoted <= 50, f"{promoted} of 1,000 equal models were promoted"


@pytest.mark.parametrize("production", [False, pytest.param(True, marks=pytest.mark.full)])
def test_ten_points_better_is_promoted_four_times_in_five(production: bool) -> None:
    rules, chance = shipped_rules(), random.Random(2)
    promoted = 0
    for _ in range(1_000):
        labels = {"base": 0.7, "tuned": 0.8, "compressed": 0.8, "production": 0.7}
        found = simulated(chance, 400, labels, sameness=0.7)
        found["compressed"] = nearly(chance, found["tuned"])
        serving = _ref("production").digest if production else None
        given = GateEvidence("compressed", found, 100, serving)
        promoted += judge(rules, given).verdict == "pass"
    assert promoted >= 800, f"only {promoted} of 1,000 better models were promoted"


def nearly(chance: random.Random, tuned: Scored) -> Scored:
    """What compression does: the same answers, but for one in fifty, in either direction."""
    return scored("compressed", [1 - s if chance.random() < 0.02 else s for s in tuned.scores])
