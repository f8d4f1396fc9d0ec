"""The ladder of recovery from end to end: a supervised process that stands still is started again by `burnish up`."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from burnish.infra.processes import alive
from tests.support.server import Server, wait_for

pytestmark = pytest.mark.postgres
FILE = """
environment:
  BURNISH_DISK_RESERVE_BYTES: "0"
  BURNISH_CONFIGURATION__integrator__lease_seconds: "3"
  BURNISH_CONFIGURATION__integrator__probe_seconds: "0.5"
  BURNISH_CONFIGURATION__integrator__probe_timeout_seconds: "0.5"
processes:
  platform: {components: platform}
  fine_tuning: {components: fine_tuning}
"""


class Up:
    """`burnish up` of the file."""

    def __init__(self, home: Path, database_url: str) -> None:
        self.home = home
        self.log = home / "up.log"
        file = home / "burnish.yaml"
        file.write_text(FILE)
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("BURNISH_")}
        self.environment |= {
            "BURNISH_HOME": str(home), "BURNISH_DATABASE_URL": database_url, "HF_HUB_OFFLINE": "1",
            "BURNISH_ARTIFACT_URL": (home.parent / "artifacts").as_uri(),
        }  # fmt: skip
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "burnish.cli", "up", str(file)]
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def unit(self, key: str) -> dict[str, Any]:
        """What the state file says of a process."""
        found = list((self.home / "run").glob("up-*/state.json"))
        units = json.loads(found[0].read_text())["units"] if found else []
        return next((one for one in units if one["key"] == key), {"state": None, "pid": None})

    def ready(self) -> bool:
        assert self.process.poll() is None, self.tail()
        return all(self.unit(key)["state"] == "ready" for key in ("platform", "fine_tuning"))

    def instance(self) -> dict[str, Any]:
        """The fine-tuning process as the platform sees it, with what was done about it."""
        platform = Server(self.home)
        platform.url = self.unit("platform")["url"]
        page = platform.request("GET", "/platform/components?component_type=fine_tuning")["data"]
        if not page:
            return {"status": None}
        found: dict[str, Any] = platform.request("GET", f"/platform/components/{page[0]['component_id']}")
        return found

    def burnish(self, *arguments: str) -> str:
        url = ["--url", self.unit("platform")["url"]]
        command = [sys.executable, "-m", "burnish.cli", *arguments, *url]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=True
        ).stdout

    def tail(self) -> str:
        logs = [self.log, *(self.home / "run").glob("up-*/*.log")]
        return "\n".join(f"--- {path.name}\n" + "\n".join(path.read_text().splitlines()[-8:]) for path in logs)


@pytest.fixture
def up(postgres_url: str, home: Path) -> Iterator[Up]:
    made = Up(home, postgres_url)
    yield made
    if made.process.poll() is None:
        made.process.kill()
        made.process.wait(10)
    for process in Server(home).processes():
        if alive(process):
            os.kill(process.pid, signal.SIGKILL)


def test_a_supervised_process_that_stands_still_is_started_again_and_says_why(up: Up) -> None:
    """Breaks with: a process that listens and is taken for alive for ever; a restart that nobody asks for or carries out."""
    wait_for(up.ready, 60, up.tail)
    wait_for(lambda: up.instance()["status"] == "healthy", 30, up.tail)
    before, pid = up.instance(), up.unit("fine_tuning")["pid"]
    assert before["metadata"]["pid"] == pid
    assert before["metadata"]["supervisor"].startswith("up-")
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: up.instance()["status"] in ("unhealthy", "lost"), 30, lambda: str(up.instance()))
    wait_for(lambda: up.unit("fine_tuning")["pid"] not in (None, pid), 30, up.tail)
    wait_for(lambda: up.instance()["status"] == "healthy", 30, lambda: f"{up.instance()}\n{up.tail()}")
    after = up.instance()
    assert (after["component_id"], after["metadata"]["pid"]) == (before["component_id"], up.unit("fine_tuning")["pid"])
    assert after["generation"] > before["generation"]
    assert (after["restarts"], after["restart_requested_at"]) == (1, None)
    said = up.log.read_text()
    assert "fine_tuning: the platform asks for its restart" in said
    assert "killed" not in said, "it was woken to end by itself"
    causes = {one["action"]: one["cause"] for one in after["actions"]}
    assert {"route_around", "restart_requested"} <= causes.keys(), causes
    assert "something listens there" in causes["restart_requested"]
    shown = up.burnish("components", before["component_id"])
    assert "restart_requested" in shown
    assert "something listens there" in " ".join(shown.split())
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(60) == 0, up.tail()
