"""Expected failures, typed. One place (``burnish.app``) turns them into responses.

Every error says what happened (``message``), to what (``where``), and what to do next (``hint``).
``code`` is stable: the documentation has a page that lists every code below.
"""

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class FieldProblem(BaseModel):
    """One thing that is wrong in what was sent, and the place where it stands."""

    model_config = ConfigDict(frozen=True)

    where: str
    """A path a reader can follow: ``steps.train.with.rank``, ``line 17``, ``body.dataset``."""
    message: str
    hint: str | None = None


class ErrorBody(BaseModel):
    """An error as it is stored in a row or sent between processes."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    hint: str | None = None
    where: str | None = None
    problems: tuple[FieldProblem, ...] = ()
    retryable: bool = False
    """Whether the same thing, tried again unchanged, may succeed."""


class BurnishError(Exception):
    """The base of all expected failures. Subclasses fix ``code`` and the HTTP ``status``."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        where: str | None = None,
        problems: Sequence[FieldProblem] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where
        self.problems = tuple(problems)
        self.retry_after = retry_after
        """Seconds after which it is worth trying again; sent as ``Retry-After``."""

    def body(self) -> ErrorBody:
        """Return the error in the form that rows and messages carry."""
        return ErrorBody(
            code=self.code, message=self.message, hint=self.hint, where=self.where,
            problems=self.problems, retryable=self.retryable,
        )  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.hint, self.where, self.problems, self.retry_after))


def _rebuild(
    cls: type[BurnishError], message: str, hint: str | None, where: str | None,
    problems: tuple[FieldProblem, ...], retry_after: float | None,
) -> BurnishError:  # fmt: skip
    return cls(message, hint=hint, where=where, problems=problems, retry_after=retry_after)


class InvalidRequest(BurnishError):
    """What was sent cannot be accepted; ``problems`` names each place."""

    code = "invalid_request"
    status = 422


class MalformedRequest(BurnishError):
    """What was sent could not be read at all (not JSON, a cut body, a bad header)."""

    code = "malformed_request"
    status = 400


class Unauthenticated(BurnishError):
    """No valid credential came with the request."""

    code = "unauthenticated"
    status = 401


class Forbidden(BurnishError):
    """The caller may not do this; the message names the missing permission."""

    code = "forbidden"
    status = 403


class NotFound(BurnishError):
    """There is no such object in the caller's project."""

    code = "not_found"
    status = 404


class Conflict(BurnishError):
    """The object's state does not allow this."""

    code = "conflict"
    status = 409


class IdempotencyMismatch(BurnishError):
    """An idempotency key was used again with another body."""

    code = "idempotency_mismatch"
    status = 422


class TooLarge(BurnishError):
    """More bytes, rows or tokens than the limit named in the message."""

    code = "too_large"
    status = 413


class UnsupportedMedia(BurnishError):
    """The content type or file format is not one that is read here."""

    code = "unsupported_media"
    status = 415


class Busy(BurnishError):
    """A queue is full or a rate limit is reached; ``retry_after`` says when to come back."""

    code = "busy"
    status = 429
    retryable = True


class RateLimited(Busy):
    """A rate limit or quota is reached; the message says which, and where it is set."""

    code = "rate_limited"


class UpstreamFailed(BurnishError):
    """A component answered with something that is not an answer."""

    code = "upstream_failed"
    status = 502
    retryable = True


class Unavailable(BurnishError):
    """Something this needs is not there at the moment (database, component, replica)."""

    code = "unavailable"
    status = 503
    retryable = True


class DeadlineExceeded(BurnishError):
    """The caller's deadline passed before there was an answer."""

    code = "deadline_exceeded"
    status = 504
    retryable = True


class OutOfDisk(BurnishError):
    """Accepting this would take the disk below its reserve."""

    code = "out_of_disk"
    status = 507
    retryable = True


class SchemaNewer(BurnishError):
    """The database was made by a newer Burnish than this one."""

    code = "schema_newer"
    status = 503


class HomeLocked(BurnishError):
    """Another server holds this home; the message names its process."""

    code = "home_locked"
    status = 503


class ArtifactCorrupt(BurnishError):
    """Bytes of an artifact are not those that were published."""

    code = "artifact_corrupt"
    status = 500


class JobFailed(BurnishError):
    """Heavy work failed for a reason that trying again would not change."""

    code = "job_failed"
    status = 500


class HostLost(BurnishError):
    """The process that ran a job ended without a result."""

    code = "host_lost"
    status = 500
    retryable = True


class LimitExceeded(BurnishError):
    """A job passed its memory or wall-time limit; the message says which and what to change."""

    code = "limit_exceeded"
    status = 500


class NonFiniteLoss(JobFailed):
    """The loss became NaN or infinite; the weights were not updated with it."""

    code = "non_finite_loss"


class BadModel(JobFailed):
    """Model files that cannot be used: unsafe format, sizes that lie, an unknown architecture."""

    code = "bad_model"


class BadData(JobFailed):
    """Rows that cannot be trained or evaluated on; the message says which and why."""

    code = "bad_data"


def all_errors() -> list[type[BurnishError]]:
    """Return every error class defined here, sorted by code (for the documentation)."""
    found: list[type[BurnishError]] = []
    queue: list[type[BurnishError]] = [BurnishError]
    while queue:
        current = queue.pop()
        found.append(current)
        queue.extend(current.__subclasses__())
    return sorted(found, key=lambda error: error.code)


def error_class(code: str) -> type[BurnishError] | None:
    """Return the class that an error's ``code`` stands for when it arrives from another process; None if unknown.

    Where classes share a code, the one of this module is meant: theirs only add what does not travel.
    """
    found = [
        error
        for error in all_errors()
        if error.code == code
        and error.__module__.startswith("burnish.")
        and {"hint", "context"} & inspect.signature(error.__init__).parameters.keys()
    ]
    return min(found, key=lambda error: error.__module__ != __name__, default=None)
