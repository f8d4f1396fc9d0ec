"""`burnish serve` and `burnish stop` as processes, over a small app in the place of the real one."""

import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from burnish.cli import demonstration, server
from burnish.cli.processes import running_server
from burnish.core.settings import Settings

PROGRAM = """
import sys, types
from types import SimpleNamespace
from burnish.core.errors import SchemaNewer

class App:
    def __init__(self, settings):
        self.settings = settings
        first = "bk_first" if settings.environment == "first" else None
        self.state = SimpleNamespace(process=self, first_key=first)
        self.events = SimpleNamespace(finish=lambda: None)
    async def finish(self):
        return None
    async def drain(self):
        if self.settings.environment == "slow":
            import asyncio
            print("draining slowly", flush=True)
            await asyncio.sleep(600)
        return ["job_1 is paused at step 17"]
    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            if self.settings.environment == "broken":
                raise SchemaNewer("the schema is newer", where="db", hint="use that version")
            await send({"type": "lifespan.startup.complete"})
            await receive()
            print("app stopped", flush=True)
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] != "/endless":
            await send({"type": "http.response.body", "body": b"hello"})
            return
        import asyncio
        while True:  # an event stream, that no request to stop ends
            await send({"type": "http.response.body", "body": b": \\n\\n", "more_body": True})
            await asyncio.sleep(0.05)

sys.modules["burnish.app"] = types.SimpleNamespace(create_app=App, HttpProtocol="httptools")
from burnish.cli.main import main
main(sys.argv[1:])
"""


