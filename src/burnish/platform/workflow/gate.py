"""The gate: judges evaluations by rules, and says each rule's numbers. Pure: evidence in, verdict out.

Every comparison is paired on the same examples and decided by a confidence interval of the difference, never by the
difference alone: above the bar is ``pass``, below it is ``fail``, an interval that covers the bar is ``inconclusive``.
The verdict passes only if every rule does.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, Literal

from pydantic import Field

from burnish.core.errors import InvalidRequest
from burnish.core.specs.base import Spec
from burnish.core.specs.evaluation import EvaluationResult, PairedDifference
from burnish.core.statistics import paired_difference

Judgement = Literal["pass", "fail", "inconclusive"]


class _Comparing(Spec):
    than: str = Field(description="Label of the evaluation to compare with")
    in_production: bool = Field(
        default=False,
        description="Compares with what is in production: passes where nothing is, or where the candidate already is",
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1)


_MANY = 10_000_000
"""Examples that nobody has: not named as a way out."""


class Better(_Comparing):
    """The candidate gains more than ``min_gain`` of the headline."""

    type: Literal["better"]
    min_gain: float = Field(default=0.0, ge=0)


class NotWorse(_Comparing):
    """The candidate loses less than ``margin`` of the headline."""

    type: Literal["not_worse"]
    margin: float = Field(gt=0, description="In units of the headline: 0.05 of accuracy is 5 points")


class MaxSize(Spec):
    """The candidate's files are small enough."""

    type: Literal["max_size"]
    bytes: int | None = Field(default=None, gt=0)
    ratio: float | None = Field(default=None, gt=0, description="Of `reference_bytes`, else of the evaluation `than`")
    than: str | None = None


class MaxLatency(Spec):
    """The candidate answers fast enough."""

    type: Literal["max_latency"]
    percentile: Literal["p50", "p95"] = "p95"
    seconds: float | None = Field(default=None, gt=0)
    ratio: float | None = Field(default=None, gt=0, description="Of the same of the evaluation `than`")
    than: str | None = None


class MinValue(Spec):
    """The lower end of a metric's interval reaches a bar."""

    type: Literal["min_value"]
    value: float
    metric: str | None = Field(default=None, description="The headline by default")


Rule = Annotated[Better | NotWorse | MaxSize | MaxLatency | MinValue, Field(discriminator="type")]


@dataclass(frozen=True)
class Scored:
    """An evaluation with its examples: ``scores[i]`` belongs to ``ids[i]``, higher is better."""

    result: EvaluationResult
    ids: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class GateEvidence:
    """What is judged: evaluations by label (None where there is none), and which of them is the candidate."""

    candidate: str
    evaluations: Mapping[str, Scored | None]
    reference_bytes: int | None = None
    """Size of the uncompressed model, for ``max_size`` by ratio."""
    in_production: str | None = None
    """Digest of the artifact that is in production; None where nothing is."""
    in_production_adapter: str | None = None
    """Digest of the adapter that is in production on top of it."""


class RuleVerdict(Spec):
    """What one rule decided, by which numbers."""

    rule: str
    verdict: Judgement
    sentence: str
    numbers: dict[str, float | int | str | None] = Field(default_factory=dict)
    comparison: PairedDifference | None = None


class Verdict(Spec):
    """What the gate decided. Anything but ``pass`` promotes nothing."""

    verdict: Judgement
    candidate: str
    sentence: str
    rules: tuple[RuleVerdict, ...]
    beside: tuple[PairedDifference, ...] = Field(
        default=(),
        description="Paired differences between the evaluations that are not the candidate's; judged by no rule",
    )


def judge(rules: tuple[Rule, ...], evidence: GateEvidence) -> Verdict:
    """Judge the candidate by every rule.

    Raises:
        InvalidRequest: an evaluation is missing, or two are not of the same examples, task or headline.
    """
    if not rules:
        raise InvalidRequest("a gate without rules judges nothing", where="rules", hint="give it at least one rule")
    found = tuple(_JUDGES[rule.type](rule, evidence) for rule in rules)
    verdicts = [one.verdict for one in found]
    overall: Judgement = "fail" if "fail" in verdicts else "inconclusive" if "inconclusive" in verdicts else "pass"
    decisive = [one for one in found if one.verdict == overall]
    said = f"all {len(found)} rules pass" if overall == "pass" else "; ".join(one.sentence for one in decisive)
    return Verdict(verdict=overall, candidate=evidence.candidate, sentence=f"{overall}: {said}", rules=found,
                   beside=_beside(evidence))  # fmt: skip


def _beside(evidence: GateEvidence) -> tuple[PairedDifference, ...]:
    """Compare what stands beside the candidate with each other: tuned with base says what the training alone gained."""
    scored = [one for label, one in evidence.evaluations.items() if label != evidence.candidate and one is not None]
    names = [label for label, one in evidence.evaluations.items() if label != evidence.candidate and one is not None]
    return tuple(
        paired_difference(
            one.scores, other.scores, one.ids, other.ids, baseline_name=names[at], candidate_name=names[later]
        )
        for at, one in enumerate(scored)
        for later, other in enumerate(scored)
        if at < later and one.ids == other.ids and one.result.headline == other.result.headline
    )


