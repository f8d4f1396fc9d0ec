"""A Redis server of our own on a free port of 127.0.0.1: start, kill, freeze, start again on the same port."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.postgres import free_port

INSTALL = "apt-get install -y redis-server"

# Waits for the end of its input, which comes when the test run ends, however it ends; then nothing is left behind.
_GUARD = 'cat >/dev/null; kill -CONT "$1"; kill -KILL "$1"; rm -rf "$2"'


class RedisMissing(Exception):
    """There is no redis-server on this machine."""


class RedisServer:
    """One server process without persistence. ``stop`` and ``start`` again keep the port, not the data."""

    def __init__(self) -> None:
        found = shutil.which("redis-server")
        if found is None:
            raise RedisMissing(f"no Redis here; install it with: {INSTALL}")
        self._program = found
        self.folder = Path(tempfile.mkdtemp(prefix="burnish-redis-", dir="/tmp"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is stopped"
        return self._process.pid

    def start(self) -> None:
        """Start the server and return when it answers."""
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                 "--dir", str(self.folder)],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self._guard = subprocess.Popen(
            ["sh", "-c", _GUARD, "sh", str(self._process.pid), str(self.folder)],
            stdin=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Redis did not start:\n{(self.folder / 'server.log').read_text()[-4000:]}")
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End the server; its data are gone."""
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def freeze(self) -> None:
        """Stop the process: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def ask(self, command: str) -> str:
        """Send one inline command; return what came back at once."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
            connection.sendall(command.encode() + b"\r\n")
            return connection.recv(65536).decode()

    def remove(self) -> None:
        """End the server and delete its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            return self.ask("PING").startswith("+PONG")
        except OSError:
            return False


@contextlib.contextmanager
def running_redis() -> Iterator[RedisServer]:
    """Start a server and remove it at the end.

    Raises:
        RedisMissing: the program is not installed.
    """
    server = RedisServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()
