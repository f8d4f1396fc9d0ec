"""``burnish up``."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.cli.options import Exit, Home, Json

if TYPE_CHECKING:
    from burnish.cli.supervised import StateFile, UnitRecord

_SAME_START_SECONDS = 60.0
"""A clock that is set in small steps moves a process's start as seen later."""
_READY_SECONDS = 3.0
"""For a process's word of how it is."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(up)


def up(
    file: Annotated[Path, typer.Argument(help="The processes, as YAML; see examples/split/burnish.yaml.", exists=True, dir_okay=False)],
    status: Annotated[
        bool, typer.Option("--status", help="Show what runs, and end; exit status 1 if it is not supervised, or one process is not ready.")
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Run an installation's processes on this machine, and start again what ends.

    A changed file and SIGHUP start processes anew, one after the other. Ctrl-C drains and ends them all; TERM ends them
    and leaves jobs and replicas running. What has not ended then after 60 s (Ctrl-C: 120 s) is killed.
    A supervisor that was killed finds its processes again when it is started again.
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

    supervisor = Supervisor(file, home, say, RestartIntents(say))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _frame: supervisor.signal(got))
    supervisor.run()


class RestartIntents:
    """Asks the platform which processes it wants to be restarted. With a key that was refused it asks no more."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._refused: set[str | None] = set()

    def __call__(self, supervisor: str, platforms: Sequence[tuple[str, Path]]) -> set[int]:
        """Return the pids of this supervisor's processes that are to be restarted.

        Args:
            supervisor: its id.
            platforms: whom to ask, the URL and the home of each: a login is kept for a home.
        """
        from burnish.client import Client
        from burnish.client.wire import Address
        from burnish.core.errors import BurnishError, Forbidden, Unauthenticated

        for url, home in platforms:
            try:
                key = Address(url, None, home).api_key
                if key in self._refused:
                    continue
                with Client(url, api_key=key, home=home) as client:
                    found = client.components()
            except (Unauthenticated, Forbidden) as error:
                self._refused.add(key)
                self._say(
                    f"the platform does not say which processes it wants to be restarted ({error.message}); give "
                    "`burnish up` a key that may read components: BURNISH_API_KEY, or burnish login"
                )
                continue
            except (BurnishError, OSError):
                continue  # the next one, or the next time
            ours = [one for one in found if one.embedded and one.restart_requested_at]  # a registration says anything
            mine = [one for one in ours if one.metadata.get("supervisor") == supervisor]
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
    from burnish.cli.supervised import read_state

    state = read_state(file, home)
    if state is not None:
        state = _asked(state)
    well = state is not None and state.supervised and all(one.state in ("ready", "stopped") for one in state.units)
    if as_json:
        print_json({"supervised": state is not None and state.supervised, "state": state})
        return Exit.DONE if well else Exit.FAILED
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
    return Exit.DONE if well else Exit.FAILED


def _asked(state: "StateFile") -> "StateFile":
    """Return the state with what those that run say of themselves now: one can wait for its database."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max(1, len(state.units))) as pool:
        return state.model_copy(update={"units": tuple(pool.map(_ask, state.units))})


def _ask(unit: "UnitRecord") -> "UnitRecord":
    from dataclasses import replace

    from burnish.client import Client, calls
    from burnish.core.errors import BurnishError

    if unit.state != "ready" or unit.url is None:
        return unit
    try:
        with Client(unit.url, api_key="") as client:
            client.send(replace(calls.get("/platform/ready"), timeout=_READY_SECONDS))
    except BurnishError as error:
        said = "; ".join(f"{one.where}: {one.message}" for one in error.problems) or error.message
        return unit.model_copy(update={"state": "unready", "problem": said})
    return unit
