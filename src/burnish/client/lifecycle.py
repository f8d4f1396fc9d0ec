"""Workflows, datasets, models, deployments and jobs: what an engineer asks of the platform.

:class:`Workflows` and the like are for the client that waits, the ``Async`` ones for asyncio.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from burnish.client import views
from burnish.client.calls import Call, given, key_header, listing, quoted, raw, reader
from burnish.client.faces import AsyncFace, Face, operation
from burnish.client.wire import new_key
from burnish.core.errors import DeadlineExceeded
from burnish.core.pages import Page
from burnish.core.protocol import Event, JobView
from burnish.core.states import JOB, is_final

_WORKFLOWS = "/platform/workflows"
_DATASETS = "/platform/datasets"
_MODELS = "/platform/models"
_DEPLOYMENTS = "/platform/deployments"
_JOBS = "/platform/jobs"
_LOOK_SECONDS = 0.5
"""Between looks at an execution that is waited for."""


class _Workflows:
    @operation
    def submit(
        self, workflow: str | Mapping[str, Any], parameters: Mapping[str, Any] | None = None, *,
        idempotency_key: str | None = None,
    ) -> Call[views.Accepted]:  # fmt: skip
        """Submit an execution; once this returns it is stored and will be carried out.

        Args:
            workflow: The name of a definition, or a definition.
            parameters: The definition's parameters.
            idempotency_key: The same key again returns the same execution.

        Raises:
            InvalidRequest: ``problems`` names each place that is wrong.
        """
        return Call(
            "POST", f"{_WORKFLOWS}/run", reader(views.Accepted), json=_submission(workflow, parameters),
            headers=key_header(idempotency_key or new_key()), timeout=120,
        )  # fmt: skip

    @operation
    def validate(
        self, workflow: str | Mapping[str, Any], parameters: Mapping[str, Any] | None = None
    ) -> Call[views.Validation]:
        """Check a submission without accepting it."""
        body = _submission(workflow, parameters)
        return Call("POST", f"{_WORKFLOWS}/validate", reader(views.Validation), json=body, timeout=120)

    @operation
    def get(self, workflow_id: str) -> Call[views.ExecutionView]:
        """Return an execution with its steps."""
        return Call("GET", f"{_WORKFLOWS}/{quoted(workflow_id)}/status", reader(views.ExecutionView))

    @operation
    def list(
        self, *, status: str | None = None, after: str | None = None, limit: int = 50
    ) -> Call[Page[views.ExecutionView]]:
        """Return executions, newest first."""
        return listing(_WORKFLOWS, views.ExecutionView, after, limit, status=status)

    @operation
    def definitions(self) -> Call[tuple[views.DefinitionView, ...]]:
        """Return the definitions that can be submitted by name."""
        page = listing(f"{_WORKFLOWS}/definitions", views.DefinitionView, None, 500)
        return Call("GET", page.path, lambda answer: tuple(page.read(answer).data), page.query)

    @operation
    def cancel(self, workflow_id: str) -> Call[views.Accepted]:
        """Ask for it to stop; running jobs are ended."""
        return _steer(workflow_id, "cancel")

    @operation
    def pause(self, workflow_id: str) -> Call[views.Accepted]:
        """Start no further step, and pause jobs that can be paused."""
        return _steer(workflow_id, "pause")

    @operation
    def resume(self, workflow_id: str) -> Call[views.Accepted]:
        """Go on with a paused execution."""
        return _steer(workflow_id, "resume")

    @operation
    def retry(self, workflow_id: str, steps: Sequence[str] = ()) -> Call[views.Accepted]:
        """Run again what did not succeed, or ``steps`` and what needs them; what succeeded is kept."""
        return _steer(workflow_id, "retry", {"steps": [*steps]})

    @operation
    def approve(self, workflow_id: str, step: str, *, approved: bool, comment: str = "") -> Call[views.Accepted]:
        """Answer a step that waits for a person."""
        return _steer(workflow_id, f"steps/{quoted(step)}/approve", {"approved": approved, "comment": comment})

    @operation
    def fork(
        self, workflow_id: str, step: str | None, parameters: Mapping[str, Any] | None = None, *,
        idempotency_key: str | None = None,
    ) -> Call[views.Accepted]:  # fmt: skip
        """Start a new execution from ``step`` on, with changed parameters, re-using the steps before it."""
        return Call(
            "POST", f"{_WORKFLOWS}/{quoted(workflow_id)}/fork", reader(views.Accepted),
            json={"from_step": step, "parameters": from_here(parameters or {})},
            headers=key_header(idempotency_key or new_key()), timeout=120,
        )  # fmt: skip


def _submission(workflow: str | Mapping[str, Any], parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    chosen = {"workflow_type": workflow} if isinstance(workflow, str) else {"definition": dict(workflow)}
    return {**chosen, "parameters": from_here(parameters or {})}


def from_here(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with paths from here as absolute ones: the server has another working folder."""
    return {name: _absolute(value) for name, value in parameters.items()}


