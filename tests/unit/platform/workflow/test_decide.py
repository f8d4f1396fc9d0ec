"""`decide` under random graphs, outcomes, orders, cancels and pauses: what must hold, holds at every moment."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from burnish.core.errors import ErrorBody
from burnish.core.states import ExecutionState, StepState
from burnish.platform.workflow.decide import Facts, View, decide
from burnish.platform.workflow.definition import Definition, read
from burnish.platform.workflow.records import (
    ENDED,
    FINAL,
    EndAttempt,
    Outcome,
    PauseAttempt,
    ResumeAttempt,
    SetState,
    StartAttempt,
    StepRecord,
    StopAttempt,
    apply,
    check_execution,
    reset,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LOST = ErrorBody(code="host_lost", message="gone", retryable=True)
BROKEN = ErrorBody(code="job_failed", message="broken")
REJECTED = ErrorBody(code="rejected", message="no")


@dataclass
class World:
    """An execution and its jobs, with nothing but `decide` between them."""

    definition: Definition
    state: ExecutionState = ExecutionState.PENDING
    cancel: bool = False
    pause: bool = False
    steps: dict[str, StepRecord] = field(default_factory=dict)
    running: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    due: set[tuple[str, int]] = field(default_factory=set)
    started: list[tuple[str, int, int]] = field(default_factory=list)
    began_after_cancel: int = 0

    def __post_init__(self) -> None:
        self.steps = {name: StepRecord() for name in self.definition.steps}

    def view(self) -> View:
        facts = {
            key: Facts(job["outcome"], job["timed_out"], False, job["stopped"], job["paused"])
            for key, job in self.running.items()
        }
        facts |= {key: Facts(due=True) for key in self.due}
        return View(
            "wf_x", "default", self.definition, {"list": [1, 2], "yes": True, "no": False}, self.state, self.steps,
            self.cancel, self.pause, facts,
        )  # fmt: skip

    def settle(self) -> None:
        """Do what `decide` says until it says nothing; it always comes to that."""
        for _ in range(10 * len(self.steps) + 20):
            actions = decide(self.view())
            if not actions:
                return
            for action in actions:
                self._do(action)
        raise AssertionError("decide never comes to rest")

    def _do(self, action: Any) -> None:
        if isinstance(action, SetState):
            self.state = check_execution(self.state, action.state, "execution")
            return
        apply(self.steps, action, NOW)
        if isinstance(action, StartAttempt):
            self._started(action)
        elif isinstance(action, EndAttempt):
            self.running.pop((action.step, action.index), None)
        elif isinstance(action, StopAttempt):
            job = self.running[action.step, action.index]
            assert not job["stopped"], "stopped twice"
            job["stopped"] = True
        elif isinstance(action, PauseAttempt | ResumeAttempt):
            self.running[action.step, action.index]["paused"] = isinstance(action, PauseAttempt)

    def _started(self, action: StartAttempt) -> None:
        key = (action.step, action.index)
        assert (*key, action.number) not in self.started, "an attempt was started twice"
        assert key not in self.running, "an item runs twice at once"
        assert not self.cancel, "started after a cancel"
        assert not self.pause, "started while paused"
        for need in self.definition.needs[action.step]:
            assert self.steps[need].state in ENDED, f"{action.step} started before {need} ended"
        self.started.append((*key, action.number))
        self.due.discard(key)
        self.running[key] = {"outcome": None, "timed_out": False, "stopped": False, "paused": False}


@st.composite
def definitions(draw: st.DrawFn) -> Definition:
    count = draw(st.integers(1, 7))
    steps: dict[str, Any] = {}
    for number in range(count):
        step: dict[str, Any] = {"kind": "noop", "timeout": 60}
        earlier = [f"s{other}" for other in range(number)]
        needs = draw(st.lists(st.sampled_from(earlier), unique=True, max_size=3)) if earlier else []
        step["needs"] = needs
        if draw(st.booleans()):
            step["retry"] = {"attempts": draw(st.integers(1, 3))}
        shape = draw(st.integers(0, 9))
        if shape == 0:
            step["foreach"] = "${{ parameters.list }}"
            step["with"] = {"value": "${{ item }}"}
        elif shape == 1:
            step["when"] = draw(st.sampled_from(["parameters.yes", "parameters.no"]))
        elif shape == 2 and needs:
            step["when"] = f'steps.{needs[0]}.state == "failed"'
        elif shape == 3 and needs:
            step["with"] = {"value": f"${{{{ steps.{needs[0]}.result }}}}"}
        steps[f"s{number}"] = step
    kinds = {"list": {"type": "list"}, "yes": {"type": "boolean"}, "no": {"type": "boolean"}}
    return read({"name": "random", "parameters": kinds, "steps": steps})


def _end(data: st.DataObject, world: World) -> None:
    """Something happens to one of the jobs that run, or a backoff passes."""
    waiting = [
        (name, index)
        for name, record in world.steps.items()
        for index, item in enumerate(record.items)
        if item.state is StepState.RETRYING and record.state not in ENDED
    ]
    if waiting and data.draw(st.sampled_from([0, 1])):
        world.due.add(data.draw(st.sampled_from(waiting)))
        return
    open_jobs = sorted(key for key, job in world.running.items() if not job["paused"] or job["stopped"])
    if not open_jobs:
        world.due.update(waiting)
        return
    job = world.running[data.draw(st.sampled_from(open_jobs))]
    if job["stopped"]:
        outcomes = [Outcome("cancelled"), Outcome("succeeded", {"value": 1})]
    else:
        outcomes = [Outcome("succeeded", {"value": 1})] * 3 + [
            Outcome("failed", error=LOST), Outcome("failed", error=BROKEN), Outcome("failed", error=REJECTED),
            Outcome("cancelled"),
        ]  # fmt: skip
    job["outcome"] = data.draw(st.sampled_from(outcomes))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(definitions(), st.data())
def test_whatever_happens_it_ends_and_nothing_runs_twice(definition: Definition, data: st.DataObject) -> None:
    world = World(definition)
    cancel_at = data.draw(st.one_of(st.none(), st.integers(0, 12)))
    pause_at = data.draw(st.one_of(st.none(), st.integers(0, 12)))
    for moment in range(200):
        world.cancel = world.cancel or moment == cancel_at
        world.pause = pause_at is not None and pause_at <= moment < pause_at + 3 and not world.cancel
        world.settle()
        if world.state in FINAL:
            break
        if world.running and data.draw(st.integers(0, 9)) == 0:
            next(iter(world.running.values()))["timed_out"] = True
            world.settle()
        _end(data, world)
    assert world.state in FINAL, f"it never ended: {world.state}"
    assert not world.running, "it ended while a job runs"
    _check_end(world)


def _check_end(world: World) -> None:
    states = {name: record.state for name, record in world.steps.items()}
    assert set(states.values()) <= ENDED
    rejected = any(record.error and record.error.code == "rejected" for record in world.steps.values())
    if rejected:
        assert world.state is ExecutionState.REJECTED
    elif StepState.FAILED in states.values():
        assert world.state is ExecutionState.FAILED
    elif StepState.CANCELLED in states.values():
        assert world.state is ExecutionState.CANCELLED
    else:
        assert world.state is ExecutionState.SUCCEEDED
    for name, record in world.steps.items():
        tries = [number for step, _, number in world.started if step == name]
        assert len(tries) <= 2 * world.definition.steps[name].retry.attempts
        if record.state is StepState.SUCCEEDED:
            assert all(item.state is StepState.SUCCEEDED for item in record.items)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(definitions(), st.data())
def test_a_retry_reuses_what_succeeded(definition: Definition, data: st.DataObject) -> None:
    world = World(definition)
    for _ in range(200):
        world.settle()
        if world.state in FINAL:
            break
        _end(data, world)
    if world.state is ExecutionState.SUCCEEDED:
        return
    succeeded = {name for name, record in world.steps.items() if record.state is StepState.SUCCEEDED}
    before = list(world.started)
    world.state = check_execution(world.state, ExecutionState.RUNNING, "execution")
    reset(world.steps, [name for name, record in world.steps.items() if record.state is not StepState.SUCCEEDED])
    for _ in range(200):
        world.settle()
        if world.state in FINAL:
            break
        for job in world.running.values():
            job["outcome"] = Outcome("succeeded", {"value": 1})
    assert world.state is ExecutionState.SUCCEEDED
    again = world.started[len(before) :]
    assert not {step for step, _, _ in again} & succeeded, "a step that succeeded ran again"
    assert len(set(world.started)) == len(world.started)


def _world(text: str) -> World:
    return World(read(text))


def test_a_cancel_after_an_outcome_keeps_the_outcome() -> None:
    world = _world("{name: x, steps: {a: {kind: noop}, b: {kind: noop, needs: [a]}}}")
    world.settle()
    world.running["a", 0]["outcome"] = Outcome("succeeded", {"value": 7})
    world.cancel = True
    world.settle()
    assert world.steps["a"].state is StepState.SUCCEEDED
    assert world.steps["a"].result == {"value": 7}
    assert world.steps["b"].state is StepState.CANCELLED
    assert world.state is ExecutionState.CANCELLED


def test_a_rejection_skips_what_waits_and_stops_what_runs() -> None:
    world = _world("{name: x, steps: {gate: {kind: noop}, side: {kind: noop}, deploy: {kind: noop, needs: [gate]}}}")
    world.settle()
    world.running["gate", 0]["outcome"] = Outcome("failed", {"verdict": "fail"}, REJECTED)
    world.settle()
    assert world.state is ExecutionState.RUNNING
    assert world.running["side", 0]["stopped"]
    assert world.steps["deploy"].state is StepState.SKIPPED
    world.running["side", 0]["outcome"] = Outcome("cancelled")
    world.settle()
    assert str(world.state) == "rejected"
    assert world.steps["gate"].result == {"verdict": "fail"}


def test_a_step_that_asks_for_a_state_runs_after_a_failure() -> None:
    world = _world(
        """{name: x, steps: {a: {kind: noop}, mend: {kind: noop, when: 'steps.a.state == "failed"'},
        after: {kind: noop, needs: [a]}}}"""
    )
    world.settle()
    world.running["a", 0]["outcome"] = Outcome("failed", error=BROKEN)
    world.settle()
    assert ("mend", 0, 1) in world.started
    assert world.steps["after"].state is StepState.SKIPPED
    assert "needs a" in (world.steps["after"].reason or "")


def test_a_skipped_step_gives_null_and_does_not_hold_up_what_needs_it() -> None:
    world = _world(
        """{name: x, steps: {a: {kind: noop, when: false},
        b: {kind: noop, with: {value: "${{ steps.a.result.some.thing }}"}}}}"""
    )
    world.settle()
    assert world.steps["a"].by_when
    assert ("b", 0, 1) in world.started


def test_a_timeout_is_a_failure_that_says_so() -> None:
    world = _world("{name: x, steps: {a: {kind: noop, timeout: 5}}}")
    world.settle()
    world.running["a", 0]["timed_out"] = True
    world.settle()
    assert world.running["a", 0]["stopped"]
    world.running["a", 0]["outcome"] = Outcome("cancelled")
    world.settle()
    error = world.steps["a"].error
    assert error is not None
    assert error.code == "limit_exceeded"
    assert "timeout of 5 s" in error.message


def test_foreach_gives_a_list_of_results_and_says_how_many_failed() -> None:
    world = World(
        read({"name": "x", "parameters": {"list": {"type": "list"}}, "steps": {
            "a": {"kind": "noop", "foreach": "${{ parameters.list }}", "with": {"value": "${{ item }}"}}}})
    )  # fmt: skip
    world.settle()
    assert world.started == [("a", 0, 1), ("a", 1, 1)]
    world.running["a", 0]["outcome"] = Outcome("succeeded", 1)
    world.running["a", 1]["outcome"] = Outcome("failed", error=BROKEN)
    world.settle()
    assert world.state is ExecutionState.FAILED
    error = world.steps["a"].error
    assert error is not None
    assert error.message.startswith("1 of 2 items failed")
