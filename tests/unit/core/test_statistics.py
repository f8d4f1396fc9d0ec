"""Intervals cover what they say, and comparisons refuse what is not paired."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from burnish.core.statistics import (
    NotEnoughExamples,
    Unpaired,
    bootstrap_interval,
    mcnemar_exact,
    mean_interval,
    needed_n_mean,
    needed_n_paired,
    newcombe_paired,
    paired_difference,
    percentile,
    proportion,
    t_cdf,
    t_quantile,
    wilson_interval,
)

counts = st.integers(0, 60)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy(case: tuple[int, int]) -> None:
    successes, n = case
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    low, high = wilson_interval(successes, n)
    assert low == pytest.approx(expected.low, abs=1e-9)
    assert high == pytest.approx(expected.high, abs=1e-9)
    assert 0 <= low <= successes / n <= high <= 1


def test_wilson_refuses_no_examples_and_impossible_counts() -> None:
    with pytest.raises(NotEnoughExamples):
        wilson_interval(0, 0)
    with pytest.raises(ValueError, match="5 successes of 4"):
        wilson_interval(5, 4)


@given(st.floats(-40, 40), st.integers(1, 2000))
def test_t_distribution_agrees_with_scipy(t: float, freedom: int) -> None:
    assert t_cdf(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), abs=1e-8)  # near 0 the two differ by 1e-10


@given(st.floats(0.5, 0.9999), st.integers(1, 500))
def test_t_quantile_inverts_the_distribution(share: float, freedom: int) -> None:
    assert t_cdf(t_quantile(share, freedom), freedom) == pytest.approx(share, abs=1e-9)


def test_mean_interval_is_students() -> None:
    values = [2.0, 4.0, 4.0, 5.0, 7.0, 9.0]
    expected = stats.t.interval(0.95, 5, loc=stats.tmean(values), scale=stats.sem(values))
    assert mean_interval(values) == pytest.approx(expected)
    assert mean_interval([3.0]) == (3.0, 3.0)
    with pytest.raises(NotEnoughExamples):
        mean_interval([])


@given(counts, counts)
def test_mcnemar_agrees_with_the_binomial_test(only_first: int, only_second: int) -> None:
    total = only_first + only_second
    expected = stats.binomtest(only_first, total, 0.5).pvalue if total else 1.0
    assert mcnemar_exact(only_first, only_second) == pytest.approx(expected, abs=1e-12)


@given(counts, counts, counts, counts)
def test_newcombe_holds_the_difference_and_is_antisymmetric(both: int, first: int, second: int, neither: int) -> None:
    n = both + first + second + neither
    if n == 0:
        return
    low, high = newcombe_paired(both, first, second, neither)
    assert -1 <= low <= (first - second) / n + 1e-12
    assert (first - second) / n - 1e-12 <= high <= 1
    turned = newcombe_paired(both, second, first, neither)
    assert turned == pytest.approx((-high, -low), abs=1e-12)


def test_newcombe_of_the_papers_worked_table() -> None:
    """Newcombe (1998), table III, method 10."""
    assert newcombe_paired(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)


def _correlated(generator: random.Random, n: int, first: float, second: float) -> list[tuple[int, int]]:
    """Answers of two models that share the difficulty of each example."""
    pairs = []
    for _ in range(n):
        shared, own, other = generator.random(), generator.random(), generator.random()
        hard = 0.6
        a = int((shared if generator.random() < hard else own) < first)
        b = int((shared if generator.random() < hard else other) < second)
        pairs.append((a, b))
    return pairs


@pytest.mark.parametrize(("first", "second", "n"), [(0.6, 0.6, 100), (0.6, 0.75, 200), (0.93, 0.96, 150)])
def test_newcombe_covers_the_truth(first: float, second: float, n: int) -> None:
    generator = random.Random(f"{first}{second}{n}")
    rounds = 1000
    covered = 0
    for _ in range(rounds):
        pairs = _correlated(generator, n, second, first)
        both = sum(a and b for a, b in pairs)
        only_a = sum(a and not b for a, b in pairs)
        only_b = sum(b and not a for a, b in pairs)
        low, high = newcombe_paired(both, only_a, only_b, n - both - only_a - only_b)
        covered += low <= second - first <= high
    assert 0.93 <= covered / rounds <= 0.985


def test_equal_models_are_called_different_at_most_as_often_as_promised() -> None:
    generator = random.Random(5)
    rounds = 1000
    called = 0
    for _ in range(rounds):
        pairs = _correlated(generator, 200, 0.7, 0.7)
        ids = [str(i) for i in range(200)]
        found = paired_difference([a for a, _ in pairs], [b for _, b in pairs], ids, ids)
        called += found.p_value < 0.05
    assert called / rounds <= 0.06


def test_bootstrap_interval_covers_the_mean_and_is_always_the_same() -> None:
    generator = random.Random(7)
    rounds = 100
    covered = 0
    for _ in range(rounds):
        values = [generator.gauss(1.0, 2.0) for _ in range(40)]
        low, high = bootstrap_interval(values)
        covered += low <= 1.0 <= high
    assert bootstrap_interval(values) == (low, high)
    assert covered / rounds >= 0.88


def test_paired_proportions_tell_everything() -> None:
    ids = [f"e{i}" for i in range(100)]
    baseline = [1] * 60 + [0] * 40
    candidate = [1] * 55 + [0] * 5 + [1] * 20 + [0] * 20
    found = paired_difference(baseline, candidate, ids, ids, baseline_name="base", candidate_name="tuned")
    assert found.method == "mcnemar_exact_newcombe"
    assert (found.baseline, found.candidate) == ("base", "tuned")
    assert found.difference == pytest.approx(0.15)
    assert (found.only_candidate, found.only_baseline, found.n) == (20, 5, 100)
    assert 0 < found.low < 0.15 < found.high
    assert found.p_value == pytest.approx(stats.binomtest(20, 25, 0.5).pvalue)
    assert found.needed_n == 85  # (1.96 * 0.5 + 0.842 * sqrt(0.25 - 0.0225))^2 / 0.0225


def test_paired_means_use_t_and_bootstrap() -> None:
    generator = random.Random(3)
    baseline = [generator.random() for _ in range(80)]
    candidate = [score + generator.gauss(0.1, 0.2) for score in baseline]
    ids = [str(i) for i in range(80)]
    found = paired_difference(baseline, candidate, ids, ids)
    assert found.method == "paired_t_bootstrap"
    assert found.p_value == pytest.approx(stats.ttest_rel(candidate, baseline).pvalue, abs=1e-9)
    assert found.low < found.difference < found.high


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=2, max_size=30))
@settings(max_examples=25, deadline=None)
def test_the_difference_turns_with_the_models(pairs: list[tuple[float, float]]) -> None:
    ids = [str(i) for i in range(len(pairs))]
    one = paired_difference([a for a, _ in pairs], [b for _, b in pairs], ids, ids)
    other = paired_difference([b for _, b in pairs], [a for a, _ in pairs], ids, ids)
    assert one.difference == pytest.approx(-other.difference, abs=1e-12)
    assert one.p_value == pytest.approx(other.p_value, abs=1e-9)
    assert 0 <= one.p_value <= 1


def test_equal_scores_are_no_difference() -> None:
    for scores in ([1, 0, 1], [0.2, 0.4, 0.9]):
        found = paired_difference(scores, scores, ["a", "b", "c"], ["a", "b", "c"])
        assert (found.difference, found.p_value, found.needed_n) == (0, 1, None)


@pytest.mark.parametrize(
    ("baseline_ids", "candidate_ids", "said"),
    [
        (["a", "b"], ["b", "a"], "example 1 is a in one and b in the other"),
        (["a", "b"], ["a"], "2 examples against 1"),
    ],
)
def test_unpaired_examples_are_refused(baseline_ids: list[str], candidate_ids: list[str], said: str) -> None:
    with pytest.raises(Unpaired, match=said) as caught:
        paired_difference([1.0] * len(baseline_ids), [0.0] * len(candidate_ids), baseline_ids, candidate_ids)
    assert caught.value.hint


def test_no_examples_and_infinite_scores_are_refused() -> None:
    with pytest.raises(NotEnoughExamples):
        paired_difference([], [], [], [])
    with pytest.raises(Unpaired):
        paired_difference([1.0], [1.0, 2.0], ["a"], ["a"])
    with pytest.raises(ValueError, match="finite"):
        paired_difference([math.nan], [1.0], ["a"], ["a"])


def test_needed_examples_really_give_the_power() -> None:
    needed = needed_n_paired(0.20, 0.08)
    assert needed is not None
    generator = random.Random(11)
    rounds = 600
    found = 0
    for _ in range(rounds):
        draws = [generator.random() for _ in range(needed)]
        only_candidate = sum(draw < 0.20 for draw in draws)
        only_baseline = sum(0.20 <= draw < 0.28 for draw in draws)
        found += mcnemar_exact(only_candidate, only_baseline) < 0.05
    assert 0.7 <= found / rounds <= 0.88  # the exact test is a little conservative
    assert needed_n_paired(0.1, 0.1) is None
    assert needed_n_mean(0, 1) is None
    assert needed_n_mean(0.5, 1) == 32


def test_percentile_and_proportion() -> None:
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile([1, 2], 0.95) == pytest.approx(1.95)
    with pytest.raises(NotEnoughExamples):
        percentile([], 0.5)
    estimate = proportion(3, 4)
    assert (estimate.value, estimate.n) == (0.75, 4)
