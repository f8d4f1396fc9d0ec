"""The client for asyncio: ``async with burnish.AsyncClient() as client: await client.datasets.add("reviews.jsonl")``.

Mirrors :mod:`burnish.client.synchronous` method by method (a test compares them).
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx

from burnish.client import calls, views, wire
from burnish.client.calls import Call
from burnish.client.configuration import AsyncConfiguration, AsyncSecrets
from burnish.client.events import HEARTBEAT_LIMIT, PATIENCE, Decoder, backoff
from burnish.client.identity import AsyncIdentity
from burnish.core.errors import BurnishError, DeadlineExceeded
from burnish.core.pages import MAX_LIMIT, Page
from burnish.core.protocol import Event, JobView
from burnish.core.states import JOB, is_final

Answer = TypeVar("Answer")


class AsyncClient:
    """Talks to a Burnish server, from asyncio.

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
        project: str | None = None, transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:  # fmt: skip
        self._address = wire.Address(url, api_key, home, project)
        self._http = httpx.AsyncClient(transport=transport, trust_env=False)
        self.workflows = Workflows(self)
        self.datasets = Datasets(self)
        self.models = Models(self)
        self.deployments = Deployments(self)
        self.jobs = Jobs(self)
        self.identity = AsyncIdentity(self)
        self.configuration = AsyncConfiguration(self)
        self.secrets = AsyncSecrets(self)

    @property
    def url(self) -> str:
        """The server's base URL."""
        return self._address.url

    async def components(self) -> tuple[views.ComponentView, ...]:
        """Return the registered instances of components, all of them."""
        found: list[views.ComponentView] = []
        after: str | None = None
        while True:
            page = await self.send(calls.listing("/platform/components", views.ComponentView, after, MAX_LIMIT))
            found += page.data
            if (after := page.next) is None:
                return tuple(found)

    async def ready(self) -> dict[str, Any]:
        """Return what the server says about its readiness; raises ``Unavailable`` when it is not ready."""
        return dict(await self.send(calls.get("/platform/ready")))

    async def chat(self, model: str, messages: str | Sequence[Mapping[str, Any]], **options: Any) -> str:
        """Return a deployed model's answer. ``options`` are OpenAI's (``max_tokens``, ``temperature``, ...)."""
        body = wire.chat_body(model, messages, False, options)
        call: Call[Any] = Call("POST", "/v1/chat/completions", calls.raw, json=body, timeout=600)
        return wire.chat_chunk(await self.send(call)).text

    async def chat_stream(
        self, model: str, messages: str | Sequence[Mapping[str, Any]], **options: Any
    ) -> AsyncIterator[views.Chunk]:
        """Yield a deployed model's answer as it is generated. Closing the iterator stops the generation."""
        body = wire.chat_body(model, messages, True, options)
        call: Call[Any] = Call("POST", "/v1/chat/completions", calls.raw, json=body, timeout=600)
        try:
            async with self._open(call) as response:
                async for line in response.aiter_lines():
                    data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                    if data == "[DONE]":
                        return
                    if data:
                        yield wire.chat_chunk(json.loads(data))
        except httpx.TransportError as error:
            raise self._address.unreachable(error) from error

    async def send(self, call: Call[Answer]) -> Answer:
        """Send one call and read its answer; what may be repeated is, when the connection breaks."""
        tries = wire.TRIES if wire.repeatable(call) else 1
        for attempt in range(tries):
            try:
                return wire.answer_of(call, await self._request(call), self._address)
            except httpx.TimeoutException as error:
                raise DeadlineExceeded(
                    f"no answer to {call.where} within {call.timeout:g} s", where=self.url
                ) from error
            except httpx.TransportError as error:
                if attempt + 1 == tries:
                    raise self._address.unreachable(error) from error
                await asyncio.sleep(backoff(attempt))
                self._address.refresh()
        raise AssertionError("unreachable")

    async def _request(self, call: Call[Any]) -> httpx.Response:
        headers = {**self._address.headers(), **call.headers}
        url, query = self._address.url + call.path, dict(call.query)
        if call.upload is None:
            return await self._http.request(
                call.method, url, params=query, json=call.json, headers=headers, timeout=call.timeout
            )  # fmt: skip
        headers["content-length"] = str(call.upload.stat().st_size)
        return await self._http.request(
            call.method, url, params=query, content=_blocks(call.upload), headers=headers, timeout=call.timeout
        )  # fmt: skip

    def _open(self, call: Call[Any], silence: float | None = None) -> "_Stream":
        request = self._http.build_request(
            call.method, self._address.url + call.path, params=dict(call.query), json=call.json,
            headers={**self._address.headers(), **call.headers},
            timeout=httpx.Timeout(10.0, read=silence or call.timeout),
        )  # fmt: skip
        return _Stream(self._http, request, call.where, self._address)

    async def follow(
        self, path: str, after: str | None = None, *, ended: Callable[[], Awaitable[bool]], patience: float = PATIENCE
    ) -> AsyncIterator[Event | None]:  # fmt: skip
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
                async with self._open(call, HEARTBEAT_LIMIT) as response:
                    async for line in response.aiter_lines():
                        attempt, lost_at = 0, time.monotonic()
                        event, complete = decoder.feed(line)
                        if complete:
                            yield event
                if await ended():
                    return
            except (httpx.TransportError, BurnishError) as error:
                wire.give_up_if(error, time.monotonic() - lost_at > patience, self._address)
            yield None
            await asyncio.sleep(backoff(attempt))
            attempt += 1
            self._address.refresh()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        await self.close()


