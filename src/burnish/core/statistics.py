"""Intervals and paired comparisons of evaluation scores. Pure functions, standard library only.

Sources: Wilson (1927) for one proportion; Newcombe (1998), "Improved confidence intervals for the difference between
binomial proportions based on paired data", Statistics in Medicine 17:2635-2650, method 10 for paired proportions;
the exact McNemar test (binomial on the discordant pairs); percentile bootstrap (Efron) with a fixed seed.
"""

import math
import random
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

from burnish.core.errors import BurnishError
from burnish.core.specs.base import Estimate
from burnish.core.specs.evaluation import PairedDifference

_BOOTSTRAP_DRAWS = 2000
_SEED = 20_240_229


class Unpaired(BurnishError):
    """Two evaluations that are not of the same examples cannot be compared example by example."""

    code = "unpaired_examples"
    status = 422


class NotEnoughExamples(BurnishError):
    """Fewer examples than the computation needs."""

    code = "not_enough_examples"
    status = 422


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval for a proportion, within [0, 1].

    Raises:
        NotEnoughExamples: ``n`` is 0.
        ValueError: ``successes`` is not within 0..n, or the confidence not within (0, 1).
    """
    if n <= 0:
        raise NotEnoughExamples("a proportion of no examples has no interval", hint="evaluate on at least one row")
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    z = _z(confidence)
    share = successes / n
    middle = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if successes == 0 else max(0.0, (middle - spread) / scale)
    high = 1.0 if successes == n else min(1.0, (middle + spread) / scale)
    return low, high


def proportion(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """Return a proportion with its Wilson interval."""
    low, high = wilson_interval(successes, n, confidence)
    return Estimate(value=successes / n, low=low, high=high, n=n)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return Student's t interval for a mean. One value, or equal ones, give an interval of no width.

    Raises:
        NotEnoughExamples: no values.
    """
    if not values:
        raise NotEnoughExamples("the mean of no values has no interval", hint="evaluate on at least one row")
    middle = fmean(values)
    if len(values) == 1:
        return middle, middle
    spread = t_quantile((1 + confidence) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return middle - spread, middle + spread


def mean(values: Sequence[float], confidence: float = 0.95, unit: str = "") -> Estimate:
    """Return a mean with its t interval."""
    low, high = mean_interval(values, confidence)
    return Estimate(value=fmean(values), low=low, high=high, n=len(values), unit=unit)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which ``share`` (0 to 1) of the values lie, interpolated.

    Raises:
        NotEnoughExamples: no values.
    """
    if not values:
        raise NotEnoughExamples("a percentile of no values")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def paired_difference(
    baseline_scores: Sequence[float],
    candidate_scores: Sequence[float],
    baseline_ids: Sequence[str],
    candidate_ids: Sequence[str],
    *,
    confidence: float = 0.95,
    baseline_name: str = "baseline",
    candidate_name: str = "candidate",
) -> PairedDifference:
    """Compare two models on the same examples: ``candidate - baseline``.

    Scores that are all 0 or 1 get the exact McNemar test and Newcombe's interval; others a paired t test and a
    bootstrap interval with a fixed seed, so that the same scores always give the same answer.

    Args:
        baseline_scores: One score an example; higher is better.
        candidate_scores: The same examples in the same order.
        baseline_ids: The examples' ids.
        candidate_ids: Must equal ``baseline_ids``.
        confidence: Of the interval.
        baseline_name: What to call it.
        candidate_name: What to call it.

    Raises:
        Unpaired: ids or lengths differ.
        NotEnoughExamples: no examples.
        ValueError: a score is not finite.
    """
    _require_pairs(baseline_scores, candidate_scores, baseline_ids, candidate_ids)
    if not all(math.isfinite(score) for score in (*baseline_scores, *candidate_scores)):
        raise ValueError("a score is not a finite number")
    pairs = list(zip(baseline_scores, candidate_scores, strict=True))
    if all(score in (0, 1) for pair in pairs for score in pair):
        return _paired_proportions(pairs, confidence, baseline_name, candidate_name)
    return _paired_means(pairs, confidence, baseline_name, candidate_name)


def _require_pairs(
    baseline_scores: Sequence[float], candidate_scores: Sequence[float], baseline_ids: Sequence[str], candidate_ids: Sequence[str]
) -> None:  # fmt: skip
    if len(baseline_scores) != len(baseline_ids) or len(candidate_scores) != len(candidate_ids):
        raise Unpaired("there are not as many ids as scores")
    if not baseline_ids and not candidate_ids:
        raise NotEnoughExamples("there are no examples to compare", hint="evaluate both models on at least one row")
    if list(baseline_ids) == list(candidate_ids):
        return
    if len(baseline_ids) != len(candidate_ids):
        what = f"{len(baseline_ids)} examples against {len(candidate_ids)}"
    else:
        place = next(i for i, (a, b) in enumerate(zip(baseline_ids, candidate_ids, strict=True)) if a != b)
        what = f"example {place + 1} is {baseline_ids[place]} in one and {candidate_ids[place]} in the other"
    raise Unpaired(
        f"the two evaluations are not of the same examples: {what}",
        hint="evaluate both models on the same dataset artifact, with the same limit",
    )


def _paired_proportions(
    pairs: Sequence[tuple[float, float]], confidence: float, baseline: str, candidate: str
) -> PairedDifference:
    n = len(pairs)
    both = sum(a == 1 and b == 1 for a, b in pairs)
    only_baseline = sum(a == 1 and b == 0 for a, b in pairs)
    only_candidate = sum(a == 0 and b == 1 for a, b in pairs)
    neither = n - both - only_baseline - only_candidate
    low, high = newcombe_paired(both, only_candidate, only_baseline, neither, confidence)
    return PairedDifference(
        baseline=baseline, candidate=candidate, difference=(only_candidate - only_baseline) / n, low=low, high=high,
        confidence=confidence, p_value=mcnemar_exact(only_candidate, only_baseline), method="mcnemar_exact_newcombe",
        n=n, only_candidate=only_candidate, only_baseline=only_baseline,
        needed_n=needed_n_paired(only_candidate / n, only_baseline / n, confidence=confidence),
    )  # fmt: skip


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided exact McNemar p-value: twice the smaller binomial tail at 1/2, at most 1."""
    n = only_first + only_second
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / (1 << n))


