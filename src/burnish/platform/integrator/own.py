"""The instances inside this process: registered by itself, and kept alive by its own heartbeats."""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import psutil
from pydantic import JsonValue

from burnish.core.configuration import IntegratorConfiguration
from burnish.core.errors import BurnishError, Unavailable
from burnish.core.protocol import Description, Health, Registration
from burnish.core.settings import Settings
from burnish.infra.asgi import ASGIApp
from burnish.infra.database import Database
from burnish.infra.http import AsgiTransport
from burnish.platform.identity import CallerTokens
from burnish.platform.integrator import service, store
from burnish.platform.integrator.health import Sight
from burnish.platform.integrator.identity import InstanceNumber, embedded_id
from burnish.platform.integrator.judging import Judge, Look, sign_off
from burnish.platform.integrator.probing import check_description, get_health, prober

log = logging.getLogger(__name__)

SUPERVISOR_VARIABLE = "BURNISH_SUPERVISED_BY"
_HEARTBEAT_SECONDS = 5.0
_ANSWER_SECONDS = 3.0

Source = Literal["embedded", "entry_point"]


@dataclass
class _Own:
    component_type: str
    app: ASGIApp
    source: Source
    description: Description | None
    component_id: str = ""
    generation: int = 0
    taken: bool = False
    """Another process has registered under its id since: that one is the instance now."""


@dataclass
class OwnInstances:
    """Registers what is embedded, says that it lives, and signs it off."""

    database: Database
    settings: Settings
    configuration: Callable[[], IntegratorConfiguration]
    judge: Judge
    tokens: CallerTokens
    transports: dict[str, AsgiTransport] = field(default_factory=dict)
    """The way to each, by component_id."""
    _own: list[_Own] = field(default_factory=list)
    _number: InstanceNumber | None = None

    def embed(self, component_type: str, app: ASGIApp, description: Description | None, source: Source) -> None:
        """Offer a component that runs inside this process."""
        self._own.append(_Own(component_type, app, source, description))

    @property
    def ids(self) -> frozenset[str]:
        """The ids of what this process registered and still is."""
        return frozenset(one.component_id for one in self._own if one.component_id and not one.taken)

    @property
    def every_id(self) -> frozenset[str]:
        """The ids under which this process has registered, those that another has taken since, too."""
        return frozenset(one.component_id for one in self._own if one.component_id)

    @property
    def process(self) -> str:
        """The name of this incarnation."""
        return f"{os.getpid()}@{psutil.Process().create_time():.2f}"

    async def start(self) -> None:
        """Register all of them; each has described itself before it is seen.

        Raises:
            UpstreamFailed: one does not describe itself validly.
        """
        self._number = await asyncio.to_thread(InstanceNumber, self.settings.run_dir)
        for own in self._own:
            own.component_id = self._id_of(own)
            own.taken = False
            transport = self.transports[own.component_id] = AsgiTransport(own.app, name=own.component_type)
            if own.description is None:
                own.description = await check_description(transport, own.component_type)
            await self._register(own)

    async def sign_off(self) -> None:
        """Say that their process ends: others send them nothing more, and call what then is silent no failure."""
        try:
            async with self.database.write() as session:
                await store.lock(session, [own.component_id for own in self._own])
                for own in self._own:
                    row = await store.find(session, own.component_id, lock=True)
                    if row is not None and row.generation == own.generation:
                        await sign_off(session, row)
        except Unavailable as error:
            log.warning("the instances could not be signed off: %s", error.message)

    async def stop(self) -> None:
        """Sign them off, and give their number back."""
        await self.sign_off()
        for transport in self.transports.values():
            await transport.close()
        self.transports.clear()
        if self._number is not None:
            self._number.release()
            self._number = None

    async def run(self) -> None:
        """Beat, for as long as the process lives."""
        while True:
            await asyncio.sleep(min(_HEARTBEAT_SECONDS, self.configuration().lease_seconds / 4))
            try:
                await self.beat()
            except Unavailable as error:
                log.warning("heartbeats: %s", error.message)
            except Exception:
                log.exception("heartbeats failed")

    async def beat(self) -> None:
        """Say once that they live, and how they are."""
        looks = [(own, await self._look(own)) for own in self._own if not own.taken]
        missing: list[_Own] = []
        async with self.database.write() as session:
            await store.lock(session, [own.component_id for own, _ in looks])
            for own, look in looks:
                row = await store.find(session, own.component_id, lock=True)
                if row is None:
                    missing.append(own)
                elif row.generation == own.generation:
                    await self.judge.apply(session, row, look, beat=True)
                else:
                    own.taken = True
                    log.error(
                        "another process has registered as %s: this one gets no calls under that id; "
                        "give each process a BURNISH_COMPONENT_ID of its own", own.component_id,
                    )  # fmt: skip
        for own in missing:
            await self._register(own)

    async def _look(self, own: _Own) -> Look:
        try:
            caller = prober(self.tokens, own.component_type, own.component_id)
            health = await get_health(self.transports[own.component_id], caller, _ANSWER_SECONDS)
        except BurnishError as error:
            return Look(Sight.BROKEN, error.message)
        return Look(Sight.OK if health.status == "ok" else Sight.DEGRADED, None, own.description, health)

    async def _register(self, own: _Own) -> None:
        assert own.description is not None, "it has described itself"
        endpoint = f"{service.EMBEDDED}{own.component_id}"
        if self.settings.advertise_url is not None:
            endpoint = f"{self.settings.advertise_url.rstrip('/')}/components/{own.component_type}"
        registration = Registration.model_construct(
            component_id=own.component_id, component_type=own.component_type,
            name=own.component_type.replace("_", " "), version=own.description.version,
            api_endpoint=endpoint, health_endpoint=f"{endpoint}/health", metadata=self._metadata(),
        )  # fmt: skip
        origin = service.Origin(own.source, node=self.settings.node, process=self.process)
        lease = self.configuration().lease_seconds
        async with self.database.write() as session:
            row = await service.register(session, registration, origin=origin, lease_seconds=lease)
            own.generation = row.generation
            await self.judge.apply(session, row, Look(Sight.OK, None, own.description, Health()), beat=True)

    def _metadata(self) -> dict[str, JsonValue]:
        given: Callable[[], Mapping[str, str]] | None = getattr(self.settings, "instance_metadata", None)
        found: dict[str, JsonValue] = dict(given()) if given is not None else {}
        found |= {"node": self.settings.node, "pid": os.getpid(), "started_at": psutil.Process().create_time()}
        if supervisor := os.environ.get(SUPERVISOR_VARIABLE):
            found.setdefault(store.SUPERVISOR, supervisor)
        return found

    def _id_of(self, own: _Own) -> str:
        if len(self._own) == 1 and self.settings.component_id is not None:
            return str(self.settings.component_id)
        assert self._number is not None, "start takes the number first"
        return embedded_id(own.component_type, self.settings.node, self._number.number)
