import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from burnish.core.errors import HomeLocked, OutOfDisk
from burnish.infra.home import HomeLock, disk_free, require_disk, write_once

_HOLD = """
import sys, time
from pathlib import Path
from burnish.infra.home import HomeLock
lock = HomeLock(Path(sys.argv[1]))
lock.acquire("http://127.0.0.1:8000")
print("held", flush=True)
time.sleep(60)
"""


def test_the_second_is_told_who_has_it_and_gets_it_when_that_one_is_killed(home: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", _HOLD, str(home)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    lock = HomeLock(home)
    try:
        with pytest.raises(HomeLocked, match=rf"pid {other.pid} at http://127.0.0.1:8000") as caught:
            lock.acquire()
        assert caught.value.where == str(home)
        assert "BURNISH_HOME" in str(caught.value.hint)
        holder = lock.holder()
        assert holder is not None
        assert (holder["pid"], holder["url"]) == (other.pid, "http://127.0.0.1:8000")
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
        other.stdout.close()
    assert lock.holder() is None
    with lock:
        lock.announce("http://a-much-longer-url.example:12345/")
        lock.announce("u")
        mine = HomeLock(home).holder()
        assert mine is not None
        assert (mine["pid"], mine["url"]) == (os.getpid(), "u")
        with pytest.raises(HomeLocked):
            HomeLock(home).acquire()
    assert lock.holder() is None
    lock.release()


def test_sharers_keep_off_only_one_who_wants_it_alone(home: Path) -> None:
    first, second, alone = HomeLock(home, shared=True), HomeLock(home, shared=True), HomeLock(home)
    first.acquire()
    second.acquire()
    for _ in range(2):
        with pytest.raises(HomeLocked, match=f"pid {os.getpid()}"):
            alone.acquire()
        assert alone.holder() is not None
        first.release()
    second.release()
    with alone, pytest.raises(HomeLocked):
        first.acquire()


def test_what_is_written_once_stays(home: Path) -> None:
    path = home / "once"
    assert write_once(path, b"first") == write_once(path, b"second") == b"first"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(home.iterdir()) == [path]


def test_nobody_holds_a_home_that_was_never_used(home: Path) -> None:
    assert HomeLock(home).holder() is None
    with pytest.raises(RuntimeError):
        HomeLock(home).announce("u")


def test_the_disk_reserve(home: Path) -> None:
    free = disk_free(home / "not" / "there" / "yet")
    assert free > 0
    require_disk(home, reserve=free // 2)
    with pytest.raises(OutOfDisk, match="MiB are needed") as caught:
        require_disk(home, reserve=free // 2, wanted=free)
    assert caught.value.retry_after == 60


def test_the_last_of_those_who_share_knows_it(home: Path) -> None:
    """Breaks with: a drain that stops what another server goes on with, a check that loses the lock."""
    first, second, alone = HomeLock(home, shared=True), HomeLock(home, shared=True), HomeLock(home)
    first.acquire()
    second.acquire()
    assert not first.only_holder()
    second.release()
    with pytest.raises(HomeLocked):
        alone.acquire()
    assert first.only_holder()
    with pytest.raises(HomeLocked):
        second.acquire()
    first.release()
    alone.acquire()
    assert alone.only_holder()
    alone.release()
