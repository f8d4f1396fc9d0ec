"""A home and an artifact store belong to one database.

By the rows of another, a server would end the hosts and replicas that it finds in the home and sweep the artifacts that
it finds in the store. So each database has an id, and both keep the id of theirs from the first start on. The id lies
in the database itself: a backup that is restored, wherever, is still the same.
"""

import asyncio
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
    async with database.read() as session:
        known = await artifacts.database_id(session)
    shown = make_url(database.url).set(query={}).render_as_string(hide_password=True)
    _refuse_others(await asyncio.to_thread(_owners, store, home), known, shown, home, artifact_url)
    async with database.write() as session:
        known = await artifacts.claim_store(session, store.store_id, artifact_url)
    taken = await asyncio.to_thread(_take, store, home, f"{known} {shown}")
    _refuse_others(taken, known, shown, home, artifact_url)  # another may have come first, just now


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
