"""Several processes with `platform` on one home are one server to whoever asks: any that lives answers, with one login."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from burnish.client import Client, credentials
from burnish.client.address import ProcessFile, RunFile, find_url, platform_urls, process_file, started_ticks
from burnish.client.credentials import Credential
from tests.support.postgres import free_port
from tests.support.scripted_server import Answer, serving

KEY = Credential(key="bk_one")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    (home / "run").mkdir(parents=True)
    monkeypatch.setenv("BURNISH_HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("BURNISH_URL", "BURNISH_API_KEY", "BURNISH_PROJECT", "BURNISH_PORT"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def says(home: Path, pid: int, url: str, components: str = "platform") -> None:
    """Write what a process writes once it is ready."""
    one = ProcessFile(pid=pid, url=url, components=components, started_ticks=started_ticks(pid) or 0)
    process_file(home, pid).write_text(one.model_dump_json())
    if one.with_platform:
        (home / "run" / "server.json").write_text(RunFile(pid=pid, url=url).model_dump_json())


def test_a_dead_one_that_wrote_last_is_passed_over(home: Path, other: "subprocess.Popen[bytes]") -> None:
    """Breaks with: "no Burnish server answers" beside one that is ready."""
    says(home, os.getpid(), "http://127.0.0.1:1001")
    says(home, other.pid, "http://127.0.0.1:1002")
    assert platform_urls(home) == ["http://127.0.0.1:1002", "http://127.0.0.1:1001"]
    assert find_url() == "http://127.0.0.1:1002"
    other.kill()
    other.wait()
    assert find_url() == "http://127.0.0.1:1001"
    says(home, os.getpid(), "http://127.0.0.1:1001", components="fine_tuning")
    assert find_url() == "http://127.0.0.1:1002", "none is left: the error names the last"


def test_one_that_lives_and_refuses_is_left_for_another(home: Path, other: "subprocess.Popen[bytes]") -> None:
    with serving(lambda _: Answer(body={"status": "ready"})) as server:
        says(home, other.pid, server.url)
        says(home, os.getpid(), f"http://127.0.0.1:{free_port()}")  # wrote last
        with Client() as client:
            assert client.ready() == {"status": "ready"}
            assert client.url == server.url


def test_a_login_is_found_whichever_answers(home: Path, other: "subprocess.Popen[bytes]") -> None:
    """Breaks with: a key for each port; a key that goes to what is no process of the home."""
    first, second, stranger = (f"http://127.0.0.1:{port}" for port in (1001, 1002, 1003))
    says(home, os.getpid(), first)
    credentials.store(first, KEY)
    credentials.store("http://burnish.example.org", Credential(key="bk_elsewhere"))
    assert credentials.find(second) is None
    says(home, other.pid, second)
    assert (credentials.find(second) or Credential(key="")).key == "bk_one"
    assert credentials.find(stranger) is None
    assert credentials.find(second, home.parent) is None, "another home"
    credentials.store(second, Credential(key="bk_two"))
    assert (credentials.find(first) or KEY).key == "bk_two", "one login is in place of the one before"
    assert credentials.forget(first) is not None
    assert credentials.find(second) is None
    assert credentials.find("http://burnish.example.org") is not None
