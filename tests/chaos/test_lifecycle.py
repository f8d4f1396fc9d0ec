"""The demo workflow, struck at every step: whoever dies, it ends as if nobody had."""

import random
import time
from collections.abc import Callable

import pytest

from tests.support import faults, lifecycle
from tests.support.faults import (
    AFTER,
    BOTH_KILL,
    CELLS,
    HOST_KILL,
    PLACES,
    SERVING_KILL,
    VICTIMS,
    Blow,
    Matrix,
    victims_of,
)
from tests.support.places import CELL_BY_CELL, FULL, Material, Place, Reference
from tests.support.server import Server, wait_for

_TRIES = 3
"""A blow at a step of milliseconds may come too late; then another execution is struck."""


def _run(
    place: Place, material: Material, reference: Reference, wanted: dict[str, str], draw: random.Random, matrix: Matrix
) -> list[Blow]:
    """Run the workflow once, deal each wanted blow that finds its moment, and judge the end."""
    server = place.server().start()
    try:
        workflow_id = lifecycle.submit(server, lifecycle.prepare(server, material.model, material.data))
        follower = lifecycle.Follower(server, workflow_id)
        follower.start()
        blows = _strike_steps(server, workflow_id, place.dialect, dict(wanted), reference, draw)
        view = lifecycle.wait_until_ended(server, workflow_id)
        kills: dict[str, int] = {}
        for blow in blows:
            if blow.victim in (HOST_KILL, BOTH_KILL):
                kills[blow.place] = kills.get(blow.place, 0) + 1
        if view["status"] == "succeeded":
            _wait_until_ready(server)
        wrong = lifecycle.broken_promises(server, view, reference.outputs, host_kills=kills)
        wrong += follower.lost()
        if view["status"] == "succeeded":
            if AFTER in wanted:
                blows.append(_strike_served(server, workflow_id, place.dialect, wanted[AFTER], draw))
            if (said := lifecycle.ask(server)) != reference.answer:
                wrong.append(f"the deployed model says {said!r} instead of {reference.answer!r}")
            wrong += lifecycle.leftovers(server)
        for blow in blows:
            blow.outcome = "WRONG" if wrong else "right"
        matrix.blows += blows
        assert wrong == [], "\n".join([*wrong, *(f"{b.place}: {b.victim}" for b in blows), server.tail()])
    finally:
        server.end_everything()
    return blows


def _strike_steps(
    server: Server, workflow_id: str, dialect: str, left: dict[str, str], reference: Reference, draw: random.Random
) -> list[Blow]:
    blows: list[Blow] = []
    left.pop(AFTER, None)
    deadline = time.monotonic() + 400
    while left and time.monotonic() < deadline:
        view = lifecycle.status(server, workflow_id)
        if view["status"] in lifecycle.FINAL:
            break
        step = faults.begun(server, view, set(left))
        if step is None:
            time.sleep(0.005)
            continue
        seconds = reference.seconds.get(step, 0.0)
        victim = left.pop(step)
        recovery = faults.strike(server, workflow_id, step, victim, draw, seconds, lifecycle.step_of(view, step))
        if recovery is not None:
            blows.append(Blow(dialect, step, victim, recovery))
    return blows


def _strike_served(server: Server, workflow_id: str, dialect: str, victim: str, draw: random.Random) -> Blow:
    """Strike while only the deployed model runs: a killed replica comes back; one whose server died lives on."""
    before = faults.replicas(server)[0]["pid"]
    recovery = faults.strike(server, workflow_id, AFTER, victim, draw, 0.0)
    assert recovery is not None
    _wait_until_ready(server)
    after = faults.replicas(server)[0]["pid"]
    assert (after != before) == (victim == SERVING_KILL), f"replica {before} and then {after}"
    return Blow(dialect, AFTER, victim, recovery)


def _wait_until_ready(server: Server) -> None:
    """Wait until what is to serve serves: a replica that was killed comes back by itself."""
    wait_for(
        lambda: server.request("GET", "/platform/deployments/production")["state"] == "ready", 60,
        lambda: f"the deployment is not ready again\n{server.tail()}",
    )  # fmt: skip


@pytest.mark.timeout(1500)
@pytest.mark.skipif(FULL, reason="the whole matrix runs instead")
def test_every_step_is_struck_once(
    place: Place, material: Material, reference: Reference, matrix: Matrix, draw: random.Random,
    note: Callable[[str], None],
) -> None:  # fmt: skip
    """Several blows an execution, so that every step and every kind of victim is struck on each database.

    Breaks with: artifacts published before they are whole, attempts submitted under another id after a restart, a
    registry that makes a version a call, hosts tied to their server, a training that begins anew.
    """
    wanted = faults.in_turn(PLACES, draw)
    assert set(wanted.values()) == set(VICTIMS)
    _strike_all(place, material, reference, matrix, wanted, draw, note)


def _strike_all(
    place: Place, material: Material, reference: Reference, matrix: Matrix, wanted: dict[str, str], draw: random.Random,
    note: Callable[[str], None],
) -> None:  # fmt: skip
    """Deal every wanted blow, in further executions those that came too late in the first."""
    started = time.monotonic()
    number = 0
    while wanted and number < _TRIES:
        blows = _run(place.again() if number else place, material, reference, wanted, draw, matrix)
        wanted = {step: victim for step, victim in wanted.items() if step not in {blow.place for blow in blows}}
        number += 1
    note(f"{number} execution(s) in {time.monotonic() - started:.0f} s")
    assert not wanted, f"never struck in {number} executions: {wanted}"


@pytest.mark.full
@pytest.mark.timeout(3000)
@pytest.mark.skipif(not FULL or CELL_BY_CELL, reason="the whole matrix: BURNISH_TEST_FULL=1")
@pytest.mark.parametrize("victim", VICTIMS if FULL and not CELL_BY_CELL else ())
def test_each_victim_is_struck_at_every_step(
    place: Place, material: Material, reference: Reference, matrix: Matrix, draw: random.Random,
    note: Callable[[str], None], victim: str,
) -> None:  # fmt: skip
    """The whole matrix, a column an execution."""
    wanted = {step: victim for step in PLACES if victim in victims_of(step)}
    _strike_all(place, material, reference, matrix, wanted, draw, note)


@pytest.mark.full
@pytest.mark.timeout(1500)
@pytest.mark.skipif(not CELL_BY_CELL, reason="an execution for each cell: BURNISH_TEST_FULL=cells")
@pytest.mark.parametrize(("step", "victim"), CELLS if CELL_BY_CELL else ())
def test_the_whole_matrix(
    place: Place, material: Material, reference: Reference, matrix: Matrix, draw: random.Random, step: str, victim: str
) -> None:
    """The whole matrix, an execution a cell: hours."""
    blows: list[Blow] = []
    for number in range(_TRIES):
        blows = blows or _run(place.again() if number else place, material, reference, {step: victim}, draw, matrix)
    assert blows, f"{step} was always over before the blow"
