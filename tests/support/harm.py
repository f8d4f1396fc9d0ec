"""What faults did to steady load: how long, how many, and whether any promise was broken."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from zlib import crc32

from tests.support.fleet import Fleet
from tests.support.lifecycle import FINAL
from tests.support.load import Load, Sent, failures, tally
from tests.support.server import Answered, wait_for

TABLE: list[str] = []
"""The lines of every fault so far, for the end of the run."""
HEADER = (
    f"{'fault':<36}{'strikes':>8}{'sent':>7}{'failed':>7}{'refused':>8}{'wrong':>6}{'with it':>8}{'% well':>9}"
    f"{'routed around':>14}{'recovered p50':>14}{'p95':>7}{'slowest':>9}"
)


def _nothing_passed() -> Mapping[str, float]:
    return {}


def _nothing_accepted() -> list[str]:
    return []


@dataclass(frozen=True)
class Blow:
    """One fault, to be dealt once."""

    victim: str
    strike: Callable[[], object]
    restore: Callable[[], object]
    well: Callable[[], bool]
    """Tells whether nothing is left of it."""
    passed: Callable[[], Mapping[str, float]] = _nothing_passed
    """Returns the keys of the requests that were ever sent to the victim, and when."""
    prepare: Callable[[], list[str]] = _nothing_accepted
    """Called before; returns executions that were accepted for it."""


@dataclass
class Strike:
    """A fault that was dealt: when it began, when it was over, when all was well again, and who was with the victim."""

    victim: str
    began: float
    ended: float
    recovered: float
    sent: list[Sent] = field(default_factory=list)
    """The requests from here until the next strike."""
    with_it: frozenset[str] = frozenset()
    """Keys of the requests that the victim had as it was struck, or was sent while it was down."""

    @property
    def recovery(self) -> float:
        return self.recovered - self.ended

    @property
    def route_around(self) -> float:
        """Seconds until the last request was sent that did not go well."""
        return max(
            (one.began - self.began for one in self.sent if one.outcome != "ok" and one.began > self.began), default=0.0
        )


@dataclass
class Harm:
    """A kind of fault under load, and what came of it."""

    fault: str
    strikes: list[Strike] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    """Executions besides those of the load."""

    def bad(self, *outcomes: str) -> list[Sent]:
        wanted = outcomes or ("failed", "refused", "wrong")
        return [one for one in self.sent if one.outcome in wanted]

    def of(self, victim: str) -> "Harm":
        """Return the part of it that struck this victim."""
        strikes = [strike for strike in self.strikes if strike.victim == victim]
        return Harm(f"{self.fault} {victim}", strikes, [one for strike in strikes for one in strike.sent])

    @property
    def victims(self) -> list[str]:
        return list(dict.fromkeys(strike.victim for strike in self.strikes))

    @property
    def with_it(self) -> int:
        """How many requests the victims had, as their senders wrote down."""
        return sum(len(strike.with_it) for strike in self.strikes)

    @property
    def strays(self) -> list[Sent]:
        """What did not go well although no victim ever had it."""
        held = {key for strike in self.strikes for key in strike.with_it}
        return [one for one in self.bad() if one.key not in held]

    @property
    def route_around(self) -> float:
        """The longest, in seconds."""
        return max((strike.route_around for strike in self.strikes), default=0.0)

    def recovery(self, share: float = 0.95) -> float:
        """A percentile of the recoveries, in seconds."""
        times = sorted(strike.recovery for strike in self.strikes)
        return times[min(len(times) - 1, int(share * len(times)))]

    @property
    def well(self) -> float:
        """Percent of the requests that were answered well."""
        return 100 * tally(self.sent)["ok"] / max(1, len(self.sent))

    def line(self) -> str:
        """Return its line of the table."""
        counts = tally(self.sent)
        slowest = max((one.seconds for one in self.sent), default=0.0)
        return (
            f"{self.fault:<36}{len(self.strikes):>8}{len(self.sent):>7}{counts['failed']:>7}{counts['refused']:>8}"
            f"{counts['wrong']:>6}{self.with_it:>8}{self.well:>9.3f}{self.route_around:>12.2f} s{self.recovery(0.5):>12.2f} s"
            f"{self.recovery():>5.1f} s{slowest:>7.2f} s"
        )

    def put_down(self) -> None:
        """Add it to the table, each victim by itself where there are several, and print what did not go well."""
        if len(self.victims) == 1:
            self.fault = f"{self.fault} {self.victims[0]}"
            TABLE.append(self.line())
        else:
            TABLE.extend([self.line(), *(self.of(victim).line() for victim in self.victims)])
        print(failures(self.sent, 10))


def under_load(
    fleet: Fleet, fault: str, blows: Sequence[Blow], *, rate: float, hold: Callable[[str], float], pause: float = 1.0,
    timeout: float = 30, requests: int = 0,
) -> Harm:  # fmt: skip
    """Send steady load, and deal one blow after another: strike, hold, restore, wait until all is well.

    The blows are spread over ``requests`` requests, if so many are asked for. ``hold``: seconds by victim.
    """
    harm = Harm(fault)
    load = Load(fleet.url, fleet.folder, rate=rate, api_key=fleet.key, seed=crc32(fault.encode()), timeout=timeout)
    try:
        wait_for(lambda: tally(load.sent())["ok"] >= min(10, 2 * rate), 30, lambda: f"no answers\n{fleet.tails()}")
        for number, blow in enumerate(blows):
            _until_sent(load, requests * number // len(blows), rate)
            harm.accepted += blow.prepare()
            time.sleep(pause)
            harm.strikes.append(_dealt(blow, hold(blow.victim), lambda: f"{fleet.instances()}\n{fleet.tails()}"))
        time.sleep(pause)
        _until_sent(load, requests, rate)
        harm.sent = load.stop()
    finally:
        load.kill()
    _share_out(harm, blows)
    return harm


def _dealt(blow: Blow, hold: float, state: Callable[[], str]) -> Strike:
    began = time.monotonic()
    blow.strike()
    time.sleep(hold)
    ended = time.monotonic()
    blow.restore()
    wait_for(blow.well, 60, lambda: f"{blow.victim} is not well again\n{state()}")
    return Strike(blow.victim, began, ended, time.monotonic())


def _share_out(harm: Harm, blows: Sequence[Blow]) -> None:
    """Give each strike the requests that were under way between it and the next, and find those that its victim had."""
    ends = [*(strike.began for strike in harm.strikes[1:]), float("inf")]
    for strike, blow, end in zip(harm.strikes, blows, ends, strict=True):
        strike.sent = [one for one in harm.sent if strike.began <= one.ended < end]
        passed = blow.passed()
        strike.with_it = frozenset(
            one.key
            for one in harm.sent
            if one.key in passed and passed[one.key] <= strike.ended and one.ended >= strike.began
        )


def _until_sent(load: Load, requests: int, rate: float) -> None:
    wait_for(lambda: len(load.sent()) >= requests, requests / rate + 300, "the load does not go on", pause=0.5)


def lost_work(fleet: Fleet, harm: Harm, patience: float = 60) -> list[str]:
    """Return what was accepted and is not there, or does not come to its right end."""
    deadline = time.monotonic() + patience
    accepted = [one for one in harm.sent if one.outcome == "ok" and one.id]
    executions = [*harm.accepted, *(one.id for one in accepted if one.kind == "submit")]
    ends = {one: _end_of(fleet, one, deadline) for one in executions}
    lost = [f"execution {one} is {state}" for one, state in ends.items() if state != "succeeded"]
    return lost + [why for one in accepted if one.kind == "upload" and (why := _missing(fleet, one.key)) is not None]


def _missing(fleet: Fleet, dataset: str) -> str | None:
    try:
        rows = fleet.gateways[0].request("GET", f"/platform/datasets/{dataset}")["versions"][0]["rows"]
    except Answered as error:
        return f"dataset {dataset}: {error}"
    return None if rows == 3 else f"dataset {dataset} has {rows} rows instead of 3"


def _end_of(fleet: Fleet, workflow_id: str, deadline: float) -> str:
    while True:
        try:
            view = fleet.gateways[0].request("GET", f"/platform/workflows/{workflow_id}/status")
        except Answered as error:
            return str(error)
        state = str(view["status"])
        if state in FINAL or time.monotonic() > deadline:
            return state
        time.sleep(0.05)
