"""What one process remembers of its calls: progress, latency, errors, circuits, and the budget of retries.

A circuit opens when nothing could be sent (at once) or when calls in a row stayed without an answer; after a while one
call is let through as a trial. An instance whose calls fail often is ejected, for longer each time; at most half of a
type's instances are. Clocks are given, so that all of this can be tested without waiting.
"""

import random
from collections.abc import Callable, Set
from dataclasses import dataclass, field

from burnish.core.configuration import IntegratorConfiguration
from burnish.infra import signals
from burnish.platform.integrator.balancing import Candidate, OfType, PeakLatency, Random, pick
from burnish.platform.integrator.health import FEW_CALLS
from burnish.platform.integrator.schemas import Instance

WINDOW_SECONDS = 10
SILENT_UNTIL_OPEN = 3
"""Calls in a row without any answer until a circuit opens."""
_OPEN_SECONDS, _LONGEST_OPEN_SECONDS = 1.0, 10.0
_LONGEST_EJECTION_SECONDS = 300.0
_FORGIVEN_SECONDS = 60.0
"""So long after its last ejection an instance starts with the shortest again."""
_NOTICED_SECONDS = 0.1
"""A silence that is shorter says nothing."""
_FREE_RETRIES = 10
"""Retries in the window that need no share of the requests: of few requests a share is nothing."""
_CLASSES = 16


class Window:
    """Counts over the last :data:`WINDOW_SECONDS`."""

    __slots__ = ("_counts", "_slots")

    def __init__(self) -> None:
        self._slots = [-1] * WINDOW_SECONDS
        self._counts = [[0, 0] for _ in range(WINDOW_SECONDS)]

    def add(self, now: float, first: int, second: int) -> None:
        """Add to the two counts."""
        slot = int(now)
        at = slot % WINDOW_SECONDS
        if self._slots[at] != slot:
            self._slots[at] = slot
            self._counts[at] = [0, 0]
        self._counts[at][0] += first
        self._counts[at][1] += second

    def totals(self, now: float) -> tuple[int, int]:
        """Return the two counts."""
        oldest = int(now) - WINDOW_SECONDS
        kept = [count for slot, count in zip(self._slots, self._counts, strict=True) if slot > oldest]
        return sum(count[0] for count in kept), sum(count[1] for count in kept)


@dataclass
class Record:
    """What is remembered of one instance."""

    in_progress: int = 0
    unanswered: dict[int, float] = field(default_factory=dict)
    """When the calls began whose answer has not begun, oldest first."""
    latencies: dict[str, PeakLatency] = field(default_factory=dict)
    outcomes: Window = field(default_factory=Window)
    answered_at: float = float("-inf")
    silent: int = 0
    """Calls in a row that nothing answered."""
    openings: int = 0
    open_until: float | None = None
    """The circuit is open until then, and half open after it; None: closed."""
    refused: bool = False
    """It opened because nothing could be sent: trying costs nothing."""
    trial: bool = False
    """A call is under way that decides whether a half-open circuit closes."""
    ejected_until: float = float("-inf")
    ejections: int = 0

    def open(self, now: float, *, refused: bool) -> None:
        """Open the circuit, for longer each time."""
        seconds = min(_OPEN_SECONDS * 2.0**self.openings, _LONGEST_OPEN_SECONDS)
        self.open_until, self.refused, self.trial = now + seconds, refused, False
        self.openings = min(self.openings + 1, 10)

    def close(self) -> None:
        """Close the circuit: it answers."""
        self.open_until, self.silent, self.openings, self.trial, self.refused = None, 0, 0, False, False

    def silence(self, now: float) -> float:
        """Return for how long somebody has waited there while nobody was answered: it is slower than anybody knows."""
        first = next(iter(self.unanswered.values()), None)
        return 0.0 if first is None else now - max(first, self.answered_at)

    def takes_calls(self, now: float) -> bool:
        """Tell whether a call may go there: the circuit lets it, and it is not ejected."""
        if self.open_until is not None and (now < self.open_until or self.trial):
            return False
        return now >= self.ejected_until


@dataclass(slots=True)
class Try:
    """One call to one instance."""

    instance: Instance
    of_type: OfType
    record: Record
    call: str
    """Its class: calls of one class take about as long."""
    began: float
    trial: bool


