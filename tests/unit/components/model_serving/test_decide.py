"""``decide`` against a small simulated world: whatever dies and whenever, it ends as wanted and never serves wrongly."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.components.model_serving import decide as d
from burnish.core.errors import ErrorBody
from burnish.core.states import DeploymentState, ReplicaState, RevisionState

BAD = ErrorBody(code="artifact_corrupt", message="not those bytes")


@dataclass
class World:
    """The rows and processes of one deployment, advanced by the actions as the reconciler would."""

    facts: d.DeploymentFacts
    bad: frozenset[int] = frozenset()
    counter: int = 0
    served: list[int | None] = field(default_factory=list)

    def revision(self, number: int) -> d.RevisionFacts:
        return next(r for r in self.facts.revisions if r.number == number)

    def set_revision(self, number: int, **changes: Any) -> None:
        new = tuple(replace(r, **changes) if r.number == number else r for r in self.facts.revisions)
        self.facts = replace(self.facts, revisions=new)

    def set_replica(self, key: str, **changes: Any) -> None:
        new = tuple(replace(r, **changes) if r.id == key else r for r in self.facts.replicas)
        self.facts = replace(self.facts, replicas=new)

    def drop(self, key: str) -> None:
        self.facts = replace(self.facts, replicas=tuple(r for r in self.facts.replicas if r.id != key))

    def turn(self) -> list[d.Action]:
        actions = d.decide(self.facts)
        for action in actions:
            self.act(action)
        self.served.append(self.facts.serving)
        return actions

    def act(self, action: d.Action) -> None:
        match action:
            case d.CheckArtifact(number):
                self.set_revision(number, artifact=BAD if number in self.bad else "good")
            case d.AddReplica(number):
                self.counter += 1
                new = d.ReplicaFacts(f"r{self.counter}", number, ReplicaState.STARTING)
                self.facts = replace(self.facts, replicas=(*self.facts.replicas, new))
            case d.Spawn(key):
                self.set_replica(key, process="alive")
            case d.Verify(key):
                self.set_replica(key, verified="good")
            case d.MarkReady(key):
                self.set_replica(key, state=ReplicaState.READY)
            case d.LoseReplica(key):
                number = next(r.revision for r in self.facts.replicas if r.id == key)
                self.drop(key)
                self.set_revision(number, failures=self.revision(number).failures + 1, artifact="unknown")
            case d.Drain(key):
                self.set_replica(key, state=ReplicaState.DRAINING, draining=10.0)
            case d.Terminate(key):
                self.set_replica(key, process="dead", state=ReplicaState.DRAINING)
            case d.Ended(key):
                self.drop(key)
            case d.Advance(number):
                self.set_revision(number, state=RevisionState.VERIFYING)
            case d.Switch(number):
                ready = [r for r in self.facts.replicas if r.revision == number and r.state is ReplicaState.READY]
                assert len(ready) >= self.revision(number).replicas, "only what can serve is switched to"
                self.set_revision(number, state=RevisionState.SERVING, failures=0)
                self.facts = replace(self.facts, serving=number)
            case d.FailRevision(number):
                self.set_revision(number, state=RevisionState.FAILED)
                if self.facts.wanted == number:
                    self.facts = replace(self.facts, wanted=self.facts.serving)
            case d.DrainRevision(number):
                self.set_revision(number, state=RevisionState.DRAINING)
            case d.Retire(number):
                assert not [r for r in self.facts.replicas if r.revision == number]
                self.set_revision(number, state=RevisionState.RETIRED)
            case d.StopServing():
                self.facts = replace(self.facts, serving=None)

    def settle(self) -> None:
        for _ in range(60):
            self.facts = replace(
                self.facts,
                revisions=tuple(
                    replace(r, since_failure=1e9)
                    for r in self.facts.revisions
                    if r.state not in (RevisionState.RETIRED,)
                    and not (
                        r.state is RevisionState.FAILED
                        and not [x for x in self.facts.replicas if x.revision == r.number]
                    )
                ),
            )
            if not self.turn():
                return
        raise AssertionError(f"it does not settle: {self.facts}")


def deployed(number: int, replicas: int = 1) -> d.RevisionFacts:
    return d.RevisionFacts(number, RevisionState.STARTING, replicas)


def fresh(replicas: int = 1, **more: Any) -> World:
    return World(d.DeploymentFacts(1, None, (deployed(1, replicas),)), **more)


def want(world: World, number: int, replicas: int = 1) -> None:
    world.facts = replace(world.facts, wanted=number, revisions=(*world.facts.revisions, deployed(number, replicas)))


def test_a_first_revision_comes_up() -> None:
    world = fresh(replicas=3)
    world.settle()
    assert (world.facts.serving, len(world.facts.replicas)) == (1, 3)
    assert d.state_of(world.facts, failed=False) is DeploymentState.READY


def test_the_old_one_serves_until_the_new_one_can_and_ends_when_idle() -> None:
    world = fresh()
    world.settle()
    world.set_replica("r1", idle=False)
    want(world, 2)
    world.settle()
    assert world.facts.serving == 2
    assert [(r.id, r.state) for r in world.facts.replicas] == [
        ("r1", ReplicaState.DRAINING),
        ("r2", ReplicaState.READY),
    ]
    assert None not in world.served[world.served.index(1) :]
    world.set_replica("r1", idle=True)
    world.settle()
    assert [r.id for r in world.facts.replicas] == ["r2"]


def test_what_stays_in_flight_is_cut_after_the_bound() -> None:
    world = fresh()
    world.settle()
    want(world, 2)
    world.set_replica("r1", idle=False)
    world.settle()
    world.set_replica("r1", draining=world.facts.drain_seconds)
    world.settle()
    assert [r.id for r in world.facts.replicas] == ["r2"]


def test_a_corrupt_artifact_is_never_started() -> None:
    world = fresh(bad=frozenset({2}))
    world.settle()
    want(world, 2)
    seen = world.turn() + world.turn()
    assert d.FailRevision(2, BAD) in seen
    assert not [a for a in seen if isinstance(a, d.AddReplica | d.Spawn)]
    assert (world.facts.wanted, world.facts.serving) == (1, 1)


def test_backoff_holds_a_start_back() -> None:
    world = fresh()
    world.settle()
    world.set_replica("r1", process="dead")
    world.turn()
    world.set_revision(1, since_failure=0.1)
    world.turn()
    assert world.turn() == []
    world.set_revision(1, since_failure=d.backoff(1))
    assert d.AddReplica(1) in world.turn()


def test_a_candidate_that_dies_three_times_is_given_up() -> None:
    world = fresh()
    world.settle()
    want(world, 2)
    for _ in range(40):
        world.facts = replace(
            world.facts, revisions=tuple(replace(r, since_failure=1e9) for r in world.facts.revisions)
        )
        for replica in world.facts.replicas:
            if replica.revision == 2 and replica.process == "alive":
                world.set_replica(replica.id, process="dead")
        if any(isinstance(action, d.FailRevision) for action in world.turn()):
            break
    assert (world.revision(2).state, world.facts.wanted, world.facts.serving) == (RevisionState.FAILED, 1, 1)


def test_a_replica_that_never_answers_is_lost_in_time() -> None:
    replica = d.ReplicaFacts("r", 1, ReplicaState.STARTING, "alive", "running", age=601)
    facts = d.DeploymentFacts(1, None, (replace(deployed(1), artifact="good"),), (replica,))
    assert type(d.decide(facts)[0]) is d.LoseReplica


@pytest.mark.parametrize(("failed", "state"), [(False, DeploymentState.STOPPED), (True, DeploymentState.FAILED)])
def test_stopping_ends_everything(failed: bool, state: DeploymentState) -> None:
    world = fresh(replicas=2)
    world.settle()
    world.facts = replace(world.facts, wanted=None)
    world.settle()
    assert (world.facts.serving, world.facts.replicas) == (None, ())
    assert d.state_of(world.facts, failed=failed) is state


STEPS = st.lists(
    st.sampled_from(["turn", "turn", "turn", "kill", "deploy", "deploy_bad", "rollback", "stop", "busy", "idle"]),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.integers(1, 3))
def test_whatever_happens_it_ends_as_wanted(steps: list[str], replicas: int) -> None:
    world = fresh(replicas)
    last = 1
    for step in steps:
        match step:
            case "turn":
                world.facts = replace(
                    world.facts, revisions=tuple(replace(r, since_failure=1e9) for r in world.facts.revisions)
                )
                before = world.facts.serving
                world.turn()
                assert world.facts.serving is not None or before is None or world.facts.wanted is None
            case "kill":
                for replica in world.facts.replicas[:1]:
                    world.set_replica(replica.id, process="dead")
            case "deploy" | "deploy_bad":
                last += 1
                if step == "deploy_bad":
                    world.bad |= {last}
                want(world, last, replicas)
            case "rollback":
                usable = [r for r in world.facts.revisions if r.state is not RevisionState.FAILED]
                if usable:
                    target = usable[0]
                    if target.state in (RevisionState.DRAINING, RevisionState.RETIRED):
                        world.set_revision(target.number, state=RevisionState.STARTING, failures=0, artifact="unknown")
                    world.facts = replace(world.facts, wanted=target.number)
            case "stop":
                world.facts = replace(world.facts, wanted=None)
            case "busy" | "idle":
                for replica in world.facts.replicas:
                    world.set_replica(replica.id, idle=step == "idle")
    for replica in world.facts.replicas:
        world.set_replica(replica.id, idle=True)
    world.settle()
    assert world.facts.serving == world.facts.wanted
    live = world.facts.replicas
    assert {r.revision for r in live} <= {world.facts.wanted}
    assert len(live) == (0 if world.facts.wanted is None else replicas)