def _absolute(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.expanduser().resolve())
    if not isinstance(value, str):
        return value
    path = Path(value).expanduser()
    if value.startswith(("./", "../", "~/")) or (value.endswith(("/", ".gguf")) and path.exists()):
        return str(path.resolve())
    return value


def _steer(workflow_id: str, action: str, body: Mapping[str, Any] | None = None) -> Call[views.Accepted]:
    return Call("POST", f"{_WORKFLOWS}/{quoted(workflow_id)}/{action}", reader(views.Accepted), json=body)


def _events_of(workflow_id: str) -> str:
    return f"{_WORKFLOWS}/{quoted(workflow_id)}/events"


class Workflows(_Workflows, Face):
    """Executions of workflow definitions."""

    def follow(self, workflow_id: str, after: str | None = None) -> Iterator[Event | None]:
        """Yield the events of an execution and its jobs until it has ended; None is a heartbeat."""
        return self._client.follow(_events_of(workflow_id), after, ended=lambda: self.get(workflow_id).ended)

    def wait(self, workflow_id: str, timeout: float | None = None) -> views.ExecutionView:
        """Return the execution once it has ended.

        Raises:
            DeadlineExceeded: it has not ended within ``timeout`` seconds.
        """
        patience = _Patience(timeout)
        while not (view := self.get(workflow_id)).ended:
            patience.check(view)
            time.sleep(_LOOK_SECONDS)
        return view


class AsyncWorkflows(_Workflows, AsyncFace):
    """Executions of workflow definitions, from asyncio."""

    def follow(self, workflow_id: str, after: str | None = None) -> AsyncIterator[Event | None]:
        """Yield the events of an execution and its jobs until it has ended; None is a heartbeat."""

        async def ended() -> bool:
            return (await self.get(workflow_id)).ended

        return self._client.follow(_events_of(workflow_id), after, ended=ended)

    async def wait(self, workflow_id: str, timeout: float | None = None) -> views.ExecutionView:
        """Return the execution once it has ended.

        Raises:
            DeadlineExceeded: it has not ended within ``timeout`` seconds.
        """
        patience = _Patience(timeout)
        while not (view := await self.get(workflow_id)).ended:
            patience.check(view)
            await asyncio.sleep(_LOOK_SECONDS)
        return view


class _Patience:
    """How long an execution is waited for."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._start = time.monotonic()

    def check(self, view: views.ExecutionView) -> None:
        """Raise :class:`DeadlineExceeded` once it is over."""
        if self._seconds is not None and time.monotonic() - self._start > self._seconds:
            raise DeadlineExceeded(
                f"{view.workflow_id} is still {view.status} after {self._seconds:g} s", where=view.workflow_id
            )


class _Datasets:
    @operation
    def add(self, /, path: Path | str, *, name: str | None = None, **options: Any) -> Call[views.AddedDataset]:
        """Upload a file as a new version; the same rows again are the version that has them.

        Args:
            path: JSONL, CSV or Parquet; the first two also as ``.gz`` or ``.zst``.
            name: The dataset; by default the file's name without its endings.
            options: ``format``, ``columns``, ``licence``, ``duplicates`` (keep, drop), ``bad_rows`` (fail, drop).

        Raises:
            InvalidRequest: rows that cannot be used; ``problems`` names each by its line.
        """
        file = Path(path)
        return Call(
            "POST", _DATASETS, reader(views.AddedDataset), upload=file, timeout=None,
            query=given(filename=file.name, name=name or file.name.split(".")[0], **options),
            headers={"content-type": "application/octet-stream"},
        )  # fmt: skip

    @operation
    def list(self, *, after: str | None = None, limit: int = 50) -> Call[Page[views.DatasetView]]:
        """Return datasets."""
        return listing(_DATASETS, views.DatasetView, after, limit)

    @operation
    def get(self, name: str) -> Call[Any]:
        """Return a dataset with its versions."""
        return Call("GET", f"{_DATASETS}/{quoted(name)}", raw)

    @operation
    def preview(self, name: str, *, limit: int = 10) -> Call[Any]:
        """Return a version's first rows; ``name`` may be ``reviews@2``."""
        dataset, _, version = name.partition("@")
        path = f"{_DATASETS}/{quoted(dataset)}/versions/{quoted(version or 'latest')}/preview"
        return Call("GET", path, raw, {"limit": limit})


