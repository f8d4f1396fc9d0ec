"""The administrator's first key where nobody sees what a server prints: a file in the home that its owner alone can read."""

import os
import time
from pathlib import Path

FIRST_KEY = """Authentication is on and nobody could administer this platform yet. This key can, for 24 hours; it is shown once:

    {key}

Log in with it (burnish login, which asks for it), then make users and keys of your own (burnish user --help)."""
FIRST_KEY_FILE = (
    """Authentication is on and nobody could administer this platform yet. A key that can, for 24 hours, is in {path}"""
)
_HELD_SECONDS = 24 * 3600.0
"""As long as the server takes such a key."""


def key_file(home: Path) -> Path:
    """Return where the key lies."""
    return home / "administrator.key"


def write_key_file(home: Path, key: str) -> Path:
    """Write the key in place of one before it, whole or not at all, and return where it is.

    Raises:
        OSError: it could not be written.
    """
    path = key_file(home)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(f"{key}\n")
        os.fsync(opened.fileno())
    draft.rename(path)
    return path


def fresh_key_file(home: Path) -> tuple[Path, float] | None:
    """Return the file and when it was written, if its key may still be used."""
    path = key_file(home)
    try:
        written = path.stat().st_mtime
    except OSError:
        return None
    return (path, written) if time.time() - written < _HELD_SECONDS else None
