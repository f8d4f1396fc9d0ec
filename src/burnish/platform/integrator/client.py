"""The integrator of one process: what is inside it, what it knows of others, and calls to components by their type."""

import asyncio
import json as jsonlib
import logging
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any
from urllib.parse import urlencode

from burnish.core.configuration import Current, IntegratorConfiguration, defaults
from burnish.core.errors import Unavailable
from burnish.core.protocol import CALLER_HEADER, DEADLINE_HEADER, TRACE_HEADER, Description, KindOffer
from burnish.core.settings import Settings
from burnish.infra.asgi import ASGIApp
from burnish.infra.database import Database
from burnish.infra.http import Request, Response
from burnish.infra.logging import trace_headers
from burnish.infra.loop import Loop
from burnish.infra.reconcile import Reconciler
from burnish.platform.identity import CallerTokens, Principal
from burnish.platform.integrator import store
from burnish.platform.integrator.calling import Calls
from burnish.platform.integrator.discovery import Discovery, Resolver
from burnish.platform.integrator.evidence import Evidence
from burnish.platform.integrator.following import Following
from burnish.platform.integrator.judging import Judge, OnLost, OnStopped
from burnish.platform.integrator.own import OwnInstances, Source
from burnish.platform.integrator.probing import Prober, read_json
from burnish.platform.integrator.repeating import Body
from burnish.platform.integrator.routing import Routing
from burnish.platform.integrator.schemas import Instance
from burnish.platform.integrator.tables import ComponentTable
from burnish.platform.integrator.ways import Ways

log = logging.getLogger(__name__)

_ANSWER_LIMIT = 16 << 20
_LOOKS_AT_ONCE = 32
_PACE_SECONDS = 0.05
"""Between claims of instances to look at: of a thousand some ten are claimed together."""
_OBEY_SECONDS = 0.25
"""Between looks at how often instances are to be checked."""
_OURS = frozenset({CALLER_HEADER, DEADLINE_HEADER})


