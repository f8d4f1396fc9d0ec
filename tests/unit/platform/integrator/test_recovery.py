"""The ladder of recovery."""

from burnish.core.states import InstanceState
from burnish.platform.integrator.recovery import RESTART_BACKOFF_SECONDS, Case, Step, decide

S = InstanceState
FORGET = 1000.0


def steps(case: Case) -> tuple[Step, ...]:
    return decide(case, FORGET)


def test_it_is_routed_around_and_taken_back_once() -> None:
    assert steps(Case(S.HEALTHY, S.UNHEALTHY)) == (Step.ROUTE_AROUND,)
    assert steps(Case(S.DEGRADED, S.LOST)) == (Step.ROUTE_AROUND,)
    assert steps(Case(S.UNHEALTHY, S.UNHEALTHY)) == ()
    assert steps(Case(S.UNHEALTHY, S.LOST)) == ()
    assert steps(Case(S.LOST, S.HEALTHY)) == (Step.TAKE_BACK,)
    assert steps(Case(S.STARTING, S.HEALTHY)) == ()


def test_what_is_supervised_is_restarted_with_backoff_and_a_cap() -> None:
    asked, when, now = [], None, 0.0
    count = 0
    while now < 500:
        case = Case(S.UNHEALTHY, S.UNHEALTHY, supervised=True, restarts=count, since_restart=None if when is None else now - when)  # fmt: skip
        for step in steps(case):
            asked.append((now, step))
            count, when = count + 1, now
        now += 1
    assert [at for at, _ in asked] == [0, 10, 30, 70, 150, 230]
    assert [step for _, step in asked] == [Step.RESTART_REQUESTED] * len(RESTART_BACKOFF_SECONDS) + [
        Step.RESTARTS_EXHAUSTED
    ]


def test_after_being_well_for_long_the_count_begins_anew() -> None:
    spent = Case(S.HEALTHY, S.UNHEALTHY, supervised=True, restarts=6, since_restart=599)
    assert steps(spent) == (Step.ROUTE_AROUND,)
    assert Step.RESTART_REQUESTED in steps(Case(S.HEALTHY, S.UNHEALTHY, supervised=True, restarts=6, since_restart=601))


def test_nobody_restarts_what_is_not_supervised_or_was_stopped() -> None:
    assert steps(Case(S.LOST, S.LOST)) == ()
    assert steps(Case(S.LOST, S.LOST, supervised=True, stopped=True)) == ()


def test_work_is_moved_once_and_only_off_a_silent_node() -> None:
    assert steps(Case(S.LOST, S.LOST, node_silent=True)) == (Step.MOVE_WORK,)
    assert steps(Case(S.LOST, S.LOST, node_silent=True, moved=True)) == ()
    assert steps(Case(S.UNHEALTHY, S.UNHEALTHY, node_silent=False)) == ()
    assert steps(Case(S.LOST, S.LOST, node_silent=True, stopped=True)) == (Step.MOVE_WORK,)


def test_lost_for_long_is_forgotten_but_not_before_its_work_is_moved() -> None:
    assert steps(Case(S.LOST, S.LOST, in_state_seconds=999)) == ()
    assert steps(Case(S.LOST, S.LOST, in_state_seconds=1000)) == (Step.FORGET,)
    assert steps(Case(S.LOST, S.LOST, in_state_seconds=5000, node_silent=True)) == (Step.MOVE_WORK,)
    assert steps(Case(S.UNHEALTHY, S.UNHEALTHY, in_state_seconds=5000)) == ()


def test_what_was_deregistered_is_removed() -> None:
    assert steps(Case(S.DRAINING, S.DRAINING, drained=True)) == (Step.REMOVE,)
    assert steps(Case(S.DRAINING, S.DRAINING)) == ()


def test_what_waits_for_a_stopped_machine_goes_to_others_before_it_is_lost() -> None:
    assert steps(Case(S.DRAINING, S.DRAINING, type_stopped=True)) == (Step.MOVE_QUEUED,)
    assert steps(Case(S.DRAINING, S.DRAINING)) == ()
    assert steps(Case(S.LOST, S.LOST, type_stopped=True, node_silent=True)) == (Step.MOVE_QUEUED, Step.MOVE_WORK)
    assert steps(Case(S.LOST, S.LOST, type_stopped=True, moved=True)) == ()
