"""Hosts as subprocesses of this machine. They outlive the server and are found again by what they wrote."""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from burnish.infra import processes
from burnish.infra.processes import Child, ProcessId
from burnish.platform.jobs.files import (
    LOG_FILE,
    FolderLock,
    HostEvent,
    HostIdentity,
    HostResult,
    JobOrder,
    events_end,
    host_path,
    is_locked,
    noted_ran,
    order_path,
    read_events,
    read_json,
    result_path,
    write_json,
)

_MODULE = "burnish.platform.jobs.host"


class LocalBackend:
    """See :class:`burnish.platform.jobs.backends.protocol.Backend`."""

    def __init__(self, jobs_dir: Path, *, hub_offline: bool = False) -> None:
        self._root = jobs_dir.absolute()
        self._hub_offline = hub_offline
        self._children: dict[Path, Child] = {}
        self._lock = threading.Lock()

    def folder(self, job_id: str) -> Path:
        """Return where a new job's folder is to be."""
        return self._root / job_id

    def start(self, folder: Path, order: JobOrder) -> bool:
        """Write the order and start ``python -m burnish.platform.jobs.host``, which inherits the folder's lock.

        So there is no moment at which a host was started and the folder looks free.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = FolderLock(folder)
        try:
            if not lock.acquire():
                return False
            write_json(order_path(folder, order.incarnation), order)
            argv = [sys.executable, "-m", _MODULE, str(folder), str(order.incarnation)]
            argv.append(str(lock.descriptor))
            keep = (lock.descriptor,)
            child = processes.spawn(argv, self._environment(order), folder, folder / LOG_FILE, keep=keep)
        finally:
            lock.release()
        with self._lock:
            self._children[folder] = Child(child)
        return True

    def _environment(self, order: JobOrder) -> dict[str, str]:
        extra = {"CUDA_VISIBLE_DEVICES": ",".join(str(index) for index in order.gpu_indices)}
        if self._hub_offline:
            extra |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        return processes.allow_listed_env(order.resources.cpus, extra)

    def find(self, folder: Path, incarnation: int) -> ProcessId | None:
        """Return the host of an incarnation, dead or alive."""
        return _identity(host_path(folder, incarnation))

    def newest_other(self, folder: Path, incarnation: int) -> ProcessId | None:
        """Return a living host of another incarnation."""
        own = host_path(folder, incarnation).name
        return _living(path for path in folder.glob("host.*.json") if path.name != own)

    def occupant(self, folder: Path) -> ProcessId | None:
        """Return a living host of any incarnation, also one that has not said who it is."""
        found = _living(folder.glob("host.*.json"))
        if found is None and self.locked(folder):
            found = _by_command(folder)
        return found

    def starting_ended(self, folder: Path) -> int | None:
        """Return the exit status of the last host started here by this process, if it has ended."""
        with self._lock:
            child = self._children.get(folder)
        return None if child is None else child.poll()

    def locked(self, folder: Path) -> bool:
        """Tell whether some host holds the folder."""
        return folder.is_dir() and is_locked(folder)

    def alive(self, process: ProcessId) -> bool:
        """Tell whether this very process lives; collects it if it was our child."""
        if processes.alive(process):
            return True
        with self._lock:
            for child in self._children.values():
                if child.pid == process.pid:
                    child.poll()
        return False

    def result(self, folder: Path, incarnation: int) -> HostResult | None:
        """Return how the host ended, once it has said so."""
        return read_json(result_path(folder, incarnation), HostResult)

    def events(self, folder: Path, offset: int, limit_bytes: int) -> tuple[list[HostEvent], int]:
        """Return events from an offset on."""
        return read_events(folder, offset, limit_bytes)

    def events_end(self, folder: Path) -> int:
        """Return where the next host's events will begin."""
        return events_end(folder)

    def running_seconds(self, folder: Path, incarnation: int) -> float | None:
        """Return how long a living host has run."""
        found = read_json(host_path(folder, incarnation), HostIdentity)
        if found is None or found.started_monotonic is None:
            return None
        return max(0.0, time.monotonic() - found.started_monotonic)

    def ran_seconds(self, folder: Path, incarnation: int) -> float:
        """Return how long a dead host had run, by its own note."""
        return noted_ran(folder, incarnation)

    def printed(self, folder: Path, limit_bytes: int) -> str:
        """Return the end of what the host printed."""
        try:
            with (folder / LOG_FILE).open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                stream.seek(max(0, size - limit_bytes))
                return stream.read(limit_bytes).decode("utf-8", "replace").strip()
        except FileNotFoundError:
            return ""

    def memory_bytes(self, process: ProcessId, limit: int) -> int:
        """Return the memory of the host's whole session."""
        return processes.group_memory_bytes(process, limit)

    def ask_cancel(self, process: ProcessId) -> None:
        """TERM to the whole session."""
        processes.signal_group(process, signal.SIGTERM)

    def ask_pause(self, process: ProcessId) -> None:
        """USR1 to the host."""
        processes.signal_process(process, signal.SIGUSR1)

    def kill(self, process: ProcessId) -> bool:
        """KILL to the whole session; collects it if it was our child."""
        gone = processes.kill_group(process)
        self.alive(process)
        return gone

    def remove(self, folder: Path) -> None:
        """Delete a job's folder. A host that lives in it without leave is ended first."""
        if (occupant := self.occupant(folder)) is not None:
            processes.kill_group(occupant)
        with self._lock:
            child = self._children.pop(folder, None)
        if child is not None:
            child.poll()
        shutil.rmtree(folder, ignore_errors=True)

    def folders(self) -> dict[str, Path]:
        """Return all jobs' folders by job id."""
        if not self._root.is_dir():
            return {}
        return {path.name: path for path in self._root.iterdir() if path.is_dir()}


def _identity(path: Path) -> ProcessId | None:
    found = read_json(path, HostIdentity)
    return None if found is None else ProcessId(found.pid, found.started_ticks, found.boot_id)


def _by_command(folder: Path) -> ProcessId | None:
    """Return the host that was started for the folder, by its command line."""
    wanted = [b"-m", _MODULE.encode(), os.fsencode(folder)]
    with os.scandir("/proc") as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdigit()]
    for pid in pids:
        with suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:4] == wanted:
                return processes.identify(pid)
    return None


def _living(paths: Iterable[Path]) -> ProcessId | None:
    for path in paths:
        found = _identity(path)
        if found is not None and processes.alive(found):
            return found
    return None
