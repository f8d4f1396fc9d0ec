"""Running a program for a job: its output in a file, the job's progress told, a cancel obeyed."""

import os
import resource
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from burnish.core.job import JobContext

_POLL_SECONDS = 0.1
_TELL_SECONDS = 0.5


def run_child(
    argv: Sequence[str], context: JobContext, log: Path, *, phase: str, share: Callable[[], float],
    environment: Mapping[str, str] | None = None,
) -> int:  # fmt: skip
    """Run a program in the job's process group and return its exit status.

    Args:
        argv: Its command line.
        context: Told the progress at least each second; a requested stop kills the program.
        log: File for its output, both streams.
        phase: What a person reads meanwhile.
        share: How far it is, 0 to 1 (from the size of what it writes, for example).
        environment: Added to this process's.

    Raises:
        Stopped: the job is to pause or cancel.
    """
    with log.open("wb") as out:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})}, preexec_fn=_no_core_files,
        )  # fmt: skip
    try:
        told = 0.0
        while True:
            try:
                return child.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                context.check_stop()
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                context.progress(min(0.99, share()), 1, phase=phase, unit="parts")
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def _no_core_files() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def peak_children_bytes() -> int:
    """Return the largest resident memory that any ended child of this process had."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def tail(log: Path, lines: int = 3) -> str:
    """Return the last lines of a log that are not empty, joined: what to quote in an error."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-lines:])
