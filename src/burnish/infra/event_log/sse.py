"""Events as server-sent events."""

from collections.abc import AsyncIterator, Callable

from burnish.core.protocol import Event

SSE_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""Headers of every stream, so that no proxy holds events back. The media type is ``text/event-stream``."""


def sse(event: Event | None) -> bytes:
    """Return the event's bytes on the wire; None is a heartbeat, which clients ignore."""
    if event is None:
        return b": keep-alive\n\n"
    return f"id: {event.id}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n".encode()


async def stream(
    events: AsyncIterator[Event | None], *, until: Callable[[Event], bool] | None = None
) -> AsyncIterator[bytes]:
    """Yield the bytes of a followed log; ends after the first event for which ``until`` is true."""
    yield b"retry: 1000\n\n"
    async for event in events:
        yield sse(event)
        if event is not None and until is not None and until(event):
            return
