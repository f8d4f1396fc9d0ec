"""What may be sent again, and to whom: the rules by which a request to a component is safe to repeat. Pure."""

import re
from collections.abc import AsyncIterator, Set
from dataclasses import dataclass

from burnish.infra.http import Request

_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})
_PROTOCOL = re.compile(r"/jobs|/jobs/validate|/jobs/[^/]+/(cancel|pause|resume)")
"""Posts of the component protocol: the same id twice is the same job."""
_DEEP = frozenset({"v1", "platform"})
MOST_TRIES = 4
"""Of one call, the first among them."""


class Asked:
    """Who was asked for one call, and who may be asked next.

    Who refused or broke off is not asked again. Who was given up for being slow is, once everybody was asked: the one
    that it was given up for may be slower still, or frozen, and nobody is waited for to the end for being the last that
    nobody had asked. Each is waited for twice as long as the one before, so that a call that takes long by nature is
    not begun again and again.
    """

    __slots__ = ("_last", "_slow", "barred", "patience_factor", "tries")

    def __init__(self) -> None:
        self.tries = 0
        self.barred: frozenset[str] = frozenset()
        """Who is not asked next."""
        self.patience_factor = 1.0
        self._last = ""
        self._slow: frozenset[str] = frozenset()

    def begin(self, component_id: str) -> None:
        """Note who is asked now."""
        self.tries += 1
        self._last = component_id
        self.barred |= {component_id}

    def give_up(self) -> None:
        """Note that who is asked now takes too long."""
        self._slow |= {self._last}
        self.patience_factor *= 2

    def others(self, usable: Set[str]) -> frozenset[str]:
        """Return who of ``usable`` may be asked in place of the one that is asked now."""
        if self.tries >= MOST_TRIES:
            return frozenset()
        return frozenset(usable) - (self.barred - self._slow) - {self._last}

    def go_on(self, usable: Set[str]) -> None:
        """Open the next try: to whom nobody asked yet, else to those given up before; the last of all to whoever is best."""
        if self.tries == MOST_TRIES - 1:
            self.barred -= self._slow
        elif usable <= self.barred:
            self.barred -= self._slow - {self._last}


@dataclass
class Body:
    """A request's body, which is a stream at most once."""

    content: bytes | AsyncIterator[bytes]
    begun: bool = False

    @classmethod
    def of(cls, request: Request) -> "Body":
        """Return the body of a request; use :attr:`content` in its place."""
        if isinstance(request.body, bytes):
            return cls(request.body)
        body = cls(b"")
        body.content = body._watched(request.body)
        return body

    @property
    def is_fresh(self) -> bool:
        """Whether all of it can still be sent."""
        return not self.begun

    async def _watched(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        self.begun = True
        async for chunk in chunks:
            yield chunk


def is_repeatable(request: Request) -> bool:
    """Tell whether the same request twice does what it does once. Names of its headers are in lower case."""
    method = request.method.upper()
    if method in _IDEMPOTENT:
        return True
    if method != "POST":
        return False
    if _PROTOCOL.fullmatch(request.path.partition("?")[0]):
        return True
    return "idempotency-key" in request.headers


def class_of(request: Request) -> str:
    """Return the class of a request: those of one class take about as long. There are few."""
    parts = request.path.partition("?")[0].split("/", 3)
    first = parts[1] if len(parts) > 1 else ""
    second = f"/{parts[2]}" if first in _DEEP and len(parts) > 2 else ""
    return f"{request.method} /{first}{second}"
