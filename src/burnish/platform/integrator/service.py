"""Rules of instances: register, heartbeat, drain, and what a probe means."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.errors import Conflict, NotFound
from burnish.core.pages import Page
from burnish.core.protocol import Description, Health, Registration
from burnish.core.states import InstanceState
from burnish.infra.database import utcnow
from burnish.platform.integrator import store
from burnish.platform.integrator.schemas import ComponentView, Instance
from burnish.platform.integrator.tables import ComponentTable

FAILURES_UNTIL_UNHEALTHY = 3
SILENT_SECONDS = 30.0
EMBEDDED = "embedded://"


async def register(session: AsyncSession, registration: Registration) -> ComponentTable:
    """Insert or update an instance; it is ``starting`` until its ``/describe`` has been read and validates.

    Raises:
        Conflict: the id is another type's, or that of an instance inside a server.
    """
    row = await store.find(session, registration.component_id, lock=True)
    if row is not None and (row.component_type != registration.component_type or row.embedded):
        owner = "an instance inside a server" if row.embedded else f"a {row.component_type}"
        raise Conflict(
            f"{registration.component_id} is already the id of {owner}", where="component_id", hint="choose another id"
        )
    if row is None:
        row = ComponentTable(component_id=registration.component_id, component_type=registration.component_type)
        _describe(row, registration)
        await store.insert(session, row)
    else:
        _describe(row, registration)
    await _begin(session, row)
    return row


async def register_embedded(session: AsyncSession, registration: Registration) -> ComponentTable:
    """Insert or update the row of an instance inside this process; a restart updates its row."""
    row = await store.find(session, registration.component_id, lock=True)
    if row is None:
        row = ComponentTable(component_id=registration.component_id, component_type=registration.component_type)
        _describe(row, registration)
        row.embedded, row.due_at = True, None
        await store.insert(session, row)
    else:
        _describe(row, registration)
        row.component_type, row.embedded, row.due_at = registration.component_type, True, None
    await _begin(session, row)
    return row


def _describe(row: ComponentTable, registration: Registration) -> None:
    row.name, row.version = registration.name, registration.version
    row.health_endpoint, row.api_endpoint = registration.health_endpoint, registration.api_endpoint
    row.metadata_ = dict(registration.metadata)


async def _begin(session: AsyncSession, row: ComponentTable) -> None:
    row.registered_at = row.registered_at or utcnow()
    row.last_heartbeat, row.failures, row.problem = utcnow(), 0, None
    row.description = row.health = None
    if not row.embedded:
        row.due_at = 0.0
    await store.change_state(session, row, InstanceState.STARTING, "registered")
    await store.changed(session)


async def heartbeat(session: AsyncSession, component_id: str) -> ComponentTable:
    """Note that the instance lives.

    Raises:
        NotFound: it is not registered.
    """
    row = await get(session, component_id, lock=True)
    row.last_heartbeat = utcnow()
    if row.status == InstanceState.LOST:
        await _begin(session, row)
    return row


async def deregister(session: AsyncSession, component_id: str) -> None:
    """Forget an instance.

    Raises:
        NotFound: it is not registered.
        Conflict: it lives inside a server, which would register it again.
    """
    row = await get(session, component_id, lock=True)
    if row.embedded and row.status not in (InstanceState.LOST, InstanceState.DRAINING):
        raise Conflict(f"{component_id} lives inside a server", hint="stop that server")
    await store.remove(session, component_id)


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


async def answered(session: AsyncSession, row: ComponentTable, description: Description, health: Health) -> None:
    """A probe went well."""
    row.failures, row.problem, row.last_heartbeat = 0, None, utcnow()
    plain = description.model_dump(mode="json")
    if row.description != plain:
        row.description = plain
        await store.changed(session)
    row.health = health.model_dump(mode="json")
    if row.status != InstanceState.DRAINING:
        fine = health.status == "ok"
        await store.change_state(
            session, row, InstanceState.HEALTHY if fine else InstanceState.DEGRADED, health.waiting_for
        )


async def did_not_answer(session: AsyncSession, row: ComponentTable, problem: str, *, silent: bool) -> None:
    """A probe failed: unhealthy after three in a row, lost if nothing was heard of it for long."""
    row.failures += 1
    row.problem = problem
    if silent:
        await store.change_state(session, row, InstanceState.LOST, problem)
    elif row.failures >= FAILURES_UNTIL_UNHEALTHY and row.status != InstanceState.LOST:
        await store.change_state(session, row, InstanceState.UNHEALTHY, problem)


async def page(
    session: AsyncSession, *, component_type: str | None, statuses: Sequence[str], after: str | None, limit: int
) -> Page[ComponentView]:
    """Return one page of instances, by id."""
    rows = await store.page(session, component_type=component_type, statuses=statuses, after=after, limit=limit)
    return Page[ComponentView].of([view_of(row) for row in rows], limit, lambda view: view.component_id)


def view_of(row: ComponentTable) -> ComponentView:
    """Return the public view of a row."""
    kinds: list[Any] = (row.description or {}).get("kinds", [])
    return ComponentView(
        id=row.id, component_id=row.component_id, component_type=row.component_type, name=row.name,
        version=row.version, status=InstanceState(row.status or InstanceState.STARTING),
        health_endpoint=row.health_endpoint or "", api_endpoint=row.api_endpoint or "",
        metadata=row.metadata_ or {}, registered_at=row.registered_at, last_heartbeat=row.last_heartbeat,
        embedded=row.embedded, kinds=tuple(kind["name"] for kind in kinds),
        health=None if row.health is None else Health.model_validate(row.health),
        failures=row.failures, problem=row.problem,
    )  # fmt: skip


def instance_of(row: ComponentTable) -> Instance:
    """Return what a process keeps of a row."""
    return Instance(
        component_id=row.component_id, component_type=row.component_type, api_endpoint=row.api_endpoint or "",
        status=InstanceState(row.status or InstanceState.STARTING),
        description=None if row.description is None else Description.model_validate(row.description),
        load=float((row.health or {}).get("load", 0.0)),
    )  # fmt: skip
