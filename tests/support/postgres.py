"""A PostgreSQL server of our own, from Debian's packages: initdb, start, databases by template, stop by pid."""

import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

INSTALL = "apt-get install -y postgresql"
_PASSWORD = "burnish"
_SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "jit": "off",
    "log_min_messages": "warning",
}


class PostgresMissing(Exception):
    """There are no PostgreSQL programs on this machine."""


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    if on_path := shutil.which("initdb"):
        return Path(on_path).resolve().parent
    raise PostgresMissing(f"no PostgreSQL here; install it with: {INSTALL}")


def _account() -> dict[str, object]:
    """Arguments for subprocess: the server refuses to run as root, so root starts it as ``postgres``."""
    if os.geteuid() != 0:
        return {}
    return {"user": "postgres", "group": "postgres", "extra_groups": []}


# Waits for the end of its input, which comes when the test run ends, however it ends; then nothing is left behind.
_GUARD = 'cat >/dev/null; kill -INT "$1"; while kill -0 "$1" 2>/dev/null; do sleep 0.1; done; rm -rf "$2"'


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free, and that the kernel gives to nobody else before it is used."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)  # below those that connections are given
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class PostgresServer:
    """One server process on a free port of 127.0.0.1. ``stop`` and ``start`` again keep data and port."""

    def __init__(self) -> None:
        self._bin = _programs()
        self.folder = Path(tempfile.mkdtemp(prefix="burnish-pg-", dir="/tmp"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        password = self.folder / "password"
        password.write_text(_PASSWORD)
        password.chmod(0o644)
        self._run(
            "initdb", "--pgdata", str(self.folder / "data"), "--username", "burnish", "--pwfile", str(password),
            "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync",
        )  # fmt: skip

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        assert self._process is not None, "the server is stopped"
        return self._process.pid

    def start(self) -> None:
        """Start the server and return when it answers."""
        arguments = [str(self._bin / "postgres"), "-D", str(self.folder / "data"), "-p", str(self.port)]
        for name, value in {**_SETTINGS, "unix_socket_directories": str(self.folder)}.items():
            arguments += ["-c", f"{name}={value}"]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/", start_new_session=True,
                **_account(),  # type: ignore[call-overload]
            )  # fmt: skip
        self._guard = subprocess.Popen(
            ["sh", "-c", _GUARD, "sh", str(self._process.pid), str(self.folder)],
            stdin=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{(self.folder / 'server.log').read_text()[-4000:]}")
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: ``SIGINT`` breaks connections off and shuts down; ``SIGQUIT`` crashes it."""
        if self._process is None:
            return
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
        self._process.send_signal(how)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(30)
        self._process = None

    def remove(self) -> None:
        """Stop the server and delete its data."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, name: str) -> str:
        """Return the URL of a database for SQLAlchemy."""
        return f"postgresql+asyncpg://burnish:{_PASSWORD}@127.0.0.1:{self.port}/{name}"

    def create_database(self, template: str = "template0", name: str | None = None) -> str:
        """Create a database as a copy of ``template`` and return its name."""
        name = name or f"test_{secrets.token_hex(6)}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name

    def drop_database(self, name: str) -> None:
        """Delete a database, whoever is connected to it."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def execute(self, statement: str, database: str = "postgres") -> str:
        """Run one SQL statement and return its rows, unaligned, one a line."""
        return self._run(
            "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(self.port),
            "-U", "burnish", "-d", database, "-c", statement,
        ).strip()  # fmt: skip

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except RuntimeError:
            return False
        return True

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(self._bin / program), *arguments], capture_output=True, text=True, cwd="/", timeout=120, check=False,
            env={"PGPASSWORD": _PASSWORD, "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            **_account(),  # type: ignore[call-overload]
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed ({done.returncode}): {done.stderr[-2000:]}")
        return str(done.stdout)


@contextlib.contextmanager
def running_server() -> Iterator[PostgresServer]:
    """Start a server and remove it, data and all, at the end.

    Raises:
        PostgresMissing: the programs are not installed.
    """
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()
