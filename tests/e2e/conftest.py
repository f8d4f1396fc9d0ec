"""One run of the demo on the real small model, shared by the tests of what it left behind."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import Server

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Demo:
    """What the demo printed, and the server on its home afterwards."""

    code: int
    text: str
    home: Path
    model: Path
    server: Server

    def execution(self) -> dict[str, Any]:
        """The status of the newest execution."""
        newest = self.server.request("GET", "/platform/workflows")["data"][0]["workflow_id"]
        view: dict[str, Any] = self.server.request("GET", f"/platform/workflows/{newest}/status")
        return view

    def result(self, step: str) -> dict[str, Any]:
        """A step's result."""
        result: dict[str, Any] = next(one["result"] for one in self.execution()["steps"] if one["name"] == step)
        return result


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, as `make test` fetched it."""
    command = [sys.executable, "tools/fetch_model.py", "--cache", str(ROOT / ".cache")]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=600)
    return Path(found.stdout.strip())


def run_demo(home: Path, model: Path, *more: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """Run the demo to its report, on fewer rows than `make demo`, with ``more`` options."""
    environment = {**os.environ, "BURNISH_PORT": "0", "HF_HUB_OFFLINE": "1", "COLUMNS": "140"}
    command = [
        sys.executable,
        "-m",
        "burnish.cli",
        "demo",
        "--exit",
        "--quick",
        "--home",
        str(home),
        "--model",
        str(model),
        *more,
    ]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL
    )  # fmt: skip


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, real_model: Path) -> Iterator[Demo]:
    """The demo's first run, and a server started again on its home."""
    home = tmp_path_factory.mktemp("demo")
    ran = run_demo(home, real_model)
    server = Server(home)
    try:
        server.start()
        yield Demo(ran.returncode, ran.stdout + ran.stderr, home, real_model, server)
    finally:
        server.end_everything()
