"""`burnish up`: the file, and the supervisor over processes that only say that they are ready."""

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from burnish.cli import composition, supervisor
from burnish.cli.supervised import folder_of, read_state
from burnish.cli.supervisor import Supervisor
from burnish.cli.up import RestartIntents
from burnish.client.address import started_ticks
from burnish.core.errors import Conflict, InvalidRequest
from tests.support.scripted_server import Answer, serving
from tests.support.supervision import PROGRAM, TWO, Up
from tests.support.supervision import file as file_of

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.usefixtures("quick")


def test_what_ends_is_started_again_and_the_rest_is_left_alone(tmp_path: Path, home: Path) -> None:
    up = Up(file_of(tmp_path, TWO), home)
    up.until(lambda: len(up.pids()) == 3)
    before = up.pids()
    assert set(before) == {"platform", "tuning-1", "tuning-2"}
    os.kill(before["tuning-1"], signal.SIGKILL)
    up.until(lambda: len(up.pids()) == 3 and up.pids()["tuning-1"] != before["tuning-1"])
    after = up.pids()
    assert {key: after[key] for key in ("platform", "tuning-2")} == {
        key: before[key] for key in ("platform", "tuning-2")
    }
    assert any("SIGKILL" in line for line in up.said)
    up.end()
    assert all(started_ticks(pid) is None for pid in after.values())
    state = read_state(up.file, home)
    assert state is not None
    assert {one.state for one in state.units} == {"stopped"}
    ended = [line for line in up.said if line.endswith(": ended")]
    assert ended[0] == "platform: ended", "what takes requests ends before those that it passes them to"


def test_one_that_cannot_start_is_given_up_with_its_reason_and_tried_again_when_told(
    tmp_path: Path, home: Path
) -> None:
    """Breaks with: a process that is started for ever, or silently not."""
    mended = tmp_path / "mended"
    text = f"processes:\n  all: {{environment: {{FAIL: {mended}}}}}\n"
    up = Up(file_of(tmp_path, text), home)
    up.until(lambda: any("given up" in line for line in up.said))
    assert sum("started (pid" in line for line in up.said) == supervisor.MAX_FAILURES
    assert any("this cannot work: the reason" in line for line in up.said)
    state = read_state(up.file, home)
    assert state is not None
    assert state.units[0].state == "given_up"
    assert "status 1" in str(state.units[0].problem)
    mended.touch()
    up.supervisor.signal(signal.SIGHUP)
    up.until(lambda: up.pids())
    up.end(signal.SIGINT)
    assert "drained" in (up.supervisor.folder / "all.log").read_text()


def test_a_changed_file_starts_anew_what_changed_one_at_a_time(tmp_path: Path, home: Path) -> None:
    file = file_of(tmp_path, TWO)
    up = Up(file, home)
    up.until(lambda: len(up.pids()) == 3)
    before, least = up.pids(), 3
    file.write_text(TWO.replace("replicas: 2", "replicas: 2, environment: {MARK: new}"))
    os.utime(file, (time.time() + 2, time.time() + 2))

    def rolled() -> bool:
        nonlocal least
        state = read_state(file, home)
        assert state is not None
        least = min(least, sum(one.state == "ready" for one in state.units))
        now = up.pids()
        return len(now) == 3 and all(now[key] != before[key] for key in ("tuning-1", "tuning-2"))

    up.until(rolled)
    assert up.pids()["platform"] == before["platform"]
    assert least == 2, "one is away at a time"
    assert "new" in (up.supervisor.folder / "tuning-2.log").read_text()
    file.write_text("processes: {platform: {components: nonsense}}")  # a mistake changes nothing
    os.utime(file, (time.time() + 4, time.time() + 4))
    up.until(lambda: any("everything stays as it is" in line for line in up.said))
    assert len(up.pids()) == 3
    file.write_text("processes: {platform: {components: platform}}")
    os.utime(file, (time.time() + 6, time.time() + 6))
    up.until(lambda: set(up.pids()) == {"platform"})
    up.end()


def test_sighup_starts_everything_anew(tmp_path: Path, home: Path) -> None:
    up = Up(file_of(tmp_path, TWO), home)
    up.until(lambda: len(up.pids()) == 3)
    before = up.pids()
    up.supervisor.signal(signal.SIGHUP)
    up.until(lambda: len(up.pids()) == 3 and not set(up.pids().values()) & set(before.values()))
    up.end()