class _Stream:
    """A response that is read while it arrives."""

    def __init__(self, http: httpx.AsyncClient, request: httpx.Request, where: str, address: wire.Address) -> None:
        self._http, self._request, self._where, self._address = http, request, where, address

    async def __aenter__(self) -> httpx.Response:
        self._response = await self._http.send(self._request, stream=True)
        if self._response.status_code >= 400:
            await self._response.aread()
            await self._response.aclose()
            raise wire.refusal(self._response, self._where, self._address)
        return self._response

    async def __aexit__(self, *_: object) -> None:
        await self._response.aclose()


async def _blocks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while block := await asyncio.to_thread(file.read, wire.BLOCK):
            yield block


class Workflows:
    """Executions of workflow definitions."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def submit(
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
        return await self._client.send(calls.submit(workflow, parameters or {}, idempotency_key or wire.new_key()))

    async def validate(
        self, workflow: str | Mapping[str, Any], parameters: Mapping[str, Any] | None = None
    ) -> views.Validation:
        """Check a submission without accepting it."""
        return await self._client.send(calls.validate(workflow, parameters or {}))

    async def get(self, workflow_id: str) -> views.ExecutionView:
        """Return an execution with its steps."""
        return await self._client.send(calls.execution(workflow_id))

    async def list(
        self, *, status: str | None = None, after: str | None = None, limit: int = 50
    ) -> Page[views.ExecutionView]:  # fmt: skip
        """Return executions, newest first."""
        return await self._client.send(
            calls.listing("/platform/workflows", views.ExecutionView, after, limit, status=status)
        )

    async def definitions(self) -> tuple[views.DefinitionView, ...]:
        """Return the definitions that can be submitted by name."""
        page = await self._client.send(
            calls.listing("/platform/workflows/definitions", views.DefinitionView, None, 500)
        )
        return tuple(page.data)

    async def cancel(self, workflow_id: str) -> views.Accepted:
        """Ask for it to stop; running jobs are ended."""
        return await self._client.send(calls.steer(workflow_id, "cancel"))

    async def pause(self, workflow_id: str) -> views.Accepted:
        """Start no further step, and pause jobs that can be paused."""
        return await self._client.send(calls.steer(workflow_id, "pause"))

    async def resume(self, workflow_id: str) -> views.Accepted:
        """Go on with a paused execution."""
        return await self._client.send(calls.steer(workflow_id, "resume"))

    async def retry(self, workflow_id: str, steps: Sequence[str] = ()) -> views.Accepted:
        """Run again what did not succeed, or ``steps`` and what needs them; what succeeded is kept."""
        return await self._client.send(calls.retry(workflow_id, steps))

    async def approve(self, workflow_id: str, step: str, *, approved: bool, comment: str = "") -> views.Accepted:
        """Answer a step that waits for a person."""
        return await self._client.send(calls.approve(workflow_id, step, approved, comment))

    async def fork(
        self, workflow_id: str, step: str | None, parameters: Mapping[str, Any] | None = None, *,
        idempotency_key: str | None = None,
    ) -> views.Accepted:  # fmt: skip
        """Start a new execution from ``step`` on, with changed parameters, re-using the steps before it."""
        return await self._client.send(
            calls.fork(workflow_id, step, parameters or {}, idempotency_key or wire.new_key())
        )

    def follow(self, workflow_id: str, after: str | None = None) -> AsyncIterator[Event | None]:
        """Yield the events of an execution and its jobs until it has ended; None is a heartbeat."""
        path = f"/platform/workflows/{calls.quoted(workflow_id)}/events"

        async def ended() -> bool:
            return (await self.get(workflow_id)).ended

        return self._client.follow(path, after, ended=ended)

    async def wait(self, workflow_id: str, timeout: float | None = None) -> views.ExecutionView:
        """Return the execution once it has ended.

        Raises:
            DeadlineExceeded: it has not ended within ``timeout`` seconds.
        """
        start = time.monotonic()
        while not (view := await self.get(workflow_id)).ended:
            if timeout is not None and time.monotonic() - start > timeout:
                raise DeadlineExceeded(f"{workflow_id} is still {view.status} after {timeout:g} s", where=workflow_id)
            await asyncio.sleep(0.5)
        return view


class Datasets:
    """Datasets and their immutable versions."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def add(self, path: Path | str, *, name: str | None = None, **options: Any) -> views.AddedDataset:
        """Upload a file as a new version; the same rows again are the version that has them.

        Args:
            path: JSONL, CSV or Parquet; the first two also as ``.gz`` or ``.zst``.
            name: The dataset; by default the file's name without its endings.
            options: ``format``, ``columns``, ``licence``, ``duplicates`` (keep, drop), ``bad_rows`` (fail, drop).

        Raises:
            InvalidRequest: rows that cannot be used; ``problems`` names each by its line.
        """
        file = Path(path)
        return await self._client.send(calls.add_dataset(file, name or file.name.split(".")[0], options))

    async def list(self, *, after: str | None = None, limit: int = 50) -> Page[views.DatasetView]:
        """Return datasets."""
        return await self._client.send(calls.listing("/platform/datasets", views.DatasetView, after, limit))

    async def get(self, name: str) -> Any:
        """Return a dataset with its versions."""
        return await self._client.send(calls.dataset(name))

    async def preview(self, name: str, *, limit: int = 10) -> Any:
        """Return a version's first rows; ``name`` may be ``reviews@2``."""
        return await self._client.send(calls.preview(name, limit))


