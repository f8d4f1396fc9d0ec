"""`burnish up` when something fails: what it counts, what it says, what it shows to whom."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from burnish.cli import composition, supervisor
from burnish.cli.first_key import write_key_file
from burnish.cli.processes import stop_server
from burnish.cli.server import read_settings
from burnish.cli.supervised import StateFile, UnitRecord, folder_of, read_state, reason
from burnish.cli.up import RestartIntents, _status
from burnish.client.address import started_ticks
from burnish.core.errors import InvalidRequest
from tests.support.scripted_server import Answer, Asked, serving
from tests.support.supervision import PROGRAM, TWO, Up
from tests.support.supervision import file as file_of

pytestmark = pytest.mark.usefixtures("quick")


def _changed(file: Path, text: str) -> None:
    file.write_text(text)
    os.utime(file, (time.time() + 2, time.time() + 2))


def test_after_the_file_was_mended_one_kill_is_one_failure(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: failures of the launch before that count against the mended one; a change that starts it twice."""
    monkeypatch.setattr(supervisor, "BACKOFF_SECONDS", (0.0, 0.0, 0.0, 0.0, 60.0))
    nowhere = tmp_path / "nowhere"
    file = file_of(tmp_path, f"environment: {{FAIL: {nowhere}}}\n{TWO}")
    up = Up(file, home)

    def failures() -> list[int]:
        state = read_state(file, home)
        return [one.failures for one in state.units] if state else []

    up.until(lambda: failures() == [5, 5, 5])
    up.said.clear()
    _changed(file, TWO)
    up.until(lambda: len(up.pids()) == 3)
    before = up.pids()
    os.kill(before["tuning-1"], signal.SIGKILL)
    up.until(lambda: len(up.pids()) == 3 and up.pids()["tuning-1"] != before["tuning-1"])
    assert up.pids() == before | {"tuning-1": up.pids()["tuning-1"]}
    assert sum("started (pid" in line for line in up.said) == 4, up.said
    assert not any("anew" in line for line in up.said), up.said
    assert max(failures()) == 1
    up.end()


def test_one_that_was_ready_is_not_given_up_for_its_failed_starts(tmp_path: Path, home: Path) -> None:
    """Breaks with: five starts without a database, and one kill once there is one, as six ends in a row."""
    mended = tmp_path / "mended"
    up = Up(file_of(tmp_path, f"processes:\n  all: {{environment: {{FAIL: {mended}}}}}\n"), home)
    up.until(lambda: sum("ended with status" in line for line in up.said) >= 3)
    mended.touch()
    up.until(lambda: up.pids())
    for _ in range(supervisor.MAX_FAILURES - 1):
        pid = up.pids()["all"]
        os.kill(pid, signal.SIGKILL)
        up.until(lambda pid=pid: up.pids().get("all", pid) != pid)  # type: ignore[misc]
    assert not any("given up" in line for line in up.said)
    os.kill(up.pids()["all"], signal.SIGKILL)
    up.until(lambda: any("given up" in line for line in up.said))  # this often in a row is a fault of its own
    up.end()


def test_a_child_that_ends_this_moment_lives_until_it_was_waited_for() -> None:
    """Breaks with: a child that is let go of between its end and the look at how it ended, as a zombie."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        launch = composition.Launch("all", "platform", None, {})
        unit = supervisor.Unit(launch, Path("home"), Path("log"), pid=child.pid, ticks=1, child=child)
        assert unit.alive, "what is not waited for is not over"
    assert not unit.alive
    assert child.returncode == 1


ERROR = """Burnish is ready at http://127.0.0.1:1 (home /x, pid 7)
Error: of the start before (other)
  at    --old: long ago
"""
NOW = """{"message": "a line of the log"}
Error: the settings cannot be used (invalid_request)
  at    --auth: Input should be 'off' or 'on'
  next  see `burnish serve --help`
