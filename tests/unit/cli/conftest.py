"""What tests of `burnish up` share."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from burnish.cli import supervisor


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the supervisor look often and pause little."""
    monkeypatch.setattr(supervisor, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(supervisor, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(supervisor, "BACKOFF_SECONDS", (0.0, 0.05))


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home; what a failed test left running in it is ended."""
    yield tmp_path / "home"
    for path in (tmp_path / "home" / "run").glob("process-*.json"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.stem.partition("-")[2]), signal.SIGKILL)
