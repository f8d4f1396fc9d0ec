"""Rules of instances: register, heartbeat, deregister, and how they are shown."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal

import orjson
from pydantic_core import to_json
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.errors import Busy, Conflict, NotFound
from burnish.core.pages import Page
from burnish.core.protocol import MAX_METADATA_DEPTH, Health, Registration, is_deeper
from burnish.core.states import InstanceState
from burnish.infra.database import Database, utcnow
from burnish.platform.integrator import store
from burnish.platform.integrator.schemas import ActionView, ComponentView, Heartbeat
from burnish.platform.integrator.tables import ComponentTable

log = logging.getLogger(__name__)

EMBEDDED = "embedded://"
MOST_INSTANCES = 10_000
DRAIN_SECONDS = 5.0
"""From deregistering to removal: long enough for every process to hear of it."""
LEASE_SECONDS = 30.0
_LONGER = 1.2
"""A renewed lease is so much longer: until that is used up, signs of life have nothing to renew, and write nothing."""

Source = Literal["embedded", "registered", "static", "dns", "entry_point"]
_S = InstanceState


@dataclass(frozen=True)
class Origin:
    """How an instance was found, and what is known of it from there."""

    source: Source = "registered"
    found_by: str | None = None
    node: str | None = None
    process: str | None = None
    weight: float | None = None

    @property
    def embedded(self) -> bool:
        """Whether it is inside a process of Burnish that registers it by itself."""
        return self.source in ("embedded", "entry_point")


async def registered(database: Database, registration: Registration, lease_seconds: float) -> int:
    """Register an instance in units of work of its own; return its generation.

    One that is known, is well and has a fresh lease is only read: registering it again, however often, writes nothing.

    Raises:
        Conflict: the id is another type's, or that of an instance inside a server.
        Busy: there are too many instances already.
    """
    async with database.read() as session:
        row = await store.find(session, registration.component_id)
        now = await store.now(session)
    well = row is not None and not row.embedded and _same(row, registration, Origin()) and not _ill(row)
    if row is not None and well and (row.expires_at or 0) - now > lease_seconds:
        return row.generation
    async with database.write() as session:
        return (await register(session, registration, lease_seconds=lease_seconds)).generation


async def beaten(
    database: Database, component_id: str, said: Heartbeat | None, lease_seconds: float
) -> ComponentView:  # fmt: skip
    """Note a heartbeat in units of work of its own; one that changes nothing writes nothing.

    Raises:
        NotFound: it is not registered.
        Conflict: a later incarnation of it has registered.
    """
    async with database.read() as session:
        row = await get(session, component_id)
        fresh = min(row.expires_at or 0, row.beat_until or 0) - await store.now(session) > lease_seconds
        news = said is not None and said.health is not None and said.health.model_dump(mode="json") != row.health
        if fresh and not news and not _ill(row) and (said is None or said.generation in (None, row.generation)):
            return view_of(row)
    async with database.write() as session:
        return view_of(await heartbeat(session, component_id, said, lease_seconds=lease_seconds))


async def register(
    session: AsyncSession, registration: Registration, *, origin: Origin | None = None,
    lease_seconds: float = LEASE_SECONDS,
) -> ComponentTable:  # fmt: skip
    """Insert or update an instance; it is ``starting`` until its ``/describe`` has been read and validates.

    One that is known as it is, and well, only has its lease renewed.

    Raises:
        Conflict: the id is another type's, or that of an instance inside a server.
        Busy: there are too many instances already.
    """
    origin = origin or Origin()
    row = await store.find(session, registration.component_id, lock=True)
    if row is None:
        row = await _inserted(session, registration, origin)
    elif not origin.embedded:
        _refuse_foreign(row, registration)
        if _same(row, registration, origin) and not _ill(row):
            row.expires_at, row.last_heartbeat = await store.now(session) + lease_seconds * _LONGER, utcnow()
            return row
    row.component_type = registration.component_type
    _describe(row, registration, origin)
    row.generation += 1
    row.restart_requested_at = None
    await _begin(session, row, lease_seconds)
    return row


async def _inserted(session: AsyncSession, registration: Registration, origin: Origin) -> ComponentTable:
    if await store.count(session) >= MOST_INSTANCES:
        raise Busy(
            f"there are {MOST_INSTANCES} instances already", hint="deregister those that are gone", retry_after=60
        )
    row = ComponentTable(
        component_id=registration.component_id, component_type=registration.component_type, generation=0, failures=0,
        successes=0, restarts=0, alerted=False, actions=None, description=None, name="", version="",
        source=origin.source, embedded=origin.embedded,
    )  # fmt: skip
    _describe(row, registration, origin)
    if await store.insert(session, row):
        return row
    found = await store.find(session, registration.component_id, lock=True)  # another request was first
    if found is None:
        raise Conflict(f"{registration.component_id} was registered and deregistered meanwhile", hint="send it again")
    if not origin.embedded:
        _refuse_foreign(found, registration)
    return found


def _refuse_foreign(row: ComponentTable, registration: Registration) -> None:
    if row.component_type != registration.component_type or row.embedded:
        owner = "an instance inside a server" if row.embedded else f"a {row.component_type}"
        raise Conflict(
            f"{registration.component_id} is already the id of {owner}", where="component_id", hint="choose another id"
        )


def _same(row: ComponentTable, registration: Registration, origin: Origin) -> bool:
    return (
        row.component_type == registration.component_type
        and (row.name, row.version) == (registration.name, registration.version)
        and (row.health_endpoint, row.api_endpoint) == (registration.health_endpoint, registration.api_endpoint)
        and (row.metadata_ or {}) == dict(registration.metadata)
        and (origin.source == "registered" or (row.found_by, row.weight) == (origin.found_by, origin.weight))
    )


def _ill(row: ComponentTable) -> bool:
    return row.status not in (_S.STARTING, _S.HEALTHY, _S.DEGRADED) or row.failures > 0


def _describe(row: ComponentTable, registration: Registration, origin: Origin) -> None:
    row.name, row.version = registration.name, registration.version
    row.health_endpoint, row.api_endpoint = registration.health_endpoint, registration.api_endpoint
    row.metadata_ = dict(registration.metadata)
    row.source, row.embedded, row.found_by = origin.source, origin.embedded, origin.found_by
    row.node, row.process, row.weight = origin.node, origin.process, origin.weight


async def _begin(session: AsyncSession, row: ComponentTable, lease_seconds: float) -> None:
    """Have it start anew: described and looked at again before it gets a call."""
    row.registered_at = row.registered_at or utcnow()
    row.last_heartbeat, row.failures, row.successes = utcnow(), 0, 0
    row.problem = row.problem_kind = row.description = row.description_digest = row.health = row.evidence = None
    row.drain_until = row.moved_at = None
    row.expires_at = await store.now(session) + lease_seconds * _LONGER
    row.beat_until = row.expires_at if row.embedded else None
    await store.change_state(session, row, InstanceState.STARTING, "registered")
    await store.look_now(session, row)
    await store.changed(session)


async def heartbeat(
    session: AsyncSession, component_id: str, said: Heartbeat | None = None, *, lease_seconds: float = LEASE_SECONDS
) -> ComponentTable:
    """Note that the instance lives; one that was thought lost starts anew.

    Raises:
        NotFound: it is not registered.
        Conflict: a later incarnation of it has registered.
    """
    said = said or Heartbeat()
    row = await get(session, component_id, lock=True)
    _refuse_older(row, said.generation)
    if row.status == _S.DRAINING:
        return row
    if row.status == _S.LOST:
        await _begin(session, row, lease_seconds)
    elif row.status == _S.UNHEALTHY:
        await store.look_now(session, row)
    now = await store.now(session)
    if min(row.expires_at or 0, row.beat_until or 0) - now < lease_seconds:
        row.expires_at = row.beat_until = now + lease_seconds * _LONGER
        row.last_heartbeat = utcnow()
    if said.health is not None and said.health.model_dump(mode="json") != row.health:
        row.health = said.health.model_dump(mode="json")
    return row


def _refuse_older(row: ComponentTable, generation: int | None) -> None:
    if generation is not None and generation < row.generation:
        raise Conflict(
            f"{row.component_id} has been registered anew since generation {generation}", where="generation",
            hint="another process is this instance now; register again to take its place",
        )  # fmt: skip


async def deregister(session: AsyncSession, component_id: str, generation: int | None = None) -> None:
    """Have an instance get no more calls, and forget it once those that run have had their time.

    Raises:
        NotFound: it is not registered.
        Conflict: a later incarnation of it than ``generation`` has registered; it lives inside a server, which would
            register it again; or it is the last of a lost node, whose work has not been moved yet.
    """
    row = await get(session, component_id, lock=True)
    _refuse_older(row, generation)
    if row.embedded and row.status not in (_S.LOST, _S.DRAINING):
        raise Conflict(f"{component_id} lives inside a server", hint="stop that server")
    if row.moved_at is None and await store.is_last_of_node(session, row):
        raise Conflict(
            f"{component_id} is the last that is known of the node {row.node}, whose work has not been moved yet",
            hint="try again once the node has been lost for long enough that its work goes on elsewhere",
        )  # fmt: skip
    if row.embedded or row.status == _S.LOST:
        await store.remove(session, component_id)
        return
    await drain(session, row, "deregistered")


async def drain(session: AsyncSession, row: ComponentTable, reason: str) -> None:
    """Have a locked row get no more calls; it is removed soon."""
    if row.drain_until is None:
        row.drain_until = await store.now(session) + DRAIN_SECONDS
    row.problem = reason
    await store.change_state(session, row, _S.DRAINING, reason)
    await store.look_now(session, row)


async def get(session: AsyncSession, component_id: str, *, lock: bool = False) -> ComponentTable:
    """Return an instance.

    Raises:
        NotFound: it is not registered.
    """
    row = await store.find(session, component_id, lock=lock)
    if row is None:
        raise NotFound(
            f"there is no component {component_id}", where="component_id",
            hint="register it with POST /platform/components/register",
        )  # fmt: skip
    return row


class Listing:
    """Lists of one database's instances, as JSON: of an instance that is as it was, what was written before is given.

    Without ``names`` they leave out what names models and jobs of every project.
    """

    def __init__(self, *, names: bool = True) -> None:
        self._names = names
        self._written: dict[str, tuple[str, bytes]] = {}
        """By id: the state of the row, and the JSON of its view."""

    async def page(self, session: AsyncSession, wanted: store.Wanted, limit: int) -> bytes:
        """Return one page of instances, by id, as the JSON of a ``Page[ComponentView]``."""
        states = await store.states(session, wanted, limit + 1)
        listed = Page[tuple[str, str]].of(states, limit, lambda one: one[0])
        shown = await self._shown(session, wanted, listed.data)
        first, last = b'{"data":[', b"]," + orjson.dumps({"has_more": listed.has_more, "next": listed.next})[1:]
        if not shown:
            return first + last
        shown[0] = first + shown[0]
        shown[-1] += last
        return b",".join(shown)  # copied once: of 1,000 it is most of a megabyte

    async def _shown(
        self, session: AsyncSession, wanted: store.Wanted, states: Sequence[tuple[str, str]]
    ) -> list[bytes]:  # fmt: skip
        """Return the JSON of these instances; without those that were removed since their states were read."""
        if len(self._written) > MOST_INSTANCES:  # most of them are gone
            self._written.clear()
        kept = ((one, state, self._written.get(one)) for one, state in states)
        shown = {one: written[1] for one, state, written in kept if written is not None and written[0] == state}
        if changed := [one for one, _ in states if one not in shown]:
            for state, row in await store.listed(session, wanted, changed):
                shown[row.component_id] = _json_however(row, names=self._names)
                self._written[row.component_id] = (state, shown[row.component_id])
        return [shown[one] for one, _ in states if one in shown]


def _json_however(row: store.Listed, *, names: bool) -> bytes:
    """Return what is shown of a row; of one that cannot be written, what is not its documents: the others are shown."""
    try:
        return _json_of(row, names=names)
    except (TypeError, ValueError, RecursionError):
        log.exception("the documents of the instance %s cannot be shown", row.component_id)
        return _json_of(row._replace(metadata_=None, kinds=None, health=None), names=names)


def _json_of(row: store.Listed, *, names: bool) -> bytes:
    """Return what :func:`view_of` shows of a row, as its model writes it, without making one."""
    values = {
        "id": row.id, "component_id": row.component_id, "component_type": row.component_type, "name": row.name,
        "version": row.version, "status": row.status or InstanceState.STARTING,
        "health_endpoint": row.health_endpoint or "", "api_endpoint": row.api_endpoint or "",
        "metadata": _as_written(_metadata(json.loads(row.metadata_ or "null"))), "registered_at": row.registered_at,
        "last_heartbeat": row.last_heartbeat, "embedded": row.embedded, "source": row.source, "node": row.node,
        "generation": row.generation, "protocol_version": row.protocol_version, "since": _since(row.state_since),
        "weight": 1.0 if row.weight is None else row.weight, "kinds": _kinds(row.kinds),
        "health": _health(row.health, names=names), "failures": row.failures, "problem": row.problem,
        "problem_kind": row.problem_kind, "restarts": row.restarts,
        "restart_requested_at": row.restart_requested_at, "actions": None,
    }  # fmt: skip
    return orjson.dumps(values, option=orjson.OPT_UTC_Z)


@lru_cache(maxsize=1024)
def _kinds(text: str | None) -> orjson.Fragment:
    """Return the JSON of a stored document; of many instances it is the same."""
    return _as_written(json.loads(text or "null") or [])


@lru_cache(maxsize=1024)
def _health(text: str | None, *, names: bool) -> orjson.Fragment:
    return _as_written(_health_view(json.loads(text or "null"), names=names))


def _as_written(value: Any) -> orjson.Fragment:
    """Return JSON as pydantic writes it: orjson has no integers of more than 64 bits."""
    return orjson.Fragment(to_json(value, inf_nan_mode="null"))


def view_of(row: ComponentTable, *, names: bool = True) -> ComponentView:
    """Return the public view of a row. What we wrote is not validated again.

    Without ``names`` it leaves out what names models and jobs of every project.
    """
    return ComponentView.model_construct(
        id=row.id, component_id=row.component_id, component_type=row.component_type, name=row.name,
        version=row.version, status=InstanceState(row.status or InstanceState.STARTING),
        health_endpoint=row.health_endpoint or "", api_endpoint=row.api_endpoint or "",
        metadata=_metadata(row.metadata_), registered_at=row.registered_at, last_heartbeat=row.last_heartbeat,
        embedded=row.embedded, kinds=tuple(row.kinds or ()),
        health=_health_view(row.health, names=names),
        failures=row.failures, problem=row.problem, problem_kind=row.problem_kind, source=row.source, node=row.node,
        generation=row.generation, protocol_version=row.protocol_version,
        weight=1.0 if row.weight is None else row.weight, since=_since(row.state_since),
        restarts=row.restarts, restart_requested_at=row.restart_requested_at,
    )  # fmt: skip


def _metadata(stored: dict[str, Any] | None) -> dict[str, Any]:
    """Return the metadata to show: none where it is from before there was a bound, and too deep to be written."""
    return {} if stored is None or is_deeper(stored, MAX_METADATA_DEPTH) else stored


def _since(stored: float | None) -> datetime | None:
    return None if stored is None else datetime.fromtimestamp(stored, UTC)


def _health_view(stored: dict[str, Any] | None, *, names: bool) -> Health | None:
    if stored is None:
        return None
    health = health_of(stored)
    return health if names else health.model_copy(update={"waiting_for": None, "warm": ()})


def told_health(text: str | None) -> Health | None:
    """Return the health that a row keeps, from its text."""
    stored = json.loads(text or "null")
    return None if stored is None else health_of(stored)


def health_of(stored: dict[str, Any]) -> Health:
    """Return the health that a row keeps."""
    return Health.model_construct(None, **{**stored, "warm": tuple(stored.get("warm") or ())})


def detail_of(row: ComponentTable, *, names: bool = True) -> ComponentView:
    """Return the public view of a row with what was done about it; ``names`` as in :func:`view_of`."""
    actions = tuple(ActionView.model_validate(one) for one in row.actions or ())
    return view_of(row, names=names).model_copy(update={"actions": actions})
