"""The client that waits: ``with burnish.Client() as client: client.datasets.add("reviews.jsonl")``."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx

from burnish.client import calls, lifecycle, views, wire
from burnish.client.calls import Call
from burnish.client.configuration import Configuration, Secrets
from burnish.client.events import HEARTBEAT_LIMIT, PATIENCE, Decoder, backoff
from burnish.client.identity import Identity
from burnish.core.errors import BurnishError, DeadlineExceeded
from burnish.core.pages import MAX_LIMIT
from burnish.core.protocol import Event

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
        self.workflows = lifecycle.Workflows(self)
        self.datasets = lifecycle.Datasets(self)
        self.models = lifecycle.Models(self)
        self.deployments = lifecycle.Deployments(self)
        self.jobs = lifecycle.Jobs(self)
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
