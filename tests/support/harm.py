"""What faults did to steady load: how long, how many, and whether any promise was broken."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from zlib import crc32

from tests.support.fleet import Fleet
from tests.support.lifecycle import FINAL
from tests.support.load import Load, Sent, failures, tally
from tests.support.server import Answered, wait_for


@dataclass(frozen=True)
class Strike:
    """One fault: when it began, when it was over, and how long until all was well again after that."""

    began: float
    ended: float
    recovered: float

    @property
    def recovery(self) -> float:
        return self.recovered - self.ended


@dataclass
class Harm:
    """A kind of fault under load, and what came of it."""

    fault: str
    strikes: list[Strike] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)

    def bad(self, *outcomes: str) -> list[Sent]:
        wanted = outcomes or ("failed", "refused", "wrong")
        return [one for one in self.sent if one.outcome in wanted]

    @property
    def route_around(self) -> float:
        """Seconds from a strike until the last request was sent that did not go well, the longest."""
        longest = 0.0
        for strike, until in zip(self.strikes, [*(s.began for s in self.strikes[1:]), float("inf")], strict=True):
            hurt = [one.began for one in self.bad() if one.ended > strike.began and one.began < until]
            longest = max(longest, *(began - strike.began for began in hurt), 0.0)
        return longest

    @property
    def recovery(self) -> float:
        """The 95th percentile of the recoveries, in seconds."""
        times = sorted(strike.recovery for strike in self.strikes)
        return times[min(len(times) - 1, int(0.95 * len(times)))]

    @property
    def well(self) -> float:
        """Percent of the requests that were answered well."""
        return 100 * tally(self.sent)["ok"] / max(1, len(self.sent))

    def line(self) -> str:
        """Return the line of the table."""
        counts = tally(self.sent)
        slowest = max((one.seconds for one in self.sent), default=0.0)
        return (
            f"{self.fault:<34} sent {len(self.sent):>6}  failed {counts['failed']:>4}  refused {counts['refused']:>4}  "
            f"wrong {counts['wrong']}  routed around {self.route_around:5.2f} s  recovered {self.recovery:5.2f} s  "
            f"slowest {slowest:5.2f} s  well {self.well:7.3f} %  {failures(self.sent, 2)[:300]}"
        )


def under_load(
    fleet: Fleet, fault: str, strike: Callable[[], object], restore: Callable[[], object], *,
    rate: float, hold: float, times: int = 1, pause: float = 1.5, timeout: float = 30, requests: int = 0,
) -> Harm:  # fmt: skip
    """Send steady load, strike, hold, restore, wait until all is well, again and again; return what came of it.

    The strikes are spread over ``requests`` requests, if so many are asked for.
    """
    harm = Harm(fault)
    load = Load(fleet.url, fleet.folder, rate=rate, api_key=fleet.key, seed=crc32(fault.encode()), timeout=timeout)
    try:
        wait_for(lambda: tally(load.sent())["ok"] >= min(10, 2 * rate), 30, lambda: f"no answers\n{fleet.tails()}")
        for number in range(times):
            time.sleep(pause)
            _until_sent(load, requests * number // times, rate)
            began = time.monotonic()
            strike()
            time.sleep(hold)
            ended = time.monotonic()
            restore()
            wait_for(fleet.settled, 60, lambda: f"{fault}: {fleet.instances()}\n{fleet.tails()}")
            harm.strikes.append(Strike(began, ended, time.monotonic()))
        time.sleep(pause)
        _until_sent(load, requests, rate)
        harm.sent = load.stop()
    finally:
        load.kill()
    return harm


def _until_sent(load: Load, requests: int, rate: float) -> None:
    wait_for(lambda: len(load.sent()) >= requests, requests / rate + 300, "the load does not go on", pause=0.5)


def lost_work(fleet: Fleet, sent: Iterable[Sent], patience: float = 60) -> list[str]:
    """Return what was accepted and is not there, or does not come to its right end."""
    gateway = fleet.gateways[0]
    deadline = time.monotonic() + patience
    lost = []
    for one in sent:
        if one.outcome != "ok" or not one.id:
            continue
        try:
            if one.kind == "submit":
                state = _end_of(fleet, one.id, deadline)
                if state != "succeeded":
                    lost.append(f"execution {one.id} is {state}")
            else:
                found = gateway.request("GET", f"/platform/datasets/{one.key}")
                rows = found["versions"][0]["rows"]
                if rows != 3:
                    lost.append(f"dataset {one.key} has {rows} rows instead of 3")
        except Answered as error:
            lost.append(f"{one.kind} {one.id}: {error}")
    return lost


def _end_of(fleet: Fleet, workflow_id: str, deadline: float) -> str:
    while True:
        state = str(fleet.gateways[0].request("GET", f"/platform/workflows/{workflow_id}/status")["status"])
        if state in FINAL or time.monotonic() > deadline:
            return state
        time.sleep(0.05)
