"""The process that runs one job: ``python -m burnish.platform.jobs.host FOLDER INCARNATION LOCK``.

It owns nothing but its folder: no database, no key, no descriptor of the server. A server that is gone is not
missed; the result waits in the folder. SIGTERM asks it to cancel, SIGUSR1 to pause after its next checkpoint.
"""

import errno
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from burnish.core.errors import BurnishError, ErrorBody, JobFailed, OutOfDisk
from burnish.core.job import JobContext, Stopped
from burnish.core.specs.base import Spec
from burnish.infra.processes import this_process
from burnish.infra.storable import cleaned
from burnish.platform.jobs.files import (
    EventWriter,
    HostIdentity,
    HostResult,
    JobOrder,
    host_path,
    note_ran,
    order_path,
    read_json,
    result_path,
    write_json,
)
from burnish.platform.jobs.host_context import HostContext
from burnish.platform.jobs.watchdog import Watchdog

_DISK_PATIENCE_SECONDS = 600.0
_RESTART = "the message above is the reason; mend the spec or the data, then retry"


def main(arguments: list[str]) -> int:
    """Run the job in the folder; return the exit status: 0 when a result was written.

    The third argument is the descriptor of the folder's lock, which the server took for us: it is free when we end.
    """
    folder, incarnation, lock = Path(arguments[0]).resolve(), int(arguments[1]), int(arguments[2])
    os.set_inheritable(lock, False)  # a process that the job leaves behind must not keep it
    order = read_json(order_path(folder, incarnation), JobOrder)
    if order is None:
        print(f"no order for start {incarnation} in {folder}", file=sys.stderr)  # noqa: T201 - the log is our stdout
        return 2
    if not result_path(folder, incarnation).exists():
        _Host(folder, order).run()
    return 0


class _Host:
    def __init__(self, folder: Path, order: JobOrder) -> None:
        self._folder = folder
        self._order = order
        self._events = EventWriter(folder)
        self._context: HostContext | None = None
        self._asked_to: list[str] = []
        self._ended = threading.Lock()
        self._started = time.monotonic()
        self._process = this_process()
        self._watchdog = Watchdog(
            self._process, order.resources, order.wall_seconds_left, self._limit,
            note=lambda seconds: note_ran(folder, order.incarnation, seconds),
        )  # fmt: skip

    def run(self) -> None:
        """Run the job to its result, whatever happens in it."""
        signal.signal(signal.SIGTERM, lambda *_: self._ask("cancel"))
        signal.signal(signal.SIGUSR1, lambda *_: self._ask("pause"))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        who = HostIdentity(
            pid=self._process.pid, started_ticks=self._process.started_ticks, boot_id=self._process.boot_id,
            started_monotonic=self._started,
        )  # fmt: skip
        write_json(host_path(self._folder, self._order.incarnation), who)
        self._watchdog.start()
        self._end(self._outcome())

    def _ask(self, reason: str) -> None:
        self._asked_to.append(reason)
        if self._context is not None:
            self._context.request_stop("cancel" if reason == "cancel" else "pause")

    def _outcome(self) -> HostResult:
        try:
            return HostResult(status="succeeded", result=self._call().model_dump(mode="json"))
        except Stopped as stopped:
            return HostResult(status="paused" if stopped.reason == "pause" else "cancelled")
        except Exception as error:
            if "cancel" in self._asked_to:  # its helpers were told to end too: what breaks then is no fault
                return HostResult(status="cancelled")
            return HostResult(status="failed", error=self._failure(error))
        except SystemExit as error:
            return HostResult(
                status="failed", error=JobFailed(f"the job ended its process with status {error.code}").body()
            )

    def _call(self) -> BaseModel:
        # heavy imports only here: the store and the job's own module
        from burnish.infra.artifact_store import open_store

        context = HostContext(self._order, self._folder, open_store(self._order.artifact_url), self._events)
        self._context = context
        for reason in self._asked_to:
            context.request_stop("cancel" if reason == "cancel" else "pause")
        context.check_stop()
        spec_class = resolve(self._order.spec_type)
        spec: Spec = spec_class.model_validate(self._order.spec)
        function: Callable[[Any, JobContext], Any] = resolve(self._order.run)
        result = function(spec, context)
        if not isinstance(result, BaseModel):
            raise JobFailed(f"{self._order.run} returned {type(result).__name__}, not a result model")
        return result

    def _failure(self, error: Exception) -> ErrorBody:
        text = "".join(traceback.format_exception(error))
        with suppress(OSError):  # the disk may be what is full
            self._events.write("log", {"level": "error", "message": text[-8_000:]})
        if isinstance(error, BurnishError):
            return error.body()
        if isinstance(error, ValidationError):
            return JobFailed(f"the spec of {self._order.run} does not validate: {error}", hint=_RESTART).body()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return OutOfDisk("the disk is full", where=str(error.filename or ""), hint="free space, then retry").body()
        if isinstance(error, MemoryError):
            return JobFailed("the job ran out of memory", hint="raise resources.memory_bytes").body()
        return JobFailed(f"{type(error).__name__}: {error}", hint=_RESTART).body()

    def _limit(self, error: ErrorBody) -> None:
        """Called by the watchdog's thread: the job may never come back, so the process ends here."""
        self._end(HostResult(status="failed", error=error), abruptly=True)

    def _end(self, result: HostResult, *, abruptly: bool = False) -> None:
        """Write the result, once; whoever comes second waits for the process to end."""
        if not self._ended.acquire(blocking=not abruptly):
            return
        self._watchdog.stop()
        if self._context is not None and not abruptly:
            with suppress(OSError):
                self._context.flush()
        result = result.model_copy(
            update={
                "seconds": time.monotonic() - self._started,
                "peak_memory_bytes": self._watchdog.peak_memory_bytes,
            }
        )
        # Here, not where it is recorded: half a surrogate pair cannot even be written into the file.
        self._write(HostResult.model_validate(cleaned(result.model_dump())))
        sys.stdout.flush()
        sys.stderr.flush()
        if abruptly:
            os.killpg(0, signal.SIGKILL)

    def _write(self, result: HostResult) -> None:
        """Write the result; a full disk is waited for, as hours of work may stand in it."""
        deadline = time.monotonic() + _DISK_PATIENCE_SECONDS
        while True:
            try:
                write_json(result_path(self._folder, self._order.incarnation), result)
                return
            except OSError as error:
                if error.errno != errno.ENOSPC or time.monotonic() > deadline:
                    raise
                time.sleep(1)


def resolve(name: str) -> Any:
    """Return what ``module:attribute`` names."""
    module, _, attribute = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # threads that libraries left behind must not keep a finished job's memory
