"""Printing log lines, of one job or of all jobs of an execution."""

from collections.abc import Iterator
from typing import Any

from burnish.cli.output import console, print_json
from burnish.client import Client, ExecutionView
from burnish.core.errors import NotFound
from burnish.core.protocol import Event

ENGINE = "platform"
LEVELS = {"warning": "yellow", "error": "red", "debug": "dim"}


def print_logs(client: Client, identifier: str, *, step: str | None, follow: bool, as_json: bool) -> None:
    """Print the log of a job or of an execution's jobs; ``follow``: until it has ended."""
    if identifier.startswith("job_"):
        names = {identifier: identifier[-6:]}
        events: Iterator[Event | None] = client.jobs.follow(identifier)
    else:
        names = _jobs(client.workflows.get(identifier), step)
        events = client.workflows.follow(identifier)
    if not follow:
        lines = [(job_id, line) for job_id in names for line in _lines(client, job_id)]
        for job_id, line in sorted(lines, key=lambda one: str(one[1]["at"])):
            _print(names[job_id], job_id, line, as_json)
        if not lines and not as_json:
            console().print("[dim]no log lines[/]")
        return
    for event in events:
        if event is None or event.type != "log":
            continue
        if event.subject not in names and not identifier.startswith("job_"):
            names.update(_jobs(client.workflows.get(identifier), step))
        if event.subject in names:
            _print(names[event.subject], event.subject, {"at": event.at.isoformat(), **event.data}, as_json)


def _lines(client: Client, job_id: str) -> list[dict[str, Any]]:
    """Return a job's log lines; none of one that was never accepted, or whose result another job had."""
    try:
        return list(client.jobs.logs(job_id)["data"])
    except NotFound:
        return []


def _jobs(view: ExecutionView, step: str | None) -> dict[str, str]:
    """Return the jobs of an execution in the order in which they began, with their step's name."""
    if step is not None and step not in {found.name for found in view.steps}:
        known = ", ".join(found.name for found in view.steps)
        raise NotFound(f"{view.workflow_id} has no step {step!r}", where=view.workflow_id, hint=f"its steps: {known}")
    return {
        (attempt.reused_from or attempt.job_id): found.name
        for found in view.steps
        if step in {None, found.name} and found.component != ENGINE  # whose steps run in the server and have no log
        for attempt in found.attempts
        if attempt.job_id
    }


def _print(name: str, job_id: str, line: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json({"step": name, "job_id": job_id, **line}, lines=True)
        return
    level = str(line.get("level", "info"))
    out = console()
    out.print(f"[dim]{str(line.get('at', ''))[11:19]}[/] [cyan]{name:<12}[/] ", end="")
    out.print(str(line.get("message", "")), style=LEVELS.get(level, ""), markup=False, soft_wrap=True)
