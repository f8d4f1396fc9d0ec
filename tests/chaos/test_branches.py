"""Parallel branches of random length, killed at random moments."""

import random
import time
from collections.abc import Callable

import pytest

from burnish.infra.processes import identify
from tests.support import branches, lifecycle
from tests.support.faults import BOTH_KILL, HOST_KILL, SERVER_KILL, SERVER_TERM, kill
from tests.support.places import FULL, Material, Place


@pytest.mark.parametrize("number", range(5 if FULL else 1))
def test_parallel_branches_end_as_they_would_have(
    place: Place, material: Material, draw: random.Random, note: Callable[[str], None], number: int
) -> None:
    """Breaks with: a join that runs twice or before its branches, a branch forgotten by a restart, a job id that a
    restart makes anew (then a split's host runs twice), events written outside the transaction of what they tell."""
    given = branches.definition(draw)
    server = place.server().start()
    server.upload("words", material.data[0])
    expected = branches.results(branches.ended_right(server, branches.run(server, given, dataset="words")))
    workflow_id = branches.run(server, given, dataset="words")
    follower = lifecycle.Follower(server, workflow_id)
    follower.start()
    blows = [SERVER_KILL, HOST_KILL, BOTH_KILL, SERVER_TERM, SERVER_KILL]
    draw.shuffle(blows)
    dealt = []
    for victim in blows:
        moment = time.monotonic() + draw.uniform(0.0, 0.8)
        while time.monotonic() < moment:
            time.sleep(0.005)
        if victim in (HOST_KILL, BOTH_KILL):
            jobs = branches.wait_for_job(server, workflow_id)
            hosts = [found for job in jobs if (found := identify(job["pid"])) is not None]
            if hosts:
                kill(draw.choice(hosts))
        if victim in (SERVER_KILL, BOTH_KILL):
            server.kill()
        elif victim == SERVER_TERM:
            assert server.stop() == 0, server.tail()
        if not server.running:
            server.start()
        dealt.append(f"{victim} at {lifecycle.status(server, workflow_id)['steps_done']}/{len(given['steps'])}")
    view = branches.ended_right(server, workflow_id)
    assert branches.results(view) == expected
    assert lifecycle.broken_run(server, view) == []
    assert follower.lost() == []
    note(", ".join(dealt))