class Served(subprocess.Popen[str]):
    """A server process; what it says is read line by line."""

    def __init__(self, home: Path, *arguments: str, **variables: str) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("BURNISH_")} | variables
        super().__init__(
            [sys.executable, "-c", PROGRAM, "serve", "--home", str(home), *arguments],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def said(self, timeout: float = 30) -> str:
        """Everything it said until it ended."""
        return self.communicate(timeout=timeout)[0]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@contextlib.contextmanager
def serving(home: Path, *arguments: str) -> Iterator[tuple[Served, str]]:
    process = Served(home, "--port", "0", *arguments)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("Burnish is ready at http://127.0.0.1:"), line + process.stdout.read()
        yield process, line.split()[4]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def stop(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "burnish.cli", "stop", "--home", str(home), "--json", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_it_says_where_it_is_and_is_found_by_its_home(home: Path) -> None:
    with serving(home) as (process, url):
        assert urllib.request.urlopen(url).read() == b"hello"
        found = running_server(home)
        assert found is not None
        assert (found.pid, found.url) == (process.pid, url)


async def test_what_a_start_leaves_for_good_is_not_collected_again_and_again(home: Path) -> None:
    """A full collection of it stops every answer for a third of a second."""
    thresholds = gc.get_threshold()
    listener = server.bind("127.0.0.1", 0)
    config = uvicorn.Config(_nothing, lifespan="off", log_config=None)
    config.load()
    starting = server._Server(
        config, Settings(home=home), listener, drain=lambda: None, end_streams=lambda: None, first_key=lambda: None,
        finish=lambda: None,
    )  # fmt: skip
    starting.lifespan = config.lifespan_class(config)
    gc.unfreeze()
    gc.disable()  # as it is while a server starts
    try:
        await starting.startup(sockets=[listener])
        assert gc.get_freeze_count() > len(gc.get_objects())
        assert gc.isenabled(), "what requests leave is collected"
    finally:
        gc.enable()
        gc.unfreeze()
        gc.set_threshold(*thresholds)
        starting.remove_run_files()
        for one in starting.servers:
            one.close()
        listener.close()


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    """An app that answers nothing."""


def test_a_second_server_on_the_home_is_refused_and_told_where_the_first_is(home: Path) -> None:
    with serving(home) as (process, url):
        second = Served(home, "--port", "0")
        said = second.said()
        assert second.returncode == 1
        assert url in said
        assert f"pid {process.pid}" in said
        assert running_server(home) is not None


def test_the_first_key_is_printed_but_not_into_a_supervisors_log(home: Path) -> None:
    """Breaks with: the administrator's key in a log that stays; a command line with the key in it."""
    key_file = home / "administrator.key"
    for supervised in (False, True):
        variables = {"BURNISH_SUPERVISED_BY": "up-1"} if supervised else {}
        process = Served(home, "--port", "0", "--environment", "first", **variables)
        assert process.stdout is not None
        try:
            said = ""
            while "could administer" not in said or (not supervised and "user --help" not in said):
                line = process.stdout.readline()
                assert line, said
                said += line
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        assert ("bk_first" in said) is not supervised
        assert "BURNISH_API_KEY=" not in said
        assert (str(key_file) in said) is supervised
        assert key_file.exists() is supervised
    assert key_file.read_text() == "bk_first\n"
    assert key_file.stat().st_mode & 0o777 == 0o600


def test_a_busy_port_is_an_error_with_a_way_out(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused = Served(home, "--port", str(port))
        said = refused.said()
    assert refused.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in said
    assert "--port" in said
    assert "Traceback" not in said


def test_a_start_that_fails_as_expected_prints_the_error_alone(home: Path) -> None:
    refused = Served(home, "--port", "0", "--environment", "broken")
    said = refused.said()
    assert refused.returncode == 1
    assert "the schema is newer" in said
    assert "use that version" in said
    assert "Traceback" not in said
    assert "startup failed" not in said, "the error alone says it"
    assert running_server(home) is None


@pytest.mark.parametrize(
    "arguments",
    [
        ("--port", "99999"),
        ("--components", "nonsense"),
        ("--auth", "maybe"),
        ("--components", "platform"),
        ("--components", "fine_tuning,model_serving"),
        ("--components", ","),
    ],
)
def test_settings_that_cannot_be_used_are_named(home: Path, arguments: tuple[str, str]) -> None:
    refused = Served(home, *arguments)
    said = refused.said()
    assert refused.returncode in {1, 2}
    assert arguments[0] in said
    assert "Traceback" not in said


def test_stop_leaves_what_runs_and_stop_all_drains(home: Path) -> None:
    with serving(home) as (process, _):
        done = stop(home)
        assert done.returncode == 0
        assert json.loads(done.stdout)["server"] == process.pid
        said = process.said()
        assert "app stopped" in said
        assert "job_1 is paused" not in said
    with serving(home) as (process, _):
        assert stop(home, "--all").returncode == 0
        said = process.said()
        assert "job_1 is paused at step 17" in said
        assert said.index("job_1 is paused") < said.index("app stopped")
    assert not (home / "run" / "server.json").exists()
    assert json.loads(stop(home).stdout)["server"] is None


def test_ctrl_c_drains_even_while_a_stream_is_open(home: Path) -> None:
    with serving(home) as (process, url):
        stream = urllib.request.urlopen(f"{url}/endless")
        stream.read(4)
        process.send_signal(signal.SIGINT)
        said = process.said()
        stream.close()
    assert "job_1 is paused at step 17" in said
    assert "app stopped" in said


def test_while_it_drains_nobody_gets_in_and_a_second_ctrl_c_ends_it(home: Path) -> None:
    """Breaks with: listeners that close after the drain, a second Ctrl-C that only a drain's end looks at."""
    with serving(home, "--environment", "slow") as (process, url):
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        while "draining slowly" not in process.stdout.readline():
            assert process.poll() is None
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(url, timeout=10)
        process.send_signal(signal.SIGINT)
        said = process.said()
    assert "Not drained" in said


def test_a_demo_ends_only_the_server_that_it_started(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks with: an end that stops whatever runs on the home by then."""
    own = subprocess.Popen([sys.executable, "-c", ""])
    own.wait()
    with serving(home) as (other, url):
        demonstration._end(own, home, again="again")
        assert url in capsys.readouterr().out
        assert other.poll() is None
        demonstration._end(other, home, again="again")
        assert other.poll() is not None
        assert "Stopped" in capsys.readouterr().out
    demonstration._end(own, home, again="again")
    assert "stop --all" in capsys.readouterr().out


def test_a_run_file_of_a_killed_server_is_not_believed(home: Path) -> None:
    with serving(home) as (process, _):
        process.kill()
        process.wait()
        assert (home / "run" / "server.json").exists()
        assert running_server(home) is None
    with serving(home):
        assert running_server(home) is not None


def test_stop_all_ends_what_a_killed_server_left(home: Path) -> None:
    home.mkdir()
    inside = home / "jobs" / "job_1"
    inside.mkdir(parents=True)
    sleeper = "import time; time.sleep(600)"
    host = subprocess.Popen([sys.executable, "-c", sleeper, "burnish.platform.jobs.host", str(inside)])
    other = subprocess.Popen([sys.executable, "-c", sleeper, "burnish.platform.jobs.host", str(home.parent / "other")])
    try:
        while b"jobs.host" not in Path(f"/proc/{host.pid}/cmdline").read_bytes():
            time.sleep(0.01)
        assert json.loads(stop(home).stdout)["left"] == [host.pid]
        assert host.poll() is None
        assert json.loads(stop(home, "--all").stdout)["ended"] == [host.pid]
        assert host.wait(timeout=10) != 0
        assert other.poll() is None
    finally:
        for process in (host, other):
            process.kill()
            process.wait()
