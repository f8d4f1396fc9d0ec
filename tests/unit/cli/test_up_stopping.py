"""How `burnish up` and `burnish stop` end processes, frozen ones too; and what `--status` says of a set by its exit status."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from burnish.cli import processes, supervisor
from burnish.cli.composition import Launch
from burnish.cli.main import main
from burnish.cli.supervised import State, StateFile, UnitRecord, folder_of
from burnish.cli.supervisor import Supervisor, Unit
from burnish.client.address import started_ticks
from tests.support.supervision import TWO, Up
from tests.support.supervision import file as file_of

pytestmark = pytest.mark.usefixtures("quick")


def _freeze(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_frozen_process_ends_with_the_others(tmp_path: Path, home: Path, number: int) -> None:
    """Breaks with: a stopped process that hears no signal, and a minute until it is killed."""
    up = Up(file_of(tmp_path, TWO), home)
    up.until(lambda: len(up.pids()) == 3)
    for pid in up.pids().values():
        _freeze(pid)
    up.end(number)
    assert not any("killed" in line for line in up.said), up.said
    drained = [path.stem for path in up.supervisor.folder.glob("*.log") if "drained" in path.read_text()]
    assert len(drained) == (3 if number == signal.SIGINT else 0), "each heard it"


def test_a_frozen_process_whose_restart_is_asked_for_is_started_again_at_once(tmp_path: Path, home: Path) -> None:
    up = Up(file_of(tmp_path, TWO), home)
    up.until(lambda: len(up.pids()) == 3)
    frozen = up.pids()["tuning-1"]
    _freeze(frozen)
    up.asked = {frozen}
    up.until(lambda: up.pids().get("tuning-1") not in (None, frozen))
    up.end()


@pytest.mark.parametrize(
    ("number", "patience"), [(signal.SIGTERM, supervisor.STOP_SECONDS), (signal.SIGINT, supervisor.DRAIN_SECONDS)]
)
def test_what_does_not_end_is_killed_and_what_drains_gets_longer(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, number: int, patience: float
) -> None:
    """Breaks with: jobs that are killed as they write the checkpoint for which they get a minute."""
    said: list[str] = []
    own = Supervisor(file_of(tmp_path, TWO), home, said.append, lambda *_: set())
    unit = Unit(
        Launch("one", "all", None, {}), home, tmp_path / "log", "ready", os.getpid(), started_ticks(os.getpid())
    )
    killed: list[Unit] = []
    monkeypatch.setattr(own, "_kill", killed.append)
    monkeypatch.setattr("os.kill", lambda *_: None)
    own._stop(unit, number)
    own._stopping(unit, unit.at + patience - 1)
    assert (killed, unit.state) == ([], "stopping")
    own._stopping(unit, unit.at + patience + 1)
    assert killed == [unit]
    assert said == [f"one: has not ended within {patience:g} s; killed"]


def test_stop_ends_what_is_frozen() -> None:
    """Breaks with: `burnish stop` that waits for its whole timeout, and a left process that is killed, not ended."""
    for end in (
        lambda pid: processes.tell(pid, signal.SIGTERM),
        lambda pid: processes._end([psutil.Process(pid)]),
    ):
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as frozen:
            try:
                _freeze(frozen.pid)
                end(frozen.pid)
                assert frozen.wait(10) == -signal.SIGTERM
            finally:
                frozen.kill()


@pytest.mark.parametrize(
    ("states", "lives", "status"),
    [
        (("ready", "stopped"), True, 0),
        (("ready", "ready"), False, 1),
        (("ready", "given_up"), True, 1),
        (("waiting", "ready"), True, 1),
        (("ready", "starting"), True, 1),
        (("unready", "ready"), True, 1),
    ],
)
def test_the_exit_status_says_whether_all_is_ready_in_both_forms(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str], states: tuple[State, ...], lives: bool, status: int
) -> None:
    """Breaks with: a script that reads 0, and a process that was given up."""
    file = file_of(tmp_path, TWO)
    state = StateFile(
        file=str(file), supervisor=os.getpid(), supervisor_ticks=(started_ticks(os.getpid()) or 0) + (not lives),
        units=tuple(UnitRecord(key=f"p{n}", components="all", state=one) for n, one in enumerate(states)),
    )  # fmt: skip
    folder_of(file, home).mkdir(parents=True)
    (folder_of(file, home) / "state.json").write_text(state.model_dump_json())
    for form in ((), ("--json",)):
        with pytest.raises(SystemExit) as ended:
            main(("up", str(file), "--status", "--home", str(home), *form))
        assert ended.value.code == status, form
        shown = capsys.readouterr().out
    said = json.loads(shown)
    assert [one["state"] for one in said["state"]["units"]] == list(states)


def test_the_help_says_what_the_exit_status_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(("up", "--help"))
    assert "exit status 1" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_a_set_that_never_was_up_is_not_ready(tmp_path: Path, home: Path) -> None:
    for form in ((), ("--json",)):
        with pytest.raises(SystemExit) as ended:
            main(("up", str(file_of(tmp_path, TWO)), "--status", "--home", str(home), *form))
        assert ended.value.code == 1
