"""The home folder: held by one server at a time, on a disk that must not run full."""

import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from burnish.core.errors import HomeLocked, OutOfDisk

_LOCK_NAME = "server.lock"


class HomeLock:
    """Keeps a second server off the same home. The kernel lets go when the holder ends, however it ends.

    ``<home>/run/server.lock`` holds ``{"pid", "url", "since"}``, so that others can say who has it. ``shared``: servers
    on PostgreSQL, which may share a home, keep off only one that wants it for itself.
    """

    def __init__(self, home: Path, *, shared: bool = False, name: str = _LOCK_NAME) -> None:
        """``name``: of the lock's file; another than the default says what its holders have in common."""
        self.path = home / "run" / name
        self._how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self._descriptor: int | None = None

    def acquire(self, url: str | None = None) -> None:
        """Take the lock.

        Raises:
            HomeLocked: another process holds it; the message names its pid and URL.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, self._how | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise self._held_by_another() from error
        self._descriptor = descriptor
        self.announce(url)

    def announce(self, url: str | None) -> None:
        """Write down this process and its URL (known only after a port was bound)."""
        if self._descriptor is None:
            raise RuntimeError("the lock is not held")
        content = json.dumps({"pid": os.getpid(), "url": url, "since": time.time()}).encode()
        # One write over the old text and then the cut, so that a reader meets whole JSON or trailing blanks.
        size = os.fstat(self._descriptor).st_size
        os.pwrite(self._descriptor, content.ljust(size), 0)
        os.ftruncate(self._descriptor, len(content))

    def only_holder(self) -> bool:
        """Tell whether nobody shares the lock; if so nobody can from now on, until it is released."""
        if self._descriptor is None:
            raise RuntimeError("the lock is not held")
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self._descriptor, self._how)  # a conversion that fails gives up what was held
            return False
        return True

    def release(self) -> None:
        """Give the lock back. Does nothing if it is not held."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            if self._how == fcntl.LOCK_EX:  # else it may be another holder's by now
                os.ftruncate(descriptor, 0)
            os.close(descriptor)

    def holder(self) -> dict[str, Any] | None:
        """Return ``{"pid", "url", "since"}`` of the process that holds the lock, or None if nobody does."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._read()
        finally:
            os.close(descriptor)
        return None

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text() or "{}")
        except ValueError:
            found = {}
        return {"pid": found.get("pid"), "url": found.get("url"), "since": found.get("since")}

    def _held_by_another(self) -> HomeLocked:
        holder = self._read()
        at = f" at {holder['url']}" if holder["url"] else ""
        return HomeLocked(
            f"another server (pid {holder['pid'] or 'unknown'}{at}) holds this home",
            where=str(self.path.parent.parent),
            hint="use that one, stop it with `burnish stop`, or give this one a home of its own (BURNISH_HOME)",
        )

    def __enter__(self) -> "HomeLock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def write_once(path: Path, content: bytes, mode: int = 0o600) -> bytes:
    """Make a file appear whole, once: of several processes that try, one wins. Returns what stands in it."""
    if not path.exists():
        draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            with suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink()
    return path.read_bytes()


def disk_free(path: Path) -> int:
    """Return the bytes that may still be written to the disk that holds ``path`` (which need not exist yet)."""
    while True:
        try:
            return shutil.disk_usage(path).free
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR) or path == path.parent:
                raise
            path = path.parent


def require_disk(path: Path, reserve: int, wanted: int = 0) -> None:
    """Refuse what would take the disk below its reserve.

    Args:
        path: where it would be written.
        reserve: bytes that must stay free.
        wanted: bytes about to be written.

    Raises:
        OutOfDisk: says how much is free and how much is needed.
    """
    free = disk_free(path)
    if free - wanted < reserve:
        raise OutOfDisk(
            f"{free >> 20} MiB are free, and {(wanted + reserve) >> 20} MiB are needed ({reserve >> 20} MiB stay in reserve)",
            where=str(path), hint="free space, or move the home (BURNISH_HOME) or the artifacts (BURNISH_ARTIFACT_URL)",
            retry_after=60,
        )  # fmt: skip
