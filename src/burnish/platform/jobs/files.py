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
from typing import Any, BinaryIO, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from burnish.core.errors import ErrorBody, TooLarge
from burnish.core.job import LogLevel
from burnish.core.protocol import EventType
from burnish.core.specs.base import ArtifactRef, Resources

EVENTS_FILE = "events.jsonl"
LOG_FILE = "host.log"
LOCK_FILE = "lock"
SCRATCH = "scratch"
LONGEST_EVENT = 16 << 20
"""In bytes: a line of ``events.jsonl``. Larger things are artifacts."""
LONGEST_LOG_LINE = 8_000
"""In characters."""
_BLOCK_BYTES = 1 << 20
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
    """Return the complete lines from ``offset`` on, at most ``limit_bytes`` of them, and the offset after the last.

    A line longer than :data:`LONGEST_EVENT` is told to have been left out, and passed over: then the offset may lie
    within it for as long as it has no end.
    """
    try:
        with (folder / EVENTS_FILE).open("rb") as stream:
            if _is_within_a_line(stream, offset):
                return [], _after_the_line(stream)
            chunk = bytearray(stream.read(limit_bytes))
            ended = b"\n" in chunk
            while not ended and len(chunk) <= LONGEST_EVENT and (more := stream.read(limit_bytes)):
                ended = b"\n" in more
                chunk += more
            if not ended and len(chunk) > LONGEST_EVENT:
                return [_left_out(chunk)], _after_the_line(stream)
    except FileNotFoundError:
        return [], offset
    end = chunk.rfind(b"\n") + 1
    events = [_parse(line) for line in chunk[:end].split(b"\n") if line.strip()]
    return events, offset + end


def _is_within_a_line(stream: BinaryIO, offset: int) -> bool:
    """Go to an offset, and tell whether the line before it has no end there."""
    stream.seek(max(0, offset - 1))
    return offset > 0 and stream.read(1) not in (b"\n", b"")


def _after_the_line(stream: BinaryIO) -> int:
    """Return the offset after the line in which the stream is, or where the stream ends, if it does so first."""
    while block := stream.read(_BLOCK_BYTES):
        if (found := block.find(b"\n")) >= 0:
            return stream.tell() - len(block) + found + 1
    return stream.tell()


def _left_out(beginning: bytearray) -> HostEvent:
    shown = bytes(beginning[:200]).decode("utf-8", "replace")
    what = f"a line of events of more than {LONGEST_EVENT >> 20} MiB was left out; it begins with {shown!r}"
    return HostEvent(type="log", data={"level": "warning", "message": what})


def _parse(line: bytes | bytearray) -> HostEvent:
    try:
        event = HostEvent.model_validate_json(line)
    except ValidationError:  # not ours, but never silent and never in the way
        shown = bytes(line[:200]).decode("utf-8", "replace")
        return HostEvent(type="log", data={"level": "warning", "message": f"an unreadable line of events: {shown!r}"})
    return _log_line(event) if event.type == "log" else event


def _log_line(event: HostEvent) -> HostEvent:
    """Return a line of a log as whoever reads it counts on: the job's own code may have written it past the context."""
    level, message = event.data.get("level"), event.data.get("message")
    told = message if isinstance(message, str) else json.dumps(event.data, ensure_ascii=False)
    return HostEvent(
        type="log", data={"level": level if level in get_args(LogLevel) else "info", "message": shortened(told)}
    )


def shortened(message: str) -> str:
    """Return a message of a log; a very long one is cut, and says so."""
    if len(message) <= LONGEST_LOG_LINE:
        return message
    return f"{message[:LONGEST_LOG_LINE]} ... ({len(message) - LONGEST_LOG_LINE} characters cut)"


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
        """Append one event; ``durable`` makes it survive a power cut.

        Raises:
            TooLarge: it is longer than :data:`LONGEST_EVENT`, and would be left out.
        """
        line = json.dumps({"type": kind, "data": dict(data)}, separators=(",", ":"), ensure_ascii=False, default=str)
        content = _finite(line).encode("utf-8", "replace") + b"\n"
        if len(content) > LONGEST_EVENT:
            raise TooLarge(
                f"what the job reports as one {kind} has {len(content)} bytes; at most {LONGEST_EVENT >> 20} MiB are kept",
                where=EVENTS_FILE, hint="publish it as a file of an artifact",
            )  # fmt: skip
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
