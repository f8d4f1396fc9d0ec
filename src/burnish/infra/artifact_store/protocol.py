"""The plug point: what every artifact store can do. Synchronous, and usable in a host process without a database."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from burnish.core.errors import InvalidRequest
from burnish.core.specs.base import ArtifactKind, ArtifactRef, Digest


class ArtifactStore(Protocol):
    """Keeps artifacts. Call it from a thread (``asyncio.to_thread``) in asynchronous code.

    ``burnish.testing.artifact_store_contract`` is the suite that every implementation passes.
    """

    @property
    def store_id(self) -> str:
        """Made once with the store and kept in it: processes that read the same id share one store."""

    def owner(self) -> str | None:
        """Return who claimed the store, in the words of :meth:`claim`; None if nobody did."""

    def claim(self, owner: str) -> str:
        """Note in the store whose it is, unless somebody's it is already; return whose it is."""

    def stage(self, name: str) -> Path:
        """Return a new empty folder on the store's filesystem. It is the caller's until published or discarded.

        Args:
            name: for people who look at the folder; need not be unique.
        """

    def publish(self, staged: Path, kind: ArtifactKind, by: str | None = None) -> ArtifactRef:
        """Make a folder that :meth:`stage` returned an artifact. On success ``staged`` is gone; on failure it remains.

        Args:
            staged: the folder.
            kind: what it is.
            by: who published it, say the id of a job; kept with the object, for :meth:`published`. The same content may
                have been published by many.

        Raises:
            InvalidRequest: nothing in it, or something that is no plain file (link, device), or a name that is no text.
            OutOfDisk: the disk is full. There is no partial object.
        """

    def published(self, digest: Digest, by: str) -> bool:
        """Tell whether ``by`` published this content, whoever else did. Only who can write into the store can have it so."""

    def holds(self, path: Path) -> bool:
        """Tell whether a path of this machine leads into the store's own files."""

    def discard(self, staged: Path) -> None:
        """Delete a staged folder. Does nothing if it is gone."""

    def open(self, artifact: ArtifactRef | Digest, *, verify: bool = True) -> Path:
        """Return the read-only folder with the artifact's files.

        Args:
            artifact: the reference or its digest.
            verify: hash the files first, unless this process already did and they have not been touched since.

        Raises:
            NotFound: there is no such artifact.
            ArtifactCorrupt: its bytes are not those that were published.
        """

    def verify(self, artifact: ArtifactRef | Digest) -> None:
        """Hash every file, whatever was verified before. Raises as :meth:`open`."""

    def exists(self, digest: Digest) -> bool:
        """Tell whether the object is there (without hashing it)."""

    def renew(self, digest: Digest) -> bool:
        """Start the object's grace again, so that it may be referred to anew; return whether it is there.

        Whoever re-uses an existing artifact renews it before recording the reference.
        """

    def sweep(self, live: Callable[[], set[Digest]], grace_seconds: float) -> list[Digest]:
        """Remove objects that are not live, and staged folders whose process is dead, once older than the grace.

        Cannot race a publish of the same content: that renews the object, and no object in its grace is removed.
        The grace must exceed the time between publishing an artifact and recording a reference to it.

        Args:
            live: returns the digests that are referred to; called after the candidates were listed.
            grace_seconds: age below which nothing is removed.

        Returns:
            The digests of removed objects.
        """


def open_store(url: str) -> ArtifactStore:
    """Open (and on first use make) the store at ``url``.

    Raises:
        InvalidRequest: the scheme is not ``file``.
    """
    from burnish.infra.artifact_store.files import FileArtifactStore

    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in {"", "localhost"}:
        raise InvalidRequest(
            f"no artifact store for {url!r}", where="BURNISH_ARTIFACT_URL", hint="use file:///absolute/folder"
        )
    return FileArtifactStore(Path(unquote(parts.path)))
