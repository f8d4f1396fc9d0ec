"""Noticing that the wall clock was set back."""

_SET_BACK_SECONDS = 1.0


class ClockWatch:
    """Notices that a wall clock was set back, by this process's steady one, however slowly the answers come."""

    def __init__(self) -> None:
        self._ahead: float | None = None
        """By how much the wall clock is ahead of the steady one, at least."""

    def fell(self, wall: float, before: float, after: float) -> float:
        """Return by how many seconds the wall clock was set back at least; 0 if it was not.

        ``wall`` is what it showed at some moment between ``before`` and ``after`` of the steady clock.
        """
        known = self._ahead
        if known is not None and wall - before < known - _SET_BACK_SECONDS:
            self._ahead = wall - after
            return known - (wall - before)
        self._ahead = wall - after if known is None else max(known, wall - after)
        return 0.0
