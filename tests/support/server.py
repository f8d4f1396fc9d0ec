"""A real Burnish server in a process of its own, to be driven over HTTP and killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from burnish.infra.processes import ProcessId, alive, identify

READY_SECONDS = 60


class Server:
    """``burnish serve`` on a free port. ``start`` again after a kill is the restart that users see."""

    def __init__(
        self, home: Path, *, database_url: str | None = None, environment: Mapping[str, str] | None = None,
        name: str = "server",
    ) -> None:  # fmt: skip
        self.home = home
        self.log = home / f"{name}.log"
        self.url = ""
        self.program: tuple[str, ...] = ("-m", "burnish.cli", "serve")
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("BURNISH_") or key.startswith("BURNISH_TEST")},
            "BURNISH_HOME": str(home), "BURNISH_PORT": "0", "HF_HUB_OFFLINE": "1", "BURNISH_LOG_FORMAT": "text",
            **({"BURNISH_DATABASE_URL": database_url} if database_url else {}), **(environment or {}),
        }  # fmt: skip
        home.mkdir(parents=True, exist_ok=True)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *, ready: bool = True, environment: Mapping[str, str] | None = None) -> "Server":
        """Start it and wait until it is ready. ``environment`` is for this one start."""
        self.url = ""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self.program], env={**self._environment, **(environment or {})},
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        if ready:
            self.wait_ready()
        return self

    def wait_ready(self, timeout: float = READY_SECONDS) -> None:
        """Wait until it says that it can do its work."""
        wait_for(self._ready, timeout, lambda: f"the server is not ready\n{self.tail()}")

    def _ready(self) -> bool:
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            raise AssertionError(f"the server ended with {code}\n{self.tail()}")
        try:
            return self._listening() and bool(self.request("GET", "/platform/ready")["status"] == "ready")
        except (OSError, ValueError, KeyError, Answered):
            return False

    def _listening(self) -> bool:
        """Take the address from what it prints (the run file belongs to the server of a home that started last)."""
        if not self.url:
            found = re.findall(rf"ready at (\S+) \(.*pid {self.pid}\)", self.log.read_text(errors="replace"))
            self.url = found[-1] if found else ""
        return bool(self.url)

    def exit_code(self, timeout: float) -> int:
        """Wait until it has ended by itself; return its exit status."""
        assert self._process is not None
        return self._process.wait(timeout)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(10)

    def stop(self) -> int:
        """SIGTERM; return the exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            return self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
            raise AssertionError(f"the server did not stop on SIGTERM\n{self.tail()}") from None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def request(
        self, method: str, path: str, body: Any = None, *, timeout: float = 30, headers: Mapping[str, str] | None = None
    ) -> Any:
        """Send one request and return the JSON answer; an HTTP error raises :class:`Answered`."""
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)
        request.add_header("Content-Type", "application/json")
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                raise Answered(error.code, error.read().decode(errors="replace")) from None

    def upload(self, name: str, path: Path) -> Any:
        """Add a dataset from a file."""
        query = f"/platform/datasets?name={name}&filename={path.name}"
        return self.request("POST", query, path.read_bytes(), headers={"Content-Type": "application/octet-stream"})

    def processes(self) -> list[ProcessId]:
        """Every process that names this home in its command line or environment, the server itself left out."""
        own = {os.getpid(), self._process.pid if self._process else 0}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            pid = int(folder.name)
            if pid in own:
                continue
            try:
                text = (
                    (folder / "cmdline").read_bytes()
                    + (folder / "environ").read_bytes()
                    + os.readlink(folder / "cwd").encode()
                )
            except OSError:
                continue
            if str(self.home).encode() in text and (process := identify(pid)) is not None:
                found.append(process)
        return found

    def end_everything(self) -> None:
        """Stop the server and kill whatever it left (tests only: by pid)."""
        if self._process is not None:
            if self.running:
                self.signal(signal.SIGKILL)
            self._process.wait(10)
        for process in self.processes():
            if alive(process):
                try:
                    os.kill(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue


@contextmanager
def running_burnish(home: Path, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Start a server on ``home``, stop it as users do, and kill whatever it left."""
    server = Server(home, environment=environment)
    try:
        yield server.start()
        server.stop()
    finally:
        server.end_everything()


class Answered(Exception):
    """The server answered with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status
        self.text = text


def wait_for(
    condition: Callable[[], bool], timeout: float, what: Callable[[], str] | str = "the condition", pause: float = 0.05
) -> None:
    """Wait until ``condition`` holds; fail with ``what`` after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(what() if callable(what) else f"{what}: not within {timeout} s")
        time.sleep(pause)
