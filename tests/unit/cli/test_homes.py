"""A login that is kept for a home is found by every command that is told the home."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from burnish.cli.doctor import _server
from burnish.cli.main import main
from burnish.cli.processes import RunningServer
from burnish.cli.up import RestartIntents
from burnish.client import credentials
from burnish.client.address import ProcessFile, process_file, started_ticks
from burnish.client.credentials import Credential
from burnish.core.settings import Settings
from tests.support.scripted_server import Answer, Asked, ScriptedServer, serving

KEY = "bk_of_this_home"


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "default"))
    for name in ("BURNISH_API_KEY", "BURNISH_URL"):
        monkeypatch.delenv(name, raising=False)


def answer(asked: Asked) -> Answer:
    if asked.path.startswith("/platform/components") and asked.headers.get("authorization") != f"Bearer {KEY}":
        return Answer(401, {"code": "unauthenticated", "detail": "no key", "status": 401})
    return Answer(body={"status": "ready", "data": [], "next": None})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ScriptedServer]:
    """A process of the home ``mine``, whose login was made at another process of it."""
    home = tmp_path / "mine"
    with serving(answer) as other, serving(answer) as found:
        for pid, url in ((os.getpid(), found.url), (os.getppid(), other.url)):
            one = ProcessFile(pid=pid, url=url, components="platform", started_ticks=started_ticks(pid) or 0)
            process_file(home, pid).parent.mkdir(parents=True, exist_ok=True)
            process_file(home, pid).write_text(one.model_dump_json())
        credentials.store(other.url, Credential(key=KEY), home)
        yield found


def test_up_asks_with_the_login_of_its_processes_home(tmp_path: Path, server: ScriptedServer) -> None:
    """Breaks with: `burnish up --home X` that says it may not ask, though somebody has logged in to X."""
    said: list[str] = []
    wanted = RestartIntents(said.append)
    assert wanted("up-1", [(server.url, tmp_path / "mine")]) == set()
    assert said == []
    assert [one.headers.get("authorization") for one in server.asked] == [f"Bearer {KEY}"]
    assert wanted("up-1", [(server.url, tmp_path / "default"), (server.url, tmp_path / "mine")]) == set()
    assert len(said) == 1, "one home's key is refused: the next one is asked all the same"
    assert server.asked[-1].headers.get("authorization") == f"Bearer {KEY}"


def test_doctor_asks_with_the_login_of_the_home_that_it_looks_at(tmp_path: Path, server: ScriptedServer) -> None:
    for name, status in (("mine", "ok"), ("default", "warning")):
        found = _server(Settings(home=tmp_path / name), server.url)
        assert [one.status for one in found if one.check == "server"] == ["ok", status], name


def test_the_demo_asks_with_the_login_of_its_home(
    tmp_path: Path, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: a demo on the server of another home that fails with 401 after all was prepared."""
    running = RunningServer(os.getpid(), server.url)
    monkeypatch.setattr("burnish.cli.demonstration.running_server", lambda _home: running)
    with pytest.raises(SystemExit):  # its answers are no datasets
        main(("demo", "--home", str(tmp_path / "mine"), "--exit"))
    assert {one.headers.get("authorization") for one in server.asked} == {f"Bearer {KEY}"}
