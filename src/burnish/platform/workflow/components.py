"""How the workflow engine reaches components: the part of the integrator that it needs, and one attempt's dealings."""

import asyncio
import math
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Protocol

from pydantic import ValidationError

from burnish.core.errors import BurnishError, ErrorBody, JobFailed, NotFound, UpstreamFailed
from burnish.core.protocol import Description, JobRequest, JobView, KindOffer, Progress, Validation
from burnish.core.specs.base import Resources, digest_of
from burnish.core.states import JobState
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.artifact_store.protocol import ArtifactStore
from burnish.infra.artifact_store.references import references_in
from burnish.infra.database import Database
from burnish.infra.storable import cleaned, cleaned_text
from burnish.platform.identity import Principal
from burnish.platform.workflow import store
from burnish.platform.workflow.decide import item_scope
from burnish.platform.workflow.execution import Attempt, Execution
from burnish.platform.workflow.expressions import resolve
from burnish.platform.workflow.records import Outcome

_ENDED = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
_FIRST_POLL, _LAST_POLL = 0.5, 10.0
_NOTE_LENGTH = 500
_METRICS = 20
_TOLD = 10_000
"""Jobs whose last progress is remembered, so that what does not move makes no events."""


class Components(Protocol):
    """What the engine asks of the integrator."""

    async def call(
        self, component_type: str, method: str, path: str, json: Any = None, *,
        principal: Principal, timeout: float = 30, query: Mapping[str, str] | None = None,
    ) -> Any:  # fmt: skip
        """Call a healthy instance; an error answer is raised as the typed error it was."""

    async def describe(self, component_type: str) -> Description:
        """Return what the component offers."""

    async def refresh(self) -> None:
        """Have :meth:`kinds` tell what is offered from now on, and not a moment ago."""

    def kinds(self) -> Mapping[tuple[str, str], KindOffer]:
        """Return every kind that is offered at the moment."""