class Datasets(_Datasets, Face):
    """Datasets and their immutable versions."""


class AsyncDatasets(_Datasets, AsyncFace):
    """Datasets and their immutable versions, from asyncio."""


class _Models:
    @operation
    def list(self, *, after: str | None = None, limit: int = 50) -> Call[Page[views.ModelView]]:
        """Return models."""
        return listing(_MODELS, views.ModelView, after, limit)

    @operation
    def get(self, name: str) -> Call[Any]:
        """Return a model with its versions and aliases."""
        return Call("GET", f"{_MODELS}/{quoted(name)}", raw)

    @operation
    def versions(
        self, name: str, *, after: str | None = None, limit: int = 50
    ) -> Call[Page[views.ModelVersionView]]:  # fmt: skip
        """Return a model's versions, newest first."""
        return listing(f"{_MODELS}/{quoted(name)}/versions", views.ModelVersionView, after, limit)

    @operation
    def resolve(self, reference: str) -> Call[views.ModelVersionView]:
        """Return the version that ``name``, ``name@3`` or ``name@production`` means now."""
        return Call("GET", f"{_MODELS}/resolve", reader(views.ModelVersionView), {"ref": reference})

    @operation
    def lineage(self, name: str, version: int) -> Call[Any]:
        """Return where a version came from (data, base, configuration, code, seed), and what came from it."""
        return Call("GET", f"{_MODELS}/{quoted(name)}/versions/{version}/lineage", raw)

    @operation
    def alias(self, name: str, alias: str, version: int) -> Call[Any]:
        """Move an alias to a version."""
        return Call("PUT", f"{_MODELS}/{quoted(name)}/aliases/{quoted(alias)}", raw, json={"version": version})


class Models(_Models, Face):
    """The model registry."""


class AsyncModels(_Models, AsyncFace):
    """The model registry, from asyncio."""


class _Deployments:
    @operation
    def list(self, *, after: str | None = None, limit: int = 50) -> Call[Page[views.DeploymentView]]:
        """Return deployments."""
        return listing(_DEPLOYMENTS, views.DeploymentView, after, limit)

    @operation
    def get(self, name: str) -> Call[Any]:
        """Return a deployment with revisions and replicas."""
        return Call("GET", f"{_DEPLOYMENTS}/{quoted(name)}", raw)

    @operation
    def rollback(self, name: str, revision: int | None = None) -> Call[Any]:
        """Serve the revision before, or the one named."""
        return Call("POST", f"{_DEPLOYMENTS}/{quoted(name)}/rollback", raw, json=given(revision=revision))

    @operation
    def start(self, name: str) -> Call[Any]:
        """Serve again what served last."""
        return Call("POST", f"{_DEPLOYMENTS}/{quoted(name)}/start", raw, json={})

    @operation
    def stop(self, name: str) -> Call[Any]:
        """End its replicas."""
        return Call("POST", f"{_DEPLOYMENTS}/{quoted(name)}/stop", raw, json={})


class Deployments(_Deployments, Face):
    """What is served."""


class AsyncDeployments(_Deployments, AsyncFace):
    """What is served, from asyncio."""


class _Jobs:
    @operation
    def list(
        self, *, state: str | None = None, after: str | None = None, limit: int = 50
    ) -> Call[Page[JobView]]:  # fmt: skip
        """Return jobs, newest first."""
        return listing(_JOBS, JobView, after, limit, state=state)

    @operation
    def get(self, job_id: str) -> Call[JobView]:
        """Return a job."""
        return Call("GET", f"{_JOBS}/{quoted(job_id)}", reader(JobView))

    @operation
    def logs(self, job_id: str, *, limit: int = 500) -> Call[Any]:
        """Return the last lines of a job's log."""
        return Call("GET", f"{_JOBS}/{quoted(job_id)}/logs", raw, {"limit": limit})


class Jobs(_Jobs, Face):
    """Heavy work."""

    def follow(self, job_id: str, after: str | None = None) -> Iterator[Event | None]:
        """Yield a job's events until it has ended; None is a heartbeat."""
        path = f"{_JOBS}/{quoted(job_id)}/events"
        return self._client.follow(path, after, ended=lambda: is_final(JOB, self.get(job_id).state))


class AsyncJobs(_Jobs, AsyncFace):
    """Heavy work, from asyncio."""

    def follow(self, job_id: str, after: str | None = None) -> AsyncIterator[Event | None]:
        """Yield a job's events until it has ended; None is a heartbeat."""

        async def ended() -> bool:
            return is_final(JOB, (await self.get(job_id)).state)

        return self._client.follow(f"{_JOBS}/{quoted(job_id)}/events", after, ended=ended)