def _scored(evidence: GateEvidence, label: str) -> Scored:
    found = evidence.evaluations.get(label)
    if found is None:
        known = ", ".join(sorted(name for name, one in evidence.evaluations.items() if one is not None))
        raise InvalidRequest(f"the gate was given no evaluation {label!r}", where=f"evaluations.{label}",
                             hint=f"it was given: {known or 'none'}")  # fmt: skip
    return found


def _pair(evidence: GateEvidence, label: str) -> tuple[Scored, Scored]:
    """Return the candidate and what it is compared with, after checking that they are of the same examples."""
    candidate, other = _scored(evidence, evidence.candidate), _scored(evidence, label)
    for what, one, two in (
        ("task", candidate.result.task, other.result.task),
        ("headline", candidate.result.headline, other.result.headline),
        ("dataset", candidate.result.dataset.digest, other.result.dataset.digest),
    ):
        if one != two:
            raise InvalidRequest(f"{evidence.candidate} and {label} were not evaluated alike: {what} {one} and {two}",
                                 where=f"evaluations.{label}", hint="evaluate both with the same spec")  # fmt: skip
    if candidate.ids != other.ids:
        common = len(set(candidate.ids) & set(other.ids))
        raise InvalidRequest(
            f"{evidence.candidate} ({len(candidate.ids)} examples) and {label} ({len(other.ids)}) are not paired: "
            f"{common} examples in common, in the same order or not",
            where=f"evaluations.{label}", hint="evaluate both on the same dataset with the same `limit`",
        )  # fmt: skip
    return candidate, other


def _difference(rule: _Comparing, evidence: GateEvidence) -> PairedDifference:
    candidate, other = _pair(evidence, rule.than)
    return paired_difference(
        other.scores, candidate.scores, other.ids, candidate.ids,
        confidence=rule.confidence, baseline_name=rule.than, candidate_name=evidence.candidate,
    )  # fmt: skip


def _settled(rule: _Comparing, evidence: GateEvidence, name: str) -> RuleVerdict | None:
    """Return the verdict of a comparison that needs no numbers; None for any other."""
    served = _scored(evidence, evidence.candidate).result.served
    candidate = (served.model.digest, None if served.adapter is None else served.adapter.digest)
    if rule.in_production:
        if evidence.in_production is None:
            return RuleVerdict(rule=name, verdict="pass", sentence=f"{name}: nothing is in production yet")
        if (evidence.in_production, evidence.in_production_adapter) == candidate:
            return RuleVerdict(rule=name, verdict="pass", sentence=f"{name}: this very model is already in production")
    return None


def _told(rule: _Comparing, evidence: GateEvidence, found: PairedDifference) -> str:
    share = f"{100 * found.confidence:g} %"
    return (
        f"{_compared(_scored(evidence, evidence.candidate).result)} of {evidence.candidate} less {rule.than}: {found.difference:+.4f} "
        f"({share} interval {found.low:+.4f} to {found.high:+.4f}, p = {found.p_value:.2g}, {found.n} examples)"
    )


def _compared(result: EvaluationResult) -> str:
    """Return the words for what the examples' scores are: where less of the headline is better, something else."""
    if result.headline == "perplexity":
        return "log-likelihood a token (more is better, as less perplexity is)"
    return result.headline if result.higher_is_better.get(result.headline, True) else f"score (by {result.headline})"


def _numbers(found: PairedDifference, bar: float) -> dict[str, float | int | str | None]:
    return {
        "difference": found.difference, "low": found.low, "high": found.high, "p_value": found.p_value, "n": found.n,
        "bar": bar,
    }  # fmt: skip


def _better(rule: Better, evidence: GateEvidence) -> RuleVerdict:
    name = f"better than {rule.than}"
    if (settled := _settled(rule, evidence, name)) is not None:
        return settled
    return _against(rule.min_gain, name, rule, evidence)


def _not_worse(rule: NotWorse, evidence: GateEvidence) -> RuleVerdict:
    name = f"not worse than {rule.than} by {rule.margin:g}"
    if (settled := _settled(rule, evidence, name)) is not None:
        return settled
    return _against(-rule.margin, name, rule, evidence)


def _against(bar: float, name: str, rule: _Comparing, evidence: GateEvidence) -> RuleVerdict:
    """Judge by where the whole interval of the difference is: above the bar, below it, or neither."""
    found = _difference(rule, evidence)
    told = f"{name}: {_told(rule, evidence, found)}"
    if found.low > bar:
        verdict, end = "pass", f"; all of the interval is above {bar:+.4f}"
    elif found.high < bar:
        verdict, end = "fail", f"; all of the interval is below {bar:+.4f}"
    else:
        verdict, end = "inconclusive", f"; the interval covers {bar:+.4f}{_needed(found, bar)}"
    return RuleVerdict(
        rule=name, verdict=_as(verdict), sentence=told + end, numbers=_numbers(found, bar), comparison=found
    )


