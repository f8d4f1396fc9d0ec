"""Server-sent events, without input or output: lines in, events out."""

from dataclasses import dataclass, field

from pydantic import ValidationError

from burnish.core.protocol import Event

HEARTBEAT_LIMIT = 35.0
"""Seconds of silence after which a stream counts as broken; the server sends a heartbeat every 10."""
PATIENCE = 300.0
"""Seconds for which a follower tries to reach a server that went away."""


@dataclass
class Decoder:
    """Collects the lines of one stream and remembers the cursor to come back with."""

    last_id: str | None = None
    _data: list[str] = field(default_factory=list)
    _id: str | None = None
    _heartbeat: bool = False

    def reset(self) -> None:
        """Forget a half-received event, before the stream is opened again."""
        self._data, self._id, self._heartbeat = [], None, False

    def feed(self, line: str) -> tuple[Event | None, bool]:
        """Take one line without its end; return ``(event, complete)``. A heartbeat is ``(None, True)``."""
        if line.startswith(":"):
            return None, True
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                self._data.append(value)
            elif name == "id":
                self._id = value
            return None, False
        return self._complete()

    def _complete(self) -> tuple[Event | None, bool]:
        data, identifier = "\n".join(self._data), self._id
        self.reset()
        if not data:
            return None, False
        try:
            event = Event.model_validate_json(data)
        except ValidationError:  # an event of a newer server: skipped, but the cursor moves on
            event = None
        self.last_id = identifier or (event.id if event else self.last_id)
        return event, event is not None


def backoff(attempt: int) -> float:
    """Seconds before try ``attempt`` (from 0) to open the stream again: 0.1, 0.2 ... at most 2."""
    return float(min(2.0, 0.1 * 2**attempt))
