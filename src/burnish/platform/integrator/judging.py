"""What a look at an instance changes: its state, its lease, its alert, and what recovery does about it."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.configuration import IntegratorConfiguration
from burnish.core.protocol import Description, Health
from burnish.core.specs.base import digest_of
from burnish.core.states import InstanceState
from burnish.infra.database import notify, utcnow
from burnish.platform.integrator import service, store
from burnish.platform.integrator.health import Alert, Facts, Rules, Sight, Verdict, judge
from burnish.platform.integrator.recovery import Case, Step, decide, restarts_so_far
from burnish.platform.integrator.tables import ComponentTable

ALERT = "component_health_check_failed"
STOPPED = "stopped"
"""The problem of an instance that is draining or lost because somebody ended it."""
_LONGER = 1.4
AHEAD_SECONDS = 5.0
"""A time so much further ahead than anybody sets it was written before the database's clock was set back."""
_LOAD_STEP = 0.1
_EVIDENCE_SECONDS = 15.0
_EVIDENCE_PROCESSES = 16

STOPPED_UNTIL_MOVED_SECONDS = 10.0
"""From signing off until what waits for a node is given to others: whoever is started again in place is back by then."""

OnStopped = Callable[[AsyncSession, str, str, str], Awaitable[int]]
"""Called in the unit of work that notes it, with the node, the component type that its processes have stopped to offer,
and the reason; may be called again. Returns how many jobs were given to others."""

OnLost = Callable[[AsyncSession, str, str], Awaitable[object]]
"""Called in the unit of work that notes it, with the node that is silent and the reason; may be called again.

False means not yet: other evidence says that the node lives; it is called again at the next look."""


@dataclass(frozen=True)
class Look:
    """One look at an instance."""

    sight: Sight
    reason: str | None = None
    description: Description | None = None
    """Its ``/describe``, if that was read."""
    health: Health | None = None


@dataclass(frozen=True)
class Observed:
    """What one process saw lately of its calls to an instance."""

    calls: int
    errors: int
    answered: bool
    """One of them was answered."""


