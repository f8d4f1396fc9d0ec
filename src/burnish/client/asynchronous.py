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

from burnish.client import calls, lifecycle, views, wire
from burnish.client.calls import Call
from burnish.client.configuration import AsyncConfiguration, AsyncSecrets
from burnish.client.events import HEARTBEAT_LIMIT, PATIENCE, Decoder, backoff
from burnish.client.identity import AsyncIdentity
from burnish.core.errors import BurnishError, DeadlineExceeded
from burnish.core.pages import MAX_LIMIT
from burnish.core.protocol import Event

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
        self.workflows = lifecycle.AsyncWorkflows(self)
        self.datasets = lifecycle.AsyncDatasets(self)
        self.models = lifecycle.AsyncModels(self)
        self.deployments = lifecycle.AsyncDeployments(self)
        self.jobs = lifecycle.AsyncJobs(self)
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