class Models:
    """The model registry."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def list(self, *, after: str | None = None, limit: int = 50) -> Page[views.ModelView]:
        """Return models."""
        return await self._client.send(calls.listing("/platform/models", views.ModelView, after, limit))

    async def get(self, name: str) -> Any:
        """Return a model with its versions and aliases."""
        return await self._client.send(calls.model(name))

    async def versions(self, name: str, *, after: str | None = None, limit: int = 50) -> Page[views.ModelVersionView]:
        """Return a model's versions, newest first."""
        path = f"/platform/models/{calls.quoted(name)}/versions"
        return await self._client.send(calls.listing(path, views.ModelVersionView, after, limit))

    async def resolve(self, reference: str) -> views.ModelVersionView:
        """Return the version that ``name``, ``name@3`` or ``name@production`` means now."""
        return await self._client.send(calls.resolve_model(reference))

    async def lineage(self, name: str, version: int) -> Any:
        """Return where a version came from (data, base, configuration, code, seed), and what came from it."""
        return await self._client.send(calls.lineage(name, version))

    async def alias(self, name: str, alias: str, version: int) -> Any:
        """Move an alias to a version."""
        return await self._client.send(calls.set_alias(name, alias, version))


class Deployments:
    """What is served."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def list(self, *, after: str | None = None, limit: int = 50) -> Page[views.DeploymentView]:
        """Return deployments."""
        return await self._client.send(calls.listing("/platform/deployments", views.DeploymentView, after, limit))

    async def get(self, name: str) -> Any:
        """Return a deployment with revisions and replicas."""
        return await self._client.send(calls.deployment(name))

    async def rollback(self, name: str, revision: int | None = None) -> Any:
        """Serve the revision before, or the one named."""
        body = {} if revision is None else {"revision": revision}
        return await self._client.send(calls.steer_deployment(name, "rollback", body))

    async def start(self, name: str) -> Any:
        """Serve again what served last."""
        return await self._client.send(calls.steer_deployment(name, "start"))

    async def stop(self, name: str) -> Any:
        """End its replicas."""
        return await self._client.send(calls.steer_deployment(name, "stop"))


class Jobs:
    """Heavy work."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def list(self, *, state: str | None = None, after: str | None = None, limit: int = 50) -> Page[JobView]:
        """Return jobs, newest first."""
        return await self._client.send(calls.listing("/platform/jobs", JobView, after, limit, state=state))

    async def get(self, job_id: str) -> JobView:
        """Return a job."""
        return await self._client.send(calls.job(job_id))

    async def logs(self, job_id: str, *, limit: int = 500) -> Any:
        """Return the last lines of a job's log."""
        return await self._client.send(calls.logs(job_id, limit))

    def follow(self, job_id: str, after: str | None = None) -> AsyncIterator[Event | None]:
        """Yield a job's events until it has ended; None is a heartbeat."""
        path = f"/platform/jobs/{calls.quoted(job_id)}/events"

        async def ended() -> bool:
            return is_final(JOB, (await self.get(job_id)).state)

        return self._client.follow(path, after, ended=ended)
