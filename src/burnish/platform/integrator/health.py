"""What state an instance is in, from what is known of it. Pure: facts in, verdict out.

Slow is not dead: an instance that listens and is late, that beats by itself, or whose calls are answered, is
``degraded`` at most and keeps its jobs. Only one that gave no sign of life for as long as its lease is ``lost``.
"""

from dataclasses import dataclass
from enum import StrEnum

from burnish.core.states import InstanceState

ALERT_AFTER_FAILURES = 3
"""More failures in a row than this raise the alert."""
FEW_CALLS = 5
"""Of fewer calls no error ratio is taken."""

_S = InstanceState


class Sight(StrEnum):
    """What one look at an instance showed."""

    OK = "ok"
    DEGRADED = "degraded"
    """It answered, and says itself that it is not well."""
    LATE = "late"
    """It answered after its time."""
    SILENT = "silent"
    """Something listens there, and has not answered yet."""
    REFUSED = "refused"
    """Nothing listens there."""
    UNREACHABLE = "unreachable"
    BROKEN = "broken"
    """It answered with what is no answer."""
    UNFIT = "unfit"
    """It answered, and cannot be used: another type, an unknown protocol version."""
    FORBIDDEN = "forbidden"
    """Its address may not be called; nothing was sent."""
    NOT_LOOKED = "not_looked"
    """Only its heartbeats tell."""


_WELL = frozenset({Sight.OK, Sight.DEGRADED})
_ALIVE = _WELL | {Sight.LATE, Sight.BROKEN, Sight.UNFIT}
_UNUSABLE = frozenset({Sight.UNFIT, Sight.FORBIDDEN})
_DEAD = frozenset({_S.UNHEALTHY, _S.LOST})


@dataclass(frozen=True)
class Facts:
    """All that is known of an instance at one look."""

    state: InstanceState
    sight: Sight
    failures: int = 0
    """In a row, before this look."""
    successes: int = 0
    lease_left: float = 1.0
    """Seconds until it counts as lost; 0 or less: no sign of life for a whole lease."""
    beating: bool = False
    """Its own heartbeats are fresh."""
    progressing: bool = False
    """Calls to it were answered lately."""
    calls: int = 0
    errors: int = 0
    """Of calls to it, lately, from every process."""
    alerted: bool = False


@dataclass(frozen=True)
class Rules:
    """Thresholds, from the configuration."""

    failures_until_unhealthy: int = 4
    successes_until_healthy: int = 2
    error_ratio: float = 0.5


class Alert(StrEnum):
    """What becomes of the alert."""

    NONE = "none"
    RAISE = "raise"
    END = "end"


@dataclass(frozen=True)
class Verdict:
    """What follows from the facts."""

    state: InstanceState
    failures: int
    successes: int
    alive: bool
    """A sign of life was seen: its lease is renewed."""
    erring: bool
    """Its calls fail so often that it is no longer called healthy."""
    alert: Alert = Alert.NONE


def judge(facts: Facts, rules: Rules) -> Verdict:
    """Return the verdict."""
    alive = facts.sight in _ALIVE or facts.progressing
    well = facts.sight in _WELL
    looked = facts.sight is not Sight.NOT_LOOKED
    failures = 0 if well or facts.sight is Sight.LATE else facts.failures + looked
    slowly_back = facts.sight is Sight.LATE and facts.state in _DEAD
    successes = facts.successes + 1 if well or slowly_back else facts.successes if not looked else 0
    erring = facts.calls >= FEW_CALLS and facts.errors / facts.calls >= rules.error_ratio
    state = _state(facts, rules, failures, successes, alive=alive, erring=erring)
    if facts.state is _S.DRAINING:
        return Verdict(state, facts.failures, facts.successes, alive, erring)
    return Verdict(state, failures, successes, alive, erring, _alert(facts, state, failures))


def _state(
    facts: Facts, rules: Rules, failures: int, successes: int, *, alive: bool, erring: bool
) -> InstanceState:  # fmt: skip
    if not alive and not facts.beating and facts.lease_left <= 0:
        return _S.LOST
    if facts.state is _S.DRAINING or facts.sight is Sight.NOT_LOOKED:
        return facts.state
    if facts.sight in _UNUSABLE:
        return _S.UNHEALTHY
    if facts.sight in _WELL:
        return _after_answer(facts, rules, successes, erring=erring)
    if facts.sight is Sight.LATE:
        return _S.UNHEALTHY if facts.state in _DEAD and successes < rules.successes_until_healthy else _S.DEGRADED
    slow = facts.sight is Sight.SILENT or (
        facts.sight is Sight.UNREACHABLE and (facts.beating or facts.progressing)
    )  # fmt: skip
    if failures >= rules.failures_until_unhealthy and not slow:
        return _S.LOST if facts.state is _S.LOST else _S.UNHEALTHY
    if facts.sight is Sight.REFUSED or failures > 1 or erring:
        return _worse(facts.state)
    return facts.state


def _after_answer(facts: Facts, rules: Rules, successes: int, *, erring: bool) -> InstanceState:
    enough = successes >= rules.successes_until_healthy
    if facts.state in _DEAD and not enough:
        return _S.UNHEALTHY
    if facts.sight is Sight.DEGRADED or erring:
        return _S.DEGRADED
    if facts.state is _S.DEGRADED and not enough:
        return _S.DEGRADED
    return _S.HEALTHY


def _worse(state: InstanceState) -> InstanceState:
    """Healthy becomes degraded; what is worse already, or has not begun, stays."""
    return _S.DEGRADED if state is _S.HEALTHY else state


def _alert(facts: Facts, state: InstanceState, failures: int) -> Alert:
    if not facts.alerted:
        return Alert.RAISE if failures > ALERT_AFTER_FAILURES else Alert.NONE
    return Alert.END if failures == 0 and state in (_S.HEALTHY, _S.DEGRADED) else Alert.NONE
