"""Every operation of the API as a value, without input or output; the two clients send them.

One function per operation: it says the method, the path and how the answer is read. Sync and async differ only in who
sends the :class:`Call`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from pydantic import TypeAdapter

from burnish.client import views
from burnish.core.pages import Page
from burnish.core.protocol import JobView

Answer = TypeVar("Answer")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """One request and how its answer is read."""

    method: str
    path: str
    read: Callable[[Any], Answer]
    query: Mapping[str, str | int | bool] = field(default_factory=dict)
    json: Any = None
    upload: Path | None = None
    """A file whose bytes are streamed as the body."""
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = 30.0

    @property
    def where(self) -> str:
        """What is asked, for error messages."""
        return f"{self.method} {self.path}"


def reader(model: type[Answer]) -> Callable[[Any], Answer]:
    """Return a function that validates an answer as ``model``."""
    return TypeAdapter(model).validate_python


def raw(answer: Any) -> Any:
    """Take the answer as it is: JSON values."""
    return answer


def nothing(_: Any) -> None:
    """Take an answer that says no more than that it is done."""


def listing(path: str, model: type[Item], after: str | None, limit: int, **filters: Any) -> Call[Page[Item]]:
    """List objects, newest first; ``after`` is the ``next`` of the page before."""
    query = given(after=after, limit=limit, **filters)
    return Call("GET", path, reader(Page[model]), query)  # type: ignore[valid-type]


# Workflows


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


def submit(
    workflow: str | Mapping[str, Any], parameters: Mapping[str, Any], idempotency_key: str | None
) -> Call[views.Accepted]:
    """Submit an execution of a definition, by its name or given whole."""
    chosen = {"workflow_type": workflow} if isinstance(workflow, str) else {"definition": dict(workflow)}
    body = {**chosen, "parameters": from_here(parameters)}
    return Call(
        "POST", "/platform/workflows/run", reader(views.Accepted), json=body, headers=key_header(idempotency_key), timeout=120
    )  # fmt: skip


def validate(workflow: str | Mapping[str, Any], parameters: Mapping[str, Any]) -> Call[views.Validation]:
    """Check a submission without accepting it."""
    chosen = {"workflow_type": workflow} if isinstance(workflow, str) else {"definition": dict(workflow)}
    body = {**chosen, "parameters": from_here(parameters)}
    return Call("POST", "/platform/workflows/validate", reader(views.Validation), json=body, timeout=120)


def execution(workflow_id: str) -> Call[views.ExecutionView]:
    """Read an execution with its steps."""
    return Call("GET", f"/platform/workflows/{quoted(workflow_id)}/status", reader(views.ExecutionView))


def steer(workflow_id: str, action: str) -> Call[views.Accepted]:
    """Cancel, pause or resume an execution."""
    return Call("POST", f"/platform/workflows/{quoted(workflow_id)}/{action}", reader(views.Accepted))


def retry(workflow_id: str, steps: Sequence[str]) -> Call[views.Accepted]:
    """Run again what did not succeed."""
    path = f"/platform/workflows/{quoted(workflow_id)}/retry"
    return Call("POST", path, reader(views.Accepted), json={"steps": list(steps)})


def approve(workflow_id: str, step: str, approved: bool, comment: str) -> Call[views.Accepted]:
    """Answer a step that waits for a person."""
    path = f"/platform/workflows/{quoted(workflow_id)}/steps/{quoted(step)}/approve"
    return Call("POST", path, reader(views.Accepted), json={"approved": approved, "comment": comment})


def fork(workflow_id: str, step: str | None, parameters: Mapping[str, Any], key: str | None) -> Call[views.Accepted]:
    """Start a new execution that takes over what stands before ``step``."""
    body = {"from_step": step, "parameters": from_here(parameters)}
    path = f"/platform/workflows/{quoted(workflow_id)}/fork"
    return Call("POST", path, reader(views.Accepted), json=body, headers=key_header(key), timeout=120)


# Datasets


def add_dataset(path: Path, name: str, options: Mapping[str, Any]) -> Call[views.AddedDataset]:
    """Upload a file as a new version of dataset ``name``; the same content again is the same version."""
    query = given(filename=path.name, name=name, **options)
    return Call(
        "POST", "/platform/datasets", reader(views.AddedDataset), query, upload=path,
        headers={"content-type": "application/octet-stream"}, timeout=None,
    )  # fmt: skip


def dataset(name: str) -> Call[Any]:
    """Read a dataset with its versions."""
    return Call("GET", f"/platform/datasets/{quoted(name)}", raw)


def preview(reference: str, limit: int) -> Call[Any]:
    """Read the first rows of ``name@version``, or of the latest version of ``name``."""
    name, _, version = reference.partition("@")
    path = f"/platform/datasets/{quoted(name)}/versions/{quoted(version or 'latest')}/preview"
    return Call("GET", path, raw, {"limit": limit})


# Models, deployments, jobs, components


def model(name: str) -> Call[Any]:
    """Read a model with versions and aliases."""
    return Call("GET", f"/platform/models/{quoted(name)}", raw)


def resolve_model(reference: str) -> Call[views.ModelVersionView]:
    """Read the version that ``name``, ``name@3`` or ``name@alias`` means now."""
    return Call("GET", "/platform/models/resolve", reader(views.ModelVersionView), {"ref": reference})


def lineage(name: str, version: int) -> Call[Any]:
    """Read where a version came from, and what came from it."""
    return Call("GET", f"/platform/models/{quoted(name)}/versions/{version}/lineage", raw)


def set_alias(name: str, alias: str, version: int) -> Call[Any]:
    """Move an alias to a version."""
    return Call("PUT", f"/platform/models/{quoted(name)}/aliases/{quoted(alias)}", raw, json={"version": version})


def deployment(name: str) -> Call[Any]:
    """Read a deployment with revisions and replicas."""
    return Call("GET", f"/platform/deployments/{quoted(name)}", raw)


def steer_deployment(name: str, action: str, body: Mapping[str, Any] | None = None) -> Call[Any]:
    """Roll back or stop a deployment."""
    return Call("POST", f"/platform/deployments/{quoted(name)}/{action}", raw, json=dict(body or {}))


def job(job_id: str) -> Call[JobView]:
    """Read a job."""
    return Call("GET", f"/platform/jobs/{quoted(job_id)}", reader(JobView))


def logs(job_id: str, limit: int) -> Call[Any]:
    """Read the last lines of a job's log."""
    return Call("GET", f"/platform/jobs/{quoted(job_id)}/logs", raw, {"limit": limit})


def get(path: str) -> Call[Any]:
    """Read anything."""
    return Call("GET", path, raw)


def given(**values: Any) -> dict[str, Any]:
    """Return the values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def key_header(idempotency_key: str | None) -> dict[str, str]:
    """Return the header of an idempotency key, if there is one."""
    return {"idempotency-key": idempotency_key} if idempotency_key else {}


def quoted(value: str) -> str:
    """Return ``value`` as one path segment."""
    return quote(value, safe="")