def test_a_restart_that_the_platform_asks_for_is_done_once(tmp_path: Path, home: Path) -> None:
    up = Up(file_of(tmp_path, TWO), home)
    up.until(lambda: len(up.pids()) == 3)
    before = up.pids()
    up.asked = {before["tuning-2"], 999_999}
    up.until(lambda: up.pids().get("tuning-2") not in (None, before["tuning-2"]))
    after = up.pids()
    assert after["platform"] == before["platform"]
    up.end()


def test_a_supervisor_that_was_killed_finds_its_processes_again(tmp_path: Path, home: Path) -> None:
    """Breaks with: a second set beside the first; a pid that is believed although another program has it by now."""
    file = file_of(tmp_path, TWO)
    first = Up(file, home)
    first.until(lambda: len(first.pids()) == 3)
    before = first.pids()
    first.abandon()
    os.kill(before["tuning-1"], signal.SIGKILL)  # meanwhile
    first.until(lambda: started_ticks(before["tuning-1"]) is None)
    second = Up(file, home)
    second.until(lambda: len(second.pids()) == 3 and second.pids()["tuning-1"] != before["tuning-1"])
    after = second.pids()
    assert {key for key in before if before[key] == after[key]} == {"platform", "tuning-2"}
    assert sum("adopted" in line for line in second.said) == 2
    second.end()
    assert all(started_ticks(pid) is None for pid in after.values())
    for unit in first.supervisor._units.values():
        assert unit.child is not None
        unit.child.wait(10)


def test_a_second_supervisor_of_a_file_is_refused(tmp_path: Path, home: Path) -> None:
    file = file_of(tmp_path, TWO)
    first = Up(file, home)
    first.until(lambda: len(first.pids()) == 3)
    with pytest.raises(Conflict, match=f"pid {os.getpid()}"):
        Supervisor(file, home, print, lambda *_: set()).run()
    assert len(first.pids()) == 3
    first.end()