@dataclass
class Judge:
    """Applies looks to rows, under the rules of the configuration."""

    settings: Callable[[], IntegratorConfiguration]
    on_lost: list[OnLost] = field(default_factory=list)
    on_stopped: list[OnStopped] = field(default_factory=list)
    settled: Callable[[], bool] = lambda: True
    """Whether this process has seen the database for a whole lease without a gap: else silence proves nothing, for
    nobody could write a heartbeat."""

    async def apply(self, session: AsyncSession, row: ComponentTable, look: Look, *, beat: bool = False) -> None:
        """Apply a look to a locked row. ``beat``: it came with the instance's own heartbeat."""
        settings = self.settings()
        now = await store.now(session)
        for name, moment in _ahead(row, now, settings.lease_seconds * _LONGER).items():
            setattr(row, name, moment)
        before = InstanceState(row.status or InstanceState.STARTING)
        stopped = before is InstanceState.DRAINING or (
            before is InstanceState.LOST and row.problem_kind == STOPPED
        )  # fmt: skip
        verdict = judge(self._facts(row, look, before, now), _rules(settings))
        await self._describe(session, row, look)
        self._renew(row, look, verdict, now, settings.lease_seconds, beat=beat)
        if stopped and verdict.state in (InstanceState.DRAINING, InstanceState.LOST):  # what was seen is no news
            row.problem, row.problem_kind = row.problem or _stopped_at(row.state_since or now), STOPPED
        else:
            reason = _reason(row, look, verdict)
            row.problem = None if verdict.state is InstanceState.HEALTHY else reason
            row.problem_kind = None if row.problem is None else ("erring" if verdict.erring else str(look.sight))
        if bool(row.failures) != bool(verdict.failures):
            await notify(session, store.TOPIC)
        row.failures, row.successes = verdict.failures, min(verdict.successes, 1000)
        await store.change_state(session, row, verdict.state, row.problem)
        if not stopped or verdict.alert is Alert.END:  # what somebody has ended is no failure
            await self._alert(session, row, verdict)
        await self._recover(session, row, before, now, settings)

    def tells_nothing_new(self, row: ComponentTable, look: Look, now: float) -> bool:
        """Whether a look changes nothing of an instance but how long its lease lasts: it was well, and is well."""
        settings = self.settings()
        health, old = look.health, row.health
        if look.sight is not Sight.OK or look.description is not None or health is None or old is None:
            return False
        if row.status != InstanceState.HEALTHY or row.problem is not None or row.failures or row.alerted:
            return False
        if row.drain_until is not None or row.moved_at is not None or row.problem_kind is not None:
            return False
        if row.successes < settings.successes_until_healthy:
            return False
        verdict = judge(self._facts(row, look, InstanceState.HEALTHY, now), _rules(settings))
        return (
            verdict.state is InstanceState.HEALTHY
            and not _ahead(row, now, settings.lease_seconds * _LONGER)
            and not _differs(service.health_of(old), health)
        )

    def lease_wanted(self, row: ComponentTable, now: float) -> float | None:
        """Return how long a lease to give after a sign of life; None: what it has is long enough."""
        lease = self.settings().lease_seconds
        return lease * _LONGER if (row.expires_at or 0) - now < lease else None

    def _facts(self, row: ComponentTable, look: Look, before: InstanceState, now: float) -> Facts:
        fresh = _fresh(row.evidence, now)
        left = (row.expires_at or now + 1) - now
        return Facts(
            state=before, sight=look.sight, failures=row.failures, successes=row.successes,
            lease_left=left if self.settled() else max(left, 1.0), beating=(row.beat_until or 0) > now,
            progressing=any(one.get("answered") for one in fresh),
            calls=sum(int(one.get("calls", 0)) for one in fresh),
            errors=sum(int(one.get("errors", 0)) for one in fresh), alerted=row.alerted,
        )  # fmt: skip

    async def _describe(self, session: AsyncSession, row: ComponentTable, look: Look) -> None:
        if look.description is None:
            return
        row.protocol_version = look.description.protocol_version[:20]
        if look.sight is Sight.UNFIT:
            if row.description_digest is not None:
                row.description = row.description_digest = row.kinds = None
                await store.changed(session)
            return
        plain = look.description.model_dump(mode="json")
        if (digest := digest_of(plain)) != row.description_digest:
            row.description, row.description_digest = plain, digest
            row.kinds = [offer.name for offer in look.description.kinds]
            await store.changed(session)

    def _renew(
        self, row: ComponentTable, look: Look, verdict: Verdict, now: float, lease: float, *, beat: bool
    ) -> None:
        """Have a whole lease left after a sign of life, and some more, so that few of them are written."""
        health, old = look.health, row.health
        if verdict.alive and (wanted := self.lease_wanted(row, now)) is not None:
            row.expires_at, row.last_heartbeat = now + wanted, utcnow()
        if beat and (row.beat_until or 0) - now < lease:
            row.beat_until = now + lease * _LONGER
        if health is not None and (old is None or _differs(service.health_of(old), health)):
            row.health = health.model_dump(mode="json")

    async def _alert(self, session: AsyncSession, row: ComponentTable, verdict: Verdict) -> None:
        if verdict.alert is Alert.NONE:
            return
        row.alerted = verdict.alert is Alert.RAISE
        cause = f"{row.failures} health checks failed in a row: {row.problem}" if row.alerted else "it answers again"
        more: dict[str, Any] = {"name": ALERT, "component_id": row.component_id, "failures": row.failures}
        await store.act(session, row, "alert" if row.alerted else "alert_ended", cause, more)

    async def _recover(
        self, session: AsyncSession, row: ComponentTable, before: InstanceState, now: float,
        settings: IntegratorConfiguration,
    ) -> None:  # fmt: skip
        settled = self.settled()  # else nobody could say that they live: nothing is moved or forgotten
        case = Case(
            before=before, now=InstanceState(row.status or before),
            in_state_seconds=now - (row.state_since or now) if settled else 0.0,
            stopped=row.problem_kind == STOPPED,
            supervised=row.embedded and bool((row.metadata_ or {}).get(store.SUPERVISOR)),  # else it may say anything
            restarts=row.restarts,
            since_restart=None if row.restart_asked_at is None else now - row.restart_asked_at,
            node_silent=settled and row.status == InstanceState.LOST
            and await store.speaks_for_silent_node(session, row, settings.lost_until_moved_seconds),
            type_stopped=settled and row.status in (InstanceState.DRAINING, InstanceState.LOST)
            and await store.speaks_for_stopped_type(session, row, STOPPED_UNTIL_MOVED_SECONDS),
            moved=row.moved_at is not None, drained=row.drain_until is not None and row.drain_until <= now,
        )  # fmt: skip
        if case.now is not InstanceState.LOST:
            row.moved_at = None
        for step in decide(case, settings.forget_lost_seconds):
            await self._take(session, row, step, case, now)

    async def _take(self, session: AsyncSession, row: ComponentTable, step: Step, case: Case, now: float) -> None:
        cause = row.problem or "it answers again"
        if step in (Step.REMOVE, Step.FORGET):
            if row.moved_at is None and await store.is_last_of_node(session, row):
                return  # the one that spoke for the node has just been removed: this one does now
            await store.act(session, row, step, cause if step is Step.FORGET else "it was deregistered")
            await session.flush()
            await store.remove(session, row.component_id)
            return
        if step in (Step.RESTART_REQUESTED, Step.RESTARTS_EXHAUSTED):
            row.restarts = restarts_so_far(case) + 1
            row.restart_requested_at = utcnow() if step is Step.RESTART_REQUESTED else None
            row.restart_asked_at = now
        if step is Step.MOVE_WORK:
            cause = f"every instance on {row.node} has been lost for long: {cause}"
            if False in [await callback(session, str(row.node), cause) for callback in self.on_lost]:
                return
            row.moved_at = now
        if step is Step.MOVE_QUEUED:
            node, component_type = str(row.node), row.component_type
            cause = f"no process on {node} offers {component_type} any more"
            if not sum([await callback(session, node, component_type, cause) for callback in self.on_stopped]):
                return
        await store.act(session, row, step, cause, {"node": row.node} if row.node else None)


