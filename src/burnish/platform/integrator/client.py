"""Calls to components by their type, over whichever instance fits, and the loops that keep instances known."""

import asyncio
import json as jsonlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlencode

from burnish.core.errors import BurnishError, Unavailable
from burnish.core.protocol import (
    CALLER_HEADER,
    DEADLINE_HEADER,
    TRACE_HEADER,
    Description,
    Health,
    KindOffer,
    Registration,
)
from burnish.core.settings import Settings
from burnish.core.states import InstanceState
from burnish.infra import signals
from burnish.infra.asgi import ASGIApp
from burnish.infra.database import Database
from burnish.infra.http import AiohttpTransport, AsgiTransport, Request, Response, Transport, Unreachable
from burnish.infra.logging import new_trace_id, trace_id, traceparent_of
from burnish.infra.reconcile import Reconciler
from burnish.platform.identity import CallerTokens, Principal
from burnish.platform.integrator import service, store
from burnish.platform.integrator.balancing import order
from burnish.platform.integrator.identity import InstanceNumber, embedded_id
from burnish.platform.integrator.probing import Prober, check_description, read_json
from burnish.platform.integrator.schemas import Instance
from burnish.platform.integrator.tables import ComponentTable

log = logging.getLogger(__name__)

_HEARTBEAT_SECONDS = 5.0
_REREAD_SECONDS = 2.0
_AVOID_SECONDS = 5.0
_ANSWER_LIMIT = 16 << 20


