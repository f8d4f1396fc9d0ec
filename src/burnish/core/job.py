"""What runs inside a host: the context that a job's function is given.

A job's function is named by string (``"burnish.ml.train:sft"``), resolved by the host process alone, and called as
``run(spec, context)``; it returns the kind's result model. It must be a deterministic function of spec, inputs and
seed as far as the kind promises so.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

from burnish.core.specs.base import ArtifactKind, ArtifactRef, Resources

LogLevel = Literal["debug", "info", "warning", "error"]


class Stopped(BaseException):
    """Raised by :meth:`JobContext.check_stop` in a job that is to pause or cancel; never caught by the job."""

    def __init__(self, reason: Literal["pause", "cancel"]) -> None:
        super().__init__(reason)
        self.reason = reason


class JobContext(Protocol):
    """Everything a job may touch besides its spec. Implemented by the host, and by ``burnish.testing`` for tests."""

    @property
    def job_id(self) -> str:
        """The job's id; stable over restarts of its host."""

    @property
    def directory(self) -> Path:
        """A scratch folder of the job's own. It survives a restart of the host and goes when the job has ended."""

    @property
    def resources(self) -> Resources:
        """What was admitted: use ``resources.cpus`` threads and no more."""

    @property
    def resume_from(self) -> Path | None:
        """Files of the job's last published checkpoint, when this is not its first start."""

    def open(self, artifact: ArtifactRef) -> Path:
        """Return the folder with an input artifact's files, verified, read-only.

        Raises:
            ArtifactCorrupt: the bytes are not those that were published.
            NotFound: the artifact is not among the job's inputs.
        """

    def stage(self, name: str) -> Path:
        """Return an empty folder to write a future artifact into. A leftover of an earlier start is emptied."""

    def publish(self, staged: Path, kind: ArtifactKind, metadata: Mapping[str, object] | None = None) -> ArtifactRef:
        """Make a staged folder an artifact: hash, fsync, appear whole by one rename. ``staged`` is gone afterwards."""

    def publish_checkpoint(self, staged: Path, step: int) -> ArtifactRef:
        """Publish resumable state. The next start of this job gets it as ``resume_from``."""

    def progress(self, done: float, total: float, *, phase: str = "", unit: str = "steps") -> None:
        """Report how far the job is (thinned by the host to a few a second). ``phase`` is what a person reads."""

    def metric(self, step: int, values: Mapping[str, float]) -> None:
        """Report numbers of one step: ``loss``, ``examples_per_second`` ..."""

    def log(self, message: str, level: LogLevel = "info") -> None:
        """Write one line to the job's log."""

    def check_stop(self) -> None:
        """Raise :class:`Stopped` if the job is to pause or cancel. Call it at every safe point (each step)."""

    def stop_requested(self) -> bool:
        """Tell whether :meth:`check_stop` would raise, so that a job can publish a checkpoint first."""
