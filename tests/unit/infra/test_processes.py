"""Processes known by pid, start time and boot."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from burnish.core.threads import SPIN_COUNT
from burnish.infra import processes
from burnish.infra.processes import Child, ProcessId

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
FAMILY = [
    sys.executable, "-c",
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)",
]  # fmt: skip


def started(argv: list[str], folder: Path, members: int = 1) -> tuple[Child, ProcessId]:
    child = Child(processes.spawn(argv, processes.allow_listed_env(1), folder, folder / "log"))
    found = processes.identify(child.pid)
    assert found is not None
    deadline = time.monotonic() + 20
    while len(processes.group_members(found)) < members:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return child, found


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[tuple[Child, ProcessId]]:
    child, found = started(SLEEP, tmp_path)
    yield child, found
    processes.kill_group(found)
    child.poll()


def test_a_process_is_alive_while_stopped_and_dead_as_a_zombie(sleeper: tuple[Child, ProcessId]) -> None:
    child, found = sleeper
    assert processes.alive(found)
    os.kill(found.pid, signal.SIGSTOP)
    assert processes.alive(found)
    os.kill(found.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while processes.alive(found):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert Path(f"/proc/{found.pid}").exists()  # nobody has collected it yet
    assert child.poll() == -signal.SIGKILL
    assert not Path(f"/proc/{found.pid}").exists()


def test_another_process_with_the_same_pid_is_not_ours(sleeper: tuple[Child, ProcessId]) -> None:
    _, found = sleeper
    earlier = ProcessId(found.pid, found.started_ticks - 1, found.boot_id)
    other_boot = ProcessId(found.pid, found.started_ticks, "another boot")
    for stranger in (earlier, other_boot):
        assert not processes.alive(stranger)
        assert processes.group_members(stranger) == []
        assert not processes.signal_process(stranger, signal.SIGKILL)
        assert processes.kill_group(stranger)
    assert processes.alive(found)


def test_a_session_of_its_own_is_ended_as_a_whole(tmp_path: Path) -> None:
    child, found = started(FAMILY, tmp_path, members=2)
    assert os.getsid(found.pid) == found.pid != os.getsid(0)
    members = processes.group_members(found)
    os.kill(found.pid, signal.SIGKILL)
    child.poll()
    assert processes.terminate_group(found, 5)
    assert not any(processes.alive(member) for member in members)


def test_what_ignores_term_is_killed_after_the_grace(tmp_path: Path) -> None:
    deaf = [
        sys.executable, "-c",
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)",
    ]  # fmt: skip
    child, found = started(deaf, tmp_path)
    deadline = time.monotonic() + 20
    while not (tmp_path / "log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    began = time.monotonic()
    assert processes.terminate_group(found, 0.3)
    assert time.monotonic() - began >= 0.3
    assert not processes.alive(found)
    child.poll()


def test_the_kernel_takes_a_host_before_the_server(sleeper: tuple[Child, ProcessId]) -> None:
    _, found = sleeper
    assert int(Path(f"/proc/{found.pid}/oom_score_adj").read_text()) == 500


def test_memory_is_measured_for_the_whole_session(tmp_path: Path) -> None:
    big = [
        sys.executable,
        "-c",
        "held = bytearray(b'x') * (64 << 20); print('ready', flush=True); import time; time.sleep(60)",
    ]
    child, found = started(big, tmp_path)
    deadline = time.monotonic() + 20
    while not (tmp_path / "log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert 64 << 20 <= processes.pss_bytes(found.pid) <= processes.rss_bytes(found.pid)
    assert processes.group_memory_bytes(found) >= 64 << 20
    assert processes.group_memory_bytes(found, 1 << 40) >= 64 << 20
    processes.kill_group(found)
    child.poll()
    assert processes.pss_bytes(found.pid) == processes.group_memory_bytes(found) == 0


def test_the_environment_is_an_allow_list(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BURNISH_DATABASE_URL", "BURNISH_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("HF_HOME", "/models")
    found = processes.allow_listed_env(3, {"EXTRA": "1"})
    assert "secret" not in found.values()
    assert found["HF_HOME"] == "/models"
    assert found["OMP_NUM_THREADS"] == "3"
    assert found["GOMP_SPINCOUNT"] == str(SPIN_COUNT)
    assert found["EXTRA"] == "1"