class Routing:
    """Chooses instances for calls, and learns from what becomes of them."""

    def __init__(
        self, settings: Callable[[], IntegratorConfiguration], *, choose: Random = random.random,
        on_suspicion: Callable[[str], None] = lambda component_id: None,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._random = choose
        self._suspect = on_suspicion
        self._records: dict[str, Record] = {}
        self._budgets: dict[str, Window] = {}

    def record(self, component_id: str) -> Record:
        """Return what is remembered of an instance."""
        found = self._records.get(component_id)
        if found is None:
            found = self._records[component_id] = Record()
        return found

    def records(self) -> list[tuple[str, Record]]:
        """Return what is remembered, by component_id."""
        return list(self._records.items())

    def forget_all_but(self, component_ids: frozenset[str]) -> None:
        """Drop what is remembered of instances that are no more, and that nobody calls."""
        for gone in [key for key, one in self._records.items() if key not in component_ids and not one.in_progress]:
            del self._records[gone]

    def forgive(self, component_id: str) -> None:
        """It is well again, as its health checks say: what was slow or failed before counts no more."""
        record = self.record(component_id)
        record.close()
        record.latencies.clear()
        record.outcomes = Window()
        record.ejected_until = float("-inf")

    def choose(
        self, of_type: OfType, own: Set[str], tried: Set[str], call: str, prefer: str | None, now: float
    ) -> Instance | None:
        """Return the instance for a call of a class of calls (``call``), None if none may take it.

        Where every circuit is open, one that merely refused is tried all the same: that costs nothing.
        """

        def look(one: Instance) -> Candidate:
            record = self.record(one.component_id)
            latency = record.latencies.get(call)
            seconds = None if latency is None else latency.value(now)
            if (silence := record.silence(now)) > max(_NOTICED_SECONDS, seconds or 0.0):
                seconds = silence
            if silence > self._settings().probe_timeout_seconds:
                self._suspect(one.component_id)
            return Candidate(one, record.in_progress, seconds, one.component_id in own)

        def may(one: Instance) -> bool:
            return one.component_id not in tried and self.record(one.component_id).takes_calls(now)

        def may_after_all(one: Instance) -> bool:
            record = self.record(one.component_id)
            return one.component_id not in tried and (record.open_until is None or record.refused)

        found = pick(of_type, prefer, may, look, self._random)
        return found or pick(of_type, prefer, may_after_all, look, self._random)

    def begin(self, instance: Instance, of_type: OfType, call: str, now: float) -> "Try":
        """Note that a call goes there."""
        record = self.record(instance.component_id)
        record.in_progress += 1
        trial = record.open_until is not None and now >= record.open_until and not record.trial
        record.trial = record.trial or trial
        self._budget(instance.component_type).add(now, 1, 0)
        made = Try(instance, of_type, record, call, now, trial)
        record.unanswered[id(made)] = now
        return made

    def answered(self, made: "Try", now: float) -> None:
        """Note that an answer began."""
        record = made.record
        record.answered_at = now
        record.unanswered.pop(id(made), None)
        if record.open_until is not None or record.silent:
            record.close()
        self._observe(made, now)

    def succeeded(self, made: "Try", now: float) -> None:
        """Note a call that went well."""
        made.record.outcomes.add(now, 1, 0)

    def failed(self, made: "Try", now: float) -> None:
        """Note a call that failed, and eject the instance if too many do."""
        record, settings = made.record, self._settings()
        record.outcomes.add(now, 1, 1)
        calls, errors = record.outcomes.totals(now)
        if calls < FEW_CALLS or errors / calls < settings.ejection_error_ratio or now < record.ejected_until:
            return
        usable = (*made.of_type.healthy, *made.of_type.degraded)
        ejected = sum(1 for one in usable if now < self.record(one.component_id).ejected_until)
        if ejected + 1 > len(usable) // 2:
            return
        if now - record.ejected_until > _FORGIVEN_SECONDS:
            record.ejections = 0
        seconds = min(settings.ejection_seconds * 2.0**record.ejections, _LONGEST_EJECTION_SECONDS)
        record.ejections += 1
        record.ejected_until = now + seconds
        signals.COMPONENT_EJECTIONS.labels(made.instance.component_type).inc()
        self._suspect(made.instance.component_id)

    def refused(self, made: "Try", now: float) -> None:
        """Note that nothing could be sent: route around at once, and have somebody look."""
        made.record.open(now, refused=True)
        self._suspect(made.instance.component_id)

    def given_up(self, made: "Try", now: float) -> None:
        """Note that another instance is asked because this one takes long: it costs more from now on, no more than that."""
        if made.record.answered_at <= made.began:
            self._observe(made, now)
            self._suspect(made.instance.component_id)

    def stayed_silent(self, made: "Try", now: float) -> None:
        """Note that a call broke, or its deadline passed, without an answer. It says nothing while others are answered."""
        record = made.record
        if record.answered_at > made.began:
            return
        self.given_up(made, now)
        record.silent += 1
        if made.trial or record.silent >= SILENT_UNTIL_OPEN:
            record.open(now, refused=False)

    def end(self, made: "Try") -> None:
        """Note that a call ended."""
        made.record.in_progress -= 1
        made.record.unanswered.pop(id(made), None)
        if made.trial:
            made.record.trial = False

    def _observe(self, made: "Try", now: float) -> None:
        latencies, seconds = made.record.latencies, now - made.began
        known = latencies.get(made.call)
        if known is not None:
            known.observe(seconds, now)
            return
        if len(latencies) >= _CLASSES:
            latencies.pop(next(iter(latencies)))
        latencies[made.call] = PeakLatency(seconds, now)

    def has_retry(self, component_type: str, now: float) -> bool:
        """Tell whether the budget has a retry left."""
        ratio = self._settings().retry_budget_ratio
        requests, retries = self._budget(component_type).totals(now)
        return ratio > 0 and retries < max(_FREE_RETRIES, ratio * requests)

    def may_retry(self, component_type: str, now: float) -> bool:
        """Take a retry from the budget; False if it is used up."""
        if not self.has_retry(component_type, now):
            return False
        self._budget(component_type).add(now, 0, 1)
        return True

    def is_worth_a_retry(self, component_type: str, others: Set[str], now: float) -> bool:
        """Tell whether giving up an instance that is slow leads to one of these others: that takes calls, within the budget."""
        return any(self.record(one).takes_calls(now) for one in others) and self.has_retry(component_type, now)

    def latency(self, component_id: str, now: float) -> float | None:
        """Return the latency of the slowest class of calls to an instance, None if none was called lately."""
        record = self._records.get(component_id)
        return None if record is None else max((one.value(now) for one in record.latencies.values()), default=None)

    def circuit(self, component_id: str, now: float) -> str:
        """Return the state of an instance's circuit: closed, open or half_open."""
        record = self._records.get(component_id)
        if record is None or record.open_until is None:
            return "closed"
        return "open" if now < record.open_until else "half_open"

    def _budget(self, component_type: str) -> Window:
        found = self._budgets.get(component_type)
        if found is None:
            found = self._budgets[component_type] = Window()
        return found
