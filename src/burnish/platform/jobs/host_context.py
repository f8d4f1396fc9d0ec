"""The :class:`burnish.core.job.JobContext` of a host process: reports go to ``events.jsonl``, artifacts to the store."""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from burnish.core.errors import NotFound
from burnish.core.job import LogLevel, Stopped
from burnish.core.specs.base import ArtifactKind, ArtifactRef, Resources
from burnish.infra.artifact_store.protocol import ArtifactStore
from burnish.platform.jobs.files import SCRATCH, EventWriter, JobOrder, shortened

_PROGRESS_SECONDS = 0.25


class HostContext:
    """What a job's function is given. Safe to call from several threads."""

    def __init__(self, order: JobOrder, folder: Path, store: ArtifactStore, events: EventWriter) -> None:
        self._order = order
        self._store = store
        self._events = events
        self._lock = threading.Lock()
        self._stop: Literal["pause", "cancel"] | None = None
        self._inputs = {artifact.digest for artifact in order.inputs}
        self._opened: dict[str, Path] = {}
        self._progress = _ProgressClock()
        self._directory = folder / SCRATCH
        self._directory.mkdir(exist_ok=True)
        self._resume = None if order.resume_from is None else store.open(order.resume_from)

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self._order.job_id

    @property
    def directory(self) -> Path:
        """The job's scratch folder."""
        return self._directory

    @property
    def resources(self) -> Resources:
        """What was admitted."""
        return self._order.resources

    @property
    def resume_from(self) -> Path | None:
        """Files of the last published checkpoint."""
        return self._resume

    def open(self, artifact: ArtifactRef) -> Path:
        """Return the folder of an input's (or an own output's) files, verified once."""
        with self._lock:
            known = artifact.digest in self._inputs
            path = self._opened.get(artifact.digest)
        if not known:
            raise NotFound(
                f"{artifact.digest} is not among the inputs of {self.job_id}",
                hint="name the artifact in the job's spec",
            )
        if path is None:
            path = self._store.open(artifact)
            with self._lock:
                self._opened[artifact.digest] = path
        return path

    def stage(self, name: str) -> Path:
        """Return an empty folder on the store's filesystem."""
        return self._store.stage(f"{self.job_id}.{name}")

    def publish(self, staged: Path, kind: ArtifactKind, metadata: Mapping[str, object] | None = None) -> ArtifactRef:
        """Make a staged folder an artifact and tell the server."""
        artifact = self._store.publish(staged, kind, self.job_id)
        data = {"artifact": artifact.model_dump(mode="json"), "metadata": dict(metadata or {})}
        with self._lock:
            self._inputs.add(artifact.digest)
            self._events.write("artifact", data, durable=True)
        return artifact

    def publish_checkpoint(self, staged: Path, step: int) -> ArtifactRef:
        """Publish resumable state and tell the server."""
        artifact = self._store.publish(staged, "checkpoint", self.job_id)
        with self._lock:
            self._inputs.add(artifact.digest)
            self._events.write("checkpoint", {"step": step, "artifact": artifact.model_dump(mode="json")}, durable=True)
        return artifact

    def progress(self, done: float, total: float, *, phase: str = "", unit: str = "steps") -> None:
        """Report progress; thinned, but a phase's first and last report always go out."""
        with self._lock:
            report = self._progress.report(done, total, phase, unit)
            if report is not None:
                self._events.write("progress", report)

    def flush(self) -> None:
        """Write the progress that was held back: called when the job has ended."""
        with self._lock:
            if (held := self._progress.held) is not None:
                self._progress.held = None
                self._events.write("progress", held)

    def metric(self, step: int, values: Mapping[str, float]) -> None:
        """Report numbers of one step."""
        with self._lock:
            self._events.write("metric", {"step": step, "values": {name: float(v) for name, v in values.items()}})

    def log(self, message: str, level: LogLevel = "info") -> None:
        """Write one line to the job's log; a very long one is cut, and says so."""
        with self._lock:
            self._events.write("log", {"level": level, "message": shortened(message)})

    def request_stop(self, reason: Literal["pause", "cancel"]) -> None:
        """Make :meth:`check_stop` raise; a cancel is not undone by a later pause. Called by signal handlers."""
        if self._stop != "cancel":
            self._stop = reason

    @property
    def stop_reason(self) -> Literal["pause", "cancel"] | None:
        """Why the job is to stop."""
        return self._stop

    def stop_requested(self) -> bool:
        """Tell whether :meth:`check_stop` would raise."""
        return self._stop is not None

    def check_stop(self) -> None:
        """Raise :class:`Stopped` if the job is to pause or cancel."""
        if self._stop is not None:
            raise Stopped(self._stop)


class _ProgressClock:
    """Thins progress and estimates the time left from the pace of the current phase."""

    def __init__(self) -> None:
        self._phase: tuple[str, str, float] | None = None
        self._since = 0.0
        self._first = 0.0
        self._sent = 0.0
        self.held: dict[str, Any] | None = None
        """The last report, if it was not worth sending yet."""

    def report(self, done: float, total: float, phase: str, unit: str) -> dict[str, Any] | None:
        now = time.monotonic()
        fresh = self._phase != (phase, unit, total)
        if fresh:
            self._phase, self._since, self._first = (phase, unit, total), now, done
        pace = (done - self._first) / (now - self._since) if now > self._since else 0.0
        left = 0.0 if done >= total else (total - done) / pace if pace > 0 else None
        report = {"done": done, "total": total, "phase": phase, "unit": unit, "seconds_left": left}
        if not fresh and done < total and now - self._sent < _PROGRESS_SECONDS:
            self.held = report
            return None
        self._sent, self.held = now, None
        return report
