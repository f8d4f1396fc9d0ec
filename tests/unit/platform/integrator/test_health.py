"""What state an instance is in: tables, and properties over random histories."""

from hypothesis import given
from hypothesis import strategies as st

from burnish.core.states import InstanceState
from burnish.platform.integrator.health import Alert, Facts, Rules, Sight, judge

S = InstanceState
RULES = Rules()


def after(state: InstanceState, sights: list[Sight], **facts: object) -> tuple[InstanceState, list[Alert]]:
    """Return the state and the alerts of a history of looks."""
    failures, successes, alerted, alerts = 0, 0, False, []
    for sight in sights:
        verdict = judge(
            Facts(state=state, sight=sight, failures=failures, successes=successes, alerted=alerted, **facts),  # type: ignore[arg-type]
            RULES,
        )
        state, failures, successes = verdict.state, verdict.failures, verdict.successes
        alerts.append(verdict.alert)
        alerted = verdict.alert is Alert.RAISE or (alerted and verdict.alert is not Alert.END)
    return state, alerts


def test_the_first_answer_makes_it_healthy_and_its_own_word_degraded() -> None:
    assert after(S.STARTING, [Sight.OK])[0] is S.HEALTHY
    assert after(S.STARTING, [Sight.DEGRADED])[0] is S.DEGRADED
    assert after(S.HEALTHY, [Sight.DEGRADED])[0] is S.DEGRADED
    assert after(S.DEGRADED, [Sight.OK])[0] is S.DEGRADED
    assert after(S.DEGRADED, [Sight.OK, Sight.OK])[0] is S.HEALTHY


def test_refusals_degrade_at_once_and_end_it_after_as_many_as_configured() -> None:
    assert after(S.HEALTHY, [Sight.REFUSED])[0] is S.DEGRADED
    assert after(S.HEALTHY, [Sight.REFUSED] * 3)[0] is S.DEGRADED
    assert after(S.HEALTHY, [Sight.REFUSED] * 4)[0] is S.UNHEALTHY
    assert after(S.STARTING, [Sight.REFUSED] * 3)[0] is S.STARTING


def test_it_is_healthy_again_only_after_answers_in_a_row() -> None:
    assert after(S.UNHEALTHY, [Sight.OK])[0] is S.UNHEALTHY
    assert after(S.UNHEALTHY, [Sight.OK, Sight.REFUSED, Sight.OK])[0] is S.UNHEALTHY
    assert after(S.UNHEALTHY, [Sight.OK, Sight.OK])[0] is S.HEALTHY
    assert after(S.LOST, [Sight.OK])[0] is S.UNHEALTHY
    assert after(S.LOST, [Sight.OK, Sight.OK])[0] is S.HEALTHY


def test_the_fourth_failure_alerts_once_and_recovery_ends_it() -> None:
    _, alerts = after(S.HEALTHY, [Sight.REFUSED] * 3)
    assert set(alerts) == {Alert.NONE}
    _, alerts = after(S.HEALTHY, [Sight.REFUSED] * 6 + [Sight.OK] * 3 + [Sight.REFUSED] * 4)
    assert alerts == [*[Alert.NONE] * 3, Alert.RAISE, *[Alert.NONE] * 3, Alert.END, *[Alert.NONE] * 4, Alert.RAISE]


def test_slow_is_not_dead() -> None:
    assert after(S.HEALTHY, [Sight.SILENT])[0] is S.HEALTHY
    assert after(S.HEALTHY, [Sight.SILENT] * 50)[0] is S.DEGRADED
    assert after(S.HEALTHY, [Sight.LATE] * 50, lease_left=-1.0)[0] is S.DEGRADED
    assert after(S.HEALTHY, [Sight.UNREACHABLE] * 50, beating=True, lease_left=-1.0)[0] is S.DEGRADED
    assert after(S.HEALTHY, [Sight.UNREACHABLE] * 50, progressing=True, lease_left=-1.0)[0] is S.DEGRADED
    assert after(S.HEALTHY, [Sight.UNREACHABLE] * 4)[0] is S.UNHEALTHY


