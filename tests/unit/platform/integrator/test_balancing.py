"""Which instance gets a call."""

import random
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.core.protocol import Description
from burnish.core.states import InstanceState
from burnish.platform.integrator.balancing import Candidate, OfType, PeakLatency, better, costs_of, pick
from burnish.platform.integrator.directory import Directory
from burnish.platform.integrator.identity import InstanceNumber, embedded_id
from burnish.platform.integrator.schemas import Instance


def instance(
    component_id: str, status: InstanceState = InstanceState.HEALTHY, load: float = 0.0, *, described: bool = True,
    weight: float = 1.0, warm: frozenset[str] = frozenset(),
) -> Instance:  # fmt: skip
    description = Description(component_type="evaluation", version="1") if described else None
    return Instance(
        component_id=component_id, component_type="evaluation", api_endpoint="http://x", status=status,
        description=description, load=load, weight=weight, warm=warm,
    )  # fmt: skip


def of_type(*instances: Instance) -> OfType:
    return Directory.of(instances).by_type["evaluation"]


def shares(
    found: OfType, busy: Mapping[str, Candidate] | None = None, prefer: str | None = None, refused: frozenset[str] = frozenset()
) -> Counter[str]:  # fmt: skip
    """Return who gets how many of 1,000 calls."""
    dice = random.Random(7)
    known = busy or {}
    counts: Counter[str] = Counter()
    for _ in range(1000):
        one = pick(
            found, prefer, lambda i: i.component_id not in refused, lambda i: known.get(i.component_id, Candidate(i)), dice.random
        )  # fmt: skip
        counts["nobody" if one is None else one.component_id] += 1
    return counts


def test_only_described_and_living_instances_are_called_healthy_first() -> None:
    every = [instance(f"i-{state}", state) for state in InstanceState] + [instance("undescribed", described=False)]
    assert set(shares(of_type(*every))) == {"i-healthy"}
    assert set(shares(of_type(*every), refused=frozenset({"i-healthy"}))) == {"i-degraded"}
    assert set(shares(of_type(*every), refused=frozenset({"i-healthy", "i-degraded"}))) == {"nobody"}


def test_one_whose_last_check_failed_comes_after_the_others() -> None:
    doubtful = instance("doubtful").model_copy(update={"failures": 1})
    assert set(shares(of_type(doubtful, instance("well")))) == {"well"}
    assert set(shares(of_type(doubtful))) == {"doubtful"}


def test_equal_ones_share_equally_and_by_weight() -> None:
    even = shares(of_type(*(instance(str(n)) for n in range(4))))
    assert all(200 < even[str(n)] < 300 for n in range(4)), even
    three_to_one = shares(of_type(instance("a", weight=3), instance("b")))
    assert 680 < three_to_one["a"] < 820, three_to_one
    assert set(shares(of_type(instance("a", weight=0), instance("b")))) == {"b"}
    assert set(shares(of_type(instance("a", weight=0)))) == {"a"}, "the only one there is"


@pytest.mark.parametrize("workers", [1, 2, 4, 16, 64])
@pytest.mark.parametrize("weights", [(1.0, 0.1), (0.1, 1.0), (50.0, 5.0)])
def test_shares_are_those_of_the_weights_however_many_calls_are_in_progress(
    workers: int, weights: tuple[float, float]
) -> None:
    """Breaks with: an instance of little weight that gets a call whenever it is idle."""
    dice = random.Random(7)
    both = [instance(name, weight=weight) for name, weight in zip("ab", weights, strict=True)]
    found, counts, running = of_type(*both), Counter[str](), list[str]()
    for _ in range(4000):
        if len(running) == workers:  # all take the same time: the oldest ends
            running.pop(0)
        one = pick(
            found, None, lambda _: True, lambda i: Candidate(i, running.count(i.component_id), 0.01), dice.random
        )
        assert one is not None
        running.append(one.component_id)
        counts[one.component_id] += 1
    lesser = counts["b" if weights[0] > weights[1] else "a"] / 4000
    assert 0.05 < lesser < 0.14, counts