class JobClient:
    """Submits, follows and stops the jobs of attempts."""

    def __init__(
        self, components: Components, database: Database, artifact_store: ArtifactStore, settle_seconds: float
    ) -> None:
        """Time out no older job in the first ``settle_seconds``: one that a power cut ended still looks as if it ran on."""
        self._components = components
        self._database = database
        self._store = artifact_store
        self._began = time.time()
        self._settled_at = time.monotonic() + settle_seconds
        self._silent_since: dict[str, datetime] = {}
        self._progress: dict[str, Progress] = {}

    async def deal(self, execution: Execution, attempt: Attempt) -> float | None:
        """Do the next thing with a component's job; return the seconds after which to look again, if any.

        Whatever is asked of a job comes after it is known to be there: a crash between intent and submission is
        mended first, by submitting the same id again.
        """
        if attempt.resting:
            return attempt.again
        try:
            again = await self._deal(execution, attempt)
            self._silent_since.pop(attempt.component, None)
            return again
        except (BurnishError, ValidationError) as given:
            odd = f"its answer is none of the protocol's: {str(given).splitlines()[0]}"
            error = given if isinstance(given, BurnishError) else UpstreamFailed(odd)
            attempt.resting = True
            attempt.again = min(_LAST_POLL, error.retry_after or 2.0)
            since = self._silent_since.setdefault(attempt.component, datetime.now(UTC))
            told = cleaned_text(error.message)[:_NOTE_LENGTH]
            attempt.change(note=f"{attempt.component} does not answer since {since:%H:%M:%S} UTC: {told}; trying again")
            return attempt.again

    async def _deal(self, execution: Execution, attempt: Attempt) -> float | None:
        principal = Principal(execution.submitted_by, execution.project_id).acting()
        if attempt.submitted_at is None:
            if execution.definition.steps[attempt.step].cache and attempt.cache_key is None:
                await self._look_up(execution, attempt, principal)
                return None
            view = await self._submit(execution, attempt, principal)
        elif attempt.stop is not None and not attempt.stop_delivered:
            view = await self._job(attempt, "POST", "/cancel", principal)
            attempt.change(stop_delivered=True)
        elif attempt.pause in {"asked", "resume"} and attempt.stop is None:
            view = await self._pause_or_resume(attempt, principal)
        elif self._worth_a_look(execution, attempt):
            view = await self._job(attempt, "GET", "", principal)
        else:
            return self._time_left(execution, attempt)
        attempt.looked = True
        if view is None:
            return None
        attempt.outcome = await self._vouched_for(execution, attempt, outcome_of(view))
        if attempt.outcome is not None:
            self._progress.pop(attempt.job_id, None)
            return None
        attempt.change(note=_told(attempt, view))
        attempt.news = self._news(attempt, view)
        attempt.again = self._after(execution, attempt, view)
        return attempt.again

    async def _submit(self, execution: Execution, attempt: Attempt, principal: Principal) -> JobView | None:
        step = execution.definition.steps[attempt.step]
        try:
            given = resolve(step.resources, item_scope(execution.view(), attempt.step, attempt.item))
            request = JobRequest(
                job_id=attempt.job_id, kind=attempt.kind, spec=dict(attempt.spec), project_id=execution.project_id,
                priority=step.priority, origin=execution.workflow_id,
                resources=None if given is None else Resources.model_validate(given),
            )  # fmt: skip
            answer = await self._components.call(
                attempt.component, "POST", "/jobs", request.model_dump(mode="json"), principal=principal
            )
        except BurnishError as error:
            if error.retryable:
                raise
            attempt.outcome = Outcome("failed", error=error.body())
            return None
        except ValueError as error:
            problem = str(error).splitlines()[0]
            body = NotFound(f"`resources` of step {attempt.step} cannot be read: {problem}").body()
            attempt.outcome = Outcome("failed", error=body.model_copy(update={"code": "invalid_request"}))
            return None
        attempt.change(submitted_at=time.time(), state=JobState.RUNNING)
        return JobView.model_validate(answer)

    async def _job(self, attempt: Attempt, method: str, path: str, principal: Principal) -> JobView | None:
        try:
            answer = await self._components.call(
                attempt.component, method, f"/jobs/{attempt.job_id}{path}", {} if method == "POST" else None,
                principal=principal,
            )  # fmt: skip
        except NotFound:  # its component forgot it: the same id submitted again is the same job
            attempt.change(submitted_at=None)
            return None
        return JobView.model_validate(answer)

    async def _pause_or_resume(self, attempt: Attempt, principal: Principal) -> JobView | None:
        """Ask once more until there is an answer: what failed on the way, or found no job, was not delivered."""
        asked = attempt.pause == "asked"
        try:
            view = await self._job(attempt, "POST", "/pause" if asked else "/resume", principal)
        except BurnishError as error:
            if error.retryable:
                raise
            view = await self._job(attempt, "GET", "", principal)  # it cannot be paused: it runs to its end
        if view is not None:
            attempt.change(pause="delivered" if asked else "")
        return view

    async def _look_up(self, execution: Execution, attempt: Attempt, principal: Principal) -> None:
        """Find an equal step that succeeded before; else note the key, which is committed before the job is submitted."""
        request = JobRequest(kind=attempt.kind, spec=dict(attempt.spec), project_id=execution.project_id)
        answer = await self._components.call(
            attempt.component, "POST", "/jobs/validate", request.model_dump(mode="json"), principal=principal
        )
        described = await self._components.describe(attempt.component)
        spec = Validation.model_validate(answer).spec or attempt.spec
        key = digest_of([attempt.component, attempt.kind, described.version, spec])
        async with self._database.read() as session:
            found = await store.cached(session, execution.project_id, key)
        for row in found:
            if await self._still_there(execution.project_id, row.result):
                attempt.outcome = Outcome("succeeded", result=row.result, reused_from=row.job_id)
                break
        attempt.change(cache_key=key)

    async def _still_there(self, project_id: str, result: Any) -> bool:
        """Tell whether the project has every artifact of a result still, and keep them from being swept meanwhile."""
        digests = {ref.digest for _, ref in references_in(result)}
        if await self._strange(project_id, digests):
            return False
        return await asyncio.to_thread(lambda: all(self._store.renew(digest) for digest in digests))

    async def _vouched_for(self, execution: Execution, attempt: Attempt, outcome: Outcome | None) -> Outcome | None:
        """Return a job's outcome; a failure if it hands on what is neither the project's nor of this job's making.

        Whose component says so is no matter: an artifact that another project has too becomes this one's only by what
        its job wrote into the store.
        """
        if outcome is None:
            return None
        strange = await self._strange(execution.project_id, {ref.digest for _, ref in references_in(outcome.result)})
        if not strange:
            return outcome
        made = await asyncio.to_thread(lambda: {one for one in strange if self._is_made_by(attempt.job_id, one)})
        if not (left := sorted(strange - made)):
            return outcome
        refusal = JobFailed(
            f"the result of step {attempt.step} names the artifact {left[0]}, which is neither this project's nor published "
            "by the job", where=f"steps.{attempt.step}",
            hint="a job may give what its spec names and what it has published into the platform's store (where a component's "
            "process runs a Burnish older than the platform's, upgrade it)",
        )  # fmt: skip
        return Outcome("failed", error=refusal.body())

    async def _strange(self, project_id: str, digests: Collection[str]) -> set[str]:
        """Return the artifacts that the project does not have."""
        if not digests:
            return set()
        async with self._database.read() as session:
            return set(digests) - (await artifacts.known(session, project_id, digests)).keys()

    def _is_made_by(self, job_id: str, digest: str) -> bool:
        return self._store.published(digest, job_id) and self._store.renew(digest)

    def _worth_a_look(self, execution: Execution, attempt: Attempt) -> bool:
        """A job that ended, one that only its component knows of, or one that may be over its time."""
        if attempt.looked:
            return False
        left = self._time_left(execution, attempt)
        return attempt.job_state in _ENDED or attempt.job_state is None or (left is not None and left <= 0)

    def _time_left(self, execution: Execution, attempt: Attempt) -> float | None:
        if attempt.looked:
            return attempt.again
        timeout = execution.definition.steps[attempt.step].timeout
        if timeout is None or attempt.submitted_at is None or attempt.stop is not None:
            return None
        return max(0.0, attempt.submitted_at + timeout - time.time())

    def _news(self, attempt: Attempt, view: JobView) -> Progress | None:
        """Return how far a job is that only its component knows of, if it has moved."""
        if attempt.job_state is not None or view.progress is None:
            return None
        progress = _kept(view.progress)
        if self._progress.get(attempt.job_id) == progress:
            return None
        if len(self._progress) >= _TOLD:
            self._progress.clear()
        self._progress[attempt.job_id] = progress
        return progress

    def _after(self, execution: Execution, attempt: Attempt, view: JobView) -> float | None:
        """Return when to look at a running job again; a timeout counts the seconds that the job itself ran."""
        poll = None
        if attempt.job_state is None:
            age = time.time() - (attempt.submitted_at or time.time())
            poll = min(_LAST_POLL, max(_FIRST_POLL, age / 4))
        timeout = execution.definition.steps[attempt.step].timeout
        if timeout is None or attempt.stop is not None:
            return poll
        ran = _ran_seconds(view)
        if ran >= timeout and (wait := self._unsettled(view)) > 0:
            return wait if poll is None else min(wait, poll)
        if ran >= timeout:
            attempt.timed_out = True
            return poll
        left = timeout - ran if view.state is JobState.RUNNING else max(timeout - ran, _LAST_POLL)
        return left if poll is None else min(left, poll)

    def _unsettled(self, view: JobView) -> float:
        """Return for how long it may not be known yet whether the host of a job still lives."""
        if view.started_at is not None and view.started_at.timestamp() >= self._began:
            return 0.0
        return self._settled_at - time.monotonic()


