"""An artifact store in a folder, shared by any number of processes.

Layout::

    store_id                              made once
    owner                                 which database's artifacts these are, written once
    lock                                  flock: publishing shared, removing exclusive
    staging/<name>-<random>/files/        a future artifact; staging/<name>-<random>.lock is held by its process
    objects/<aa>/<64 hex>/files/          an artifact's files, read-only
    objects/<aa>/<64 hex>/manifest.json   what its digest is the hash of
    objects/<aa>/<64 hex>/by/<64 hex>     empty; the hash of who published it
    trash/                                removed objects, on their way out
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from burnish.core.errors import ArtifactCorrupt, InvalidRequest, NotFound, OutOfDisk
from burnish.core.specs.base import DIGEST_PATTERN, ArtifactKind, ArtifactRef, Digest
from burnish.infra.artifact_store import manifest
from burnish.infra.artifact_store.manifest import Entry
from burnish.infra.home import write_once

_Seen = tuple[tuple[str, int, int, int], ...]
"""Path, size, change time (ns) and inode of each file: equal means that nobody touched them."""


class FileArtifactStore:
    """The store for ``file://`` URLs."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._staging, self._objects, self._trash = (self.root / name for name in ("staging", "objects", "trash"))
        self._held: dict[Path, int] = {}
        self._verified: dict[Digest, _Seen] = {}
        with _disk_full_is_out_of_disk(self.root):
            for folder in (self._staging, self._objects, self._trash):
                folder.mkdir(parents=True, exist_ok=True, mode=0o755)
            self._store_id = self._read_or_make_id()

    @property
    def store_id(self) -> str:
        """Made once with the store and kept in it."""
        return self._store_id

    def owner(self) -> str | None:
        """Return who claimed the store."""
        try:
            return (self.root / "owner").read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None

    def claim(self, owner: str) -> str:
        """Note whose the store is, once."""
        with _disk_full_is_out_of_disk(self.root):
            return write_once(self.root / "owner", f"{owner}\n".encode(), 0o644).decode().strip()

    def stage(self, name: str) -> Path:
        """Return a new empty folder to write a future artifact into."""
        readable = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:64] or "stage"
        wrapper = self._staging / f"{readable}-{secrets.token_hex(8)}"
        with _disk_full_is_out_of_disk(self.root):
            # The lock comes first, so that a sweep never sees the folder without it.
            descriptor = os.open(_lock_of(wrapper), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            self._held[wrapper] = descriptor
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                files = wrapper / "files"
                files.mkdir(parents=True)
            except BaseException:  # a full disk, say: whoever asks again and again must not leak a lock each time
                self._drop(wrapper)
                raise
        return files

    def publish(self, staged: Path, kind: ArtifactKind, by: str | None = None) -> ArtifactRef:
        """Make a staged folder an artifact: hash, fsync, one rename."""
        wrapper = self._wrapper_of(staged)
        with _disk_full_is_out_of_disk(self.root):
            entries = _seal(staged)
            if not entries:
                raise InvalidRequest("nothing was written into the artifact", where=str(staged))
            text = manifest.encode(entries)
            _write_synced(wrapper / "manifest.json", text)
            _sync(wrapper)
            digest = manifest.digest_of_manifest(text)
            self._place(wrapper, digest, by)
        self._forget_stage(wrapper)
        return ArtifactRef(digest=digest, kind=kind, size_bytes=sum(entry.size for entry in entries))

    def published(self, digest: Digest, by: str) -> bool:
        """Tell whether ``by`` published this content."""
        return _note_of(self._object(digest), by).exists()

    def holds(self, path: Path) -> bool:
        """Tell whether a path leads into the store, by whatever links."""
        return path.resolve().is_relative_to(self.root.resolve())

    def discard(self, staged: Path) -> None:
        """Delete a staged folder."""
        self._drop(self._wrapper_of(staged))

    def open(self, artifact: ArtifactRef | Digest, *, verify: bool = True) -> Path:
        """Return the folder with the artifact's files, verified once a process."""
        digest = _digest_of(artifact)
        folder = self._object(digest)
        if not folder.is_dir():
            raise NotFound(
                f"no artifact {digest}", where=str(folder), hint="it was removed, or this is not the store it is in"
            )
        if verify and self._verified.get(digest) != _seen(folder):
            self.verify(digest)
        return folder / "files"

    def verify(self, artifact: ArtifactRef | Digest) -> None:
        """Hash every file of the artifact."""
        digest = _digest_of(artifact)
        folder = self._object(digest)
        if not folder.is_dir():
            raise NotFound(f"no artifact {digest}", where=str(folder))
        self._verified.pop(digest, None)
        seen = _seen(folder)
        _check_content(folder, digest)
        if seen == _seen(folder):
            self._verified[digest] = seen

    def exists(self, digest: Digest) -> bool:
        """Tell whether the object is there."""
        return self._object(digest).is_dir()

    def renew(self, digest: Digest) -> bool:
        """Start the object's grace again and tell whether it is there."""
        with self._locked(fcntl.LOCK_SH):
            try:
                os.utime(self._object(digest))
            except FileNotFoundError:
                return False
        return True

    def sweep(self, live: Callable[[], set[Digest]], grace_seconds: float) -> list[Digest]:
        """Remove what nothing refers to and whose grace has passed, and staged folders of dead processes."""
        self._sweep_staging(grace_seconds)
        old = [digest for digest in self._digests() if self._age(self._object(digest)) > grace_seconds]
        removed: list[Digest] = []
        if old:
            living = live()
            removed = [digest for digest in old if digest not in living and self._remove_object(digest, grace_seconds)]
        for leftover in self._trash.iterdir():
            _remove(leftover)
        return removed

    def _place(self, wrapper: Path, digest: Digest, by: str | None) -> None:
        """Move a sealed folder to its address, or drop it if the same content is there already."""
        target = self._object(digest)
        target.parent.mkdir(exist_ok=True)
        _sync(self._objects)
        if target.is_dir() and not self._is_intact(digest):
            self._discard_object(digest)  # publishing again is how a damaged object is mended
        with self._locked(fcntl.LOCK_SH):
            try:
                wrapper.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            if by is not None:
                note = _note_of(target, by)
                note.parent.mkdir(exist_ok=True, mode=0o755)
                note.touch()
                _sync(note.parent)
                _sync(target)
            os.utime(target)
            _sync(target.parent)
        if wrapper.exists():
            _remove(wrapper)

    def _is_intact(self, digest: Digest) -> bool:
        try:
            self.open(digest)
        except (ArtifactCorrupt, NotFound):
            return False
        return True

    def _remove_object(self, digest: Digest, grace_seconds: float) -> bool:
        """Remove the object unless a publish renewed it since it was looked at."""
        with self._locked(fcntl.LOCK_EX):
            folder = self._object(digest)
            if not folder.is_dir() or self._age(folder) <= grace_seconds:
                return False
            self._to_trash(folder)
        self._verified.pop(digest, None)
        return True

    def _discard_object(self, digest: Digest) -> None:
        with self._locked(fcntl.LOCK_EX), contextlib.suppress(FileNotFoundError):
            self._to_trash(self._object(digest))
        self._verified.pop(digest, None)

    def _to_trash(self, folder: Path) -> None:
        folder.rename(self._trash / f"{folder.name}-{secrets.token_hex(4)}")
        _sync(folder.parent)

    def _sweep_staging(self, grace_seconds: float) -> None:
        for lock in self._staging.glob("*.lock"):
            wrapper = lock.with_suffix("")
            if wrapper in self._held or self._age(lock) <= grace_seconds:
                continue
            with contextlib.suppress(FileNotFoundError, BlockingIOError):
                descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its process lives
                    _remove(wrapper)
                    lock.unlink()
                finally:
                    os.close(descriptor)

    def _digests(self) -> Iterator[Digest]:
        for shard in self._objects.iterdir():
            for folder in shard.iterdir():
                yield f"sha256:{folder.name}"

    def _age(self, path: Path) -> float:
        try:
            return time.time() - path.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _object(self, digest: Digest) -> Path:
        if not re.fullmatch(DIGEST_PATTERN, digest):
            raise NotFound(f"{digest!r} is not a digest", hint="a digest is sha256: and 64 hexadecimal characters")
        name = digest.removeprefix("sha256:")
        return self._objects / name[:2] / name

    def _wrapper_of(self, staged: Path) -> Path:
        wrapper = staged.parent
        if staged.name != "files" or wrapper.parent != self._staging:
            raise InvalidRequest(
                f"{staged} was not staged by this store", hint="write into the folder that stage() returns"
            )
        return wrapper

    def _drop(self, wrapper: Path) -> None:
        _remove(wrapper)
        self._forget_stage(wrapper)

    def _forget_stage(self, wrapper: Path) -> None:
        _lock_of(wrapper).unlink(missing_ok=True)
        if (descriptor := self._held.pop(wrapper, None)) is not None:
            os.close(descriptor)

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, how)
            yield
        finally:
            os.close(descriptor)

    def _read_or_make_id(self) -> str:
        content = write_once(self.root / "store_id", f"store_{uuid.uuid4().hex}\n".encode(), 0o444)
        _sync(self.root)
        return content.decode().strip()


