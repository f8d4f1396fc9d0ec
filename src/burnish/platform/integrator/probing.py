"""Looks at instances: what they say of themselves, and whether they live."""

import json
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from burnish.core.errors import BurnishError, UpstreamFailed
from burnish.core.protocol import CALLER_HEADER, PROTOCOL_VERSION, Description, Health
from burnish.infra import signals
from burnish.infra.database import Database, utcnow
from burnish.infra.http import Request, Response, Transport
from burnish.infra.problems import error_from_problem
from burnish.infra.reconcile import Turn
from burnish.platform.identity import LOCAL, CallerTokens
from burnish.platform.integrator import service, store
from burnish.platform.integrator.network import check_endpoint

PROBE_SECONDS = 5.0
_TIMEOUT_SECONDS = 3.0
_LIMIT = 4 << 20

_Model = TypeVar("_Model", bound=BaseModel)


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


async def check_description(transport: Transport, component_type: str) -> Description:
    """Return an instance's ``/describe``.

    Raises:
        UpstreamFailed: it does not validate, is another type's, or speaks another protocol version.
    """
    description = await _get(transport, "/describe", Description, {})
    if description.component_type != component_type:
        raise UpstreamFailed(f"it says that it is a {description.component_type}, not a {component_type}")
    if description.protocol_version != PROTOCOL_VERSION:
        raise UpstreamFailed(f"it speaks protocol version {description.protocol_version}; this is {PROTOCOL_VERSION}")
    return description


async def _get(transport: Transport, path: str, model: type[_Model], headers: dict[str, str]) -> _Model:
    request = Request("GET", path, headers, deadline=time.time() + _TIMEOUT_SECONDS)
    async with transport.send(request) as response:
        document = await read_json(response, path, _LIMIT)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise UpstreamFailed(f"its {path} does not validate: {error.errors()[0]['msg']}", where=path) from error


class Prober:
    """Gives turns to remote instances: one probe each."""

    def __init__(self, database: Database, transport: Callable[[str, str], Transport], tokens: CallerTokens) -> None:
        self._database = database
        self._transport = transport
        self._tokens = tokens

    async def health(self, transport: Transport, path: str, component_type: str = "") -> Health:
        """Return an instance's health.

        Raises:
            BurnishError: it has none to give.
        """
        headers = {CALLER_HEADER: self._tokens.sign(LOCAL, component_type)} if component_type else {}
        return await _get(transport, path, Health, headers)

    async def turn(self, turn: Turn) -> float | None:
        """Probe one instance and record what came of it."""
        async with turn.read() as session:
            row = await store.by_key(session, turn.key)
        if row is None:
            return None
        problem: str | None = None
        try:
            endpoint = row.api_endpoint or ""
            await check_endpoint(endpoint, "api_endpoint")  # again: a name may lead elsewhere by now
            transport = self._transport(row.component_id, endpoint)
            description = await check_description(transport, row.component_type)
            health = await self.health(transport, _path_below(row.health_endpoint or "", endpoint))
        except BurnishError as error:
            problem = error.message
            signals.PROBES_FAILED.labels(row.component_type).inc()
        async with turn.write() as session:
            fresh = await store.by_key(session, turn.key, lock=True)
            if fresh is None or fresh.api_endpoint != row.api_endpoint:
                return 0.0
            if problem is None:
                await service.answered(session, fresh, description, health)
            else:
                heard = fresh.last_heartbeat
                silent = heard is not None and (utcnow() - heard).total_seconds() > service.SILENT_SECONDS
                await service.did_not_answer(session, fresh, problem, silent=silent)
            return PROBE_SECONDS if problem is None else PROBE_SECONDS / 5


def _path_below(health_endpoint: str, api_endpoint: str) -> str:
    """Return the health endpoint's path as the transport to the API takes it."""
    path = urlsplit(health_endpoint).path or "/health"
    base = urlsplit(api_endpoint).path.rstrip("/")
    return path.removeprefix(base) if base else path
