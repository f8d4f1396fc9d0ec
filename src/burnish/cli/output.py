"""How things are printed: JSON, tables, errors."""

import json
import math
import os
import shlex
import sys
from collections.abc import Iterable, Sequence, ValuesView
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from burnish.cli.options import ADDRESSED, Exit
from burnish.client.errors import NotReachable
from burnish.core.errors import BurnishError, Busy, FieldProblem

COLOURS = {
    "succeeded": "green", "healthy": "green", "ready": "green", "serving": "green", "running": "cyan", "failed": "red",
    "rejected": "yellow", "retrying": "yellow", "degraded": "yellow", "unhealthy": "red", "lost": "red",
    "cancelled": "magenta", "cancelling": "magenta", "paused": "yellow", "skipped": "dim", "waiting": "dim",
}  # fmt: skip


UNFOLDED = 240
"""Columns of output that goes into a file or a pipe."""


def console(*, stderr: bool = False) -> Console:
    """Return a console on the present stdout or stderr; where that is no terminal, lines are not folded to 80."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else UNFOLDED
    return Console(stderr=stderr, highlight=False, width=width)


def plain(value: Any) -> Any:
    """Return ``value`` as JSON values."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | ValuesView):
        return [plain(item) for item in value]
    return value


def print_json(value: Any, *, lines: bool = False) -> None:
    """Print one JSON value; ``lines``: on a single line."""
    text = json.dumps(plain(value), indent=None if lines else 2, ensure_ascii=False, default=str)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Print rows under column names, or ``empty`` when there are none."""
    rows = list(rows)
    if not rows:
        console().print(f"[dim]{escape(empty)}[/]")
        return
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number == 0)  # the first is what other commands are given
    for row in rows:
        table.add_row(*[_cell(value) for value in row])
    console().print(table)


def print_record(value: Any) -> None:
    """Print everything that is known of one object, as a tree that reads like YAML."""
    text = yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True, width=100, default_flow_style=False)
    console().print(text, end="", markup=False, soft_wrap=True)


def state_text(state: object) -> Text:
    """Return a state in its colour."""
    return Text(str(state), style=COLOURS.get(str(state), ""))


def print_error(error: BurnishError, *, as_json: bool) -> None:
    """Print what happened, to what, and what to do next, to stderr."""
    if as_json:
        sys.stderr.write(json.dumps({"error": error.body().model_dump(mode="json")}, ensure_ascii=False) + "\n")
        return
    out = console(stderr=True)
    out.print(f"[bold red]Error:[/] {escape(error.message)} [dim]({error.code})[/]", soft_wrap=True)
    if error.where:
        out.print(f"  [bold]where[/] {escape(error.where)}", soft_wrap=True)
    for problem in error.problems:
        out.print(f"  [bold]at[/]    [red]{escape(problem.where)}[/]: {escape(_said(problem))}", soft_wrap=True)
        if problem.hint:
            out.print(f"        [dim]{escape(problem.hint)}[/]", soft_wrap=True)
    if error.retry_after is not None and isinstance(error, Busy):
        out.print(f"  [bold]wait[/]  {seconds(error.retry_after)}", soft_wrap=True)
    if error.hint and error.hint not in {problem.hint for problem in error.problems}:
        out.print(f"  [bold]next[/]  {escape(error.hint)}", soft_wrap=True)


def _said(problem: FieldProblem) -> str:
    """Return a problem's message without the name with which the place ends, which stands before it already."""
    name, colon, rest = problem.message.partition(": ")
    return rest if colon and f".{problem.where}".endswith(f".{name}") else problem.message


def exit_status(error: BurnishError) -> Exit:
    """Return the exit status of an error."""
    return Exit.NOT_REACHABLE if isinstance(error, NotReachable) else Exit.FAILED


def command(arguments: str) -> str:
    """Return a burnish command as the reader can type it, in the form in which this one was started.

    A program in the environment's ``bin`` that is not on the path is named by its path from here. A home or a server
    that was named on this command line is named again.
    """
    program = Path(sys.executable).parent / "burnish"
    on_path = any(Path(folder) == program.parent for folder in os.environ.get("PATH", "").split(os.pathsep))
    if on_path and "VIRTUAL_ENV" in os.environ:
        return f"{_addressed()}burnish {arguments}"
    try:
        shown = program.relative_to(Path.cwd())
    except ValueError:
        shown = program
    return f"{_addressed()}{shlex.quote(str(shown))} {arguments}"


def _addressed() -> str:
    """Return the assignments that lead a command to the same server as this one."""
    return "".join(f"{variable}={shlex.quote(value)} " for variable, value in ADDRESSED.items())


def size(count: float | None) -> str:
    """Return a number of bytes for people: ``105 MB``."""
    if count is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit in {"B", "kB"} or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def seconds(value: float | None) -> str:
    """Return a duration for people: ``8.2 s``, ``3 min 05 s``."""
    if value is None or not math.isfinite(value):
        return "-"
    if value < 60:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def ago(moment: datetime | None) -> str:
    """Return how long ago something was."""
    if moment is None:
        return "-"
    return f"{seconds(max(0.0, (datetime.now(UTC) - moment).total_seconds()))} ago"


def _cell(value: Any) -> Text | str:
    if isinstance(value, Text):
        return value
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return escape(str(value))
