"""Keeps the process's snapshot of the instances: read again as they change, and every few seconds."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from burnish.core.configuration import IntegratorConfiguration
from burnish.core.errors import Unavailable
from burnish.core.protocol import Description
from burnish.core.states import InstanceState
from burnish.infra import signals
from burnish.infra.database import Database, Topic
from burnish.platform.integrator import service, store
from burnish.platform.integrator.directory import Directory
from burnish.platform.integrator.routing import Routing
from burnish.platform.integrator.schemas import Instance
from burnish.platform.integrator.store import Known
from burnish.platform.integrator.ways import Ways

log = logging.getLogger(__name__)

_REREAD_SECONDS = 2.0
_LOOK_SECONDS = 0.25
"""Between looks at the configuration, whose weights are part of the snapshot."""
_SHORTEST_SECONDS = 0.05
"""Between two readings, however often something changes."""
_REFRESH_SECONDS = 1.0
_GAP_SECONDS = 5.0
"""Not read for longer than this: the database was away, or this process stood still."""
_SHOWN = 100
_CIRCUITS = ("closed", "open", "half_open")
_S = InstanceState


@dataclass
class Following:
    """The snapshot and its upkeep."""

    database: Database
    settings: Callable[[], IntegratorConfiguration]
    routing: Routing
    ways: Ways
    own: Callable[[], frozenset[str]] = frozenset
    """The ids of the instances inside this process."""
    on_read: list[Callable[[frozenset[str]], None]] = field(default_factory=list)
    """Told the ids of the instances each time that they were read."""
    directory: Directory = field(default_factory=Directory)
    _read_at: float = float("-inf")
    _begun_at: float = float("-inf")
    """When the newest reading that has ended began."""
    _read: Topic = field(default_factory=Topic)
    """Notified as a reading ends."""
    _steady_since: float = float("inf")
    _descriptions: dict[str, Description] = field(default_factory=dict)
    _shown: set[str] = field(default_factory=set)
    _made: dict[str, tuple[Known, float, Instance]] = field(default_factory=dict)
    """What each row was made into, and from what: most rows are as they were."""

    async def run(self) -> None:
        """Follow, for as long as the process lives."""
        topic = self.database.topic(store.TOPIC)
        while True:
            seen = topic.version
            try:
                await self.reread()
            except Unavailable as error:
                log.warning("components: %s", error.message)
            except Exception:
                log.exception("components could not be read")
            await asyncio.sleep(_SHORTEST_SECONDS)
            await self._changed(topic, seen)

    async def _changed(self, topic: Topic, seen: int) -> None:
        """Wait until instances or weights have changed, or until it is time to read anyhow."""
        weights, until = self.settings().weights, time.monotonic() + _REREAD_SECONDS
        while time.monotonic() < until and self.settings().weights == weights:
            if await topic.wait(seen, _LOOK_SECONDS):
                return

    async def refresh(self, seconds: float = _REFRESH_SECONDS) -> None:
        """Wait until the instances were read once from now on: what somebody has just been shown is known then.

        So long at most; while the database is away they stay as they were.
        """
        asked, until = time.monotonic(), time.monotonic() + seconds
        self.database.topic(store.TOPIC).notify()
        while self._begun_at < asked and (left := until - time.monotonic()) > 0:
            await self._read.wait(self._read.version, left)

    async def reread(self) -> None:
        """Read all instances."""
        began = time.monotonic()
        async with self.database.read() as session:
            rows = await store.known(session)
            missing = sorted(
                {row.description_digest for row in rows if row.description_digest} - self._descriptions.keys()
            )
            found = await store.descriptions(session, missing) if missing else {}
        self._note_reading()
        self._descriptions.update({digest: Description.model_validate(one) for digest, one in found.items()})
        used = {row.description_digest for row in rows}
        self._descriptions = {digest: one for digest, one in self._descriptions.items() if digest in used}
        own, weights = self.own(), self.settings().weights
        callable_rows = [row for row in rows if row.component_id in own or not _is_embedded(row)]
        self._made = {row.component_id: self._instance(row, weights) for row in callable_rows}
        fresh = Directory.of(made for _, _, made in self._made.values())
        self._forgive(fresh)
        self.directory = fresh
        ids = frozenset(fresh.instances)
        self.routing.forget_all_but(ids)
        self.ways.keep_only({*ids, *(f"{one} health" for one in ids)})
        for told in self.on_read:
            told(ids)
        self._show(rows)
        self._begun_at = began
        self._read.notify()

    def settled(self) -> bool:
        """Tell whether the instances have been read for a whole lease without a gap."""
        return time.monotonic() - self._steady_since > self.settings().lease_seconds

    def _note_reading(self) -> None:
        now = time.monotonic()
        if now - self._read_at > _GAP_SECONDS:
            self._steady_since = now
        self._read_at = now

    def taken(self, component_type: str) -> Mapping[str, str]:
        """Return the path prefixes that other types serve."""
        return {prefix: of for prefix, of in self.directory.prefixes.items() if of != component_type}

    def _instance(self, row: Known, weights: Mapping[str, float]) -> tuple[Known, float, Instance]:
        weight = weights.get(row.component_id, 1.0 if row.weight is None else row.weight)
        made = self._made.get(row.component_id)
        if made is not None and made[0] == row and made[1] == weight:
            return made
        health = service.told_health(row.health)
        instance = Instance.model_construct(
            component_id=row.component_id, component_type=row.component_type, api_endpoint=row.api_endpoint or "",
            status=self._status(row), description=self._descriptions.get(row.description_digest or ""),
            load=0.0 if health is None else health.load, warm=frozenset(() if health is None else health.warm),
            weight=weight, failures=row.failures, problem=row.problem, generation=row.generation,
            source=row.source,
        )  # fmt: skip
        return row, weight, instance

    def _status(self, row: Known) -> InstanceState:
        """Return its state; this process's own are there to it until it has ended: what is in flight needs them."""
        ends = row.status == _S.DRAINING and row.component_id in self.own()
        return _S.HEALTHY if ends else _S(row.status or _S.STARTING)

    def _forgive(self, fresh: Directory) -> None:
        """What its health checks call healthy again, or a new incarnation, is not held to what happened before."""
        for component_id, one in fresh.instances.items():
            old = self.directory.instances.get(component_id)
            if old is None:
                continue
            recovered = one.status is _S.HEALTHY and old.status is not _S.HEALTHY
            if recovered or one.generation != old.generation:
                self.routing.forgive(component_id)

    def _show(self, rows: list[Known]) -> None:
        counts = Counter((row.component_type, str(row.status)) for row in rows)
        now = time.monotonic()
        circuits = Counter(
            (one.component_type, self.routing.circuit(key, now)) for key, one in self.directory.instances.items()
        )
        for component_type in {row.component_type for row in rows}:
            states = {str(state): counts[component_type, state] for state in _S}
            signals.set_counts(signals.INSTANCES, states, _S, component_type=component_type)
            opened = {state: circuits[component_type, state] for state in _CIRCUITS}
            signals.set_counts(signals.COMPONENT_CIRCUITS, opened, _CIRCUITS, component_type=component_type)
        latencies = {key: self.routing.latency(key, now) for key in sorted(self.directory.instances)[:_SHOWN]}
        shown = {key: seconds for key, seconds in latencies.items() if seconds is not None}
        for key in self._shown - shown.keys():
            signals.INSTANCE_SECONDS.remove(key)
        for key, seconds in shown.items():
            signals.INSTANCE_SECONDS.labels(key).set(seconds)
        self._shown = set(shown)


def _is_embedded(row: Known) -> bool:
    return (row.api_endpoint or "").startswith(service.EMBEDDED)
