"""Looks at instances: what they say of themselves, and whether they live."""

import asyncio
import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from burnish.core.configuration import IntegratorConfiguration
from burnish.core.errors import BurnishError, DeadlineExceeded, Forbidden, InvalidRequest, Unavailable, UpstreamFailed
from burnish.core.offers import check_offer
from burnish.core.protocol import CALLER_HEADER, PROTOCOL_VERSION, Description, Health
from burnish.infra import signals
from burnish.infra.database import Database
from burnish.infra.http import Request, Response, Transport, Unreachable
from burnish.infra.problems import error_from_problem
from burnish.infra.reconcile import Turn
from burnish.platform.identity import CallerTokens, Principal
from burnish.platform.integrator import network, service, store
from burnish.platform.integrator.health import Sight
from burnish.platform.integrator.judging import AHEAD_SECONDS, Judge, Look
from burnish.platform.integrator.tables import ComponentTable
from burnish.platform.integrator.together import Rows, SignsOfLife

log = logging.getLogger(__name__)

SUPPORTED_VERSIONS = frozenset({PROTOCOL_VERSION})
_DESCRIBE_SECONDS = 60.0
"""A description that was read is believed for so long; a restart begins with reading it anew."""
_LATE_LEASES = 2.0
"""A late answer is waited for as long as so many leases."""
_LIMIT = 4 << 20

_PROBER = Principal("platform", project_id="")
"""Who asks for an instance's health: known to be the platform, and allowed nothing."""
_Model = TypeVar("_Model", bound=BaseModel)


class Unfit(UpstreamFailed):
    """It answers, and cannot be used as what it registered for."""


async def read_json(response: Response, what: str, limit: int) -> Any:
    """Return the JSON of an answer; an error answer is raised as the typed error it was.

    Raises:
        UpstreamFailed: the answer is no JSON.
        BurnishError: what was answered.
    """
    content = await response.read(limit)
    try:
        document = json.loads(content) if content else None
    except ValueError as error:
        raise UpstreamFailed(f"{what} answered {response.status} without JSON", where=what) from error
    if response.status >= 400:
        raise error_from_problem(document if isinstance(document, dict) else {}, response.status)
    return document


async def check_description(transport: Transport, component_type: str, timeout: float = 3.0) -> Description:
    """Return an instance's ``/describe``.

    Raises:
        Unfit: it is another type's, or speaks a protocol version that is unknown here.
        UpstreamFailed: it does not validate.
    """
    description = await describe(transport, timeout)
    if problem := unfit(description, component_type):
        raise Unfit(problem)
    return description


async def describe(transport: Transport, timeout: float) -> Description:
    """Return an instance's ``/describe``, whatever it says.

    Raises:
        UpstreamFailed: it does not validate.
    """
    return await get(transport, "/describe", Description, timeout)


def unfit(
    description: Description, component_type: str, taken: Mapping[str, str] | None = None
) -> str | None:  # fmt: skip
    """Return why an instance cannot be used as a component of this type, None if it can.

    ``taken``: path prefixes that other types serve.
    """
    if description.protocol_version not in SUPPORTED_VERSIONS:
        known = ", ".join(sorted(SUPPORTED_VERSIONS))
        return f"it speaks protocol version {description.protocol_version[:20]}; known here: {known}"
    if description.component_type != component_type:
        return f"it says that it is a {description.component_type[:100]}, not a {component_type}"
    try:
        check_offer(description, taken or {})
    except InvalidRequest as error:
        return error.message
    return None


def prober(tokens: CallerTokens, component_type: str, component_id: str | None) -> str:
    """Return the token by which the platform shows an instance who asks how it is; None: it does not know its id."""
    return tokens.sign(_PROBER, component_type, instance=component_id)


async def get_health(transport: Transport, caller: str, timeout: float, path: str = "/health") -> Health:
    """Return an instance's health as whoever shows this caller's token is told it.

    Raises:
        BurnishError: it does not answer, or not that.
    """
    return await get(transport, path, Health, timeout, {CALLER_HEADER: caller})


