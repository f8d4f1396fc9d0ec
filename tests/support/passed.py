"""Which request was sent to whom, and when: written down by whoever sends it on, so that what a victim had is known.

Each request of :mod:`tests.support.load` carries its key in ``X-Request-Id``, which travels with it from process to
process. The balancer writes down what it passes on to a gateway, a process of Burnish (by :func:`tests.support.fake_serve`)
what it sends to a component's process or a replica: the sender's word holds whatever became of the one it was sent to.
"""

import json
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

_KEY = re.compile(rb"load-[0-9a-f]{16}")


class PassedOn:
    """One sender's log."""

    def __init__(self, log: Path) -> None:
        self._log = log.open("a", buffering=1)

    def note(self, data: bytes, to: str) -> None:
        """Write down that a request was sent on, if ``data`` (its head) holds its key."""
        if (found := _KEY.search(data)) is not None:
            self._log.write(json.dumps([found.group().decode(), to, time.monotonic()]) + "\n")


def passed(logs: Iterable[Path], is_victim: Callable[[str], bool]) -> dict[str, float]:
    """Return the keys of the requests that were sent to a victim, and when each was first."""
    found: dict[str, float] = {}
    for log in logs:
        for line in log.read_text().splitlines():
            try:
                key, to, at = json.loads(line)
            except ValueError:
                continue  # being written
            if is_victim(to):
                found[key] = min(at, found.get(key, at))
    return found
