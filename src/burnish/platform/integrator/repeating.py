"""What may be sent again: the rules by which a request to a component is safe to repeat. Pure."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

from burnish.infra.http import Request

_IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})
_PROTOCOL = re.compile(r"/jobs|/jobs/validate|/jobs/[^/]+/(cancel|pause|resume)")
"""Posts of the component protocol: the same id twice is the same job."""
_DEEP = frozenset({"v1", "platform"})


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
