"""Admission is pure: who starts, and in words why the others wait."""

from hypothesis import given
from hypothesis import strategies as st

from burnish.core.specs.base import Resources
from burnish.platform.jobs.admission import Capacity, Holding, Waiting, admit, never_fits

GIB = 1 << 30
NODE = Capacity(cpus=4, memory_bytes=8 * GIB, gpus=1, disk_bytes=100 * GIB)


def need(cpus: int = 1, memory: float = 1, gpus: int = 0, disk: float = 0) -> Resources:
    return Resources(cpus=cpus, memory_bytes=int(memory * GIB), gpus=gpus, disk_bytes=int(disk * GIB))


def waiting(job_id: str, wants: Resources, waited: float = 0.0) -> Waiting:
    return Waiting(job_id, wants, waited)


def test_what_fits_starts_in_the_queues_order() -> None:
    decision = admit([waiting("a", need(2)), waiting("b", need(2)), waiting("c", need(1))], [], NODE)
    assert decision.start == ("a", "b")
    assert decision.reasons == {"c": "waits for 1 cpu; a holds 2, b holds 2"}


def test_the_reason_names_what_lacks_and_who_holds_it() -> None:
    held = [Holding("job_x", need(2)), Holding("replica rep_1", need(1, 6))]
    reasons = admit(
        [waiting("a", need(3, 0.5)), waiting("b", need(1, 4)), waiting("c", need(gpus=2))], held, NODE
    ).reasons
    assert reasons["a"] == "waits for 3 cpus; job_x holds 2, replica rep_1 holds 1"
    assert reasons["b"] == "waits for 4.0 GiB of memory; replica rep_1 holds 6.0 GiB, job_x holds 1.0 GiB"
    assert reasons["c"] == "needs 2 gpus (the node has 1 gpu)"


def test_a_small_job_passes_a_big_one_only_for_so_long() -> None:
    held = [Holding("job_x", need(2))]
    young = [waiting("big", need(4), 10), waiting("small", need(1))]
    assert admit(young, held, NODE, patience_seconds=30).start == ("small",)
    old = [waiting("big", need(4), 31), waiting("small", need(1))]
    decision = admit(old, held, NODE, patience_seconds=30)
    assert decision.start == ()
    assert decision.reasons["small"] == "waits its turn: big came first and what it needs is kept for it"


def test_what_a_waiting_job_does_not_need_is_not_kept_for_it() -> None:
    held = [Holding("job_x", need(1, 1, gpus=1))]
    queue = [waiting("trains", need(1, 1, gpus=1), 100), waiting("converts", need(1, 1)), waiting("large", need(2, 1))]
    decision = admit(queue, held, NODE)
    assert decision.start == ("converts",)
    assert "trains came first" in decision.reasons["large"]


def test_a_job_that_fits_no_node_holds_nobody_up() -> None:
    queue = [waiting("giant", need(64), 1000), waiting("small", need(1))]
    assert admit(queue, [], NODE).start == ("small",)


def test_what_can_never_fit_is_told_at_once() -> None:
    assert never_fits(need(4, 8, gpus=1), [NODE]) == []
    assert never_fits(need(64), []) == []
    assert never_fits(need(1, 1, disk=1000), [NODE]) == []  # disk can be freed
    problems = never_fits(need(8, 100), [Capacity(2, GIB), NODE])
    assert [name for name, _, _ in problems] == ["cpus", "memory_bytes"]
    assert problems[0][1] == "asks for 8 cpus; the largest node has 4 cpus"


_NEEDS = st.builds(need, st.integers(1, 6), st.integers(1, 9), st.integers(0, 2), st.integers(0, 60))


@given(st.lists(st.tuples(_NEEDS, st.floats(0, 100))), st.lists(_NEEDS, max_size=2))
def test_nothing_is_given_away_twice_and_everybody_gets_an_answer(
    queue: list[tuple[Resources, float]], held: list[Resources]
) -> None:
    holding = [Holding(f"h{n}", one) for n, one in enumerate(held)]
    decision = admit([waiting(f"j{n}", wants, waited) for n, (wants, waited) in enumerate(queue)], holding, NODE)
    assert set(decision.start) | set(decision.reasons) == {f"j{n}" for n in range(len(queue))}
    assert not set(decision.start) & set(decision.reasons)
    taken = held + [queue[int(one[1:])][0] for one in decision.start]
    if decision.start:
        assert sum(one.cpus for one in taken) <= NODE.cpus
        assert sum(one.memory_bytes for one in taken) <= NODE.memory_bytes


@given(st.lists(_NEEDS, min_size=1, max_size=30))
def test_a_big_job_gets_its_turn_whatever_small_ones_come(smalls: list[Resources]) -> None:
    """Small jobs end one after another while new ones keep coming: once patient enough, the big one is next."""
    big, running = need(4, 8, gpus=1), [Holding("r", need(2))]
    for number, small in enumerate(smalls):
        queue = [waiting("big", big, 30.0 + number), waiting(f"s{number}", small)]
        decision = admit(queue, running, NODE)
        assert not any(one.startswith("s") for one in decision.start)
    assert admit([waiting("big", big, 99.0)], [], NODE).start == ("big",)
