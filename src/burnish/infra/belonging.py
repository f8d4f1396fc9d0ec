"""A home and an artifact store belong to one database.

By the rows of another, a server would end the hosts and replicas that it finds in the home and sweep the artifacts that
it finds in the store. So each database has an id, and both keep the id of theirs from the first start on. The id lies
in the database itself: a backup that is restored, wherever, is still the same.

All processes of one installation also hold one secret key: a process with another would neither believe the others'
callers nor read their secrets. The database keeps the key's fingerprint.
"""

import asyncio
import hashlib
import secrets
from pathlib import Path

from sqlalchemy.engine import make_url

from burnish.core.errors import Unavailable
from burnish.infra.artifact_store import ArtifactStore
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.database import Database
from burnish.infra.home import write_once

OWNER_FILE = "database"
"""In the home: ``<id> <url>`` of its database."""


async def claim(database: Database, store: ArtifactStore, home: Path, artifact_url: str) -> None:
    """Tie database, store and home to each other on the first start; later, refuse others. A refusal changes nothing.

    Raises:
        Unavailable: the home or the store is another database's, or the database's artifacts are in another store.
    """
    owners = await asyncio.to_thread(_owners, store, home)
    async with database.read() as session:  # after: whoever ties them just now writes into the database first
        known = await artifacts.database_id(session)
    shown = make_url(database.url).set(query={}).render_as_string(hide_password=True)
    _refuse_others(owners, known, shown, home, artifact_url)
    async with database.write() as session:
        known = await artifacts.claim_store(session, store.store_id, artifact_url)
    taken = await asyncio.to_thread(_take, store, home, f"{known} {shown}")
    _refuse_others(taken, known, shown, home, artifact_url)  # another may have come first, just now


async def claim_key(database: Database, path: Path, *, own: bool) -> bytes:
    """Return the installation's secret key; on the first start of all, make it (``own`` files only) and note it.

    Args:
        database: after :func:`claim`.
        path: where the key lies.
        own: the file is the home's, and may be made here; else an administrator puts it there.

    Raises:
        Unavailable: the file cannot be read, is too short, or holds another key than the installation's.
    """
    async with database.read() as session:
        known = await artifacts.key_fingerprint(session)
    made = own and known is None and await asyncio.to_thread(_make_key, path)
    key = await asyncio.to_thread(read_key, path, known)
    async with database.write() as session:
        known = await artifacts.claim_key(session, fingerprint_of(key))
    if known != fingerprint_of(key):
        if made:  # another process of the installation was first, just now
            await asyncio.to_thread(path.unlink, missing_ok=True)
        raise _foreign_key(path, known, fingerprint_of(key))
    return key


def _make_key(path: Path) -> bool:
    key = secrets.token_bytes(32)
    return not path.exists() and write_once(path, key) == key


def read_key(path: Path, known: str | None = None) -> bytes:
    """Return the secret key in a file.

    Raises:
        Unavailable: it cannot be read or is too short.
    """
    try:
        key = path.read_bytes()
    except FileNotFoundError as error:
        raise _foreign_key(path, known, None) if known else _unreadable(path, error) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(key) < 32:
        raise Unavailable(
            "the secret key is shorter than 32 bytes", where=str(path), hint="make one: head -c 32 /dev/urandom"
        )
    return key


def fingerprint_of(key: bytes) -> str:
    """Return what may be shown of a key: equal for equal keys, and nothing of them."""
    return hashlib.blake2b(key, digest_size=8, person=b"burnish-key").hexdigest()


def _unreadable(path: Path, error: OSError) -> Unavailable:
    return Unavailable(
        f"the secret key cannot be read: {error.strerror}", where=str(path),
        hint="the user that runs Burnish must be able to read it; make one: head -c 32 /dev/urandom",
    )  # fmt: skip


def _foreign_key(path: Path, known: str, own: str | None) -> Unavailable:
    found = "there is none" if own is None else f"this one is {own}"
    return Unavailable(
        f"the secret key of this installation has the fingerprint {known}; in {path} {found}",
        where=str(path),
        hint="every process of an installation needs the same key: copy the file `secret.key` of the home of the first "
        "process here, or name it with BURNISH_SECRET_KEY_FILE",
    )


def _owners(store: ArtifactStore, home: Path) -> tuple[str | None, str | None]:
    try:
        of_home = (home / OWNER_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        of_home = None
    return of_home, store.owner()


def _take(store: ArtifactStore, home: Path, owner: str) -> tuple[str, str]:
    return write_once(home / OWNER_FILE, f"{owner}\n".encode()).decode(), store.claim(owner)


def _refuse_others(
    owners: tuple[str | None, str | None], known: str | None, shown: str, home: Path, artifact_url: str
) -> None:
    of_home, of_store = owners
    for owner, what, where, setting in (
        (of_home, f"the home {home}", str(home / OWNER_FILE), "BURNISH_HOME"),
        (of_store, f"the artifact store {artifact_url}", f"{artifact_url.rstrip('/')}/owner", "BURNISH_ARTIFACT_URL"),
    ):
        identity, _, url = (owner or "").strip().partition(" ")
        if identity not in ("", known):
            mine = "which is new" if known is None else known
            raise Unavailable(
                f"{what} belongs to the database {url} ({identity}), not to {shown} ({mine}); by the rows of another "
                "database this server would end its jobs and remove its artifacts",
                where=where,
                hint=f"start it with that database (BURNISH_DATABASE_URL), or with another {setting}; if that database is "
                f"gone for good, remove the file {where} and start again: this one then takes over",
            )