def test_what_answers_late_is_called_again_all_the_same() -> None:
    assert after(S.STARTING, [Sight.LATE])[0] is S.DEGRADED
    assert after(S.LOST, [Sight.LATE])[0] is S.UNHEALTHY
    assert after(S.LOST, [Sight.LATE, Sight.LATE])[0] is S.DEGRADED
    assert after(S.DEGRADED, [Sight.LATE, Sight.OK])[0] is S.DEGRADED, "late answers do not make it healthy"


def test_without_a_sign_of_life_for_a_lease_it_is_lost() -> None:
    for sight in (Sight.SILENT, Sight.REFUSED, Sight.UNREACHABLE, Sight.FORBIDDEN, Sight.NOT_LOOKED):
        assert after(S.HEALTHY, [sight], lease_left=0.0)[0] is S.LOST
        assert after(S.HEALTHY, [sight], lease_left=0.1)[0] is not S.LOST
    for sight in (Sight.OK, Sight.LATE, Sight.BROKEN):
        assert after(S.HEALTHY, [sight], lease_left=-100.0)[0] is not S.LOST


def test_what_cannot_be_used_is_unhealthy_at_once() -> None:
    for state in (S.STARTING, S.HEALTHY, S.DEGRADED, S.LOST):
        assert after(state, [Sight.UNFIT])[0] is S.UNHEALTHY
        assert after(state, [Sight.FORBIDDEN])[0] is S.UNHEALTHY


def test_failing_calls_degrade_what_answers_its_probes() -> None:
    assert after(S.HEALTHY, [Sight.OK], calls=10, errors=5)[0] is S.DEGRADED
    assert after(S.HEALTHY, [Sight.OK], calls=4, errors=4)[0] is S.HEALTHY
    assert after(S.HEALTHY, [Sight.OK], calls=100, errors=49)[0] is S.HEALTHY


def test_what_drains_stays_until_its_lease_ends_and_alerts_nobody() -> None:
    state, alerts = after(S.DRAINING, [Sight.REFUSED] * 10)
    assert state is S.DRAINING
    assert set(alerts) == {Alert.NONE}
    assert after(S.DRAINING, [Sight.REFUSED], lease_left=0.0)[0] is S.LOST


FACTS = st.builds(
    Facts, state=st.sampled_from(S), sight=st.sampled_from(Sight), failures=st.integers(0, 20),
    successes=st.integers(0, 5), lease_left=st.floats(-60, 60), beating=st.booleans(), progressing=st.booleans(),
    calls=st.integers(0, 50), errors=st.integers(0, 50), alerted=st.booleans(),
)  # fmt: skip
ALIVE = {Sight.OK, Sight.DEGRADED, Sight.LATE, Sight.BROKEN, Sight.UNFIT}


@given(FACTS)
def test_lost_means_silent_for_a_lease(facts: Facts) -> None:
    verdict = judge(facts, RULES)
    silent = facts.sight not in ALIVE and not facts.beating and not facts.progressing and facts.lease_left <= 0
    if silent:
        assert verdict.state is S.LOST
    elif verdict.state is S.LOST:
        assert facts.state is S.LOST, "only what was lost before may still be"


@given(FACTS)
def test_what_shows_life_slowly_is_never_worse_than_degraded_by_it(facts: Facts) -> None:
    slow = facts.sight is Sight.LATE or (
        facts.lease_left > 0 and (facts.sight is Sight.SILENT or (facts.sight is Sight.UNREACHABLE and facts.beating))
    )
    if slow and facts.state in (S.HEALTHY, S.DEGRADED):
        assert judge(facts, RULES).state in (S.HEALTHY, S.DEGRADED)


@given(FACTS)
def test_healthy_is_only_what_answered_well_or_was_so_before(facts: Facts) -> None:
    if judge(facts, RULES).state is S.HEALTHY and facts.state is not S.HEALTHY:
        assert facts.sight is Sight.OK
        if facts.state in (S.UNHEALTHY, S.LOST, S.DEGRADED):
            assert facts.successes + 1 >= RULES.successes_until_healthy


@given(st.lists(st.sampled_from(Sight), max_size=60), st.sampled_from([S.STARTING, S.HEALTHY, S.DEGRADED, S.UNHEALTHY]))
def test_alerts_begin_and_end_in_turn(sights: list[Sight], state: InstanceState) -> None:
    said = [alert for alert in after(state, sights)[1] if alert is not Alert.NONE]
    assert said == ([Alert.RAISE, Alert.END] * len(said))[: len(said)]
