"""The client that waits: ``with burnish.Client() as client: client.datasets.add("reviews.jsonl")``."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx

from burnish.client import calls, views, wire
from burnish.client.calls import Call
from burnish.client.configuration import Configuration, Secrets
from burnish.client.events import HEARTBEAT_LIMIT, PATIENCE, Decoder, backoff
from burnish.client.identity import Identity
from burnish.core.errors import BurnishError, DeadlineExceeded
from burnish.core.pages import MAX_LIMIT, Page
from burnish.core.protocol import Event, JobView
from burnish.core.states import JOB, is_final

Answer = TypeVar("Answer")


class Client:
    """Talks to a Burnish server.

    Args:
        url: Base URL; by default ``BURNISH_URL``, the running server of ``home``, or port 8000.
        api_key: By default ``BURNISH_API_KEY``, else the key that ``burnish login`` keeps for this server; empty: none.
        home: The home folder whose server is meant; by default ``BURNISH_HOME`` or ``~/.burnish``.
        project: The project that is meant; by default ``BURNISH_PROJECT``, else the key's own.
        transport: An httpx transport, for tests.

    Every method raises :class:`NotReachable` when no server answers, and the server's own typed error when it refuses.
    """

    def __init__(
        self, url: str | None = None, *, api_key: str | None = None, home: Path | None = None,
        project: str | None = None, transport: httpx.BaseTransport | None = None,
    ) -> None:  # fmt: skip
        self._address = wire.Address(url, api_key, home, project)
        self._http = httpx.Client(transport=transport, trust_env=False)
        self.workflows = Workflows(self)
        self.datasets = Datasets(self)
        self.models = Models(self)
        self.deployments = Deployments(self)
        self.jobs = Jobs(self)
        self.identity = Identity(self)
        self.configuration = Configuration(self)
        self.secrets = Secrets(self)

    @property
    def url(self) -> str:
        """The server's base URL."""
        return self._address.url

    def components(self) -> tuple[views.ComponentView, ...]:
        """Return the registered instances of components, all of them."""
        found: list[views.ComponentView] = []
        after: str | None = None
        while True:
            page = self.send(calls.listing("/platform/components", views.ComponentView, after, MAX_LIMIT))
            found += page.data
            if (after := page.next) is None:
                return tuple(found)

    def ready(self) -> dict[str, Any]:
        """Return what the server says about its readiness; raises ``Unavailable`` when it is not ready."""
        return dict(self.send(calls.get("/platform/ready")))

    def chat(self, model: str, messages: str | Sequence[Mapping[str, Any]], **options: Any) -> str:
        """Return a deployed model's answer. ``options`` are OpenAI's (``max_tokens``, ``temperature``, ...)."""
        body = wire.chat_body(model, messages, False, options)
        call: Call[Any] = Call("POST", "/v1/chat/completions", calls.raw, json=body, timeout=600)
        return wire.chat_chunk(self.send(call)).text

    def chat_stream(
        self, model: str, messages: str | Sequence[Mapping[str, Any]], **options: Any
    ) -> Iterator[views.Chunk]:
        """Yield a deployed model's answer as it is generated. Closing the iterator stops the generation."""
        body = wire.chat_body(model, messages, True, options)
        call: Call[Any] = Call("POST", "/v1/chat/completions", calls.raw, json=body, timeout=600)
        try:
            with self._open(call) as response:
                for line in response.iter_lines():
                    data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                    if data == "[DONE]":
                        return
                    if data:
                        yield wire.chat_chunk(json.loads(data))
        except httpx.TransportError as error:
            raise self._address.unreachable(error) from error

    def send(self, call: Call[Answer]) -> Answer:
        """Send one call and read its answer; what may be repeated is, when the connection breaks."""
        tries = wire.TRIES if wire.repeatable(call) else 1
        for attempt in range(tries):
            try:
                return wire.answer_of(call, self._request(call), self._address)
            except httpx.TimeoutException as error:
                raise DeadlineExceeded(
                    f"no answer to {call.where} within {call.timeout:g} s", where=self.url
                ) from error
            except httpx.TransportError as error:
                if attempt + 1 == tries:
                    raise self._address.unreachable(error) from error
                time.sleep(backoff(attempt))
                self._address.refresh()
        raise AssertionError("unreachable")

    def _request(self, call: Call[Any]) -> httpx.Response:
        headers = {**self._address.headers(), **call.headers}
        url, query = self._address.url + call.path, dict(call.query)
        if call.upload is None:
            return self._http.request(
                call.method, url, params=query, json=call.json, headers=headers, timeout=call.timeout
            )  # fmt: skip
        with call.upload.open("rb") as file:
            headers["content-length"] = str(call.upload.stat().st_size)
            blocks = iter(lambda: file.read(wire.BLOCK), b"")
            return self._http.request(
                call.method, url, params=query, content=blocks, headers=headers, timeout=call.timeout
            )  # fmt: skip

    def _open(self, call: Call[Any], silence: float | None = None) -> "_Stream":
        request = self._http.build_request(
            call.method, self._address.url + call.path, params=dict(call.query), json=call.json,
            headers={**self._address.headers(), **call.headers},
            timeout=httpx.Timeout(10.0, read=silence or call.timeout),
        )  # fmt: skip
        return _Stream(self._http, request, call.where, self._address)

    def follow(
        self, path: str, after: str | None = None, *, ended: Callable[[], bool], patience: float = PATIENCE
    ) -> Iterator[Event | None]:  # fmt: skip
        """Yield the events of a stream until its subject has ended; None is a heartbeat.

        When the connection breaks it is opened again where it broke (``Last-Event-ID``): no event is lost or repeated.
        The server closes a stream when all has been sent; ``ended`` tells that from a server that stops.

        Raises:
            NotReachable: the server stayed away for ``patience`` seconds.
        """
        decoder, attempt, lost_at = Decoder(last_id=after), 0, time.monotonic()
        while True:
            headers = {"last-event-id": decoder.last_id} if decoder.last_id else {}
            call: Call[Any] = Call("GET", path, calls.raw, headers=headers)
            decoder.reset()
            try:
                with self._open(call, HEARTBEAT_LIMIT) as response:
                    for line in response.iter_lines():
                        attempt, lost_at = 0, time.monotonic()
                        event, complete = decoder.feed(line)
                        if complete:
                            yield event
                if ended():
                    return
            except (httpx.TransportError, BurnishError) as error:
                wire.give_up_if(error, time.monotonic() - lost_at > patience, self._address)
            yield None
            time.sleep(backoff(attempt))
            attempt += 1
            self._address.refresh()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        self.close()