def test_what_cannot_be_started_now_is_tried_again(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks with: a supervisor that ends for want of room, memory or processes."""
    monkeypatch.setattr(supervisor, "MAX_FAILURES", 10_000)
    file = file_of(tmp_path, TWO)
    blocked = folder_of(file, home) / "tuning-1.log"
    blocked.mkdir(parents=True)  # opening it fails as it does on a full disk
    up = Up(file, home)
    up.until(lambda: any("tuning-1: it could not be started" in line for line in up.said))
    up.until(lambda: set(up.pids()) == {"platform", "tuning-2"})
    blocked.rmdir()
    up.until(lambda: len(up.pids()) == 3)
    up.end()


def test_a_state_file_that_cannot_be_written_ends_nothing(tmp_path: Path, home: Path) -> None:
    up = Up(file_of(tmp_path, TWO), home)
    up.until(lambda: len(up.pids()) == 3)
    before = up.pids()
    blocked = up.supervisor.folder / ".state.json"
    blocked.mkdir()
    os.kill(before["tuning-1"], signal.SIGKILL)
    up.until(lambda: sum("tuning-1: ready" in line for line in up.said) == 2)
    assert sum("cannot be written" in line for line in up.said) == 1
    assert up.pids() == before, "what was written last"
    blocked.rmdir()
    up.until(lambda: len(up.pids()) == 3 and up.pids()["tuning-1"] != before["tuning-1"])
    assert up.failure is None
    up.end()


def test_one_that_has_just_ended_as_it_is_stopped_is_started_again(tmp_path: Path, home: Path) -> None:
    """Breaks with: a process of the file that stays away because it died just before its restart."""
    said: list[str] = []
    own = Supervisor(file_of(tmp_path, TWO), home, said.append, lambda *_: set(), (sys.executable, "-c", PROGRAM))

    def until_ready() -> None:
        deadline = time.monotonic() + 20
        while not own._units or any(unit.state != "ready" for unit in own._units.values()):
            assert time.monotonic() < deadline, said
            own._turn()
            time.sleep(0.02)

    until_ready()
    unit = own._units["tuning-1"]
    assert unit.child is not None
    with pytest.MonkeyPatch.context() as patched:  # a second TERM would end it in the midst of its answers
        told: list[int] = []
        patched.setattr("os.kill", lambda _, number: told.append(number))
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            own._stop(unit, number)
        assert [one for one in told if one != signal.SIGCONT] == [signal.SIGTERM, signal.SIGINT]
        unit.become("ready")
    unit.child.kill()
    unit.child.wait(10)
    own._stop(unit, signal.SIGTERM)
    assert unit.state == "waiting"
    until_ready()
    unit.child.kill()
    unit.child.wait(10)
    own.file.write_text(TWO.replace(", replicas: 2", ""))
    own._stop(unit, signal.SIGTERM)
    assert str(unit.state) == "stopped", "it is no longer in the file"
    own.signal(signal.SIGTERM)
    own._end_all(signal.SIGTERM)
    assert {one.state for one in own._units.values()} == {"stopped"}


def test_equal_paths_elsewhere_are_another_supervisor(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: two machines or containers that restart each other's processes."""
    file = file_of(tmp_path, TWO)

    def own(folder: Path) -> str:
        return Supervisor(file, folder, print, lambda *_: set()).id

    assert own(home) == own(home)
    ids = {own(home), own(tmp_path / "other")}
    monkeypatch.setattr(supervisor, "this_place", lambda: "another boot")
    assert len({*ids, own(home)}) == 3


def test_the_platform_is_asked_whose_restart_it_wants(tmp_path: Path) -> None:
    pid, started = os.getpid(), psutil.Process().create_time()
    mine = {"supervisor": "up-1", "pid": pid, "started_at": started}
    asked = "2026-11-24T12:00:00Z"
    other = os.getppid()
    theirs = {**mine, "pid": other, "started_at": psutil.Process(other).create_time()}
    rows: list[dict[str, object]] = [
        {"metadata": mine, "restart_requested_at": asked},
        {"metadata": theirs},
        {"metadata": {**mine, "supervisor": "up-2", "pid": other}, "restart_requested_at": asked},
        {"metadata": {**mine, "pid": other, "started_at": started - 1e6}, "restart_requested_at": asked},
        {"metadata": {"supervisor": "up-1", "pid": other}, "restart_requested_at": asked},
        {"metadata": {**mine, "pid": 2**30}, "restart_requested_at": asked},
        {"metadata": {}, "restart_requested_at": asked},
        {"metadata": theirs, "restart_requested_at": asked, "embedded": False},
    ]
    one: dict[str, object] = {"component_type": "t", "status": "lost", "embedded": True}
    data = [{"component_id": f"c{n}", **one, **row} for n, row in enumerate(rows)]
    with serving(lambda _: Answer(body={"data": data, "next": None})) as server:
        wanted_restarts = RestartIntents(print)
        away, there = ("http://127.0.0.1:9", tmp_path), (server.url, tmp_path)
        assert wanted_restarts("up-1", [away, there]) == {pid}
        assert server.paths()[0].startswith("GET /platform/components?")
    assert wanted_restarts("up-1", [away]) == set()


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "burnish.yaml"),
        ("[1, 2]", "burnish.yaml"),
        ("processes: {a: {components: [}", "burnish.yaml"),
        ("processes: {}", "processes"),
        ("processes: {A B: {}}", "processes"),
        ("processes: {a: {components: tuning}}", "processes.a.components"),
        ("processes: {a: {replicas: 0}}", "processes.a.replicas"),
        ("processes: {a: {port: 80000}}", "processes.a.port"),
        ("processes: {a: {prot: 8000}}", "processes.a.prot"),
        ("processes: {a: {environment: {X: [1]}}}", "processes.a.environment.X"),
        ("processes: {a: {port: 8000, replicas: 2}, b: {port: 8001}}", "burnish.yaml"),
        ("processes: {a: {replicas: 2}, a-1: {}}", "burnish.yaml"),
        ("environment: {X: '${NOWHERE}'}\nprocesses: {a: {}}", "environment"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path: Path, text: str, where: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        composition.read(file_of(tmp_path, text), {})
    assert where in " ".join([str(caught.value.where), *(str(one.where) for one in caught.value.problems)])


def test_the_file_says_what_each_process_is(tmp_path: Path) -> None:
    text = """
environment: {A: 1, B: true, C: "${GIVEN}", D: "${NOT:-else}"}
processes:
  one: {port: 9000, replicas: 2, environment: {A: own}}
  two: {components: "fine_tuning, platform"}
"""
    first, second, other = composition.read(file_of(tmp_path, text), {"GIVEN": "x"})
    assert (first.key, first.port, first.environment["A"]) == ("one-1", 9000, "own")
    assert (second.key, second.port) == ("one-2", 9001)
    assert (other.key, other.port, other.components, other.with_platform) == ("two", None, "fine_tuning,platform", True)
    assert other.environment == {"A": "1", "B": "true", "C": "x", "D": "else"}


def test_the_example_is_the_issues_set() -> None:
    given = {
        "BURNISH_DATABASE_URL": "postgresql://x",
        "BURNISH_REDIS_URL": "redis://x",
        "BURNISH_ARTIFACT_URL": "file:///x",
    }
    launches = composition.read(ROOT / "examples/split/burnish.yaml", given)
    assert sum(one.with_platform for one in launches) == 2
    assert sum(one.components == "model_serving" for one in launches) == 2