def _told(attempt: Attempt, view: JobView) -> str | None:
    """Return what a job waits for by its component's own word; of one in our database its row tells."""
    if attempt.job_state is not None or view.pending_reason is None:
        return None
    return cleaned_text(view.pending_reason)[:_NOTE_LENGTH]


def _kept(progress: Progress) -> Progress:
    """Return what can be kept and shown of how far anybody's component says that a job is."""
    left = progress.seconds_left
    return Progress(
        done=progress.done if math.isfinite(progress.done) else 0,
        total=progress.total if math.isfinite(progress.total) else 0,
        unit=cleaned_text(progress.unit)[:40], phase=cleaned_text(progress.phase)[:100],
        metrics={cleaned_text(name)[:100]: value for name, value in islice(progress.metrics.items(), _METRICS) if math.isfinite(value)},
        seconds_left=None if left is None or not math.isfinite(left) else left,
    )  # fmt: skip


def _ran_seconds(view: JobView) -> float:
    """Return how long a job ran. Of one without a host that is the time since it began: it cannot be paused."""
    if view.ran_seconds is not None:
        return view.ran_seconds
    return 0.0 if view.started_at is None else time.time() - view.started_at.timestamp()


def outcome_of(view: JobView) -> Outcome | None:
    """Return how a job ended, or None while it has not. What anybody's component says becomes what a row can keep."""
    error = None if view.error is None else ErrorBody.model_validate(cleaned(view.error.model_dump()))
    if view.state is JobState.SUCCEEDED:
        return Outcome("succeeded", result=cleaned(view.result))
    if view.state is JobState.FAILED:
        return Outcome("failed", result=cleaned(view.result), error=error)
    return Outcome("cancelled", error=error) if view.state is JobState.CANCELLED else None