class Integrator:
    """Knows the instances and calls them. One a process.

    Embed the process's own components, then :meth:`start`; until then nothing can be called. Without ``probing`` the
    process registers and beats for its own, calls others, and looks after none of them.
    """

    def __init__(
        self, database: Database, tokens: CallerTokens, settings: Settings, *, configuration: Current = defaults,
        probing: bool = True, resolver: Resolver | None = None,
    ) -> None:  # fmt: skip
        self._database = database
        self._settings = settings
        self._configuration = configuration
        self._probing = probing
        rules = self._rules
        self._judge = Judge(rules)
        self._own = OwnInstances(database, settings, rules, self._judge, tokens)
        self._evidence = Evidence(database, rules)
        self._routing = Routing(rules, on_suspicion=self._evidence.suspect)
        self._ways = Ways(lambda: self._rules().allowed_networks)
        self._following = Following(database, rules, self._routing, self._ways, lambda: self._own.ids)
        self._judge.settled = self._following.settled
        self._calls = Calls(
            lambda: self._following.directory, lambda: self._own.transports, self._routing, self._ways, tokens, rules
        )
        self._prober = Prober(database, self._ways.to, rules, self._judge, tokens, self._following.taken)
        self._following.on_read.append(self._prober.keep_only)
        self._discovery = Discovery(database, rules, self._ways.to, resolver=resolver)
        self._reconciler: Reconciler | None = None
        self._loops: list[Loop] = []

    @property
    def on_lost(self) -> list[OnLost]:
        """What is told, in the transaction that notes it, that every process of a node has been lost for long."""
        return self._judge.on_lost

    @property
    def on_stopped(self) -> list[OnStopped]:
        """What is told, in the transaction that notes it, that a node's processes offer a type no more."""
        return self._judge.on_stopped

    @property
    def believed_ids(self) -> frozenset[str]:
        """The ids of instances whose callers' tokens are believed here: of all of Burnish's own processes.

        They pass none on; and where one has been started again, what is sent to the process before it may come here.
        """
        return self._own.every_id | self._following.directory.ours

    @property
    def instances(self) -> Mapping[str, Instance]:
        """What this process knows of the instances that it can reach, by component_id."""
        return self._following.directory.instances

    def embed(
        self, component_type: str, app: ASGIApp, description: Description | None = None, *,
        source: Source = "embedded",
    ) -> None:  # fmt: skip
        """Offer a component that runs inside this process; described by its own ``/describe`` if not given."""
        self._own.embed(component_type, app, description, source)

    async def start(self) -> None:
        """Register what is embedded, read what else is known, start the loops.

        Raises:
            UpstreamFailed: an embedded component does not describe itself validly.
        """
        await self._own.start()
        await self._following.reread()
        evidence = partial(self._evidence.run, lambda: self._following.directory, self._routing)
        self._loops = [
            Loop(self._own.run, "component-heartbeats"), Loop(self._following.run, "component-rows"),
            Loop(evidence, "component-evidence"),
        ]  # fmt: skip
        if self._probing:
            self._reconciler = Reconciler(
                self._database, ComponentTable, self._prober.turn, name="components", owner=self._settings.node,
                lease_seconds=self._settings.lease_seconds, concurrency=_LOOKS_AT_ONCE,
                where=store.looked_at(sorted(self._own.ids)), pace_seconds=_PACE_SECONDS,
            )  # fmt: skip
            await self._reconciler.start()
            self._loops += [Loop(partial(self._obey, self._reconciler), "component-interval"), self._discovery]
        for loop in self._loops:
            await loop.start()

    async def sign_off(self) -> None:
        """Say that this process ends: others send its instances nothing new, and call their silence no failure."""
        await self._own.sign_off()

    async def stop(self) -> None:
        """Stop the loops, say that the embedded instances are gone, close connections."""
        await asyncio.gather(*(loop.stop() for loop in self._loops))
        self._loops = []
        if self._reconciler is not None:
            await self._reconciler.stop()
            self._reconciler = None
        await self._prober.stop()
        await self._own.stop()
        await self._ways.close()

    async def _obey(self, checks: Reconciler) -> None:
        """Where the time between health checks is made shorter, do not wait for the end of the longer one."""
        obeyed = self._rules().probe_seconds
        while True:
            await asyncio.sleep(_OBEY_SECONDS)
            if (wanted := self._rules().probe_seconds) < obeyed:
                try:
                    await checks.hasten(wanted)
                except Unavailable as error:
                    log.warning("the shorter time between health checks is obeyed later: %s", error.message)
                    continue
            obeyed = wanted

    @property
    def alive(self) -> bool:
        """Whether every loop runs (readiness)."""
        loops = bool(self._loops) and all(loop.alive for loop in self._loops)
        return loops and (not self._probing or (self._reconciler is not None and self._reconciler.alive))

    def send(
        self, component_type: str, request: Request, principal: Principal, *, prefer: str | None = None
    ) -> AbstractAsyncContextManager[Response]:
        """Send a request to an instance and give the answer as it comes; leaving the context cancels the upstream.

        It is sent again elsewhere while nothing of it was sent, or while it is safe to repeat and its answer has not
        begun; within the retry budget and the deadline, and never once a streamed body has been begun.

        Args:
            component_type: of whom it is asked.
            request: what is asked.
            principal: on whose behalf.
            prefer: name of a model or deployment: instances that have it loaded come first.

        Raises:
            Unavailable: no instance of the type can take it now.
            DeadlineExceeded: the request's deadline passed.
        """
        body = Body.of(request)
        return self._calls.send(component_type, self._addressed(request, body), principal, body, prefer)

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
        """Return what the component offers, as an instance that can be called says.

        Raises:
            Unavailable: there is none.
        """
        description = self._calls.pick(component_type).description
        assert description is not None, "an instance is not called before it has described itself"
        return description

    async def refresh(self) -> None:
        """Read the instances anew: what has just been shown as there is offered then. Takes a second at most."""
        await self._following.refresh()

    def kinds(self) -> Mapping[tuple[str, str], KindOffer]:
        """Return every kind that is offered at the moment, by component type and name."""
        return self._following.directory.kinds

    def types(self) -> frozenset[str]:
        """Return the types of which some instance is known that is neither lost nor leaving."""
        return self._following.directory.types

    def route_of(self, path: str) -> str | None:
        """Return the type of the component that serves this path: the longest of the prefixes that it described."""
        return self._following.directory.route_of(path)

    def _rules(self) -> IntegratorConfiguration:
        return self._configuration().integrator

    def _addressed(self, request: Request, body: Body) -> Request:
        """Return the request with our trace and deadline; what came from outside under these names or the caller's goes."""
        headers = {name: value for given, value in request.headers.items() if (name := given.lower()) not in _OURS}
        if TRACE_HEADER not in headers:
            headers.update(trace_headers())
        return Request(request.method, request.path, headers, body.content, request.deadline)
