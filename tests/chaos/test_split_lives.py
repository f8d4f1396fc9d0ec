"""The split form runs the demo workflow to its right end while each of its processes is killed once, in turn."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import lifecycle
from tests.support.fleet import Fleet
from tests.support.places import Material, Reference
from tests.support.postgres import PostgresServer
from tests.support.redis import running_redis
from tests.support.server import wait_for

pytestmark = pytest.mark.postgres

BUSY_AT = {"tuning": "train", "rest": "evaluate_tuned"}
"""The step at which a process is killed that has more to do then than at any other."""


@pytest.fixture
def fleet(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Fleet]:
    """The split form with real engines."""
    with running_redis() as redis:
        made = Fleet(tmp_path, postgres_server, redis, fake_engine=False)
        try:
            yield made.start()
        finally:
            made.end()


@pytest.mark.full  # in short, test_split.py runs the workflow, and test_split_faults.py kills each process under load
def test_the_demo_workflow_survives_the_death_of_every_process(
    fleet: Fleet, material: Material, reference: Reference, note: Callable[[str], None]
) -> None:
    """Breaks with: work that only one process's memory knew, a host that is started again because its server died, a
    process that is waited for although another could do it."""
    gateway = fleet["gateway2"]
    workflow_id = lifecycle.submit(gateway, lifecycle.prepare(gateway, material.model, material.data))
    killed = []
    for name in fleet.members:
        if step := BUSY_AT.get(name):
            found = lifecycle.wait_until_running(fleet["gateway1"], workflow_id, step)
            killed.append(f"{name} in {step} ({found['state']})")
        else:
            killed.append(name)
        fleet[name].kill()
        wait_for(lambda name=name: fleet.missed(name), 60, fleet.tails)  # type: ignore[misc]
        fleet.restart(name)
    view = lifecycle.wait_until_ended(gateway, workflow_id)
    wrong = lifecycle.broken_promises(gateway, view, reference.outputs, host_kills={})
    assert wrong == [], "\n".join(wrong) + "\n" + fleet.tails()
    fleet["serving1"].kill()
    wait_for(lambda: lifecycle.ask(gateway) == reference.answer, 20, lambda: f"another answer\n{fleet.tails()}")
    note(f"killed in turn, {', '.join(killed)}: the right result")