async def get(
    transport: Transport, path: str, model: type[_Model], timeout: float, headers: Mapping[str, str] = MappingProxyType({})
) -> _Model:  # fmt: skip
    """Return what an instance answers at ``path``. Of an error its status is told, and no word that stands in it.

    Raises:
        BurnishError: it does not answer, or not that.
    """
    request = Request("GET", path, {"accept": "application/json", **headers}, deadline=time.time() + timeout)
    async with transport.send(request) as response:
        if response.status >= 400:  # whoever reads the list may not be who may read what is answered there
            raise UpstreamFailed(f"its {path.partition('?')[0]} answers with status {response.status}", where=path)
        document = await read_json(response, path, _LIMIT)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise UpstreamFailed(f"its {path} does not validate: {_first(error)}", where=path) from error


def _first(error: ValidationError) -> str:
    """Return the first of what is wrong, with its place."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])[:200]
    return f"{place}: {first['msg']}" if place else first["msg"]


@dataclass
class _Probe:
    """One probe on its way; it may be waited for beyond its time."""

    task: asyncio.Task[Look]
    generation: int
    began: float = field(default_factory=time.monotonic)
    kept: bool = False


class Prober:
    """Gives turns to instances outside this process: one look each."""

    def __init__(
        self, database: Database, transport: Callable[[str, str], Transport],
        settings: Callable[[], IntegratorConfiguration], judge: Judge, tokens: CallerTokens,
        taken: Callable[[str], Mapping[str, str]] = lambda component_type: {},
    ) -> None:  # fmt: skip
        self._transport = transport
        self._settings = settings
        self._judge = judge
        self._tokens = tokens
        self._taken = taken
        self._late: dict[str, _Probe] = {}
        self._rows = Rows(database)
        self._signs = SignsOfLife(database)
        self._described: dict[str, tuple[int, float]] = {}

    async def stop(self) -> None:
        """End the probes that still wait."""
        waiting = [probe.task for probe in self._late.values()]
        self._late.clear()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await self._signs.stop()

    def keep_only(self, component_ids: frozenset[str]) -> None:
        """Forget the instances that are no longer registered."""
        for component_id in self._late.keys() - component_ids:
            self._late.pop(component_id).task.cancel()
        for component_id in self._described.keys() - component_ids:
            del self._described[component_id]

    async def turn(self, turn: Turn) -> float | None:
        """Look at one instance and record what came of it."""
        row, now = await self._rows.get(turn.key)
        if row is None:
            return None
        left = 0.0 if row.drain_until is None else row.drain_until - now
        if 0 < left <= service.DRAIN_SECONDS + AHEAD_SECONDS:  # more was written before the clock was set back
            return left
        look = await self._look(row)
        if look.sight not in (Sight.OK, Sight.DEGRADED, Sight.NOT_LOOKED):
            signals.PROBES_FAILED.labels(row.component_type).inc()
        if self._judge.tells_nothing_new(row, look, now):
            if (lease := self._judge.lease_wanted(row, now)) is not None:
                self._signs.note(row.component_id, row.generation, lease)
            return self._next(look, 0)
        async with turn.write() as session:
            fresh = await store.by_key(session, turn.key, lock=True)
            if fresh is None or fresh.generation != row.generation:
                return 0.0
            if fresh.drain_until is not None and look.sight is not Sight.NOT_LOOKED:
                return 0.0  # deregistered meanwhile: what was seen matters no more
            await self._judge.apply(session, fresh, look)
            return service.DRAIN_SECONDS if fresh.drain_until is not None else self._next(look, fresh.failures)

    def _next(self, look: Look, failures: int) -> float:
        """Return when to look again: soon while it fails for the first times.

        A fleet that began at once is soon not looked at in step: some of the time is left out where one was described.
        """
        usual = self._settings().probe_seconds
        if look.description is not None:
            usual *= random.uniform(0.5, 1)  # noqa: S311 - no secret
        soon = look.sight not in (Sight.OK, Sight.NOT_LOOKED, Sight.UNFIT, Sight.FORBIDDEN) and failures <= 10
        return usual / 5 if soon else usual

    async def _look(self, row: ComponentTable) -> Look:
        endpoint = row.api_endpoint or ""
        if endpoint.startswith(service.EMBEDDED) or row.drain_until is not None:
            return Look(Sight.NOT_LOOKED)
        settings = self._settings()
        try:
            network.check_same_host(row.health_endpoint or endpoint, endpoint)
            addresses = await network.check_endpoint(endpoint, "api_endpoint", settings.allowed_networks)
            await network.check_endpoint(row.health_endpoint or endpoint, "health_endpoint", settings.allowed_networks)
        except (Forbidden, InvalidRequest) as error:
            return Look(Sight.FORBIDDEN, error.message)
        except Unavailable as error:
            return Look(Sight.UNREACHABLE, error.message)
        probe = self._late.pop(row.component_id, None)
        if probe is not None and probe.generation != row.generation:
            probe.task.cancel()
            probe = None
        late = probe is not None
        if probe is None:
            hard = settings.probe_timeout_seconds + _LATE_LEASES * settings.lease_seconds
            probe = _Probe(asyncio.create_task(self._ask(row, endpoint, hard)), row.generation)
        await asyncio.wait({probe.task}, timeout=settings.probe_timeout_seconds)
        if not probe.task.done():
            self._keep(row, probe, settings.lease_seconds)
        elif not late or probe.task.result().sight is not Sight.UNREACHABLE:
            return _told(probe, late=late)
        waited = f"it has not answered for {time.monotonic() - probe.began:.1f} s"
        if await network.listens(addresses, network.host_of(endpoint, "api_endpoint")[1], 1.0):
            return Look(Sight.SILENT, f"{waited}, though something listens there")
        return Look(Sight.UNREACHABLE, waited)

    def _keep(self, row: ComponentTable, probe: _Probe, lease: float) -> None:
        """Go on waiting for a late answer: it is a sign of life, whoever looks next."""
        self._late[row.component_id] = probe
        if probe.kept:
            return
        probe.kept = True

        def answered(task: asyncio.Task[Look]) -> None:
            if not task.cancelled() and task.result().sight in (Sight.OK, Sight.DEGRADED):
                self._signs.note(row.component_id, row.generation, lease)

        probe.task.add_done_callback(answered)

    async def _ask(self, row: ComponentTable, endpoint: str, seconds: float) -> Look:
        """Ask an instance for its health, and for its description unless that was read lately."""
        description: Description | None = None
        try:
            transport = self._transport(row.component_id, endpoint)
            if not self._knows(row):
                description = await describe(transport, seconds)
                if problem := unfit(description, row.component_type, self._taken(row.component_type)):
                    return Look(Sight.UNFIT, problem, description)
                self._described[row.component_id] = (row.generation, time.monotonic())
            health_transport, path = self._health(row, endpoint, transport)
            found_by_address = row.source in ("static", "dns")
            caller = prober(self._tokens, row.component_type, None if found_by_address else row.component_id)
            health = await get_health(health_transport, caller, seconds, path)
        except BurnishError as error:
            return Look(_sight_of(error), error.message)
        return Look(Sight.OK if health.status == "ok" else Sight.DEGRADED, None, description, health)

    def _knows(self, row: ComponentTable) -> bool:
        """Whether the description of this incarnation was read here lately, and it has answered since."""
        generation, at = self._described.get(row.component_id, (-1, 0.0))
        fresh = time.monotonic() - at < _DESCRIBE_SECONDS
        return row.description_digest is not None and generation == row.generation and fresh and row.failures == 0

    def _health(self, row: ComponentTable, endpoint: str, transport: Transport) -> tuple[Transport, str]:
        """Return the way to the health endpoint: below the API's, or at an address of its own."""
        health, api = urlsplit(row.health_endpoint or ""), urlsplit(endpoint)
        path = (health.path or "/health") + (f"?{health.query}" if health.query else "")
        base = api.path.rstrip("/")
        if health.netloc in ("", api.netloc) and (not base or path.startswith(f"{base}/")):
            return transport, path.removeprefix(base)
        origin = f"{health.scheme}://{health.netloc}" if health.netloc else f"{api.scheme}://{api.netloc}"
        return self._transport(f"{row.component_id} health", origin), path


def _told(probe: _Probe, *, late: bool) -> Look:
    look = probe.task.result()
    if late and look.sight in (Sight.OK, Sight.DEGRADED):
        waited = f"it answered only after {time.monotonic() - probe.began:.1f} s"
        return Look(Sight.LATE, waited, look.description, look.health)
    return look


def _sight_of(error: BurnishError) -> Sight:
    if network.is_refusal(error):
        return Sight.REFUSED
    if network.is_forbidden(error):
        return Sight.FORBIDDEN
    if isinstance(error, DeadlineExceeded | Unreachable):
        return Sight.UNREACHABLE
    return Sight.BROKEN