class _Stream:
    """A response that is read while it arrives."""

    def __init__(self, http: httpx.Client, request: httpx.Request, where: str, address: wire.Address) -> None:
        self._http, self._request, self._where, self._address = http, request, where, address

    def __enter__(self) -> httpx.Response:
        self._response = self._http.send(self._request, stream=True)
        if self._response.status_code >= 400:
            self._response.read()
            self._response.close()
            raise wire.refusal(self._response, self._where, self._address)
        return self._response

    def __exit__(self, *_: object) -> None:
        self._response.close()


class Workflows:
    """Executions of workflow definitions."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def submit(
        self, workflow: str | Mapping[str, Any], parameters: Mapping[str, Any] | None = None, *,
        idempotency_key: str | None = None,
    ) -> views.Accepted:  # fmt: skip
        """Submit an execution; once this returns it is stored and will be carried out.

        Args:
            workflow: The name of a definition, or a definition.
            parameters: The definition's parameters.
            idempotency_key: The same key again returns the same execution.

        Raises:
            InvalidRequest: ``problems`` names each place that is wrong.
        """
        return self._client.send(calls.submit(workflow, parameters or {}, idempotency_key or wire.new_key()))

    def validate(
        self, workflow: str | Mapping[str, Any], parameters: Mapping[str, Any] | None = None
    ) -> views.Validation:
        """Check a submission without accepting it."""
        return self._client.send(calls.validate(workflow, parameters or {}))

    def get(self, workflow_id: str) -> views.ExecutionView:
        """Return an execution with its steps."""
        return self._client.send(calls.execution(workflow_id))

    def list(
        self, *, status: str | None = None, after: str | None = None, limit: int = 50
    ) -> Page[views.ExecutionView]:  # fmt: skip
        """Return executions, newest first."""
        return self._client.send(calls.listing("/platform/workflows", views.ExecutionView, after, limit, status=status))

    def definitions(self) -> tuple[views.DefinitionView, ...]:
        """Return the definitions that can be submitted by name."""
        page = self._client.send(calls.listing("/platform/workflows/definitions", views.DefinitionView, None, 500))
        return tuple(page.data)

    def cancel(self, workflow_id: str) -> views.Accepted:
        """Ask for it to stop; running jobs are ended."""
        return self._client.send(calls.steer(workflow_id, "cancel"))

    def pause(self, workflow_id: str) -> views.Accepted:
        """Start no further step, and pause jobs that can be paused."""
        return self._client.send(calls.steer(workflow_id, "pause"))

    def resume(self, workflow_id: str) -> views.Accepted:
        """Go on with a paused execution."""
        return self._client.send(calls.steer(workflow_id, "resume"))

    def retry(self, workflow_id: str, steps: Sequence[str] = ()) -> views.Accepted:
        """Run again what did not succeed, or ``steps`` and what needs them; what succeeded is kept."""
        return self._client.send(calls.retry(workflow_id, steps))

    def approve(self, workflow_id: str, step: str, *, approved: bool, comment: str = "") -> views.Accepted:
        """Answer a step that waits for a person."""
        return self._client.send(calls.approve(workflow_id, step, approved, comment))

    def fork(
        self, workflow_id: str, step: str | None, parameters: Mapping[str, Any] | None = None, *,
        idempotency_key: str | None = None,
    ) -> views.Accepted:  # fmt: skip
        """Start a new execution from ``step`` on, with changed parameters, re-using the steps before it."""
        return self._client.send(calls.fork(workflow_id, step, parameters or {}, idempotency_key or wire.new_key()))

    def follow(self, workflow_id: str, after: str | None = None) -> Iterator[Event | None]:
        """Yield the events of an execution and its jobs until it has ended; None is a heartbeat."""
        path = f"/platform/workflows/{calls.quoted(workflow_id)}/events"
        return self._client.follow(path, after, ended=lambda: self.get(workflow_id).ended)

    def wait(self, workflow_id: str, timeout: float | None = None) -> views.ExecutionView:
        """Return the execution once it has ended.

        Raises:
            DeadlineExceeded: it has not ended within ``timeout`` seconds.
        """
        start = time.monotonic()
        while not (view := self.get(workflow_id)).ended:
            if timeout is not None and time.monotonic() - start > timeout:
                raise DeadlineExceeded(f"{workflow_id} is still {view.status} after {timeout:g} s", where=workflow_id)
            time.sleep(0.5)
        return view


class Datasets:
    """Datasets and their immutable versions."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def add(self, path: Path | str, *, name: str | None = None, **options: Any) -> views.AddedDataset:
        """Upload a file as a new version; the same rows again are the version that has them.

        Args:
            path: JSONL, CSV or Parquet; the first two also as ``.gz`` or ``.zst``.
            name: The dataset; by default the file's name without its endings.
            options: ``format``, ``columns``, ``licence``, ``duplicates`` (keep, drop), ``bad_rows`` (fail, drop).

        Raises:
            InvalidRequest: rows that cannot be used; ``problems`` names each by its line.
        """
        file = Path(path)
        return self._client.send(calls.add_dataset(file, name or file.name.split(".")[0], options))

    def list(self, *, after: str | None = None, limit: int = 50) -> Page[views.DatasetView]:
        """Return datasets."""
        return self._client.send(calls.listing("/platform/datasets", views.DatasetView, after, limit))

    def get(self, name: str) -> Any:
        """Return a dataset with its versions."""
        return self._client.send(calls.dataset(name))

    def preview(self, name: str, *, limit: int = 10) -> Any:
        """Return a version's first rows; ``name`` may be ``reviews@2``."""
        return self._client.send(calls.preview(name, limit))


