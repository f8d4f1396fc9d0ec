"""``burnish demo``: a server, the data, one execution watched live, and a report."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from burnish.cli.follow import ending, follow
from burnish.cli.options import Exit
from burnish.cli.output import command, console
from burnish.cli.processes import RunningServer, running_server, stop_server, wait_ready
from burnish.cli.report import print_report
from burnish.client import Client, DatasetView, address
from burnish.core.errors import NotFound, Unavailable

WORKFLOW = "train-optimize-deploy"
NAME = "production"
HUB_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TRAIN, TEST = "sentiment_movie_train", "sentiment_movie_test"
START_LIMIT = 60.0
"""Seconds a server may take to start, for a slow disk and a big migration; usually two."""
PORTS_TRIED = 50


@dataclass(frozen=True)
class Server:
    """The server that the demo talks to."""

    url: str
    process: subprocess.Popen[bytes] | None
    """Ours, if we started it."""


def run(
    *, model: str, exit_after: bool, home: Path | None, port: int | None, quick: bool, changed: Mapping[str, Any]
) -> Exit:
    """Run the demo, with ``changed`` parameters; return the status that tells whether the workflow succeeded.

    Raises:
        Unavailable: the server did not start.
        NotFound: the example data are not there.
    """
    folder = address.home(home)
    data = example_data()
    with (
        _terminated_like_interrupted(),
        _server(folder, port, exit_after=exit_after) as server,
        Client(server.url, home=folder) as client,
    ):
        parameters = {**_datasets(client, data), **_parameters(model, quick), **changed}
        accepted = client.workflows.submit(WORKFLOW, parameters)
        _say(f"[green]✓[/] submitted {WORKFLOW} as [bold]{accepted.workflow_id}[/]; each step runs in its own process:")
        view = follow(client, accepted.workflow_id)
        print_report(client, view, NAME, folder)
        status = ending(view)
        if server.process is None:
            _say("\n[dim]The server was running before this demo and goes on.[/]")
        elif not exit_after:
            _stay(server.process, folder)
    return status


def example_data() -> Path:
    """Return the folder of the movie sentiment data.

    Raises:
        NotFound: this is not a clone of the repository.
    """
    for root in (Path.cwd(), *Path(__file__).parents):
        folder = root / "examples" / "data" / "sentiment_movie"
        if (folder / f"{TRAIN}.jsonl").is_file():
            return folder
    raise NotFound(
        "the demo's data are not here: examples/data/sentiment_movie",
        hint="run it in a clone of the repository: `make demo`",
    )


def _datasets(client: Client, folder: Path) -> dict[str, str]:
    """Add both files; the same content is the same version, so a second time changes nothing."""
    found: dict[str, DatasetView] = {}
    for name in (TRAIN, TEST):
        found[name] = client.datasets.add(folder / f"{name}.jsonl", name=name, licence="MIT")
        card = found[name].card
        labels = ", ".join(f"{count} {label}" for label, count in sorted(card.labels.items()))
        _say(f"[green]✓[/] dataset {name}@{found[name].version}: {card.rows} rows ({labels})")
    return {"dataset": f"{TRAIN}@{found[TRAIN].version}", "test_dataset": f"{TEST}@{found[TEST].version}"}


def _parameters(model: str, quick: bool) -> dict[str, Any]:
    chosen = str(Path(model).resolve()) if model and Path(model).exists() else model or HUB_MODEL
    if quick:  # under a name of its own: its weaker model must not be what a real one is measured against
        return {"model": chosen, "name": f"{NAME}-quick", "max_train": 160, "max_test": 160}
    return {"model": chosen, "name": NAME, "max_train": 450, "max_test": 400}


@contextlib.contextmanager
def _server(home: Path, port: int | None, *, exit_after: bool) -> Iterator[Server]:
    """Use the server of ``home``, or start one and end it with the demo."""
    running = running_server(home)
    if running is not None:
        _say(f"[green]✓[/] using the server that runs at {running.url} (pid {running.pid}, home {home})")
        yield Server(running.url, None)
        return
    process, ready = _start(home, port)
    _say(f"[green]✓[/] server ready at [bold]{ready.url}[/] (pid {ready.pid}, home {home})")
    try:
        yield Server(ready.url, process)
    finally:
        _end(process, home, again=command("serve") if exit_after else command("demo"))


def _end(process: subprocess.Popen[Any], home: Path, *, again: str) -> None:
    """End the server that the demo started; one that somebody has started since, and what runs in it, is not ours."""
    if process.poll() is None:
        _say("\n[dim]Stopping the server: jobs are checkpointed and paused, the deployed model's process ends.[/]")
        stop_server(home, everything=True, timeout=90)
        process.wait(timeout=30)
        _say(f"[dim]Stopped. `{again}` goes on from here, with the model deployed.[/]")
    elif (other := running_server(home)) is not None:
        _say(f"\n[dim]The server of this demo has ended; the one at {other.url} (pid {other.pid}) goes on.[/]")
    else:
        _say(
            f"\n[dim]The server of this demo has ended. Jobs and replicas that it left run on: `{command('serve')}` finds "
            f"them, `{command('stop --all')}` ends them.[/]"
        )


def _start(home: Path, port: int | None) -> tuple[subprocess.Popen[bytes], RunningServer]:
    wanted = port if port is not None else int(os.environ.get("BURNISH_PORT") or 8000)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = home / "server.log"
    for _ in range(3):  # a port that was free can be taken before the server has bound it
        chosen = _free_port(wanted)
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "burnish.cli", "serve", "--home", str(home), "--port", str(chosen)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops the server in its own way
            )  # fmt: skip
        ready = wait_ready(home, process, START_LIMIT)
        if ready is not None:
            return process, ready
        if process.poll() is None:
            process.terminate()
            break
        if not _taken(chosen):
            break
    process.wait(timeout=30)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
    raise Unavailable(f"the server did not start:\n{tail}", where=str(log), hint="the log has the whole story")


def _free_port(wanted: int) -> int:
    if wanted == 0:
        return 0
    for port in range(wanted, min(wanted + PORTS_TRIED, 65536)):
        if not _taken(port):
            if port != wanted:
                _say(f"[yellow]![/] port {wanted} is taken by another program; using {port}")
            return port
    raise Unavailable(f"ports {wanted} to {wanted + PORTS_TRIED - 1} are all taken", hint="choose one with --port")


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return True
    return False


def _stay(process: subprocess.Popen[bytes], home: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        _say(f"\nThe server stays up until you press [bold]Ctrl-C[/] (home {home}).")
        while process.poll() is None:
            time.sleep(0.5)


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: with the server stopped, not orphaned."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(text: str) -> None:
    console().print(text, soft_wrap=True)
