"""Components that keep the protocol in memory: what the workflow engine is tested against, crashes included."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field, ValidationError

from burnish.core.errors import BurnishError, ErrorBody, FieldProblem, NotFound, Unavailable
from burnish.core.protocol import Description, JobRequest, JobView, KindOffer, Validation
from burnish.core.specs.base import ArtifactRef, Spec
from burnish.core.states import JobState
from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.platform.identity import Principal


class WorkSpec(Spec):
    """What the fake's kind ``work`` takes."""

    number: int = 0
    text: str = ""
    source: ArtifactRef | None = None
    fail: bool = False


class WorkResult(Spec):
    """What it gives."""

    number: int
    text: str = ""
    artifact: ArtifactRef | None = None
    numbers: dict[str, float] = Field(default_factory=dict)


_KINDS = {
    ("worker", "work"): KindOffer(
        name="work", spec_schema=WorkSpec.model_json_schema(), result_schema=WorkResult.model_json_schema()
    )
}


@dataclass
class FakeJob:
    """A job of the fake."""

    request: JobRequest
    state: JobState = JobState.QUEUED
    result: dict[str, Any] | None = None
    error: ErrorBody | None = None
    cancelled: bool = False
    started_at: datetime | None = None
    ran_seconds: float | None = None

    def started(self) -> None:
        """Note that it began just now: its step's timeout counts from here."""
        self.started_at = datetime.now(UTC)

    def view(self) -> JobView:
        return JobView(
            job_id=self.request.job_id,
            kind=self.request.kind,
            state=self.state,
            result=self.result,
            error=self.error,
            started_at=self.started_at,
            ran_seconds=self.ran_seconds,
        )


@dataclass
class FakeComponents:
    """One component of type ``worker`` whose jobs end when the test says so, or at once."""

    mode: Literal["at once", "by hand"] = "at once"
    jobs: dict[str, FakeJob] = field(default_factory=dict)
    calls: list[tuple[str, str, str]] = field(default_factory=list)
    submissions: dict[str, int] = field(default_factory=dict)
    down: bool = False
    pausable: bool = True
    odd_answers: bool = False
    """Whether jobs are submitted, but answered with something else than the protocol has."""
    failing_calls: dict[str, int] = field(default_factory=dict)
    """How many calls of a path do not arrive."""
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    serving: dict[str, str] = field(default_factory=dict)
    """Model version by deployment."""
    store: FileArtifactStore | None = None
    """Where every job publishes its artifact; without one, references are made up."""
    claimed: ArtifactRef | None = None
    """What every job says that it made, which it did not."""
    failures: dict[int, list[ErrorBody]] = field(default_factory=dict)
    """Errors of the next jobs whose spec has this ``number``."""

    hidden: set[str] = field(default_factory=set)
    """Kinds that are offered from the next refresh on."""
    refreshes: int = 0

    async def refresh(self) -> None:
        self.refreshes += 1
        self.hidden.clear()

    def kinds(self) -> Mapping[tuple[str, str], KindOffer]:
        return {key: offer for key, offer in _KINDS.items() if key[1] not in self.hidden}

    async def describe(self, component_type: str) -> Description:
        return Description(component_type=component_type, version="1", kinds=tuple(self.kinds().values()))

    async def call(
        self, component_type: str, method: str, path: str, json: Any = None, *,
        principal: Principal, timeout: float = 30, query: Mapping[str, str] | None = None,
    ) -> Any:  # fmt: skip
        await asyncio.sleep(0)
        self.calls.append((component_type, method, path))
        if component_type == "data_management":
            return self._dataset((query or {})["ref"])
        if path.startswith("/platform/deployments/"):
            return self._deployment(path.rpartition("/")[2])
        if self.down:
            raise Unavailable("worker is away", hint="wait")
        if path in self.failing_calls:
            self.failing_calls[path] -= 1
            if not self.failing_calls[path]:
                del self.failing_calls[path]
            raise Unavailable("the connection broke", hint="wait", retry_after=0.05)
        if path == "/jobs/validate":
            return self._validate(JobRequest.model_validate(json))
        if path == "/jobs":
            view = self._submit(JobRequest.model_validate(json))
            return {"job": "taken"} if self.odd_answers else view
        job_id, _, verb = path.removeprefix("/jobs/").partition("/")
        return self._job(job_id, verb)

    def _dataset(self, ref: str) -> dict[str, Any]:
        if ref not in self.datasets:
            raise NotFound(f"no dataset {ref!r}", hint="`burnish dataset list` shows them")
        return self.datasets[ref]

    def _deployment(self, name: str) -> dict[str, Any]:
        if name not in self.serving:
            raise NotFound(f"there is no deployment {name}")
        return {"name": name, "model_version": self.serving[name]}

    def _validate(self, request: JobRequest) -> dict[str, Any]:
        problems = []
        try:
            spec = WorkSpec.model_validate(request.spec).model_dump(mode="json")
        except ValidationError as error:
            spec = None
            for one in error.errors():
                place = ".".join(map(str, one["loc"]))
                if place not in request.unresolved:
                    problems.append(FieldProblem(where=f"spec.{place}", message=one["msg"]))
        return Validation(problems=tuple(problems), spec=spec).model_dump(mode="json")

    def _submit(self, request: JobRequest) -> dict[str, Any]:
        assert request.job_id
        self.submissions[request.job_id] = self.submissions.get(request.job_id, 0) + 1
        job = self.jobs.get(request.job_id)
        if job is None:
            job = self.jobs[request.job_id] = FakeJob(request, JobState.RUNNING)
            if self.mode == "at once":
                self.finish(request.job_id)
        return job.view().model_dump(mode="json")

    def finish(self, job_id: str, error: BurnishError | None = None) -> None:
        """End a job: as its spec says, or with an error."""
        job = self.jobs[job_id]
        if job.state in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}:
            return
        spec = WorkSpec.model_validate(job.request.spec)
        queued = self.failures.get(spec.number)
        if error is not None or queued or spec.fail:
            job.state = JobState.FAILED
            job.error = error.body() if error is not None else queued.pop(0) if queued else ErrorBody(
                code="job_failed", message="it was told to fail", hint="do not")  # fmt: skip
            return
        job.state = JobState.SUCCEEDED
        artifact = self.claimed or self._published(job_id, spec.number)
        job.result = WorkResult(number=spec.number + 1, text=spec.text, artifact=artifact).model_dump(mode="json")

    def _published(self, job_id: str, number: int) -> ArtifactRef:
        if self.store is None:
            return ArtifactRef(digest=f"sha256:{number:064x}", kind="model", size_bytes=number)
        folder = self.store.stage(job_id)
        (folder / "weights").write_text(str(number))
        return self.store.publish(folder, "model", job_id)

    def _job(self, job_id: str, verb: str) -> dict[str, Any]:
        job = self.jobs.get(job_id)
        if job is None and verb == "cancel":
            job = self.jobs[job_id] = FakeJob(JobRequest(job_id=job_id, kind="work", spec={}), JobState.CANCELLED)
        if job is None:
            raise NotFound(f"no job {job_id}")
        if verb == "cancel" and job.state not in {JobState.SUCCEEDED, JobState.FAILED}:
            job.state, job.cancelled = JobState.CANCELLED, True
        if verb == "pause" and job.state is JobState.RUNNING and self.pausable:
            job.state = JobState.PAUSED
        if verb == "resume" and job.state is JobState.PAUSED:
            job.state = JobState.RUNNING
        return job.view().model_dump(mode="json")
