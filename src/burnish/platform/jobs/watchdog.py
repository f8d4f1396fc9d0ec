"""The thread in a host that holds it to its limits, and the words of the error when it passes one."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from burnish.core.errors import ErrorBody, LimitExceeded
from burnish.core.specs.base import Resources
from burnish.infra.processes import ProcessId, group_memory_bytes, rss_bytes

_LOOK_SECONDS = 0.25
_LOOKS_AT_GROUP = 4
"""Every so many looks the whole session is measured; the host itself, which is cheap, at every look."""


def memory_error(measured: int, limit: int) -> ErrorBody:
    """Return the error of a job that used more memory than it declared."""
    suggestion = max(measured + measured // 4, limit + 1)
    return LimitExceeded(
        f"the job used {_size(measured)} of memory; its limit is {_size(limit)}",
        where="resources.memory_bytes",
        hint=f"set resources.memory_bytes to {suggestion} or more, or make the job smaller (batch size, length)",
    ).body()


def wall_error(measured: float, limit: float) -> ErrorBody:
    """Return the error of a job that ran longer than its limit."""
    return LimitExceeded(
        f"the job ran for {measured:.1f} s; its limit is {limit:g} s",
        where="resources.wall_seconds",
        hint=f"set resources.wall_seconds above {limit:g}, or give the job less to do",
    ).body()


def _size(count: int) -> str:
    return f"{count / (1 << 30):.2f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"


class Watchdog:
    """Watches memory (PSS of the host's whole session) and wall time; calls ``exceeded`` once with the error.

    About once a second it tells ``note`` for how many seconds it has watched. It runs while the job computes, so both
    are called from its own thread.
    """

    def __init__(
        self,
        process: ProcessId,
        resources: Resources,
        wall_seconds_left: float | None,
        exceeded: Callable[[ErrorBody], None],
        note: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._process = process
        self._resources = resources
        self._wall_left = wall_seconds_left
        self._exceeded = exceeded
        self._note = note
        self._started = time.monotonic()
        self._done = threading.Event()
        self.peak_memory_bytes = 0

    def start(self) -> None:
        """Start watching."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Watch no more."""
        self._done.set()

    def _watch(self) -> None:
        looks = 0
        while not self._done.wait(_LOOK_SECONDS):
            looks += 1
            seldom = looks % _LOOKS_AT_GROUP == 1
            if seldom:
                with suppress(OSError):  # the disk may be full: then it is charged less
                    self._note(time.monotonic() - self._started)
            error = self._look(whole_session=seldom)
            if error is not None:
                self._exceeded(error)
                return

    def _look(self, *, whole_session: bool) -> ErrorBody | None:
        limit = self._resources.memory_bytes
        memory = rss_bytes(self._process.pid)
        if whole_session or memory > limit:
            memory = group_memory_bytes(self._process, limit)
        self.peak_memory_bytes = max(self.peak_memory_bytes, memory)
        if memory > limit:
            return memory_error(memory, limit)
        ran = time.monotonic() - self._started
        wall = self._resources.wall_seconds
        if wall is not None and self._wall_left is not None and ran > self._wall_left:
            return wall_error(wall - self._wall_left + ran, wall)
        return None
