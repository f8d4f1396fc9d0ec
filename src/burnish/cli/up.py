"""``burnish up``."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from burnish.cli.options import Exit, Home, Json

_SAME_START_SECONDS = 60.0
"""A clock that is set in small steps moves a process's start as seen later."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(up)


def up(
    file: Annotated[Path, typer.Argument(help="The processes, as YAML; see examples/split/burnish.yaml.", exists=True, dir_okay=False)],
    status: Annotated[bool, typer.Option("--status", help="Show what runs, and end.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Run an installation's processes on this machine, and start again what ends.

    A changed file and SIGHUP start processes anew, one after the other. Ctrl-C drains and ends them all; TERM ends them
    and leaves jobs and replicas running. A supervisor that was killed finds its processes again when it is started again.
    """
    from burnish.client import address

    folder = address.home(home)
    if status:
        raise typer.Exit(_status(file, folder, as_json=as_json))
    _supervise(file, folder)


def _supervise(file: Path, home: Path) -> None:
    import signal

    from burnish.cli.supervisor import Supervisor

    def say(line: str) -> None:
        with contextlib.suppress(OSError):  # where it prints to is full, or gone: that ends no process
            print(line, flush=True)

    supervisor = Supervisor(file, home, say, wanted_restarts)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _frame: supervisor.signal(got))
    supervisor.run()


def wanted_restarts(supervisor: str, urls: Sequence[str]) -> set[int]:
    """Return the pids of this supervisor's processes that the platform wants to be restarted."""
    from burnish.client import Client
    from burnish.core.errors import BurnishError

    for url in urls:
        try:
            with Client(url) as client:
                found = client.components()
        except (BurnishError, OSError):
            continue  # the next one, or the next time
        mine = [one for one in found if one.restart_requested_at and one.metadata.get("supervisor") == supervisor]
        return {pid for one in mine if (pid := _pid_of(one.metadata)) is not None}
    return set()


def _pid_of(metadata: Mapping[str, Any]) -> int | None:
    """Return the pid that an instance names, if the process that has it here is the one that it says."""
    import psutil

    pid, started = metadata.get("pid"), metadata.get("started_at")
    if not isinstance(pid, int) or not isinstance(started, int | float):
        return None
    with contextlib.suppress(psutil.Error, ValueError, OverflowError):
        return pid if abs(psutil.Process(pid).create_time() - started) < _SAME_START_SECONDS else None
    return None


def _status(file: Path, home: Path, *, as_json: bool) -> Exit:
    from burnish.cli.output import console, print_json, print_table, state_text
    from burnish.cli.supervisor import read_state

    state = read_state(file, home)
    if as_json:
        print_json({"supervised": state is not None and state.supervised, "state": state})
        return Exit.DONE if state is not None and state.supervised else Exit.FAILED
    if state is None:
        console().print(f"{file} was never up on this home ({home})", markup=False)
        return Exit.FAILED
    said = (
        f"supervised by pid {state.supervisor}" if state.supervised else "not supervised: `burnish up` adopts what runs"
    )
    console().print(f"{state.file}: {said}", markup=False)
    rows = [
        (one.key, one.components, state_text(one.state), one.pid or "", one.url or "", one.restarts, one.problem or "")
        for one in state.units
    ]
    print_table(("process", "components", "state", "pid", "url", "restarts", "problem"), rows, empty="no processes")
    well = state.supervised and all(one.state in ("ready", "stopped") for one in state.units)
    return Exit.DONE if well else Exit.FAILED