async def sign_off(session: AsyncSession, row: ComponentTable) -> None:
    """Note that somebody ends a locked row's process: it gets no new calls, and that it falls silent is no failure."""
    if row.alerted:
        row.alerted = False
        await store.act(session, row, "alert_ended", "it is stopped", {"name": ALERT, "component_id": row.component_id})
    if row.status != InstanceState.DRAINING:
        row.problem, row.problem_kind = _stopped_at(await store.now(session)), STOPPED
        await store.change_state(session, row, InstanceState.DRAINING, row.problem)


def _stopped_at(moment: float) -> str:
    return f"it was stopped on purpose at {datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S} UTC"


async def observe(session: AsyncSession, component_id: str, process: str, observed: Observed) -> None:
    """Note what one process saw of its calls to an instance; its next look takes it into account."""
    row = await store.find(session, component_id, lock=True)
    if row is None:
        return
    now = await store.now(session)
    kept = {key: one for key, one in (row.evidence or {}).items() if _is_fresh(one, now)}
    kept[process] = {"at": now, "calls": observed.calls, "errors": observed.errors, "answered": observed.answered}
    newest = sorted(kept, key=lambda key: float(kept[key]["at"]))[-_EVIDENCE_PROCESSES:]
    row.evidence = {key: kept[key] for key in newest}


def _rules(settings: IntegratorConfiguration) -> Rules:
    return Rules(
        failures_until_unhealthy=settings.failures_until_unhealthy,
        successes_until_healthy=settings.successes_until_healthy, error_ratio=settings.ejection_error_ratio,
    )  # fmt: skip


def _fresh(evidence: dict[str, Any] | None, now: float) -> Sequence[dict[str, Any]]:
    return [one for one in (evidence or {}).values() if _is_fresh(one, now)]


def _is_fresh(one: dict[str, Any], now: float) -> bool:
    return -AHEAD_SECONDS < now - float(one.get("at", 0)) < _EVIDENCE_SECONDS


def _ahead(row: ComponentTable, now: float, lease: float) -> dict[str, float]:
    """Return the times that were written before the clock was set back, as if written now: else they would hold long."""
    furthest = {
        "expires_at": lease, "beat_until": lease, "state_since": 0.0, "restart_asked_at": 0.0,
        "drain_until": service.DRAIN_SECONDS,
    }  # fmt: skip
    return {
        name: now + most for name, most in furthest.items() if (getattr(row, name) or 0) > now + most + AHEAD_SECONDS
    }


def _reason(row: ComponentTable, look: Look, verdict: Verdict) -> str | None:
    if verdict.erring:
        return "its calls fail"
    if verdict.state is InstanceState.LOST and look.sight is Sight.NOT_LOOKED:
        return "its process has fallen silent"
    if look.reason is not None:
        return look.reason
    if look.sight is Sight.DEGRADED:  # what it waits for may name what is others': that is told apart
        return "it says so itself"
    if look.sight is Sight.OK and verdict.state is not InstanceState.HEALTHY:
        return "it answers again; a few more answers and it is healthy"
    return row.problem if look.sight is Sight.NOT_LOOKED else None


def _differs(old: Health, new: Health) -> bool:
    return abs(old.load - new.load) >= _LOAD_STEP or old.model_copy(update={"load": new.load}) != new
