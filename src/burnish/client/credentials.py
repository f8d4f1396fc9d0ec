"""The keys that ``burnish login`` keeps, one a server: ``$XDG_CONFIG_HOME/burnish/credentials.json``, mode 0600.

The processes with ``platform`` that share a home on this machine are one server: the key for one is the key for all.

The file is replaced whole and atomically. One that others can read is refused, not mended in silence: whoever could
read it may have the keys already.
"""

import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from burnish.client import address
from burnish.core.errors import BurnishError


class UnsafeCredentials(BurnishError):
    """The file of stored keys cannot be trusted or read; nothing of it was used."""

    code = "unsafe_credentials"
    status = 500


class Credential(BaseModel):
    """A key for one server."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    key: str = Field(repr=False)
    key_id: str | None = None
    subject: str | None = None
    """Whose it is, for people."""
    expires_at: datetime | None = None
    by_browser: bool = False
    """Made for this program by a login, and so revoked by ``burnish logout``."""
    home: Path | None = None
    """Of the processes that it is for, if they run on this machine."""


class _File(BaseModel):
    model_config = ConfigDict(frozen=True)

    version: int = 1
    servers: dict[str, Credential] = Field(default_factory=dict)


def path() -> Path:
    """Return where the keys are kept."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "burnish" / "credentials.json"


def find(url: str, folder: Path | None = None) -> Credential | None:
    """Return the key for the server at ``url``; for a process of the home, the key for any of them will do.

    Raises:
        UnsafeCredentials: others can read the file, or it is not what this program writes.
    """
    servers = _read(path()).servers
    if not servers:
        return None
    own, home = servers.get(normalized(url)), address.home(folder)
    if own is None and _is_of(home, url):
        return next((one for one in servers.values() if one.home == home), None)
    return own


def store(url: str, credential: Credential, folder: Path | None = None) -> None:
    """Keep a key for the server at ``url``, in place of the one before; for a process of the home, for all of them.

    Raises:
        UnsafeCredentials: the file cannot be trusted, read or written.
    """
    home = address.home(folder)
    kept = credential.model_copy(update={"home": home if _is_of(home, url) else None})
    _change(lambda servers: {**_without(servers, url, kept.home), normalized(url): kept})


def forget(url: str, folder: Path | None = None) -> Credential | None:
    """Take out the key for the server at ``url`` and return it.

    Raises:
        UnsafeCredentials: the file cannot be trusted, read or written.
    """
    found = find(url, folder)
    if found is not None:
        _change(lambda servers: _without(servers, url, found.home))
    return found


def _is_of(home: Path, url: str) -> bool:
    """Whether a process of this home answers there. The home's owner alone writes that: a server cannot claim it."""
    return normalized(url) in {normalized(one) for one in address.platform_urls(home)}


def _without(servers: dict[str, Credential], url: str, home: Path | None) -> dict[str, Credential]:
    return {
        server: one
        for server, one in servers.items()
        if server != normalized(url) and (home is None or one.home != home)
    }


def normalized(url: str) -> str:
    """Return the form under which a server is known: scheme, host and port; ``localhost`` is ``127.0.0.1``."""
    parts = urlsplit(url)
    scheme, host = parts.scheme.lower(), (parts.hostname or "").lower()
    host = "127.0.0.1" if host == "localhost" else f"[{host}]" if ":" in host else host
    port = parts.port or {"http": 80, "https": 443}.get(scheme)
    return f"{scheme}://{host}:{port}{parts.path.rstrip('/')}"


def _read(file: Path) -> _File:
    try:
        with file.open("rb") as opened:
            _check(file, os.fstat(opened.fileno()))
            content = opened.read(1 << 20)
    except FileNotFoundError:
        return _File()
    except OSError as error:
        raise UnsafeCredentials(f"{file} cannot be read: {error.strerror}", where=str(file)) from error
    try:
        return _File.model_validate_json(content)
    except ValidationError as error:
        raise UnsafeCredentials(
            f"{file} is not a file of keys that this program wrote", where=str(file),
            hint="move it away and log in again: burnish login",
        ) from error  # fmt: skip


def _check(file: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise UnsafeCredentials(
            f"{file} belongs to another user", where=str(file), hint="move it away and log in again: burnish login"
        )
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UnsafeCredentials(
            f"others can read {file} (mode {stat.S_IMODE(found.st_mode):04o}); its keys are not used", where=str(file),
            hint=f"chmod 600 {file}; if somebody may have read it, rotate the keys: burnish key rotate",
        )  # fmt: skip


def _change(change: Callable[[dict[str, Credential]], dict[str, Credential]]) -> None:
    file = path()
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(file.parent):
            after = _File(servers=change(_read(file).servers))
            _replace(file, json.dumps(after.model_dump(mode="json", exclude_none=True), indent=2) + "\n")
    except OSError as error:
        raise UnsafeCredentials(
            f"{file} cannot be written: {error.strerror}", where=str(file),
            hint="free the disk or mend the folder's rights; or use the key as BURNISH_API_KEY",
        ) from error  # fmt: skip


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one program at a time change the file: two logins at once lose neither key."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(file: Path, content: str) -> None:
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=".credentials-")  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(name, file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