def _needed(found: PairedDifference, bar: float) -> str:
    """Say how many examples would tell the difference from the bar with 80 % power, if it is what was seen.

    From the interval's width, which falls with the square root of the examples: n ((z_a + z_b) / z_a)^2 (h / (d - bar))^2,
    where h is half the width.
    """
    distance, half = abs(found.difference - bar), (found.high - found.low) / 2
    if not distance or not half:
        return ""
    normal = NormalDist()
    z = normal.inv_cdf(0.5 + found.confidence / 2)
    needed = found.n * ((z + normal.inv_cdf(0.8)) / z * half / distance) ** 2
    return f", about {math.ceil(needed):,} examples would tell" if needed < _MANY else ""


def _as(verdict: str) -> Judgement:
    assert verdict in {"pass", "fail", "inconclusive"}
    return verdict  # type: ignore[return-value]


def _max_size(rule: MaxSize, evidence: GateEvidence) -> RuleVerdict:
    size = _scored(evidence, evidence.candidate).result.served.size_bytes
    limits = [] if rule.bytes is None else [float(rule.bytes)]
    if rule.ratio is not None:
        if rule.than is not None:
            reference = _scored(evidence, rule.than).result.served.size_bytes
        elif evidence.reference_bytes is not None:
            reference = evidence.reference_bytes
        else:
            raise InvalidRequest("`max_size` by ratio has nothing to compare with", where="rules",
                                 hint="give `reference_bytes`, or `than`")  # fmt: skip
        limits.append(rule.ratio * reference)
    return _under("size", size, _limit(limits, "max_size", "bytes"), 1e6, "MB")


def _max_latency(rule: MaxLatency, evidence: GateEvidence) -> RuleVerdict:
    def of(label: str) -> float:
        served = _scored(evidence, label).result.served
        return served.latency_p50_seconds if rule.percentile == "p50" else served.latency_p95_seconds

    limits = [] if rule.seconds is None else [rule.seconds]
    if rule.ratio is not None:
        if rule.than is None:
            raise InvalidRequest(
                "`max_latency` by ratio has nothing to compare with", where="rules", hint="give `than`"
            )
        limits.append(rule.ratio * of(rule.than))
    limit = _limit(limits, "max_latency", "seconds")
    return _under(f"latency {rule.percentile}", of(evidence.candidate), limit, 1e-3, "ms")


def _limit(limits: list[float], rule: str, name: str) -> float:
    if not limits:
        raise InvalidRequest(f"`{rule}` has no limit", where="rules", hint=f"give `{name}` or `ratio`")
    return min(limits)


def _under(what: str, value: float, limit: float, unit: float, unit_name: str) -> RuleVerdict:
    passes = value <= limit
    sentence = (
        f"{what}: {value / unit:,.1f} {unit_name} is {'within' if passes else 'over'} "
        f"the limit of {limit / unit:,.1f} {unit_name}"
    )
    return RuleVerdict(rule=what, verdict="pass" if passes else "fail", sentence=sentence,
                       numbers={"value": value, "limit": limit})  # fmt: skip


def _min_value(rule: MinValue, evidence: GateEvidence) -> RuleVerdict:
    result = _scored(evidence, evidence.candidate).result
    metric = rule.metric or result.headline
    found = result.metrics.get(metric)
    if found is None:
        raise InvalidRequest(f"the evaluation has no metric {metric!r}", where="rules",
                             hint=f"it has: {', '.join(sorted(result.metrics))}")  # fmt: skip
    low = found.value if found.low is None else found.low
    high = found.value if found.high is None else found.high
    more = result.higher_is_better.get(metric, True)  # of perplexity, less is better: there the value is a maximum
    good, bad = (low >= rule.value, high < rule.value) if more else (high <= rule.value, low > rule.value)
    verdict = "pass" if good else "fail" if bad else "inconclusive"
    sentence = (
        f"{metric} of {evidence.candidate}: {found.value:.4f} (interval {low:.4f} to {high:.4f}, {found.n} examples) "
        f"against at {'least' if more else 'most'} {rule.value:g}"
    )
    numbers: dict[str, float | int | str | None] = {
        "value": found.value, "low": low, "high": high, "bar": rule.value, "n": found.n,
    }  # fmt: skip
    return RuleVerdict(
        rule=f"{metric} at least {rule.value:g}", verdict=_as(verdict), sentence=sentence, numbers=numbers
    )


_JUDGES: Mapping[str, Callable[..., RuleVerdict]] = {
    "better": _better, "not_worse": _not_worse, "max_size": _max_size, "max_latency": _max_latency,
    "min_value": _min_value,
}  # fmt: skip
