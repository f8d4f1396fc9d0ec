"""Unexpected exceptions of the kinds that run in the server, counted: what fails every time is a failure, told as one."""

from collections import OrderedDict

from burnish.core.errors import ErrorBody

_TRIES = 3
_KEPT = 1_000


class Faults:
    """What went wrong with which job. In memory: another server, or this one started again, tries as often anew."""

    def __init__(self) -> None:
        self._found: OrderedDict[str, tuple[int, Exception]] = OrderedDict()

    def note(self, job_id: str, error: Exception) -> None:
        """Count an exception that is none of the errors a kind may raise."""
        count, _ = self._found.pop(job_id, (0, error))
        self._found[job_id] = (count + 1, error)
        if len(self._found) > _KEPT:
            self._found.popitem(last=False)

    def verdict(self, job_id: str, step: str) -> ErrorBody | None:
        """Return the error of a job that is not worth another try; None for any other."""
        count, error = self._found.get(job_id, (0, None))
        if count < _TRIES:
            return None
        return ErrorBody(
            code="internal", where=f"steps.{step}",
            message=f"step {step} failed {count} times in a way that was not foreseen: {_said(error)}",
            hint="the server's log has the whole of it; mend what it names, then `retry`, or report it",
        )  # fmt: skip


def _said(error: Exception | None) -> str:
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= 500 else text[:497] + "..."