def newcombe_paired(
    both: int, only_first: int, only_second: int, neither: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return Newcombe's interval (1998, method 10) for the difference ``first - second`` of paired proportions.

    It joins the two Wilson intervals by the correlation phi of the pairs, with a continuity correction on phi.
    """
    n = both + only_first + only_second + neither
    first, second = both + only_first, both + only_second
    low1, high1 = wilson_interval(first, n, confidence)
    low2, high2 = wilson_interval(second, n, confidence)
    p1, p2 = first / n, second / n
    phi = _phi(both, only_first, only_second, neither)
    difference = p1 - p2
    down, up = p1 - low1, high2 - p2
    lower = math.sqrt(max(0.0, down * down - 2 * phi * down * up + up * up))
    down, up = p2 - low2, high1 - p1
    upper = math.sqrt(max(0.0, down * down - 2 * phi * down * up + up * up))
    return max(-1.0, difference - lower), min(1.0, difference + upper)


def _phi(both: int, only_first: int, only_second: int, neither: int) -> float:
    n = both + only_first + only_second + neither
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    if margins == 0:
        return 0.0
    cross = both * neither - only_first * only_second
    if cross > 0:
        cross = max(cross - n / 2, 0)  # type: ignore[assignment]
    return cross / math.sqrt(margins)


def _paired_means(
    pairs: Sequence[tuple[float, float]], confidence: float, baseline: str, candidate: str
) -> PairedDifference:
    differences = [b - a for a, b in pairs]
    n = len(differences)
    middle = fmean(differences)
    spread = stdev(differences) if n > 1 else 0.0
    low, high = bootstrap_interval(differences, confidence)
    if n < 2:
        p_value = 1.0
    elif spread == 0:
        p_value = 1.0 if middle == 0 else 0.0
    else:
        p_value = 2 * (1 - t_cdf(abs(middle) / (spread / math.sqrt(n)), n - 1))
    return PairedDifference(
        baseline=baseline, candidate=candidate, difference=middle, low=low, high=high, confidence=confidence,
        p_value=min(1.0, max(0.0, p_value)), method="paired_t_bootstrap", n=n,
        only_candidate=sum(d > 0 for d in differences), only_baseline=sum(d < 0 for d in differences),
        needed_n=needed_n_mean(middle, spread, confidence=confidence),
    )  # fmt: skip


def bootstrap_interval(values: Sequence[float], confidence: float = 0.95, seed: int = _SEED) -> tuple[float, float]:
    """Return a percentile bootstrap interval for a mean: 2000 resamples, always the same ones for a seed."""
    if not values:
        raise NotEnoughExamples("the mean of no values has no interval")
    draw = random.Random(seed)  # noqa: S311 - resampling, not a secret
    n = len(values)
    means = sorted(fmean(draw.choices(values, k=n)) for _ in range(_BOOTSTRAP_DRAWS))
    tail = (1 - confidence) / 2
    return percentile(means, tail), percentile(means, 1 - tail)


def needed_n_paired(
    only_candidate: float, only_baseline: float, *, power: float = 0.8, confidence: float = 0.95
) -> int | None:
    """Return how many examples McNemar's test needs to find a difference of these shares of discordant pairs.

    Connor (1987): n = (z_a sqrt(p) + z_b sqrt(p - d^2))^2 / d^2 with p the sum and d the difference of the shares.
    None when there is no difference to find.
    """
    difference = only_candidate - only_baseline
    if difference == 0:
        return None
    discordant = only_candidate + only_baseline
    alpha, beta = _z(confidence), NormalDist().inv_cdf(power)
    root = alpha * math.sqrt(discordant) + beta * math.sqrt(max(0.0, discordant - difference * difference))
    return max(1, math.ceil(root * root / (difference * difference)))


def needed_n_mean(difference: float, deviation: float, *, power: float = 0.8, confidence: float = 0.95) -> int | None:
    """Return how many pairs a t test needs for a mean difference of this size and standard deviation."""
    if difference == 0:
        return None
    total = _z(confidence) + NormalDist().inv_cdf(power)
    return max(2, math.ceil((total * deviation / difference) ** 2))


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence is within 0 and 1, not {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def t_cdf(t: float, freedom: int) -> float:
    """Return P(T <= t) of Student's distribution, through the regularized incomplete beta function."""
    if t * t < freedom:  # near the middle, the part between 0 and t keeps more digits than 1 less a tail
        middle = 0.5 * _incomplete_beta(0.5, freedom / 2, t * t / (freedom + t * t))
        return 0.5 + math.copysign(middle, t)
    tail = 0.5 * _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))
    return 1 - tail if t >= 0 else tail


def t_quantile(share: float, freedom: int) -> float:
    """Return the t with ``t_cdf(t) = share``, for a share of at least 1/2, by bisection."""
    low, high = 0.0, 2.0
    while t_cdf(high, freedom) < share:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < share else (low, middle)
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Return I_x(a, b) by its continued fraction (Numerical Recipes 6.4), accurate to about 1e-14."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(a, b, x) / a
    return 1 - front * _beta_fraction(b, a, 1 - x) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    result = d
    for m in range(1, 400):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 + term * d
            d = 1 / (d if abs(d) > tiny else tiny)
            c = 1 + term / c
            c = c if abs(c) > tiny else tiny
            result *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return result
