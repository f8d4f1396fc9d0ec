"""The processes of a home as the command line sees them: is a server there, end it, end what it left."""

import contextlib
import os
import platform
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from burnish.cli.supervised import StateFile, supervised_sets
from burnish.client.address import RunFile, living_processes, read_run_file
from burnish.core.errors import DeadlineExceeded

END_GRACE = 15.0
"""Seconds from TERM to KILL for a process that was left without a server."""


class Stopped(BaseModel):
    """What ``burnish stop`` ended."""

    model_config = ConfigDict(frozen=True)

    home: Path
    server: int | None
    """The pid of the server that was ended; None when none ran."""
    supervisors: tuple[int, ...] = ()
    """Pids of `burnish up` on this home, which were ended first: they would have started again what ends."""
    supervised: tuple[int, ...] = ()
    """Pids of the processes that ended with them."""
    others: tuple[int, ...] = ()
    """Pids of this home's other processes that were ended."""
    left: tuple[int, ...] = ()
    """Jobs' hosts and replicas that run on, to be found by the next start."""
    ended: tuple[int, ...] = ()
    """Processes without a server that were ended."""

    def lines(self) -> list[str]:
        """Return what a person is told."""
        said = []
        if self.supervisors:
            those = f" and its {len(self.supervised)} process(es): {_pids(self.supervised)}" if self.supervised else ""
            said.append(f"stopped `burnish up` ({_pids(self.supervisors)}){those}")
        if self.server or not self.supervisors:
            said.append(f"stopped the server (pid {self.server})" if self.server else f"no server runs on {self.home}")
        if self.others:
            said.append(f"stopped {len(self.others)} more process(es) of this home: {_pids(self.others)}")
        if self.ended:
            said.append(f"ended {len(self.ended)} process(es) that it had left running: {_pids(self.ended)}")
        if self.left:
            said.append(f"still running, to be picked up by the next start: {_pids(self.left)}; --all ends them too")
        return said


@dataclass(frozen=True)
class RunningServer:
    """A server that is alive."""

    pid: int
    url: str


def boot_id() -> str:
    """Return what tells this boot of the machine from others: start times count from it."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def this_place() -> str:
    """Return what tells where pids mean what they mean here: the machine, its boot, the container."""
    pids = ""
    with contextlib.suppress(OSError):
        pids = str(Path("/proc/self/ns/pid").readlink())
    return f"{boot_id() or platform.node()} {pids}"


def running_server(home: Path) -> RunningServer | None:
    """Return the server that holds ``home``; a run file left by one that was killed does not count."""
    found: RunFile | None = read_run_file(home)
    if found is None or not _lives(found.pid):
        return None
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(found.pid)
        # The pid may meanwhile be another program's; ours was started before it wrote the file.
        if process.create_time() <= (home / "run" / "server.json").stat().st_mtime + 1 and _is_python(process):
            return RunningServer(pid=found.pid, url=found.url)
    return None


def children_of_home(home: Path) -> list[psutil.Process]:
    """Return hosts and replicas that work in ``home``: our modules, given a path inside it."""
    inside = str(home.resolve()) + os.sep
    found = []
    for process in psutil.process_iter(["pid", "uids"]):
        with contextlib.suppress(psutil.Error):
            if process.uids().real != os.getuid() or process.pid == os.getpid():
                continue
            words = process.cmdline()
            ours = any(word.startswith("burnish.") or "/burnish/" in word for word in words)
            if ours and any(inside in word for word in words) and "serve" not in words:
                found.append(process)
    return found


def stop_server(home: Path, *, everything: bool, timeout: float) -> Stopped:
    """End the server of ``home``, its supervisor first if it has one, and wait until it has gone.

    Raises:
        DeadlineExceeded: a process has not ended within ``timeout`` seconds.
    """
    # SIGINT is the server's "drain: checkpoint and pause the jobs, end the replicas"; SIGTERM leaves them.
    number = signal.SIGINT if everything else signal.SIGTERM
    sets = supervised_sets(home)
    supervised = tuple(pid for one in sets for pid in one.living)
    for found in sets:
        _end_set(found, number, timeout)
    server = running_server(home)
    others = [one.pid for one in living_processes(home) if server is None or one.pid != server.pid]
    for pid in ([server.pid] if server else []) + others:  # one after the other: the last of a home drains what it has
        tell(pid, number)
        _wait_gone(pid, timeout)
    rest = children_of_home(home)
    ended = _end(rest) if everything else ()
    left = tuple(sorted(process.pid for process in rest)) if not everything else ()
    return Stopped(
        home=home,
        server=server.pid if server else None,
        supervisors=tuple(one.supervisor for one in sets),
        supervised=supervised,
        others=tuple(others),
        left=left,
        ended=ended,
    )


def _end_set(found: StateFile, number: int, timeout: float) -> None:
    """End a supervisor, which ends its processes one after the other."""
    living = len(found.living)
    tell(found.supervisor, number)
    _wait_gone(found.supervisor, timeout * max(1, living))


def tell(pid: int, number: int) -> None:
    """Send a process a signal to end, and have it hear it: one that is stopped (SIGSTOP, Ctrl-Z) would not."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        os.kill(pid, signal.SIGCONT)


def _wait_gone(pid: int, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while _lives(pid):
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                f"pid {pid} has not ended within {timeout:g} s", where=f"pid {pid}",
                hint="it may still be draining; wait with a longer --timeout, or end it with `kill -9` "
                "(nothing accepted is lost)",
            )  # fmt: skip
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    """Tell whether the process runs; one that has ended and waits for its parent to notice does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _end(processes: list[psutil.Process]) -> tuple[int, ...]:
    """Ask to end, then kill; nothing of it runs on return."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
            process.resume()  # one that is stopped does not hear it
    deadline = time.monotonic() + END_GRACE
    while time.monotonic() < deadline and any(_lives(process.pid) for process in processes):
        time.sleep(0.05)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return tuple(sorted(process.pid for process in processes))


def wait_ready(home: Path, process: subprocess.Popen[bytes], timeout: float) -> RunningServer | None:
    """Return the server once it has written its run file; None when its process ended before, or time is up."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and process.poll() is None:
        server = running_server(home)
        if server is not None and server.pid == process.pid:
            return server
        time.sleep(0.05)
    return None


def _is_python(process: psutil.Process) -> bool:
    return any("python" in word or "burnish" in word for word in process.cmdline()[:2])


def _pids(pids: tuple[int, ...]) -> str:
    return ", ".join(f"pid {pid}" for pid in pids)
