"""Where the server is: an argument, ``BURNISH_URL``, what the processes of a home say of themselves, or port 8000."""

import contextlib
import json
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

DEFAULT_PORT = 8000
RUN_FILE = "server.json"


class RunFile(BaseModel):
    """``<home>/run/server.json``: the process of this home that was ready last of those that clients ask."""

    model_config = ConfigDict(frozen=True)

    pid: int
    url: str


class ProcessFile(BaseModel):
    """``<home>/run/process-<pid>.json``: one of the processes that share a home, written once it is ready."""

    model_config = ConfigDict(frozen=True)

    pid: int
    url: str
    components: str
    started_ticks: int

    @property
    def with_platform(self) -> bool:
        """Whether it is one that clients ask."""
        return has_platform(self.components)


def has_platform(components: str) -> bool:
    """Tell whether a process with these components is one that clients ask."""
    return components == "all" or "platform" in components.split(",")


def home(given: Path | None = None) -> Path:
    """Return the home folder: ``given``, else ``BURNISH_HOME``, else ``~/.burnish``."""
    return (given or Path(os.environ.get("BURNISH_HOME") or Path.home() / ".burnish")).expanduser().resolve()


def read_run_file(folder: Path) -> RunFile | None:
    """Return what a running server says about itself, or None when none has (its process may be gone all the same)."""
    try:
        return RunFile.model_validate(json.loads((folder / "run" / RUN_FILE).read_text()))
    except (OSError, ValueError, ValidationError):
        return None


def process_file(folder: Path, pid: int) -> Path:
    """Return where a process of a home says who it is."""
    return folder / "run" / f"process-{pid}.json"


def living_processes(folder: Path) -> list[ProcessFile]:
    """Return every process of a home that serves and lives, by pid."""
    found = []
    for path in (folder / "run").glob("process-*.json"):
        with contextlib.suppress(OSError, ValidationError):
            one = ProcessFile.model_validate_json(path.read_text())
            if started_ticks(one.pid) == one.started_ticks:
                found.append(one)
    return sorted(found, key=lambda one: one.pid)


def started_ticks(pid: int) -> int | None:
    """Return when a process started, in ticks since the boot, which with its pid names it; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def platform_urls(folder: Path) -> list[str]:
    """Return where a home's living processes with ``platform`` answer, the one that was ready last first."""
    urls = [one.url.rstrip("/") for one in living_processes(folder) if one.with_platform]
    named = read_run_file(folder)
    return sorted(urls, key=lambda url: named is None or url != named.url.rstrip("/"))


def find_url(url: str | None = None, folder: Path | None = None, passing: str | None = None) -> str:
    """Return the server's base URL without a trailing slash.

    Args:
        url: the one that is asked for; then there is nothing to find.
        folder: the home, if not the default one.
        passing: one of the home's that did not answer: any other that lives goes before it.
    """
    if chosen := url or os.environ.get("BURNISH_URL"):
        return chosen.rstrip("/")
    where = home(folder)
    if living := platform_urls(where):
        return next((one for one in living if one != passing), living[0])
    if (found := read_run_file(where)) is not None:  # none lives here; it may in another container on the same home
        return found.url.rstrip("/")
    port = os.environ.get("BURNISH_PORT", "")
    return f"http://127.0.0.1:{port if port.strip('0') else DEFAULT_PORT}"