"""


def test_the_reason_is_the_error_with_its_place_and_not_the_last_line(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text(ERROR + NOW)
    said = "the settings cannot be used (invalid_request); at --auth: Input should be 'off' or 'on'; next see `burnish serve --help`"
    for killed in (False, True):
        assert reason(log, len(ERROR), killed=killed) == said
    log.write_text(ERROR + "Burnish is ready at http://127.0.0.1:1 (home /x, pid 8)\n")
    assert reason(log, len(ERROR), killed=False) is None, "neither of the start before, nor that it was ready"
    log.write_text(ERROR + "out of memory\n")
    assert reason(log, len(ERROR), killed=False) == "out of memory"
    assert reason(log, len(ERROR), killed=True) is None
    assert reason(tmp_path / "none.log", 0, killed=False) is None


def test_the_reason_of_a_failed_start_is_in_the_state(tmp_path: Path, home: Path) -> None:
    up = Up(file_of(tmp_path, f"processes:\n  all: {{environment: {{FAIL: {tmp_path / 'nowhere'}}}}}\n"), home)
    up.until(lambda: any("given up" in line for line in up.said))
    state = read_state(up.file, home)
    assert state is not None
    assert "this cannot work: the reason" in str(state.units[0].problem)
    up.end()


def test_the_first_key_is_in_a_private_file_and_up_says_where(tmp_path: Path, home: Path) -> None:
    """Breaks with: a key in a log, a key that others can read, a key that nobody finds."""
    home.mkdir()
    path = write_key_file(home, "bk_first")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("bk_first\n", 0o600)
    up = Up(
        file_of(
            tmp_path, "processes: {platform: {components: platform, replicas: 2}, tuning: {components: fine_tuning}}"
        ),
        home,
    )
    up.until(lambda: len(up.pids()) == 3)
    told = [line for line in up.said if str(path) in line]
    assert len(told) == 1, up.said
    assert "bk_first" not in "".join(up.said)
    up.end()


def test_the_home_that_it_makes_is_its_owners_alone(tmp_path: Path, home: Path) -> None:
    up = Up(file_of(tmp_path, TWO), home)
    up.until(lambda: len(up.pids()) == 3)
    assert {path.stat().st_mode & 0o777 for path in (home, home / "run", up.supervisor.folder)} == {0o700}
    up.end()


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_said_once_and_not_shown_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Breaks with: a supervisor that fills the access log, and one that does not try the key that it is given then."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("BURNISH_API_KEY", raising=False)
    said: list[str] = []

    def answer(asked: Asked) -> Answer:
        if asked.headers.get("authorization") == "Bearer bk_good":
            return Answer(body={"data": [], "next": None})
        code = {401: "unauthenticated", 403: "forbidden"}[status]
        return Answer(status, {"code": code, "detail": "you may not", "status": status})

    with serving(answer) as server:
        wanted = RestartIntents(said.append)
        for _ in range(3):
            assert wanted("up-1", [(server.url, tmp_path)]) == set()
        assert len(server.asked) == 1
        assert len(said) == 1
        assert "BURNISH_API_KEY" in said[0]
        monkeypatch.setenv("BURNISH_API_KEY", "bk_good")
        wanted("up-1", [(server.url, tmp_path)])
        wanted("up-1", [(server.url, tmp_path)])
        assert (len(server.asked), len(said)) == (3, 1)


def test_stop_ends_the_supervisor_with_its_processes(tmp_path: Path, home: Path) -> None:
    """Breaks with: a `stop` that says that it stopped what is started again a moment later."""
    file = file_of(tmp_path, TWO)
    code = (
        "import signal, sys; from pathlib import Path; from burnish.cli.supervisor import Supervisor\n"
        f"one = Supervisor(Path({str(file)!r}), Path({str(home)!r}), print, lambda *_: set(), (sys.executable, '-c', {PROGRAM!r}))\n"
        "signal.signal(signal.SIGTERM, lambda got, _: one.signal(got))\none.run()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 30
        while (state := read_state(file, home)) is None or [one.state for one in state.units] != ["ready"] * 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        pids = {one.pid for one in state.units if one.pid}
        stopped = stop_server(home, everything=False, timeout=20)
        if not stopped.supervisors:
            process.kill()
        assert process.wait(5) == 0
    assert stopped.supervisors == (process.pid,)
    assert set(stopped.supervised) == pids
    assert (stopped.server, stopped.others) == (None, ())
    assert all(started_ticks(pid) is None for pid in pids)
    assert f"stopped `burnish up` (pid {process.pid}) and its 3 process(es)" in stopped.lines()[0]


def test_status_says_that_a_process_waits_for_its_database(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    file = file_of(tmp_path, "processes: {one: {}}")
    answers = [Answer(503, {
        "code": "unavailable", "detail": "not ready", "status": 503,
        "problems": [{"where": "database", "message": "connection refused"}],
    })]  # fmt: skip
    with serving(lambda _: answers[0]) as server:
        units = (UnitRecord(key="one", components="all", state="ready", url=server.url),)
        state = StateFile(
            file=str(file), supervisor=os.getpid(), supervisor_ticks=started_ticks(os.getpid()) or 0, units=units
        )
        folder_of(file, home).mkdir(parents=True)
        (folder_of(file, home) / "state.json").write_text(state.model_dump_json())
        assert _status(file, home, as_json=False) == 1
        shown = capsys.readouterr().out
        assert "unready" in shown
        assert "database: connection refused" in shown
        answers[0] = Answer(body={"status": "ready"})
        assert _status(file, home, as_json=False) == 0
        assert "unready" not in capsys.readouterr().out


def test_every_variable_that_is_not_set_is_named(tmp_path: Path) -> None:
    text = "environment: {X: '${NOWHERE}'}\nprocesses: {a: {environment: {Y: '${NO}:${NEITHER}', Z: '${NOT:-else}'}}}"
    with pytest.raises(InvalidRequest, match="NEITHER, NO, NOWHERE") as caught:
        composition.read(file_of(tmp_path, text), {})
    assert {one.where for one in caught.value.problems} == {"environment.X", "processes.a.environment.Y"}


def test_a_switch_without_quotes_is_one(tmp_path: Path) -> None:
    """Breaks with: `BURNISH_AUTH: on`, which is YAML for true, as a start that fails for ever."""
    text = "processes: {a: {environment: {BURNISH_AUTH: on, BURNISH_HUB_OFFLINE: on}}, b: {environment: {BURNISH_AUTH: off}}}"
    on, off = (one.environment for one in composition.read(file_of(tmp_path, text), {}))
    with pytest.MonkeyPatch.context() as patched:
        for name, value in on.items():
            patched.setenv(name, value)
        settings = read_settings({"home": tmp_path})
        assert (settings.auth, settings.hub_offline) == ("on", True)
        patched.setenv("BURNISH_AUTH", off["BURNISH_AUTH"])
        assert read_settings({"home": tmp_path}).auth == "off"


def test_only_what_is_wrong_with_the_settings_is_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_settings({"auth": "maybe", "port": 99_999})
    assert {one.where for one in caught.value.problems} == {"--auth", "--port"}
