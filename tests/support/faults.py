"""Faults of the chaos suite: who is struck, at which moment, and the table of what came of it."""

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.infra.processes import ProcessId, alive, group_members, identify
from tests.support.lifecycle import FINAL, HEAVY_STEPS, status, step_of
from tests.support.server import Answered, Server, wait_for

SERVER_KILL, SERVER_TERM, HOST_KILL, BOTH_KILL, SERVING_KILL = (
    "server KILL", "server TERM", "host KILL", "server+host KILL", "serving KILL",
)  # fmt: skip
VICTIMS = (SERVER_KILL, SERVER_TERM, HOST_KILL, BOTH_KILL, SERVING_KILL)
LIGHT_STEPS = ("gate", "register", "deploy", "promote")
AFTER = "(served)"
"""Not a step: the time after the execution's end, when only the deployed model runs."""
PLACES = (*HEAVY_STEPS, *LIGHT_STEPS, AFTER)
_DONE = {"succeeded", "failed", "skipped", "cancelled"}
_LATEST = 0.3
"""How long after the moment at which a step without a host may begin the blow falls at the latest."""


def victims_of(place: str) -> tuple[str, ...]:
    """Return who can be struck at a place."""
    if place in HEAVY_STEPS:
        served = (SERVING_KILL,) if place.startswith("evaluate") else ()
        return (SERVER_KILL, SERVER_TERM, HOST_KILL, BOTH_KILL, *served)
    return (SERVER_KILL, SERVER_TERM, SERVING_KILL) if place in ("deploy", AFTER) else (SERVER_KILL, SERVER_TERM)


CELLS = tuple((place, victim) for place in PLACES for victim in victims_of(place))
"""The whole matrix."""


@dataclass
class Blow:
    """One fault that was dealt, and what came of it."""

    database: str
    place: str
    victim: str
    seconds: float
    """From the blow until the server was ready and the step went on (or had ended)."""
    outcome: str = "?"


class Matrix:
    """Every blow of a test run."""

    def __init__(self) -> None:
        self.blows: list[Blow] = []

    def table(self) -> list[str]:
        """Return the table: a place a row, a victim a column, the worst outcome and longest recovery in each cell."""
        lines = []
        for database in sorted({blow.database for blow in self.blows}):
            lines.append(f"{database:<20}" + "".join(f"{victim:>20}" for victim in VICTIMS))
            for place in PLACES:
                cells = [self._cell(database, place, victim) for victim in VICTIMS]
                lines.append(f"{place:<20}" + "".join(f"{cell:>20}" for cell in cells))
            mine = [blow for blow in self.blows if blow.database == database]
            right = sum(blow.outcome == "right" for blow in mine)
            slowest = max((blow.seconds for blow in mine), default=0.0)
            lines.append(f"{right} of {len(mine)} ended right; slowest recovery {slowest:.1f} s")
            lines.append("")
        return lines

    def _cell(self, database: str, place: str, victim: str) -> str:
        found = [b for b in self.blows if (b.database, b.place, b.victim) == (database, place, victim)]
        if not found:
            return "" if victim in victims_of(place) else "-"
        outcome = next((blow.outcome for blow in found if blow.outcome != "right"), "right")
        return f"{outcome} {max(blow.seconds for blow in found):.1f} s"


def begun(server: Server, view: dict[str, Any], wanted: set[str]) -> str | None:
    """Return a wanted step that runs now, or that a step before it is about to let run; shortest steps first."""
    for place in ("split", "import", *LIGHT_STEPS, *HEAVY_STEPS):
        if place not in wanted:
            continue
        step = step_of(view, place)
        if step["state"] == "running" and (place not in HEAVY_STEPS or _host(server, step) is not None):
            return place
        if place in LIGHT_STEPS and step["state"] == "waiting" and _nearly(server, view, step):
            return place
    return None


def _nearly(server: Server, view: dict[str, Any], step: dict[str, Any]) -> bool:
    """Tell whether all that a step needs has ended or is ending: its host wrote its result, its replica loads."""
    for name in step["needs"]:
        needed = step_of(view, name)
        if needed["state"] in _DONE:
            continue
        if not needed["attempts"] or needed["state"] != "running":
            return False
        job = server.home / "jobs" / needed["attempts"][-1]["job_id"]
        verifying = "loading" in str((needed["progress"] or {}).get("phase"))
        if not verifying and not any(job.glob("result.*.json")):
            return False
    return True


def _host(server: Server, step: dict[str, Any]) -> ProcessId | None:
    """Return the living host of a step, as it told its job's folder: its server may not know of it yet."""
    for attempt in reversed(step["attempts"]):
        for path in (server.home / "jobs" / attempt["job_id"]).glob("host.*.json"):
            with contextlib.suppress(OSError, ValueError):
                told = json.loads(path.read_text())
                process = ProcessId(told["pid"], told["started_ticks"], told["boot_id"])
                if alive(process):
                    return process
    return None


