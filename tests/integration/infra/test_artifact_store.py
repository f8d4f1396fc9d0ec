import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from burnish.core.errors import InvalidRequest, OutOfDisk
from burnish.core.specs.base import ArtifactRef
from burnish.infra.artifact_store import FileArtifactStore, open_store
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.database import Database
from burnish.testing.artifact_store_contract import CONTRACT, Open, put, stage

REF = ArtifactRef(digest="sha256:" + "a" * 64, kind="model", size_bytes=5)


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__.removeprefix("check_"))
def test_contract(check: Callable[[Open], None], tmp_path: Path) -> None:
    check(lambda: FileArtifactStore(tmp_path / "store"))


def test_open_store_reads_file_urls(tmp_path: Path) -> None:
    url = (tmp_path / "with space").as_uri()
    assert open_store(url).store_id == FileArtifactStore(tmp_path / "with space").store_id
    with pytest.raises(InvalidRequest, match="s3"):
        open_store("s3://bucket/x")


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_a_full_disk_leaves_no_partial_object(
    store: FileArtifactStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    staged = stage(store, {"a": b"1"})

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(*{"fsync": (os, "fsync"), "rename": (Path, "rename"), "mkdir": (Path, "mkdir")}[call], full)
        with pytest.raises(OutOfDisk):
            store.publish(staged, "report")
    assert list(store.root.glob("objects/*/*")) == []
    assert (store.open(store.publish(staged, "report")) / "a").read_bytes() == b"1", "it can be tried again"


def test_a_stage_that_fails_leaves_nothing_behind(store: FileArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readiness stages and discards at each probe: on a full disk that goes on for days.

    Breaks with: a descriptor or a lock file left by each try.
    """
    before = len(os.listdir("/proc/self/fd"))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", full)
        for _ in range(20):
            with pytest.raises(OutOfDisk):
                store.stage("readiness")
    assert len(os.listdir("/proc/self/fd")) == before
    assert list(store.root.glob("staging/*")) == []
    store.discard(store.stage("readiness"))


_FILL = """
import sys
from pathlib import Path
from burnish.core.errors import OutOfDisk
from burnish.infra.artifact_store import FileArtifactStore
store = FileArtifactStore(Path(sys.argv[1]) / "store")
small = store.stage("small"); (small / "a").write_bytes(b"1"); small = store.publish(small, "report")
staged = store.stage("x"); (staged / "a").write_bytes(b"x" * 1000)
filler = (Path(sys.argv[1]) / "filler").open("wb", buffering=0)
try:
    while True:
        filler.write(b"y" * 4096)
except OSError:
    pass
try:
    store.publish(staged, "report")
    raise SystemExit("published on a full disk")
except OutOfDisk as error:
    print(error.code)
assert [path.name for path in store.root.glob("objects/*/*")] == [small.digest[7:]]
filler.truncate(0)
print(store.publish(staged, "report").size_bytes)
"""


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    space = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Urm"]
    if subprocess.run([*space, "true"], capture_output=True).returncode != 0:
        pytest.skip("no mount namespaces here")
    script = 'mount -t tmpfs -o size=256k none "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        [*space, "sh", "-c", script, "sh", str(tmp_path), sys.executable, _FILL],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["out_of_disk", "1000"]


_PUBLISH_FOREVER = """
import itertools, sys
from pathlib import Path
from burnish.infra.artifact_store import FileArtifactStore
store = FileArtifactStore(Path(sys.argv[1]))
for number in itertools.count():
    staged = store.stage("x")
    for name in range(20):
        (staged / str(name)).write_bytes(f"{number} {name} {sys.argv[2]}".encode() * 1000)
    print(store.publish(staged, "report").digest, flush=True)
"""


def test_killed_while_publishing_leaves_whole_objects_only(tmp_path: Path) -> None:
    store = FileArtifactStore(tmp_path / "store")
    for round_ in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", _PUBLISH_FOREVER, str(store.root), str(round_)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        said = [writer.stdout.readline().strip() for _ in range(3)]
        time.sleep(0.003 * round_)
        writer.send_signal(signal.SIGKILL)
        said += writer.stdout.read().split()
        writer.stdout.close()
        writer.wait()
        assert all(store.exists(digest) for digest in said if len(digest) == 71), (
            "what was said to be published is there"
        )
    for folder in store.root.glob("objects/*/*"):
        store.verify(f"sha256:{folder.name}")
    leftovers = list(store.root.glob("staging/*/files"))
    store.sweep(set, 3600)
    assert list(store.root.glob("staging/*/files")) == leftovers, "they are in their grace"
    for lock in store.root.glob("staging/*.lock"):
        os.utime(lock, (0, 0))
    store.sweep(lambda: {f"sha256:{folder.name}" for folder in store.root.glob("objects/*/*")}, 3600)
    assert list((store.root / "staging").iterdir()) == []


def test_a_sweep_never_takes_what_is_published_meanwhile(tmp_path: Path) -> None:
    """Publish the same few contents over and over while another thread sweeps with nothing live."""
    root = tmp_path / "store"
    stop, removed, missing = threading.Event(), [0], []

    def sweep() -> None:
        store = FileArtifactStore(root)
        while not stop.is_set():
            removed[0] += len(store.sweep(set, 0.15))

    sweeper = threading.Thread(target=sweep)
    store = FileArtifactStore(root)
    sweeper.start()
    try:
        until = time.monotonic() + 2.5
        number = 0
        while time.monotonic() < until:
            number += 1
            started = time.monotonic()
            ref = put(store, {"a": str(number % 7).encode()})
            there = store.exists(ref.digest)
            if not there and time.monotonic() - started < 0.1:  # in its grace, whatever the sweeper thought
                missing.append(number)
            time.sleep(0.03)
    finally:
        stop.set()
        sweeper.join()
    assert missing == []
    assert removed[0] > 3, "the sweeper had something to do"


def test_threads_publishing_the_same_content_agree(tmp_path: Path) -> None:
    refs: list[ArtifactRef] = []

    def publish() -> None:
        refs.append(put(FileArtifactStore(tmp_path / "store"), {"a": b"same" * 100_000}))

    threads = [threading.Thread(target=publish) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refs) == 8
    assert len(set(refs)) == 1
    FileArtifactStore(tmp_path / "store").verify(refs[0])
    assert list((tmp_path / "store" / "staging").iterdir()) == []


async def test_rows_belong_to_projects(database: Database) -> None:
    async with database.write() as session:
        await artifacts.record(session, "p1", REF, produced_by="job_1", metadata={"rows": 3})
        await artifacts.record(session, "p1", REF, produced_by="job_2")
    async with database.read() as session:
        found = await artifacts.find(session, "p1", REF.digest)
        assert found is not None
        assert (found.ref, found.produced_by, found.metadata) == (REF, "job_1", {"rows": 3})
        assert await artifacts.find(session, "p2", REF.digest) is None


async def test_references_keep_artifacts_alive(database: Database) -> None:
    async with database.write() as session:
        await artifacts.record(session, "p1", REF)
        for owner in ("a", "a", "b"):
            await artifacts.refer(session, "p1", REF.digest, "job", owner)
        assert await artifacts.live_digests(session) == {REF.digest}
        await artifacts.release(session, "job", "a")
        assert await artifacts.live_digests(session) == {REF.digest}
        await artifacts.forget(session, [REF.digest])
        assert await artifacts.find(session, "p1", REF.digest) is not None, "something still refers to it"
        await artifacts.release(session, "job", "b")
        assert await artifacts.live_digests(session) == set()
        await artifacts.forget(session, [REF.digest])
        assert await artifacts.find(session, "p1", REF.digest) is None
