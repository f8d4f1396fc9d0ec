"""What a supervisor of ``burnish up`` leaves in its folder for others to read: its state file, and the logs."""

import contextlib
import hashlib
import json
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from burnish.client.address import started_ticks

State = Literal["starting", "ready", "unready", "stopping", "waiting", "given_up", "stopped"]
"""``unready``: it runs, and says itself that it cannot answer; only `burnish up --status` asks that."""

_LOG_LINES = 15
_LOG_BYTES = 16_384


class UnitRecord(BaseModel):
    """What the state file says of one process."""

    model_config = ConfigDict(frozen=True)

    key: str
    components: str
    state: State
    pid: int | None = None
    started_ticks: int | None = None
    boot_id: str = ""
    digest: str = ""
    home: str = ""
    url: str | None = None
    since: float = 0.0
    failures: int = 0
    restarts: int = 0
    problem: str | None = None
    log: str = ""


class StateFile(BaseModel):
    """The state file: the supervisor and its processes."""

    model_config = ConfigDict(frozen=True)

    file: str
    supervisor: int
    supervisor_ticks: int
    units: tuple[UnitRecord, ...] = ()

    @property
    def supervised(self) -> bool:
        """Whether the supervisor that wrote it lives."""
        return started_ticks(self.supervisor) == self.supervisor_ticks

    @property
    def living(self) -> tuple[int, ...]:
        """The pids of its processes that live."""
        return tuple(one.pid for one in self.units if one.pid and started_ticks(one.pid) == one.started_ticks)


def folder_of(file: Path, home: Path) -> Path:
    """Return where a file's supervisor keeps its state and logs."""
    return home / "run" / f"up-{short(str(file.resolve()))}"


def short(text: str) -> str:
    """Return a name for a text, of 12 characters."""
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def read_state(file: Path, home: Path) -> StateFile | None:
    """Return what the file's supervisor wrote last; None if there never was one."""
    try:
        return StateFile.model_validate(json.loads((folder_of(file, home) / "state.json").read_text()))
    except (OSError, ValueError):
        return None


def supervised_sets(home: Path) -> list[StateFile]:
    """Return the sets of processes that a living supervisor keeps running from ``home``."""
    found = []
    for path in sorted((home / "run").glob("up-*/state.json")):
        with contextlib.suppress(OSError, ValueError):
            found.append(StateFile.model_validate_json(path.read_text()))
    return [one for one in found if one.supervised]


def reason(path: Path, start: int, *, killed: bool) -> str | None:
    """Return why a process ended, in one line: the last ``Error:`` that it printed, with where and what next.

    Args:
        path: its log.
        start: where in the log the process began to write.
        killed: a signal ended it: what it happened to write last is then no reason.
    """
    lines = last_lines(path, 1000, start)
    begin = max((number for number, line in enumerate(lines) if line.startswith("Error: ")), default=None)
    if begin is not None:
        said = [lines[begin].removeprefix("Error: ")]
        for line in lines[begin + 1 :]:
            if not line.startswith("  "):
                break
            said.append(re.sub(r"\s+", " ", line.strip()))
        return "; ".join(said)
    if killed or not lines or lines[-1].startswith("Burnish is ready"):
        return None
    return lines[-1].strip()[:300]


def last_lines(path: Path, count: int = _LOG_LINES, start: int = 0) -> list[str]:
    """Return the end of a log, of what was written from ``start`` on."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(start, path.stat().st_size - _LOG_BYTES))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.strip()][-count:]