def test_the_slower_and_the_busier_get_less() -> None:
    a, b, c = instance("a"), instance("b"), instance("c", load=5)
    slow = {"a": Candidate(a, latency=0.01), "b": Candidate(b, latency=0.1)}
    assert set(shares(of_type(a, b), slow)) == {"a"}
    waiting = {"a": Candidate(a, in_progress=9, latency=0.01), "b": Candidate(b, latency=0.05)}
    assert set(shares(of_type(a, b), waiting)) == {"b"}, "nine in the queue of the faster take longer"
    assert shares(of_type(a, b, c))["c"] == 0


def test_where_the_model_is_warm_comes_first_but_not_before_healthy() -> None:
    cold, warm = instance("cold"), instance("warm", warm=frozenset({"m"}))
    assert set(shares(of_type(cold, warm), prefer="m")) == {"warm"}
    assert set(shares(of_type(cold, warm), prefer="m", refused=frozenset({"warm"}))) == {"cold"}
    ill = instance("ill", InstanceState.DEGRADED, warm=frozenset({"m"}))
    assert set(shares(of_type(cold, ill), prefer="m")) == {"cold"}
    assert len(shares(of_type(cold, warm), prefer="another")) == 2


def test_inside_this_process_when_equal() -> None:
    own, far = Candidate(instance("own"), embedded=True), Candidate(instance("far"))
    assert better(far, own, random.random) is own
    busy = Candidate(instance("own"), in_progress=3, embedded=True)
    assert better(busy, far, random.random) is far


def test_one_that_was_never_called_is_tried() -> None:
    new, known = Candidate(instance("new")), Candidate(instance("known"), latency=2.0)
    picked = Counter(better(new, known, random.Random(1).random).instance.component_id for _ in range(1))
    assert costs_of(new, unknown=2.0) == costs_of(known) == (2.0, 2.0)
    assert picked.total() == 1


def test_a_peak_counts_at_once_and_is_forgotten() -> None:
    latency = PeakLatency(0.01, now=0)
    latency.observe(1.0, now=1)
    assert latency.value(1) == 1.0
    latency.observe(0.01, now=1.1)
    assert 0.9 < latency.value(1.1) < 1.0, "one fast answer does not make it fast"
    assert latency.value(60) < 0.02


@given(st.integers(1, 40), st.integers(0, 2**32), st.sets(st.integers(0, 39)))
def test_one_is_found_whenever_there_is_one(size: int, seed: int, refused: set[int]) -> None:
    group = of_type(*(instance(str(n)) for n in range(size)))
    dice = random.Random(seed)
    found = pick(group, None, lambda i: int(i.component_id) not in refused, Candidate, dice.random)
    usable = {n for n in range(size) if n not in refused}
    assert (found is None) == (not usable)
    assert found is None or int(found.component_id) in usable


def test_paths_lead_to_the_longest_prefix() -> None:
    def served(component_type: str, *routes: str, status: InstanceState = InstanceState.HEALTHY) -> Instance:
        description = Description(component_type=component_type, version="1", routes=routes)
        return Instance(
            component_id=component_type, component_type=component_type, api_endpoint="http://x", status=status,
            description=description,
        )  # fmt: skip

    found = Directory.of([served("a", "/platform/a/"), served("b", "/platform/a/b", status=InstanceState.LOST)])
    cases = {
        "/platform/a": "a", "/platform/a/": "a", "/platform/a/1/2": "a", "/platform/a/b/c": "b", "/platform/ab": None,
        "/": None, "": None, "/platform": None, "/platform/a/bc": "a",
    }  # fmt: skip
    assert {path: found.route_of(path) for path in cases} == cases
    assert found.types == {"a"}


def test_a_number_is_kept_for_the_process_and_free_after_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("run")
    first, second = InstanceNumber(folder), InstanceNumber(folder)
    assert (first.number, second.number) == (1, 2)
    first.release()
    assert InstanceNumber(folder).number == 1
    assert embedded_id("evaluation", "my host/1", 3) == "evaluation-my-host-1-3"
