"""A :class:`burnish.core.job.JobContext` on a plain folder, so that a job's function runs without a server.

Layout: ``<root>/artifacts/<64 hex>`` (files of an artifact), ``<root>/jobs/<job_id>`` (scratch, stages, checkpoints).
A published folder is read-only, as in a real store: what a job copies from it and means to change must be made writable.
An artifact's digest is the hash of its manifest: ``[[relative path, size, sha256], ...]``, sorted, as canonical JSON.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from burnish.core.errors import ArtifactCorrupt, NotFound
from burnish.core.job import LogLevel, Stopped
from burnish.core.specs.base import ArtifactKind, ArtifactRef, Resources


def manifest_digest(folder: Path) -> tuple[str, int]:
    """Return ``sha256:...`` over the folder's manifest, and the sum of the sizes of its files."""
    entries: list[tuple[str, int, str]] = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        hashed = hashlib.sha256()
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                hashed.update(chunk)
        entries.append((path.relative_to(folder).as_posix(), path.stat().st_size, hashed.hexdigest()))
    text = json.dumps(sorted(entries), separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest(), sum(size for _, size, _ in entries)


def _folders(root: Path) -> list[Path]:
    return [root, *(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())]


def _seal(root: Path) -> None:
    """Make a published folder read-only, its files and its folders."""
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o444)
    for path in _folders(root):
        path.chmod(0o555)


@dataclass
class LocalJobContext:
    """Runs one job in ``root``; what the job reported is kept in lists that a test can look at."""

    root: Path
    job_id: str = "job_local"
    resources: Resources = field(default_factory=lambda: Resources(cpus=2, memory_bytes=4 << 30))
    resume_from: Path | None = None
    on_metric: Callable[[int, Mapping[str, float]], None] | None = None
    """Called after each metric is recorded; a test raises from it to die at a step."""
    progressed: list[tuple[float, float, str, str]] = field(default_factory=list)
    metrics: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    logs: list[tuple[LogLevel, str]] = field(default_factory=list)
    checkpoints: list[tuple[int, ArtifactRef]] = field(default_factory=list)
    published: list[tuple[ArtifactRef, dict[str, object]]] = field(default_factory=list)
    _stop: Literal["pause", "cancel"] | None = None

    @property
    def directory(self) -> Path:
        """The job's scratch folder."""
        folder = self.root / "jobs" / self.job_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def path_of(self, artifact: ArtifactRef) -> Path:
        """Return where an artifact's files are kept, whether or not they are there."""
        return self.root / "artifacts" / artifact.digest.removeprefix("sha256:")

    def open(self, artifact: ArtifactRef) -> Path:
        """Return the artifact's folder after checking its bytes."""
        folder = self.path_of(artifact)
        if not folder.is_dir():
            raise NotFound(f"no artifact {artifact.digest}", where=str(folder))
        if manifest_digest(folder)[0] != artifact.digest:
            raise ArtifactCorrupt(f"the files of {artifact.digest} are not those that were published")
        return folder

    def stage(self, name: str) -> Path:
        """Return an empty folder of this name."""
        folder = self.directory / "stage" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def add(self, folder: Path, kind: ArtifactKind) -> ArtifactRef:
        """Publish a copy of ``folder``: how a test makes a job's input."""
        staged = self.stage("added")
        shutil.copytree(folder, staged, dirs_exist_ok=True)
        for path in _folders(staged):
            path.chmod(0o755)  # a copy of a published folder is read-only, and only a writable one can be moved
        return self._keep(staged, kind)

    def publish(self, staged: Path, kind: ArtifactKind, metadata: Mapping[str, object] | None = None) -> ArtifactRef:
        """Move ``staged`` to its content's address."""
        artifact = self._keep(staged, kind)
        self.published.append((artifact, dict(metadata or {})))
        return artifact

    def publish_checkpoint(self, staged: Path, step: int) -> ArtifactRef:
        """Publish resumable state and remember it for :meth:`restarted`."""
        artifact = self._keep(staged, "checkpoint")
        self.checkpoints.append((step, artifact))
        return artifact

    def _keep(self, staged: Path, kind: ArtifactKind) -> ArtifactRef:
        digest, size = manifest_digest(staged)
        artifact = ArtifactRef(digest=digest, kind=kind, size_bytes=size)
        target = self.path_of(artifact)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            shutil.rmtree(staged)
        else:
            staged.rename(target)
            _seal(target)
        return artifact

    def progress(self, done: float, total: float, *, phase: str = "", unit: str = "steps") -> None:
        """Record ``(done, total, phase, unit)``."""
        self.progressed.append((done, total, phase, unit))

    def metric(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers of one step, then call ``on_metric``."""
        self.metrics.append((step, dict(values)))
        if self.on_metric is not None:
            self.on_metric(step, values)

    def log(self, message: str, level: LogLevel = "info") -> None:
        """Record a line."""
        self.logs.append((level, message))

    def request_stop(self, reason: Literal["pause", "cancel"]) -> None:
        """Make the next :meth:`check_stop` raise."""
        self._stop = reason

    def stop_requested(self) -> bool:
        """Tell whether :meth:`check_stop` would raise."""
        return self._stop is not None

    def check_stop(self) -> None:
        """Raise :class:`Stopped` after :meth:`request_stop`."""
        if self._stop is not None:
            raise Stopped(self._stop)

    def restarted(self) -> "LocalJobContext":
        """Return the context that the job's next start gets: same job and folders, the last checkpoint to resume from."""
        last = self.path_of(self.checkpoints[-1][1]) if self.checkpoints else self.resume_from
        return LocalJobContext(self.root, self.job_id, self.resources, resume_from=last)
