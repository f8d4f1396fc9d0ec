"""Whom a fault strikes: each kind of process that an installation consists of, and how to tell that it is well again."""

import os
import random
import signal
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from burnish.infra.processes import ProcessId, alive, identify
from tests.support.fleet import Fleet, Member
from tests.support.harm import Blow
from tests.support.server import Answered, wait_for

COUNT = {
    "name": "count",
    "steps": {"count": {"component": "fine_tuning", "kind": "count", "with": {"to": 50, "seconds": 0.1, "checkpoint_every": 2}}},
}  # fmt: skip
"""Work that a host is busy with for five seconds."""
REPLICAS = 2


class Victim(Protocol):
    """One that is struck once."""

    name: str

    def prepare(self) -> list[str]:
        """See that it has something to lose; return the executions that were accepted for that."""

    def kill(self) -> None: ...
    def start(self) -> None: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...

    def well(self) -> bool:
        """Tell whether nothing is left of the fault."""

    def passed(self) -> Mapping[str, float]:
        """Return the keys of the load's requests that were sent to it, and when."""


def killed(victim: Victim) -> Blow:
    """SIGKILL; started again at the end, where Burnish itself does not."""
    return Blow(victim.name, victim.kill, victim.start, victim.well, victim.passed, victim.prepare)


def frozen(victim: Victim) -> Blow:
    """SIGSTOP, and SIGCONT at the end."""
    return Blow(victim.name, victim.freeze, victim.thaw, victim.well, victim.passed, victim.prepare)


def victim(fleet: Fleet, name: str) -> Victim:
    """Return a victim by name: a member (several with ``+``), ``replica`` or ``host``."""
    made: dict[str, Callable[[], Victim]] = {"replica": lambda: Replica(fleet), "host": lambda: Host(fleet)}
    return made.get(name, lambda: Members(fleet, name))()


class Members:
    """Processes of Burnish, struck at once. What runs jobs has one to run."""

    def __init__(self, fleet: Fleet, name: str) -> None:
        self.name = name
        self._fleet = fleet
        self._names = name.split("+")
        self._members = [fleet[one] for one in self._names]
        self._job = Host(fleet) if "tuning" in self._names else None

    def prepare(self) -> list[str]:
        return [] if self._job is None else self._job.prepare()

    def kill(self) -> None:
        for one in self._members:
            one.kill()

    def start(self) -> None:
        for one in self._members:
            one.start(ready=False)

    def freeze(self) -> None:
        for one in self._members:
            one.freeze()

    def thaw(self) -> None:
        for one in self._members:
            one.thaw()

    def well(self) -> bool:
        return all(_is_ready(one) for one in self._members) and self._fleet.settled()

    def passed(self) -> Mapping[str, float]:
        return {key: at for name in self._names for key, at in self._fleet.passed(name).items()}


def _is_ready(member: Member) -> bool:
    """Ask itself: to the others it may be healthy still, just after its death."""
    try:
        return bool(member.request("GET", "/platform/ready", timeout=5)["status"] == "ready")
    except (OSError, ValueError, Answered):
        return False


class Replica:
    """A process of the served model, one of two."""

    def __init__(self, fleet: Fleet) -> None:
        self.name = "replica"
        self._fleet = fleet
        self._id = ""
        self._process: ProcessId | None = None

    def prepare(self) -> list[str]:
        chosen = random.choice(self._ready())
        self._id, self._process = chosen["id"], identify(chosen["pid"])
        return []

    def kill(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGKILL)
        wait_for(lambda: self._process is not None and not alive(self._process), 5, "the replica lives on", pause=0.001)

    def start(self) -> None:
        """Burnish does."""

    def freeze(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def well(self) -> bool:
        return len(self._ready()) == REPLICAS and self._fleet.settled()

    def passed(self) -> Mapping[str, float]:
        return self._fleet.passed_to(lambda to: self._id in to)

    def _ready(self) -> list[dict[str, Any]]:
        """Return the replicas that answer: one that was killed counts as ready until its end was noticed."""
        try:
            view = self._fleet.gateways[0].request("GET", "/platform/deployments/chat")
        except Answered:
            return []
        found = [(one, identify(one["pid"])) for one in view["replicas"] if one["state"] == "ready"]
        return [one for one, process in found if process is not None and alive(process)]


class Host:
    """The process of a running job."""

    def __init__(self, fleet: Fleet) -> None:
        self.name = "host"
        self._fleet = fleet
        self._execution = ""
        self._done = 0.0
        self._process: ProcessId | None = None

    def prepare(self) -> list[str]:
        answer = self._fleet.gateways[0].request("POST", "/platform/workflows/run", {"definition": COUNT})
        self._execution = answer["workflow_id"]
        wait_for(lambda: self._progress(self._job()) >= 5, 60, lambda: f"no job runs: {self._job()}")
        job = self._job()
        self._done, self._process = self._progress(job), identify(job["pid"])
        assert self._process is not None, f"the job ended too soon: {job}"
        return [self._execution]

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def start(self) -> None:
        """Burnish does."""

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def well(self) -> bool:
        """It is further than it was, in whichever process."""
        job = self._job()
        further = job["state"] == "running" and job["pid"] and self._progress(job) > self._done
        another = identify(job["pid"]) if job["pid"] else None
        lives = another is not None and alive(another)
        return job["state"] == "succeeded" or bool(further and lives)

    def passed(self) -> Mapping[str, float]:
        return {}

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def _job(self) -> dict[str, Any]:
        page = self._fleet.gateways[0].request("GET", f"/platform/jobs?workflow_id={self._execution}&limit=5")
        return next(iter(page["data"]), {"state": "none", "pid": None})

    @staticmethod
    def _progress(job: Mapping[str, Any]) -> float:
        return float((job.get("progress") or {}).get("done", 0))
