"""Replica processes: started once, found again, ended.

A replica's folder holds its configuration, its log and a lock file. The lock is taken before the process is started and
inherited by it, so it is held exactly as long as something of the start or the process lives: a second starter finds it
taken, and whoever comes after a crash finds the process by the configuration's path on its command line. Whoever ends a
replica leaves a tombstone first: a server that was frozen between deciding and starting finds it and starts nothing.
"""

import asyncio
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from burnish.components.model_serving.engines import Engine
from burnish.core.specs.serving import EngineConfig
from burnish.infra import processes
from burnish.infra.processes import ProcessId

_SOCKET_CHARACTERS = 100
_LOG_TAIL_BYTES = 2000
_TOMBSTONE = "ended"

_children: dict[str, subprocess.Popen[bytes]] = {}
"""This process's own children by replica: they outlive whoever started them, but not their parent's duty to reap them."""


class ReplicaEnded(Exception):
    """The replica was ended before it could be started."""


class ReplicaProcesses:
    """The processes of this machine's replicas, in one folder. Its methods block: call them in a thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def socket_path(self, replica_id: str) -> Path:
        """Return where a replica shall listen: in its folder if a socket's path may be that long, else in /tmp."""
        path = self.folder / replica_id / "http.sock"
        if len(os.fsencode(path)) <= _SOCKET_CHARACTERS:
            return path
        home = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"burnish-{os.getuid()}-{home}" / f"{replica_id}.sock"

    def start(self, replica_id: str, engine: Engine, config: EngineConfig) -> ProcessId:
        """Start the replica's process, or return the one that lives already.

        Raises:
            ReplicaEnded: it was ended meanwhile.
            OSError: the program could not be started.
        """
        folder = self.folder / replica_id
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _private(Path(config.socket).parent)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found = self.find(replica_id)
                if found is None:
                    raise BlockingIOError(f"replica {replica_id} is being started by another process") from None
                return found
            if (folder / _TOMBSTONE).exists():
                raise ReplicaEnded(f"replica {replica_id} was ended before it was started")
            Path(config.socket).unlink(missing_ok=True)
            path = folder / "config.json"
            path.write_text(config.model_dump_json(indent=1))
            child = processes.spawn(
                engine.argv(path), processes.allow_listed_env(config.threads), folder, folder / "log", keep=(lock,)
            )
        finally:
            os.close(lock)
        _children[replica_id] = child
        identity = processes.identify(child.pid)
        return identity or ProcessId(child.pid, 0, processes.boot_id())

    def find(self, replica_id: str) -> ProcessId | None:
        """Return the living process of a replica, whoever started it."""
        self._reap(replica_id)
        if not self.locked(replica_id):
            return None
        wanted = os.fsencode(self.folder / replica_id / "config.json")
        with os.scandir("/proc") as entries:
            for entry in entries:
                if entry.name.isdigit():
                    with suppress(OSError):
                        if wanted in Path(entry.path, "cmdline").read_bytes().split(b"\0"):
                            return processes.identify(int(entry.name))
        return None

    def locked(self, replica_id: str) -> bool:
        """Tell whether a process of this replica lives, or is being started."""
        try:
            lock = os.open(self.folder / replica_id / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def observe(self, replica_id: str, process: ProcessId | None) -> Literal["none", "alive", "dead"]:
        """Tell how a replica's process is, given who it is known to be."""
        self._reap(replica_id)
        if process is not None:
            return "alive" if processes.alive(process) else "dead"
        ended = (self.folder / replica_id / _TOMBSTONE).exists() and not self.locked(replica_id)
        return "dead" if ended else "none"

    def _reap(self, replica_id: str) -> None:
        child = _children.get(replica_id)
        if child is not None and child.poll() is not None:
            _children.pop(replica_id, None)  # a check in another thread may have been first

    def end(self, replica_id: str, process: ProcessId | None, grace_seconds: float, *, keep_log: bool) -> None:
        """End a replica's process and whatever it started; it can never be started again. Safe to repeat."""
        folder = self.folder / replica_id
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / _TOMBSTONE).touch()
        target = process if process is not None and processes.alive(process) else self.find(replica_id)
        if target is not None:
            processes.terminate_group(target, grace_seconds)
        child = _children.pop(replica_id, None)
        if child is not None:
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=5)
        self.socket_path(replica_id).unlink(missing_ok=True)
        if not keep_log:
            (folder / "log").unlink(missing_ok=True)

    def last_words(self, replica_id: str) -> str:
        """Return the end of the replica's log."""
        try:
            with (self.folder / replica_id / "log").open("rb") as stream:
                stream.seek(0, os.SEEK_END)
                stream.seek(max(0, stream.tell() - _LOG_TAIL_BYTES))
                return stream.read().decode(errors="replace").strip()
        except FileNotFoundError:
            return ""

    def forget_after(self, replica_id: str, seconds: float) -> None:
        """Remove the folder of a replica that ended at least so long ago."""
        tombstone = self.folder / replica_id / _TOMBSTONE
        with suppress(FileNotFoundError):
            if time.time() - tombstone.stat().st_mtime > seconds and not self.locked(replica_id):
                shutil.rmtree(self.folder / replica_id, ignore_errors=True)

    def known(self) -> list[str]:
        """Return the ids of all replicas that have a folder."""
        if not self.folder.is_dir():
            return []
        with os.scandir(self.folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())


async def ended(process: ProcessId) -> None:
    """Wait until the process has ended. Costs nothing while it lives."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except (ProcessLookupError, OSError):
        return
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    try:
        if not processes.alive(process):
            return
        loop.add_reader(descriptor, _set, done)
        try:
            await done
        finally:
            loop.remove_reader(descriptor)
    finally:
        os.close(descriptor)


def _set(done: "asyncio.Future[None]") -> None:
    if not done.done():
        done.set_result(None)


def _private(folder: Path) -> None:
    """Make a folder that only this user can enter.

    Raises:
        PermissionError: somebody else made it before.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