class Integrator:
    """Knows the instances and calls them. One a process.

    Embed the process's own components, then :meth:`start`; until then nothing can be called.
    """

    def __init__(self, database: Database, tokens: CallerTokens, settings: Settings) -> None:
        self._database = database
        self._tokens = tokens
        self._settings = settings
        self._apps: dict[str, ASGIApp] = {}
        self._described: dict[str, Description] = {}
        self._transports: dict[str, Transport] = {}
        self._instances: dict[str, Instance] = {}
        self._own: dict[str, str] = {}
        self._in_progress: Counter[str] = Counter()
        self._avoided: dict[str, float] = {}
        self._number: InstanceNumber | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._prober = Prober(database, self._remote_transport, tokens)
        self._reconciler: Reconciler | None = None

    def embed(self, component_type: str, app: ASGIApp, description: Description | None = None) -> None:
        """Offer a component that runs inside this process; described by its own ``/describe`` if not given."""
        self._apps[component_type] = app
        if description is not None:
            self._described[component_type] = description

    async def start(self) -> None:
        """Register what is embedded, read what else is known, start the loops.

        Raises:
            UpstreamFailed: an embedded component does not describe itself validly.
        """
        self._number = await asyncio.to_thread(InstanceNumber, self._settings.run_dir)
        for component_type, app in self._apps.items():
            await self._register(component_type, app, self._number.number)
        await self._reread()
        self._reconciler = Reconciler(
            self._database, ComponentTable, self._prober.turn, name="components",
            owner=self._settings.node, lease_seconds=self._settings.lease_seconds, where=store.remote(),
        )  # fmt: skip
        await self._reconciler.start()
        self._tasks = [
            asyncio.create_task(self._heartbeats(), name="component-heartbeats"),
            asyncio.create_task(self._follow_rows(), name="component-rows"),
        ]

    async def stop(self) -> None:
        """Stop the loops, say that the embedded instances are gone, close connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._reconciler is not None:
            await self._reconciler.stop()
            self._reconciler = None
        with suppress(Unavailable):
            await self._sign_off()
        for transport in self._transports.values():
            await transport.close()
        self._transports.clear()
        if self._number is not None:
            self._number.release()

    @property
    def alive(self) -> bool:
        """Whether every loop runs (readiness)."""
        return (
            bool(self._tasks)
            and not any(task.done() for task in self._tasks)
            and self._reconciler is not None
            and self._reconciler.alive
        )

    @asynccontextmanager
    async def send(self, component_type: str, request: Request, principal: Principal) -> AsyncIterator[Response]:
        """Send a request to an instance and give the answer as it comes; leaving the context cancels the upstream.

        An instance that could not be reached at all is passed over for the next, unless the body is a stream.

        Raises:
            Unavailable: no instance of the type can take it now.
            DeadlineExceeded: the request's deadline passed.
        """
        request = self._addressed(component_type, request, principal)
        candidates = self._candidates(component_type)
        for index, instance in enumerate(candidates):
            last = index == len(candidates) - 1 or not isinstance(request.body, bytes)
            began = time.monotonic()
            answered = False
            self._in_progress[instance.component_id] += 1
            try:
                async with self._transport(instance).send(request) as response:
                    answered = True
                    signals.COMPONENT_SECONDS.labels(component_type).observe(time.monotonic() - began)
                    signals.COMPONENT_REQUESTS.labels(component_type, f"{response.status // 100}xx").inc()
                    yield response
                    return
            except Unreachable as error:
                signals.COMPONENT_REQUESTS.labels(component_type, "unreachable").inc()
                self._avoided[instance.component_id] = time.monotonic() + _AVOID_SECONDS
                if answered or error.sent or last:
                    raise
            finally:
                self._in_progress[instance.component_id] -= 1

    async def call(
        self, component_type: str, method: str, path: str, json: Any = None, *,
        principal: Principal, timeout: float = 30, query: Mapping[str, str] | None = None,
    ) -> Any:  # fmt: skip
        """Call with JSON and return the JSON of the answer; an error answer is raised as the typed error it was.

        Raises:
            Unavailable: no instance can take it.
            DeadlineExceeded: no answer within ``timeout`` seconds.
            UpstreamFailed: the answer is no JSON.
            BurnishError: what the component answered.
        """
        target = f"{path}?{urlencode(query)}" if query else path
        body = b"" if json is None else jsonlib.dumps(json, separators=(",", ":")).encode()
        headers = {"accept": "application/json"} | ({} if json is None else {"content-type": "application/json"})
        request = Request(method, target, headers, body, deadline=time.time() + timeout)
        async with self.send(component_type, request, principal) as response:
            return await read_json(response, f"{component_type} {method} {path}", _ANSWER_LIMIT)

    async def describe(self, component_type: str) -> Description:
        """Return what the component offers, as the first instance that can be called says.

        Raises:
            Unavailable: there is none.
        """
        description = self._candidates(component_type)[0].description
        assert description is not None, "an instance is not called before it has described itself"
        return description

    def kinds(self) -> Mapping[tuple[str, str], KindOffer]:
        """Return every kind that is offered at the moment, by component type and name."""
        offers: dict[tuple[str, str], KindOffer] = {}
        for instance in self._instances.values():
            if instance.description is not None and instance.status != InstanceState.LOST:
                offers.update({(instance.component_type, offer.name): offer for offer in instance.description.kinds})
        return offers

    def types(self) -> frozenset[str]:
        """Return the types of which some instance is known that is not lost."""
        return frozenset(one.component_type for one in self._instances.values() if one.status != InstanceState.LOST)

    def route_of(self, path: str) -> str | None:
        """Return the type of the component that serves this path: the longest of the prefixes that it described."""
        best, found = "", None
        for instance in self._instances.values():
            for prefix in instance.description.routes if instance.description is not None else ():
                plain = prefix.rstrip("/")
                if len(plain) > len(best) and (path == plain or path.startswith(f"{plain}/")):
                    best, found = plain, instance.component_type
        return found

    def _addressed(self, component_type: str, request: Request, principal: Principal) -> Request:
        """Return the request with our caller, trace and deadline; what came from outside under those names goes."""
        ours = {CALLER_HEADER, DEADLINE_HEADER}
        headers = {name.lower(): value for name, value in request.headers.items() if name.lower() not in ours}
        headers[CALLER_HEADER] = self._tokens.sign(principal, component_type)
        headers.setdefault(TRACE_HEADER, traceparent_of(trace_id() or new_trace_id()))
        return Request(request.method, request.path, headers, request.body, request.deadline)

    def _candidates(self, component_type: str) -> list[Instance]:
        now = time.monotonic()
        avoid = {one for one, until in self._avoided.items() if until > now}
        of_type = [one for one in self._instances.values() if one.component_type == component_type]
        found = order(of_type, self._in_progress, self._own.keys(), avoid)
        if not found:
            states = ", ".join(f"{one.component_id} is {one.status}" for one in of_type) or "none is registered"
            raise Unavailable(
                f"no instance of {component_type} can be called: {states}", where=component_type,
                hint="start a server with this component, or look at GET /platform/components", retry_after=2,
            )  # fmt: skip
        return found

    def _transport(self, instance: Instance) -> Transport:
        return self._transports.get(instance.component_id) or self._remote_transport(
            instance.component_id, instance.api_endpoint
        )

    def _remote_transport(self, component_id: str, api_endpoint: str) -> Transport:
        found = self._transports.get(component_id)
        if found is None:
            found = self._transports[component_id] = AiohttpTransport(api_endpoint)
        return found

    async def _register(self, component_type: str, app: ASGIApp, number: int) -> None:
        """Register one embedded instance: it describes itself, then it is healthy."""
        single = len(self._apps) == 1 and self._settings.component_id is not None
        component_id = (
            str(self._settings.component_id) if single else embedded_id(component_type, self._settings.node, number)
        )
        transport = self._transports[component_id] = AsgiTransport(app, name=component_type)
        description = self._described.get(component_type) or await check_description(transport, component_type)
        endpoint = f"{service.EMBEDDED}{component_id}"
        registration = Registration.model_construct(
            component_id=component_id, component_type=component_type, name=component_type.replace("_", " "),
            version=description.version, api_endpoint=endpoint, health_endpoint=f"{endpoint}/health",
            metadata={"node": self._settings.node},
        )  # fmt: skip
        async with self._database.write() as session:
            row = await service.register_embedded(session, registration)
            await service.answered(session, row, description, Health())
        self._own[component_id] = component_type

    async def _heartbeats(self) -> None:
        """Say that our own instances live, and notice those whose process fell silent."""
        while True:
            await asyncio.sleep(_HEARTBEAT_SECONDS)
            try:
                await self._beat()
            except Unavailable as error:
                log.warning("heartbeats: %s", error.message)
            except Exception:
                log.exception("heartbeats failed")

    async def _beat(self) -> None:
        found: dict[str, Health | BurnishError] = {}
        for component_id in self._own:
            try:
                found[component_id] = await self._prober.health(self._transports[component_id], "/health")
            except BurnishError as error:
                found[component_id] = error
        async with self._database.write() as session:
            for component_id, health in found.items():
                row = await store.find(session, component_id, lock=True)
                if row is None:
                    continue
                if isinstance(health, BurnishError):
                    await service.did_not_answer(session, row, health.message, silent=False)
                else:
                    description = Description.model_validate(row.description)
                    await service.answered(session, row, description, health)
            for row in await store.silent_embedded(session, service.SILENT_SECONDS):
                await store.change_state(session, row, InstanceState.LOST, "its process has fallen silent")

    async def _follow_rows(self) -> None:
        topic = self._database.topic(store.TOPIC)
        while True:
            seen = topic.version
            try:
                await self._reread()
            except Unavailable as error:
                log.warning("components: %s", error.message)
            except Exception:
                log.exception("components could not be read")
            await topic.wait(seen, _REREAD_SECONDS)

    async def _reread(self) -> None:
        async with self._database.read() as session:
            rows = await store.all_of(session)
        fresh = {
            row.component_id: service.instance_of(row)
            for row in rows
            if not row.embedded or row.component_id in self._own
        }
        for component_id, old in self._instances.items():
            now = fresh.get(component_id)
            if component_id not in self._own and (now is None or now.api_endpoint != old.api_endpoint):
                transport = self._transports.pop(component_id, None)
                if transport is not None:
                    await transport.close()
        self._instances = fresh
        counts = Counter((row.component_type, str(row.status)) for row in rows)
        for component_type in {row.component_type for row in rows}:
            own = {str(state): counts[component_type, state] for state in InstanceState}
            signals.set_counts(signals.INSTANCES, own, InstanceState, component_type=component_type)

    async def _sign_off(self) -> None:
        async with self._database.write() as session:
            for component_id in self._own:
                row = await store.find(session, component_id, lock=True)
                if row is not None:
                    await store.change_state(session, row, InstanceState.DRAINING, "its server stops")
