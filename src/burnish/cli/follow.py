"""Watching an execution: a live table in a terminal, plain lines elsewhere, JSON lines with ``--json``."""

import sys
import threading
import time
from datetime import UTC, datetime
from typing import Protocol

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from burnish.cli.options import Exit
from burnish.cli.output import COLOURS, command, console, plain, print_json, seconds, state_text
from burnish.cli.summary import step_lines
from burnish.client import Client, ExecutionView, StepView
from burnish.client.events import PATIENCE
from burnish.core.errors import BurnishError
from burnish.core.protocol import Event
from burnish.core.states import ExecutionState

SILENCE = 3.0
"""Seconds after which a plain line is printed although nothing changed."""
PAUSE = 0.3
"""Seconds between two looks at the status, however many events arrive."""
ICONS = {
    "succeeded": "✓", "failed": "✗", "rejected": "✗", "skipped": "–", "cancelled": "–", "waiting": "·", "retrying": "↻",
    "paused": "‖",
}  # fmt: skip


class Watcher(threading.Thread):
    """Follows the events of an execution and wakes the one who waits for changes."""

    def __init__(self, client: Client, workflow_id: str) -> None:
        super().__init__(name=f"follow {workflow_id}", daemon=True)
        self._client, self._workflow_id = client, workflow_id
        self.changed = threading.Event()
        self.events: list[Event] = []
        self.keep = False

    def run(self) -> None:
        """Read until the execution has ended; without the stream the status is still looked at by the second."""
        try:
            for event in self._client.workflows.follow(self._workflow_id):
                if event is not None:
                    if self.keep:
                        self.events.append(event)
                    self.changed.set()
        except (BurnishError, RuntimeError):  # RuntimeError: the client was closed because the follower is done
            self.changed.set()


class Display(Protocol):
    """Where changes are shown."""

    def show(self, view: ExecutionView, away: float | None) -> None:
        """Show the present state; ``away``: seconds for which the server has not answered."""


def follow(client: Client, workflow_id: str, *, as_json: bool = False, title: str = "") -> ExecutionView:
    """Show an execution until it has ended and return it. Survives restarts of the server.

    Raises:
        NotReachable: the server stayed away for five minutes.
    """
    view = client.workflows.get(workflow_id)
    watcher = Watcher(client, workflow_id)
    watcher.keep = as_json
    watcher.start()
    if as_json:
        return _watch(client, view, watcher, JsonLines(watcher))
    try:
        if not sys.stdout.isatty():
            return _watch(client, view, watcher, PlainLines(title))
        table = LiveTable(view)
        with Live(get_renderable=table.render, console=console(), refresh_per_second=4, transient=False):
            return _watch(client, view, watcher, table)
    except KeyboardInterrupt:
        console(stderr=True).print(
            f"\n{workflow_id} goes on without this. Watch it again: {command(f'show {workflow_id} --follow')}"
        )
        raise


def ending(view: ExecutionView) -> Exit:
    """Return the exit status for how an execution ended."""
    if view.status == ExecutionState.SUCCEEDED:
        return Exit.DONE
    return Exit.REJECTED if view.status == ExecutionState.REJECTED else Exit.WORKFLOW_FAILED


def _watch(client: Client, view: ExecutionView, watcher: Watcher, display: Display) -> ExecutionView:
    workflow_id, seen = view.workflow_id, time.monotonic()
    display.show(view, None)
    while not view.ended:
        watcher.changed.wait(1.0)
        watcher.changed.clear()
        time.sleep(PAUSE)
        away: float | None = None
        try:
            view = client.workflows.get(workflow_id)
            seen = time.monotonic()
        except BurnishError as error:
            away = time.monotonic() - seen
            if not error.retryable or away > PATIENCE:
                raise
        display.show(view, away)
    return view


class LiveTable:
    """A table that is drawn again and again in a terminal."""

    def __init__(self, view: ExecutionView) -> None:
        self._view = view
        self._away: float | None = None
        self._spinners: dict[str, Spinner] = {}

    def show(self, view: ExecutionView, away: float | None) -> None:
        """Take what is drawn next."""
        self._view, self._away = view, away

    def render(self) -> RenderableType:
        """Draw the present state."""
        parts = [render(self._view, spinners=self._spinners)]
        if self._away is not None:
            parts.append(Text(f"the server has not answered for {seconds(self._away)}; waiting for it", style="yellow"))
        return Group(*parts)


