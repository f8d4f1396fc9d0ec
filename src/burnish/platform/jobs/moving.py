"""Jobs of a node that is lost go on elsewhere, each from its last checkpoint; what only waits for a node, sooner.

What a host on the lost node may still do counts no more: its job's row has another node and no folder there, and the
next start is another incarnation. When the node comes back, it ends such hosts (:meth:`JobRuntime.sweep`).
"""

import logging

from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.states import JobState
from burnish.platform.jobs import recording, store

log = logging.getLogger(__name__)

ALIVE_SECONDS = 30.0
"""A node that described itself this lately is alive, whatever its components' heartbeats say."""


async def move_off(session: AsyncSession, node: str, reason: str) -> bool:
    """Free a lost node's queued and paused jobs, and queue its running ones again. Doing it again is harmless.

    Args:
        session: the caller's unit of work.
        node: every instance on it has been lost for long.
        reason: why it is thought so, in words.

    Returns:
        False: nothing was done, as the node lives: its scheduler reads and writes the database. Ask again later.
    """
    await store.lock_admission(session)  # nothing is admitted to it meanwhile
    silent = await store.node_silent_seconds(session, node)
    if silent is not None and silent < ALIVE_SECONDS:
        return False
    await store.mark_lost(session, node)
    jobs = await store.unfinished_on(session, node)
    seen_at = await store.node_seen_at(session, node)
    for job in jobs:
        await recording.moved(session, job, node, seen_at)
    if jobs:
        log.warning("node %s is lost (%s): %d of its jobs go on elsewhere", node, reason, len(jobs))
    return True


async def free_queued(session: AsyncSession, node: str, component_type: str, reason: str) -> int:
    """Let any node take the queued jobs of a type that wait for one whose processes have stopped to offer it.

    What runs there or is paused stays that node's: its hosts live on, and its next start finds them. Only when the node
    is lost do these go on elsewhere (:func:`move_off`).

    Args:
        session: the caller's unit of work.
        node: nothing there takes jobs of the type.
        component_type: of the jobs.
        reason: why it is thought so, in words.

    Returns:
        How many jobs were freed; none the second time.
    """
    await store.lock_admission(session)
    waiting = [
        job
        for job in await store.unfinished_on(session, node)
        if job.state == JobState.QUEUED and job.component_type == component_type
    ]
    for job in waiting:
        await recording.moved(session, job, node, why="has stopped")
    if waiting:
        log.warning("node %s has stopped (%s): %d jobs that waited for it go on elsewhere", node, reason, len(waiting))
    return len(waiting)