class Models:
    """The model registry."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self, *, after: str | None = None, limit: int = 50) -> Page[views.ModelView]:
        """Return models."""
        return self._client.send(calls.listing("/platform/models", views.ModelView, after, limit))

    def get(self, name: str) -> Any:
        """Return a model with its versions and aliases."""
        return self._client.send(calls.model(name))

    def versions(self, name: str, *, after: str | None = None, limit: int = 50) -> Page[views.ModelVersionView]:
        """Return a model's versions, newest first."""
        path = f"/platform/models/{calls.quoted(name)}/versions"
        return self._client.send(calls.listing(path, views.ModelVersionView, after, limit))

    def resolve(self, reference: str) -> views.ModelVersionView:
        """Return the version that ``name``, ``name@3`` or ``name@production`` means now."""
        return self._client.send(calls.resolve_model(reference))

    def lineage(self, name: str, version: int) -> Any:
        """Return where a version came from (data, base, configuration, code, seed), and what came from it."""
        return self._client.send(calls.lineage(name, version))

    def alias(self, name: str, alias: str, version: int) -> Any:
        """Move an alias to a version."""
        return self._client.send(calls.set_alias(name, alias, version))


class Deployments:
    """What is served."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self, *, after: str | None = None, limit: int = 50) -> Page[views.DeploymentView]:
        """Return deployments."""
        return self._client.send(calls.listing("/platform/deployments", views.DeploymentView, after, limit))

    def get(self, name: str) -> Any:
        """Return a deployment with revisions and replicas."""
        return self._client.send(calls.deployment(name))

    def rollback(self, name: str, revision: int | None = None) -> Any:
        """Serve the revision before, or the one named."""
        body = {} if revision is None else {"revision": revision}
        return self._client.send(calls.steer_deployment(name, "rollback", body))

    def start(self, name: str) -> Any:
        """Serve again what served last."""
        return self._client.send(calls.steer_deployment(name, "start"))

    def stop(self, name: str) -> Any:
        """End its replicas."""
        return self._client.send(calls.steer_deployment(name, "stop"))


class Jobs:
    """Heavy work."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self, *, state: str | None = None, after: str | None = None, limit: int = 50) -> Page[JobView]:
        """Return jobs, newest first."""
        return self._client.send(calls.listing("/platform/jobs", JobView, after, limit, state=state))

    def get(self, job_id: str) -> JobView:
        """Return a job."""
        return self._client.send(calls.job(job_id))

    def logs(self, job_id: str, *, limit: int = 500) -> Any:
        """Return the last lines of a job's log."""
        return self._client.send(calls.logs(job_id, limit))

    def follow(self, job_id: str, after: str | None = None) -> Iterator[Event | None]:
        """Yield a job's events until it has ended; None is a heartbeat."""
        path = f"/platform/jobs/{calls.quoted(job_id)}/events"
        return self._client.follow(path, after, ended=lambda: is_final(JOB, self.get(job_id).state))