def _seal(files: Path) -> list[Entry]:
    """Make everything below ``files`` read-only, on the disk and hashed; folders without files go."""
    entries = []
    for path, _ in list(manifest.walk(files)):
        os.chmod(files / path, 0o444)
        size, sha256 = manifest.hash_file(files / path, sync=True)
        entries.append(Entry(path, size, sha256))
    for current, _, _ in os.walk(files, topdown=False):
        folder = Path(current)
        if folder != files and not any(folder.iterdir()):
            folder.rmdir()
            continue
        _sync(folder)
        folder.chmod(0o555)
    return entries


def _check_content(folder: Path, digest: Digest) -> None:
    """Raise ArtifactCorrupt unless the object's files are exactly those of the manifest that the digest names."""
    hint = "publish it again (retry the step that made it), or restore it from a backup"
    try:
        text = (folder / "manifest.json").read_bytes()
        if manifest.digest_of_manifest(text) != digest:
            raise ArtifactCorrupt(
                f"the manifest of {digest} is not the one that was published", where=str(folder), hint=hint
            )
        expected = {entry.path: entry for entry in manifest.decode(text)}
        found = {path for path, _ in manifest.walk(folder / "files")}
        for path in sorted(expected.keys() | found):
            if path not in found or path not in expected:
                what = "is missing" if path not in found else "was added"
                raise ArtifactCorrupt(f"a file of {digest} {what}: {path}", where=str(folder), hint=hint)
            size, sha256 = manifest.hash_file(folder / "files" / path)
            if Entry(path, size, sha256) != expected[path]:
                raise ArtifactCorrupt(
                    f"the bytes of {path} in {digest} are not those published", where=str(folder), hint=hint
                )
    except InvalidRequest as error:
        raise ArtifactCorrupt(f"{digest} was changed: {error.message}", where=str(folder), hint=hint) from error
    except FileNotFoundError as error:
        raise ArtifactCorrupt(f"files of {digest} are missing", where=str(error.filename), hint=hint) from error


def _seen(folder: Path) -> _Seen:
    found = []
    for current, below, names in os.walk(folder):
        if current == str(folder):
            below[:] = ["files"]  # who else publishes the same changes nothing of it
        for name in names:
            path = os.path.join(current, name)
            status = os.lstat(path)
            found.append((path, status.st_size, status.st_ctime_ns, status.st_ino))
    return tuple(sorted(found))


def _digest_of(artifact: ArtifactRef | Digest) -> Digest:
    return artifact.digest if isinstance(artifact, ArtifactRef) else artifact


def _note_of(folder: Path, by: str) -> Path:
    return folder / "by" / hashlib.sha256(by.encode()).hexdigest()


def _lock_of(wrapper: Path) -> Path:
    return wrapper.with_name(wrapper.name + ".lock")


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    path.chmod(0o444)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Delete a folder, read-only folders in it included."""
    for current, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            os.chmod(current, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _disk_full_is_out_of_disk(where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfDisk(
                "the disk is full", where=str(where), hint="free space, or move the store (BURNISH_ARTIFACT_URL)"
            ) from error
        raise
