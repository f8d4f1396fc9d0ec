"""A job's folder: what the server and the host tell each other through files.

===================  =====================================================================
``job.N.json``       :class:`JobOrder` of incarnation N, written by the server before it starts the host
``lock``             held (``flock``) by the one living host
``host.N.json``      :class:`HostIdentity`, the first thing that the host writes once it has the lock
``ran.N``            for how many seconds the host of incarnation N has run, noted by it again and again
``events.jsonl``     one :class:`HostEvent` a line, appended; the server keeps its offset in the job's row
``result.N.json``    :class:`HostResult`, appears whole by a rename, after every event
``host.log``         what the process printed
``scratch/``         the job's own
===================  =====================================================================

Standard library and pydantic only besides ``core``: the host imports this.
"""

import errno
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from burnish.core.errors import ErrorBody
from burnish.core.protocol import EventType
from burnish.core.specs.base import ArtifactRef, Resources

EVENTS_FILE = "events.jsonl"
LOG_FILE = "host.log"
LOCK_FILE = "lock"
SCRATCH = "scratch"
_Model = TypeVar("_Model", bound=BaseModel)


class JobOrder(BaseModel):
    """Everything that a host needs to know."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    project_id: str
    incarnation: int
    run: str
    spec_type: str
    spec: dict[str, JsonValue]
    inputs: tuple[ArtifactRef, ...] = ()
    resources: Resources
    resume_from: ArtifactRef | None = None
    artifact_url: str
    wall_seconds_left: float | None = Field(default=None, description="Of the limit, less what earlier starts used")
    gpu_indices: tuple[int, ...] = ()


class HostIdentity(BaseModel):
    """Which process is the host."""

    model_config = ConfigDict(frozen=True)

    pid: int
    started_ticks: int
    boot_id: str
    started_monotonic: float | None = None
    """On the machine's steady clock, which all of its processes share."""


class HostEvent(BaseModel):
    """One line of ``events.jsonl``."""

    model_config = ConfigDict(frozen=True)

    type: EventType
    data: dict[str, JsonValue] = Field(default_factory=dict)


class HostResult(BaseModel):
    """How a host ended."""

    model_config = ConfigDict(frozen=True)

    status: Literal["succeeded", "failed", "paused", "cancelled"]
    result: dict[str, JsonValue] | None = None
    error: ErrorBody | None = None
    seconds: float = 0.0
    peak_memory_bytes: int = 0


def write_json(path: Path, model: BaseModel) -> None:
    """Make ``path`` appear whole: write beside it, fsync, rename, fsync the folder."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("w", encoding="utf-8") as stream:
        stream.write(model.model_dump_json())
        stream.flush()
        os.fsync(stream.fileno())
    beside.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_json(path: Path, model: type[_Model]) -> _Model | None:
    """Return what :func:`write_json` wrote, or None if there is nothing."""
    try:
        return model.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None


def order_path(folder: Path, incarnation: int) -> Path:
    """Where the order of an incarnation stands."""
    return folder / f"job.{incarnation}.json"


def host_path(folder: Path, incarnation: int) -> Path:
    """Where the host of an incarnation says who it is."""
    return folder / f"host.{incarnation}.json"


def result_path(folder: Path, incarnation: int) -> Path:
    """Where the host of an incarnation says how it ended."""
    return folder / f"result.{incarnation}.json"


def note_ran(folder: Path, incarnation: int, seconds: float) -> None:
    """Note how long a host has run: what the server charges to the time limit if the host is lost."""
    descriptor = os.open(_ran_path(folder, incarnation), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(descriptor, f"{seconds:016.3f}".encode(), 0)  # one write over the last: never empty in between
    finally:
        os.close(descriptor)


def noted_ran(folder: Path, incarnation: int) -> float:
    """Return what :func:`note_ran` noted last; 0 if there is nothing (or a power cut left nothing)."""
    try:
        return max(0.0, float(_ran_path(folder, incarnation).read_bytes()))
    except (FileNotFoundError, ValueError):
        return 0.0


def _ran_path(folder: Path, incarnation: int) -> Path:
    return folder / f"ran.{incarnation}"


class FolderLock:
    """The lock that lets one host live in a job's folder. Held until the process ends or ``release``."""

    def __init__(self, folder: Path) -> None:
        self.descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def acquire(self) -> bool:
        """Take the lock without waiting; False if another process has it."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Give the lock back; a process that inherited the descriptor keeps it."""
        os.close(self.descriptor)


def is_locked(folder: Path) -> bool:
    """Tell whether a host lives in the folder."""
    if not (folder / LOCK_FILE).exists():
        return False
    lock = FolderLock(folder)
    try:
        return not lock.acquire()
    finally:
        lock.release()


def read_events(folder: Path, offset: int, limit_bytes: int) -> tuple[list[HostEvent], int]:
    """Return the complete lines from ``offset`` on, at most ``limit_bytes`` of them, and the offset after the last."""
    try:
        with (folder / EVENTS_FILE).open("rb") as stream:
            stream.seek(offset)
            chunk = stream.read(limit_bytes)
            while chunk and b"\n" not in chunk and (more := stream.read(limit_bytes)):
                chunk += more
    except FileNotFoundError:
        return [], offset
    end = chunk.rfind(b"\n") + 1
    events = [_parse(line) for line in chunk[:end].split(b"\n") if line.strip()]
    return events, offset + end


def _parse(line: bytes) -> HostEvent:
    try:
        return HostEvent.model_validate_json(line)
    except ValidationError:  # not ours, but never silent and never in the way
        shown = line[:200].decode("utf-8", "replace")
        return HostEvent(type="log", data={"level": "warning", "message": f"an unreadable line of events: {shown!r}"})


def events_end(folder: Path) -> int:
    """Return the offset after the last whole line: where the next host's first event will stand."""
    try:
        descriptor = os.open(folder / EVENTS_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        return _last_line_end(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


class EventWriter:
    """Appends to ``events.jsonl``. A line that an earlier host left half-written is cut off first."""

    def __init__(self, folder: Path) -> None:
        path = folder / EVENTS_FILE
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        content_end = os.fstat(self._descriptor).st_size
        os.ftruncate(self._descriptor, _last_line_end(self._descriptor, content_end))

    def write(self, kind: EventType, data: Mapping[str, Any], *, durable: bool = False) -> None:
        """Append one event; ``durable`` makes it survive a power cut."""
        line = json.dumps({"type": kind, "data": dict(data)}, separators=(",", ":"), ensure_ascii=False, default=str)
        content = _finite(line).encode("utf-8", "replace") + b"\n"
        size = os.fstat(self._descriptor).st_size
        written = 0
        try:
            written = os.write(self._descriptor, content)
        finally:
            if written != len(content):  # the disk is full: no half line stays
                os.ftruncate(self._descriptor, size)
        if written != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), EVENTS_FILE)
        if durable:
            os.fsync(self._descriptor)


def _finite(line: str) -> str:
    """JSON knows no NaN: a number that is none is sent as its name."""
    if "NaN" not in line and "Infinity" not in line:
        return line
    parsed = json.loads(line, parse_constant=lambda name: {"NaN": "nan", "Infinity": "inf"}.get(name, "-inf"))
    return json.dumps(parsed, separators=(",", ":"), ensure_ascii=False)


def _last_line_end(descriptor: int, size: int) -> int:
    position = size
    while position > 0:
        start = max(0, position - 4096)
        block = os.pread(descriptor, position - start, start)
        if (found := block.rfind(b"\n")) >= 0:
            return start + found + 1
        position = start
    return 0
