"""A third party's component in a process of its own: started, killed, started again."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from burnish.infra.processes import alive, identify
from tests.support.server import wait_for

ECHO = Path(__file__).parents[2] / "examples" / "components" / "echo_metric" / "echo_metric.py"


class ComponentRun:
    """``python SCRIPT`` with a home of its own."""

    def __init__(
        self, home: Path, url: str, *, script: Path = ECHO, environment: Mapping[str, str] | None = None
    ) -> None:
        self.home = home
        self.log = home.with_suffix(".log")
        self.url = ""
        self._script = script
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("BURNISH_")}
        own = {"BURNISH_URL": url, "BURNISH_COMPONENT_HOME": str(home), "BURNISH_COMPONENT_DRAIN_SECONDS": "5"}
        self._environment = {**inherited, **own, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *arguments: str) -> "ComponentRun":
        """Start it and wait until it listens."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(self._script), *arguments], env=self._environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        wait_for(self._ready, 60, lambda: f"the component is not ready\n{self.tail()}")
        return self

    def _ready(self) -> bool:
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            raise AssertionError(f"the component ended with {code}\n{self.tail()}")
        found = re.findall(rf"ready at (\S+) \(.*pid {self.pid}\)", self.log.read_text(errors="replace"))
        self.url = found[-1] if found else ""
        return bool(self.url)

    def refused(self, *arguments: str) -> str:
        """Start it a second time and return what it says as it ends."""
        command = [sys.executable, str(self._script), *arguments]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def stop(self) -> int:
        """SIGTERM; return the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def end_everything(self) -> None:
        """Kill it and whatever it left (by pid, found by its home)."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        for folder in Path("/proc").glob("[0-9]*"):
            pid = int(folder.name)
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if str(self.home).encode() in command and pid != os.getpid():
                found = identify(pid)
                if found is not None and alive(found):
                    os.kill(pid, signal.SIGKILL)