def strike(
    server: Server, workflow_id: str, place: str, victim: str, draw: random.Random, seconds: float,
    step: dict[str, Any] | None = None,
) -> float | None:  # fmt: skip
    """Deal one blow at a random moment within a step that has begun; return the recovery in seconds, None if missed.

    Args:
        server: is running, and is running again on return.
        workflow_id: the execution.
        place: the step.
        victim: who is struck.
        draw: decides about the moment.
        seconds: how long the step takes when nothing disturbs it.
        step: the step's status.
    """
    heavy = place in HEAVY_STEPS
    host = _host(server, step) if heavy and step is not None else None
    latest = (
        _LATEST if not heavy else 0.7 * seconds if seconds > 1 else 0.0
    )  # what is over in a blink is struck at once
    moment = time.monotonic() + draw.uniform(0.0, latest)
    while time.monotonic() < moment and (host is None or alive(host)):
        time.sleep(0.005)
    if heavy and (host is None or not alive(host)):
        return None
    target = _serving(server, host, moment + 20) if victim == SERVING_KILL else host
    if target is None and victim in (SERVING_KILL, HOST_KILL, BOTH_KILL):
        return None
    struck = time.monotonic()
    if victim in (SERVER_KILL, BOTH_KILL):
        server.kill()
    if victim in (HOST_KILL, BOTH_KILL, SERVING_KILL):
        assert target is not None
        kill(target)
    if victim == SERVER_TERM:
        code = server.stop()
        assert code == 0, f"SIGTERM: exit {code}\n{server.tail()}"
    if victim in (SERVER_KILL, SERVER_TERM, BOTH_KILL):
        server.start()
    killed = target if victim in (HOST_KILL, BOTH_KILL, SERVING_KILL) else None
    wait_for(
        lambda: _goes_on(server, workflow_id, place, victim, killed), 90,
        lambda: f"{place} does not go on after {victim}\n{server.tail()}",
    )  # fmt: skip
    return time.monotonic() - struck


def kill(process: ProcessId) -> None:
    """SIGKILL to this very process."""
    if alive(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _goes_on(server: Server, workflow_id: str, place: str, victim: str, killed: ProcessId | None) -> bool:
    """Tell whether what was struck works again: another process in the killed one's place, or the step has ended."""
    if place == AFTER or (place == "deploy" and victim == SERVING_KILL):
        fresh = [one["state"] for one in replicas(server) if killed is None or one["pid"] != killed.pid]
        return fresh == ["ready"] and _answers(server)
    view = status(server, workflow_id)
    step = step_of(view, place)
    if view["status"] in FINAL or step["state"] in _DONE or place not in HEAVY_STEPS:
        return True
    host = _host(server, step)
    if host is not None and victim == SERVING_KILL:
        return any(engine != killed for engine in _engines(host))
    return host is not None and host != killed


def _answers(server: Server) -> bool:
    body = {"model": "production", "max_tokens": 1, "messages": [{"role": "user", "content": "zzzz"}]}
    try:
        return bool(server.request("POST", "/v1/chat/completions", body)["choices"])
    except (Answered, OSError):
        return False


def _serving(server: Server, host: ProcessId | None, deadline: float) -> ProcessId | None:
    """Return the process that serves a model: an evaluation's engine, or a replica."""
    while time.monotonic() < deadline:
        if host is not None:
            if not alive(host):
                return None
            if engines := _engines(host):
                return engines[0]
        else:
            for replica in replicas(server):
                if (found := identify(replica["pid"])) is not None:
                    return found
        time.sleep(0.01)
    return None


def _engines(host: ProcessId) -> list[ProcessId]:
    return [one for one in group_members(host) if one.pid != host.pid and _is_engine(one.pid) and alive(one)]


def _is_engine(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"burnish.ml.engines" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def replicas(server: Server, deployment: str = "production") -> list[dict[str, Any]]:
    """Return the replicas of a deployment whose process is known."""
    try:
        found = server.request("GET", f"/platform/deployments/{deployment}")["replicas"]
    except Answered as error:
        if error.status == 404:
            return []
        raise
    return [one for one in found if one["pid"]]


def in_turn(places: tuple[str, ...], draw: random.Random) -> dict[str, str]:
    """Return a victim for each place, so that each victim is struck about equally often and each at least once."""
    used = dict.fromkeys(VICTIMS, 0)
    chosen = {}
    for place in sorted(places, key=lambda one: (len(victims_of(one)), draw.random())):
        chosen[place] = min(victims_of(place), key=lambda victim: (used[victim], draw.random()))
        used[chosen[place]] += 1
    return chosen


def cells_of(database: str, blows: list[Blow]) -> Iterator[tuple[str, str]]:
    """Yield the cells of a database that were hit."""
    for blow in blows:
        if blow.database == database:
            yield blow.place, blow.victim
