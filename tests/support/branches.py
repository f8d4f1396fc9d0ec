"""Workflows of light work for faults that need no model: parallel branches of random length, some of them real hosts."""

import random
from typing import Any

from tests.support import lifecycle
from tests.support.server import Server, wait_for


def definition(draw: random.Random, branches: int = 4, longest: int = 4) -> dict[str, Any]:
    """Return parallel branches of noops, waits and real jobs (splits of splits), which a last step joins."""
    steps: dict[str, Any] = {}
    ends = []
    for branch in range(branches):
        previous, dataset = None, "${{ parameters.dataset.artifact }}"
        for number in range(draw.randint(1, longest)):
            name = f"b{branch}s{number}"
            kind = draw.choice(("noop", "wait", "split", "split")) if number else "split"
            if kind == "split":
                steps[name] = {"component": "data_management", "kind": "split", "with": {"dataset": dataset, "seed": branch}}  # fmt: skip
                dataset = f"${{{{ steps.{name}.result.train }}}}"
            elif kind == "wait":
                steps[name] = {"kind": "wait", "with": {"seconds": round(draw.uniform(0.05, 0.8), 2), "value": name}}
            else:
                steps[name] = {"kind": "noop", "with": {"value": name}}
            if previous is not None:
                steps[name]["needs"] = [previous]
            previous = name
        ends.append(previous)
    steps["join"] = {"kind": "noop", "needs": ends, "with": {"value": "joined"}}
    parameters = {"dataset": {"type": "dataset", "required": True}}
    return {"name": "branches", "parameters": parameters, "steps": steps}


def quick(steps: int = 6) -> dict[str, Any]:
    """Return a row of noops: one or two transactions each."""
    made: dict[str, Any] = {}
    for number in range(steps):
        made[f"s{number}"] = {"kind": "noop", "with": {"value": number}}
        if number:
            made[f"s{number}"]["needs"] = [f"s{number - 1}"]
    return {"name": "quick", "steps": made}


def two_transactions() -> dict[str, Any]:
    """Return one wait for nothing: a turn that writes its attempt, and then, out of what it kept in memory, the end."""
    return {"name": "two_transactions", "steps": {"wait": {"kind": "wait", "with": {"seconds": 0}}}}


def waits(seconds: float) -> dict[str, Any]:
    """Return one wait between two noops."""
    return {"name": "waits", "steps": {
        "before": {"kind": "noop"},
        "wait": {"kind": "wait", "needs": ["before"], "with": {"seconds": seconds}},
        "after": {"kind": "noop", "needs": ["wait"]},
    }}  # fmt: skip


def run(server: Server, given: dict[str, Any], **parameters: Any) -> str:
    """Submit a definition; return the execution's id."""
    body = {"definition": given, "parameters": parameters}
    return str(server.request("POST", "/platform/workflows/run", body)["workflow_id"])


def results(view: dict[str, Any]) -> dict[str, Any]:
    """Return what each step made."""
    return {step["name"]: step["result"] for step in view["steps"]}


def ended_right(server: Server, workflow_id: str, timeout: float = 90) -> dict[str, Any]:
    """Wait for an execution's success; return its status."""
    view = lifecycle.wait_until_ended(server, workflow_id, timeout)
    assert view["status"] == "succeeded", f"{lifecycle.summary(view)}\n{server.tail()}"
    return view


def wait_for_job(server: Server, workflow_id: str, timeout: float = 60) -> list[dict[str, Any]]:
    """Wait until a host works for an execution; return the jobs whose hosts are known."""
    found: list[dict[str, Any]] = []

    def working() -> bool:
        nonlocal found
        page = server.request("GET", f"/platform/jobs?workflow_id={workflow_id}&limit=100")["data"]
        found = [job for job in page if job["pid"]]
        return bool(found) or lifecycle.status(server, workflow_id)["status"] in lifecycle.FINAL

    wait_for(working, timeout, lambda: f"no host works\n{server.tail()}", pause=0.01)
    return found
