"""What every artifact store promises, as one suite.

Call each of :data:`CONTRACT` with a function that opens a new store, each time a new one on the same place.
Plain asserts; no pytest needed.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from burnish.core.errors import ArtifactCorrupt, InvalidRequest, NotFound
from burnish.core.specs.base import ArtifactRef
from burnish.infra.artifact_store.protocol import ArtifactStore
from burnish.testing.job_context import manifest_digest

Open = Callable[[], ArtifactStore]


def stage(store: ArtifactStore, files: dict[str, bytes]) -> Path:
    """Stage these files."""
    staged = store.stage("contract")
    for name, content in files.items():
        path = staged / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return staged


def put(store: ArtifactStore, files: dict[str, bytes]) -> ArtifactRef:
    """Publish these files."""
    return store.publish(stage(store, files), "report")


def refused(error: type[Exception], call: Callable[[], object]) -> Exception:
    """Return the expected error that ``call`` raises."""
    try:
        call()
    except error as raised:
        return raised
    raise AssertionError(f"{error.__name__} was not raised")


def check_what_was_published_is_read(open_store: Open) -> None:
    """Files, folders and sizes come back, in another process's view of the store too; the staged folder is gone."""
    files = {"a.txt": b"one", "deep/er/b.bin": bytes(range(256)) * 9000, "empty": b"", "ümläut name.txt": b"u"}
    store = open_store()
    staged = stage(store, files)
    (staged / "no files" / "in here").mkdir(parents=True)
    expected = manifest_digest(staged)
    ref = store.publish(staged, "model")
    assert not staged.exists()
    assert (ref.digest, ref.size_bytes) == expected
    assert ref.kind == "model"
    for view in (store, open_store()):
        folder = view.open(ref)
        found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert found == files
        assert view.open(ref.digest) == folder
        assert view.exists(ref.digest)


def check_same_content_is_one_object(open_store: Open) -> None:
    """Equal files are one object, whatever order they were written in; other files, names included, are another."""
    store = open_store()
    first = put(store, {"a": b"1", "b": b"2"})
    assert put(open_store(), {"b": b"2", "a": b"1"}) == first
    others = [put(store, {"a": b"1"}), put(store, {"a": b"2", "b": b"1"}), put(store, {"a": b"1", "c": b"2"})]
    assert len({first.digest, *(other.digest for other in others)}) == 4


def check_it_is_read_only(open_store: Open) -> None:
    """Nobody writes into an artifact by mistake."""
    folder = open_store().open(put(open_store(), {"a": b"1", "d/b": b"2"}))
    for path in (folder, *folder.rglob("*")):
        assert path.stat().st_mode & 0o222 == 0, path


def check_changed_bytes_are_noticed(open_store: Open) -> None:
    """A flipped byte, a missing, an added or a linked file is an error, also after it was verified before."""

    def flip(folder: Path) -> None:
        (folder / "d" / "a").write_bytes(b"onf")

    def drop(folder: Path) -> None:
        (folder / "d" / "a").unlink()

    def add(folder: Path) -> None:
        (folder / "d" / "new").write_bytes(b"")

    def link(folder: Path) -> None:
        (folder / "d" / "a").unlink()
        (folder / "d" / "a").symlink_to("/etc/hostname")

    for number, damage in enumerate((flip, drop, add, link)):
        store = open_store()
        ref = put(store, {"d/a": b"one", "n": str(number).encode()})
        folder = store.open(ref)
        _unlock(folder)
        damage(folder)
        refused(ArtifactCorrupt, lambda store=store, ref=ref: store.open(ref))  # type: ignore[misc]
        refused(ArtifactCorrupt, lambda ref=ref: open_store().verify(ref.digest))  # type: ignore[misc]
        assert put(store, {"d/a": b"one", "n": str(number).encode()}) == ref, "publishing again mends it"
        assert (open_store().open(ref) / "d" / "a").read_bytes() == b"one"


def check_only_plain_files_are_published(open_store: Open) -> None:
    """Links, devices and nothing at all are refused; the staged folder stays and can be mended."""
    store = open_store()
    staged = store.stage("links")
    refused(InvalidRequest, lambda: store.publish(staged, "report"))
    (staged / "link").symlink_to("/etc/hostname")
    refused(InvalidRequest, lambda: store.publish(staged, "report"))
    (staged / "link").unlink()
    (staged / "folder").symlink_to("/etc")
    refused(InvalidRequest, lambda: store.publish(staged, "report"))
    (staged / "folder").unlink()
    os.mkfifo(staged / "pipe")
    refused(InvalidRequest, lambda: store.publish(staged, "report"))
    (staged / "pipe").unlink()
    (staged / "one").write_bytes(b"1")
    os.link(staged / "one", staged / "two")
    refused(InvalidRequest, lambda: store.publish(staged, "report"))
    (staged / "two").unlink()
    assert (store.open(store.publish(staged, "report")) / "one").read_bytes() == b"1"


