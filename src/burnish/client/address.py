"""Where the server is: an argument, ``BURNISH_URL``, the run file that ``burnish serve`` writes, or port 8000."""

import json
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

DEFAULT_PORT = 8000
RUN_FILE = "server.json"


class RunFile(BaseModel):
    """``<home>/run/server.json``: the server that holds this home, written once it is ready."""

    model_config = ConfigDict(frozen=True)

    pid: int
    url: str


def home(given: Path | None = None) -> Path:
    """Return the home folder: ``given``, else ``BURNISH_HOME``, else ``~/.burnish``."""
    return (given or Path(os.environ.get("BURNISH_HOME") or Path.home() / ".burnish")).expanduser().resolve()


def read_run_file(folder: Path) -> RunFile | None:
    """Return what a running server says about itself, or None when none has (its process may be gone all the same)."""
    try:
        return RunFile.model_validate(json.loads((folder / "run" / RUN_FILE).read_text()))
    except (OSError, ValueError, ValidationError):
        return None


def find_url(url: str | None = None, folder: Path | None = None) -> str:
    """Return the server's base URL without a trailing slash."""
    if chosen := url or os.environ.get("BURNISH_URL"):
        return chosen.rstrip("/")
    found = read_run_file(home(folder))
    if found is not None:
        return found.url.rstrip("/")
    port = os.environ.get("BURNISH_PORT", "")
    return f"http://127.0.0.1:{port if port.strip('0') else DEFAULT_PORT}"
