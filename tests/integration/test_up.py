"""`burnish up` over the example file: the issue's set, one of it killed, and the supervisor itself killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from burnish.infra.processes import alive, identify
from tests.support.postgres import free_port
from tests.support.redis import RedisServer
from tests.support.server import Server, wait_for

pytestmark = pytest.mark.postgres
EXAMPLE = Path(__file__).parents[2] / "examples" / "split" / "burnish.yaml"


class Up:
    """`burnish up` of the example."""

    def __init__(self, home: Path, variables: dict[str, str]) -> None:
        self.home = home
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("BURNISH_")}
        self.environment |= {"BURNISH_HOME": str(home), "HF_HUB_OFFLINE": "1", **variables}
        self.log = home / "up.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "burnish.cli", "up", str(EXAMPLE)]
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def status(self) -> tuple[int, dict[str, Any]]:
        command = [sys.executable, "-m", "burnish.cli", "up", str(EXAMPLE), "--status", "--json"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, json.loads(done.stdout)

    def units(self) -> dict[str, dict[str, Any]]:
        """From the state file: the command itself takes a second."""
        found = list((self.home / "run").glob("up-*/state.json"))
        return {one["key"]: one for one in json.loads(found[0].read_text())["units"]} if found else {}

    def ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.tail()
        return len(self.units()) == 6 and all(one["state"] == "ready" for one in self.units().values())

    def tail(self) -> str:
        logs = [self.log, *(self.home / "run").glob("up-*/*.log")]
        return "\n".join(f"--- {path.name}\n" + "\n".join(path.read_text().splitlines()[-8:]) for path in logs)


@pytest.fixture
def up(postgres_url: str, home: Path) -> Iterator[Up]:
    redis = RedisServer()
    redis.start()
    port = free_port()
    made = Up(home, {
        "BURNISH_DATABASE_URL": postgres_url, "BURNISH_REDIS_URL": redis.url, "BURNISH_PORT": str(port),
        "BURNISH_ARTIFACT_URL": (home.parent / "artifacts").as_uri(),
    })  # fmt: skip
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait(10)
    for process in Server(home).processes():
        if alive(process):
            os.kill(process.pid, signal.SIGKILL)
    redis.remove()


def test_the_example_is_kept_running(up: Up) -> None:
    """Breaks with: a killed process that stays away, a killed supervisor that starts a second set, orphans at the end."""
    up.start()
    wait_for(up.ready, 120, up.tail)
    assert up.status()[0] == 0
    before = {key: one["pid"] for key, one in up.units().items()}
    os.kill(before["fine_tuning"], signal.SIGKILL)
    wait_for(lambda: up.ready() and up.units()["fine_tuning"]["pid"] != before["fine_tuning"], 60, up.tail)
    assert up.process is not None
    up.process.kill()
    up.process.wait(10)
    code, state = up.status()
    assert (code, state["supervised"]) == (1, False)
    between = {key: one["pid"] for key, one in up.units().items()}
    up.start()
    wait_for(lambda: up.log.read_text().count("adopted") == 6, 30, up.tail)
    wait_for(up.ready, 30, up.tail)
    assert {key: one["pid"] for key, one in up.units().items()} == between
    platform = Server(up.home)
    platform.url = up.units()["platform-2"]["url"]
    instances = platform.request("GET", "/platform/components?limit=100")["data"]
    (supervisor,) = {one["metadata"].get("supervisor") for one in instances}
    assert supervisor.startswith("up-")
    doctor = subprocess.run(
        [sys.executable, "-m", "burnish.cli", "doctor", "--json"], env=up.environment | {"BURNISH_COMPONENTS": "platform"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    found = json.loads(doctor.stdout)["findings"]
    assert [one for one in found if one["status"] == "problem" and one["check"] != "components"] == []
    assert up.process is not None
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(90) == 0
    began = time.monotonic()
    wait_for(lambda: all((one := identify(pid)) is None or not alive(one) for pid in between.values()), 10, up.tail)
    assert time.monotonic() - began < 10