def check_foreign_folders_and_digests(open_store: Open) -> None:
    """Only a staged folder is published; a digest is no path; what is not there is not found."""
    store = open_store()
    refused(InvalidRequest, lambda: store.publish(Path("/etc"), "report"))
    refused(InvalidRequest, lambda: store.publish(store.stage("x").parent, "report"))
    for digest in ("sha256:" + "0" * 64, "../../etc", "sha256:../../../etc/passwd", ""):
        refused(NotFound, lambda digest=digest: store.open(digest))  # type: ignore[misc]
    assert not store.renew("sha256:" + "0" * 64)


def check_discard(open_store: Open) -> None:
    """A discarded folder is gone; again is harmless."""
    store = open_store()
    staged = stage(store, {"a": b"1"})
    store.discard(staged)
    store.discard(staged)
    assert not staged.exists()


def check_sweep_takes_only_what_is_dead_and_old(open_store: Open) -> None:
    """Live objects, and those in their grace, stay; renewing and publishing again start the grace anew."""
    store = open_store()
    kept, dead = put(store, {"a": b"kept"}), put(store, {"a": b"dead"})
    assert store.sweep(set, 3600) == []
    time.sleep(0.3)
    renewed, again = put(store, {"a": b"renewed"}), put(store, {"a": b"again"})
    time.sleep(0.3)
    assert store.renew(renewed.digest)
    assert put(open_store(), {"a": b"again"}) == again
    removed = store.sweep(lambda: {kept.digest}, 0.25)
    assert removed == [dead.digest]
    assert [store.exists(ref.digest) for ref in (kept, dead, renewed, again)] == [True, False, True, True]
    refused(NotFound, lambda: store.open(dead))
    assert put(store, {"a": b"dead"}) == dead
    assert (store.open(dead) / "a").read_bytes() == b"dead"


def check_a_publish_during_a_sweep_wins(open_store: Open) -> None:
    """What is published or renewed after the sweep chose its candidates stays, though it did not count as live."""
    store = open_store()
    published, renewed, dead = (put(store, {"a": name.encode()}) for name in ("published", "renewed", "dead"))
    time.sleep(0.3)

    def live() -> set[str]:
        put(open_store(), {"a": b"published"})
        open_store().renew(renewed.digest)
        return set()

    assert store.sweep(live, 0.2) == [dead.digest]
    for ref in (published, renewed):
        open_store().verify(ref.digest)


def check_sweep_leaves_what_is_being_staged(open_store: Open) -> None:
    """A folder whose process lives is not a leftover, however old it is."""
    store = open_store()
    staged = stage(store, {"a": b"1"})
    time.sleep(0.05)
    open_store().sweep(set, 0.01)
    assert (staged / "a").read_bytes() == b"1"
    store.publish(staged, "report")


def check_store_id_is_the_store(open_store: Open) -> None:
    """Everybody who opens this store reads the same id."""
    assert open_store().store_id == open_store().store_id != ""


def check_the_first_who_claims_owns_it(open_store: Open) -> None:
    """The owner is written once; whoever comes later is told."""
    assert open_store().owner() is None
    assert open_store().claim("db_1 sqlite:///a") == "db_1 sqlite:///a"
    assert open_store().claim("db_2 sqlite:///b") == "db_1 sqlite:///a" == open_store().owner()


def check_who_published_it_is_kept(open_store: Open) -> None:
    """Each who published a content did, and nobody else; it is gone with the object, and changes nothing of the bytes."""
    store = open_store()
    first = store.publish(stage(store, {"a": b"same"}), "report", "job_1")
    opened = store.open(first)
    other = open_store()
    assert other.publish(stage(other, {"a": b"same"}), "report", "job/../2") == first
    assert put(store, {"a": b"same"}) == first
    told = [open_store().published(first.digest, by) for by in ("job_1", "job/../2", "job_3", "")]
    assert told == [True, True, False, False]
    assert store.open(first) == opened
    store.verify(first)
    time.sleep(0.05)
    assert store.sweep(set, 0.01) == [first.digest]
    assert not store.published(first.digest, "job_1")
    assert put(store, {"a": b"same"}) == first
    assert not store.published(first.digest, "job_1"), "what was published anew was not published by it"


def check_paths_into_it_are_known(open_store: Open) -> None:
    """A path into the store is one whatever it looks like; beside it is none."""
    store = open_store()
    files = store.open(put(store, {"a": b"1"}))
    link = Path(tempfile.mkdtemp()) / "link"
    link.symlink_to(files)
    assert all(store.holds(path) for path in (files, files / "a", files / "not there", link, link / "a"))
    assert not any(store.holds(path) for path in (Path("/"), link.parent, files / ("../" * 20) / "tmp"))
    shutil.rmtree(link.parent)


def _unlock(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


CONTRACT: tuple[Callable[[Open], None], ...] = (
    check_what_was_published_is_read,
    check_same_content_is_one_object,
    check_it_is_read_only,
    check_changed_bytes_are_noticed,
    check_only_plain_files_are_published,
    check_foreign_folders_and_digests,
    check_discard,
    check_sweep_takes_only_what_is_dead_and_old,
    check_a_publish_during_a_sweep_wins,
    check_sweep_leaves_what_is_being_staged,
    check_store_id_is_the_store,
    check_the_first_who_claims_owns_it,
    check_who_published_it_is_kept,
    check_paths_into_it_are_known,
)