class PlainLines:
    """A line for each change, and at least one every few seconds."""

    def __init__(self, title: str = "") -> None:
        self._states: dict[str, str] = {}
        self._status = ""
        self._said = time.monotonic()
        self._title = title

    def show(self, view: ExecutionView, away: float | None) -> None:
        """Print what changed."""
        lines = step_lines(view)
        for step in view.steps:
            if self._states.get(step.name) != step.state:
                self._states[step.name] = step.state
                if step.state != "waiting":
                    self._say(_plain_step(step, lines[step.name]))
        if view.status != self._status:
            self._status = view.status
            self._say(f"{view.workflow_id} {view.status}")
        if time.monotonic() - self._said < SILENCE:
            return
        if away is not None:
            self._say(f"the server has not answered for {seconds(away)}; waiting for it")
        running = [step for step in view.steps if step.state in {"running", "retrying"}]
        for step in running:
            self._say(_plain_step(step, lines[step.name]))
        if not running and away is None:
            self._say(f"{view.workflow_id} {view.status}")

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        sys.stdout.write(f"{datetime.now().astimezone():%H:%M:%S} {text}\n")
        sys.stdout.flush()


class JsonLines:
    """Every event as a JSON line, and the execution as the last."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def show(self, view: ExecutionView, away: float | None) -> None:
        """Print the events that have come."""
        if view.ended and away is None:
            self._watcher.join(timeout=5)
        while self._watcher.events:
            print_json({"event": plain(self._watcher.events.pop(0))}, lines=True)
        if view.ended and away is None:
            print_json({"execution": plain(view)}, lines=True)


def render(view: ExecutionView, *, details: bool = False, spinners: dict[str, Spinner] | None = None) -> RenderableType:
    """Return an execution as a table of its steps; ``details``: with job, artifacts and errors."""
    head = Text.assemble(
        (view.workflow_id, "bold"), f"  {view.workflow_type}  ", state_text(view.status), "  ",
        (_elapsed(view.started_at, view.completed_at), "dim"),
    )  # fmt: skip
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    table.add_column(width=1)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(width=16)
    table.add_column(ratio=1, overflow="fold")
    lines = step_lines(view)
    for step in view.steps:
        table.add_row(
            _icon(step, spinners), step.name, state_text(step.state), Text(_elapsed(step.started_at, step.finished_at), "dim"),
            _bar(step), Text(lines[step.name]),
        )  # fmt: skip
    parts: list[RenderableType] = [head, table]
    if view.error is not None and view.status in {"failed", "rejected"}:
        parts.append(Text(view.error.message, style=COLOURS.get(view.status, "")))
    if details:
        parts += [part for step in view.steps for part in _details(step)]
    return Group(*parts)


def _details(step: StepView) -> list[RenderableType]:
    lines = [f"  {artifact.kind} {artifact.digest}" for artifact in step.artifacts]
    lines += [f"  attempt {a.number}: {a.job_id or '-'} {a.state}" for a in step.attempts if len(step.attempts) > 1]
    if step.error is not None:
        lines.append(f"  [red]{escape(step.error.message)}[/] [dim]({step.error.code})[/]")
        lines += [f"  where {escape(step.error.where)}"] if step.error.where else []
        lines += [f"    {escape(p.where)}: {escape(p.message)}" for p in step.error.problems]
        lines += [f"  next  {escape(step.error.hint)}"] if step.error.hint else []
    return [Text.from_markup(f"[bold]{step.name}[/]"), *map(Text.from_markup, lines)] if lines else []


def _icon(step: StepView, spinners: dict[str, Spinner] | None) -> RenderableType:
    if step.state == "running" and spinners is not None:
        return spinners.setdefault(step.name, Spinner("dots", style="cyan"))
    return Text(ICONS.get(step.state, "▸"), style=COLOURS.get(step.state, ""))


def _bar(step: StepView) -> RenderableType:
    if step.state != "running" or step.progress is None or step.progress.total <= 0:
        return ""
    return ProgressBar(total=step.progress.total, completed=min(step.progress.done, step.progress.total), width=16)


def _plain_step(step: StepView, line: str) -> str:
    return f"  {step.name:<20} {step.state:<10} {_elapsed(step.started_at, step.finished_at):>8}  {line}".rstrip()


def _elapsed(start: datetime | None, end: datetime | None) -> str:
    if start is None:
        return ""
    return seconds(max(0.0, ((end or datetime.now(UTC)) - start).total_seconds()))
