"""Which node a home is. Two homes are two nodes, also on one machine: each has jobs and replicas of its own."""

import asyncio
import itertools
import secrets
from contextlib import suppress
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.errors import Unavailable
from burnish.core.settings import NODE_FILE, Settings
from burnish.infra.database import Database
from burnish.infra.home import write_once
from burnish.platform.configuration import views
from burnish.platform.jobs import store

HOME_FILE = "home"
"""In the home: its id."""
_SILENT_SECONDS = 60.0
"""A node that nobody has described for so long runs no process."""


async def settle_node(database: Database, settings: Settings) -> Settings:
    """Return the settings with the node's name, which is this home's alone from here on.

    A home keeps the name of its first start. Without one, a name that was asked for (``BURNISH_NODE``) is taken unless
    a living node of another home has it; the machine's name gets a number behind it where another home has it.

    Raises:
        Unavailable: the name that was asked for is that of a living node of another home.
    """
    home = settings.home
    home_id = (
        await asyncio.to_thread(write_once, home / HOME_FILE, f"home_{secrets.token_hex(8)}\n".encode())
    ).decode()
    home_id = home_id.strip()
    given = True
    async with database.write() as session:
        known = await store.home(session, home_id)
        if known is not None and (known.node == settings.node or not _asked_for(settings)):
            node = known.node
        elif _asked_for(settings) or _kept(home) is not None:
            node = settings.node
            given = await _take(session, home_id, node)
        else:
            for number in itertools.count(1):
                node = settings.node if number == 1 else f"{settings.node}-{number}"
                old = await store.node_silent_seconds(session, node) is not None  # of before homes had ids
                if not old and await store.claim_node(session, home_id, node):
                    break
    if not given:
        raise _taken(node)
    if _kept(home) != node:
        (home / NODE_FILE).unlink(missing_ok=True)
        await asyncio.to_thread(write_once, home / NODE_FILE, f"{node}\n".encode())
    return settings.model_copy(update={"node": node})


async def _take(session: AsyncSession, home_id: str, node: str) -> bool:
    """Make a name that was asked for this home's, also if it was another's that is gone; False if that one lives.

    Raises:
        Unavailable: another home took it meanwhile.
    """
    if not await store.claim_node(session, home_id, node):
        owner = await store.lock_owner(session, node)
        silent = await store.node_silent_seconds(session, node)
        if silent is None and owner is not None:  # it has run no jobs: all that is known of it is when it took the name
            silent = abs(await store.home_age_seconds(session, owner))  # the clock may have been set back since
        if (silent is not None and silent < _SILENT_SECONDS) or node in await _running(session):
            return False
        if not await store.give_node(session, home_id, node, owner):
            raise _taken(node)
    await store.note_seen(session, node)  # before it describes itself, which would be too late for others that ask
    return True


async def _running(session: AsyncSession) -> frozenset[str]:
    """Return the nodes of the processes that run, those without components included."""
    return frozenset(one.node for one in (await views.status(session)).data)


def _asked_for(settings: Settings) -> bool:
    return "node" in settings.model_fields_set


def _kept(home: Path) -> str | None:
    with suppress(OSError, UnicodeDecodeError):
        return (home / NODE_FILE).read_text(encoding="utf-8").strip() or None
    return None


def _taken(node: str) -> Unavailable:
    return Unavailable(
        f"the node {node} is another home's, and alive", where="BURNISH_NODE",
        hint="give each home a node name of its own with BURNISH_NODE, or leave it out: then it gets one by itself",
    )  # fmt: skip
