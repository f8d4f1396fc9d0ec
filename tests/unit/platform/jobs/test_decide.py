"""What a heavy job's reconciler does next, for every combination of facts."""

from dataclasses import replace
from itertools import product

import pytest

from burnish.core.states import JobState
from burnish.platform.jobs.decide import Facts, Step, decide

STARTING = Facts(JobState.STARTING)
RUNNING = Facts(JobState.RUNNING, host="alive", locked=True)


@pytest.mark.parametrize("state", [s for s in JobState if s not in (JobState.STARTING, JobState.RUNNING)])
def test_what_runs_nowhere_is_left_alone(state: JobState) -> None:
    for result, cancel, pause in product([False, True], repeat=3):
        assert decide(Facts(state, result=result, cancel_requested=cancel, pause_requested=pause)) is Step.PARK


def test_a_living_host_is_attached_to_before_a_cancel_is_looked_at() -> None:
    assert decide(STARTING) is Step.START
    assert decide(replace(STARTING, cancel_requested=True)) is Step.CANCEL_UNSTARTED
    for host in ("alive", "dead"):
        assert decide(replace(STARTING, host=host, cancel_requested=True)) is Step.ATTACH
    assert decide(replace(STARTING, result=True)) is Step.ATTACH
    assert decide(replace(STARTING, locked=True, cancel_requested=True)) is Step.WAIT_FOR_HOST
    assert decide(replace(STARTING, locked=True, older_host_alive=True)) is Step.REPLACE


def test_a_result_is_believed_before_a_death() -> None:
    assert decide(replace(RUNNING, host="dead", result=True)) is Step.FINISH
    assert decide(replace(RUNNING, host="dead", result=True, cancel_requested=True)) is Step.FINISH
    assert decide(replace(RUNNING, host="dead")) is Step.LOST
    assert decide(replace(RUNNING, host="none")) is Step.LOST
    assert decide(replace(RUNNING, host="dead", cancel_requested=True)) is Step.CANCELLED


def test_cancel_asks_first_and_kills_after_the_grace() -> None:
    asked = replace(RUNNING, cancel_requested=True)
    assert decide(asked) is Step.TERMINATE
    assert decide(replace(asked, told_to_cancel=True)) is Step.WATCH
    assert decide(replace(asked, told_to_cancel=True, grace_over=True)) is Step.KILL
    assert decide(replace(asked, pause_requested=True)) is Step.TERMINATE


def test_pause_is_asked_once() -> None:
    assert decide(replace(RUNNING, pause_requested=True)) is Step.ASK_PAUSE
    assert decide(replace(RUNNING, pause_requested=True, told_to_pause=True)) is Step.WATCH


def test_every_combination_has_a_step_and_only_living_hosts_are_signalled() -> None:
    flags = ("result", "cancel_requested", "pause_requested", "told_to_cancel", "grace_over", "told_to_pause", "over_limit", "locked", "older_host_alive")  # fmt: skip
    for state, host in product(JobState, ("none", "alive", "dead")):
        for values in product([False, True], repeat=len(flags)):
            facts = Facts(state, host=host, **dict(zip(flags, values, strict=True)))  # type: ignore[arg-type]
            step = decide(facts)
            if step in (Step.TERMINATE, Step.KILL, Step.ASK_PAUSE):
                assert (state, host) == (JobState.RUNNING, "alive")
            if step is Step.START:
                assert (state, host, facts.locked) == (JobState.STARTING, "none", False)
