"""How the contract suite speaks to a running component: requests with tokens, jobs of its own, events as they come."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from burnish.core.errors import BurnishError, DeadlineExceeded, InvalidRequest, Unavailable
from burnish.core.protocol import (
    CALLER_HEADER,
    DEADLINE_HEADER,
    Description,
    Event,
    JobRequest,
    JobView,
    KindOffer,
    Validation,
)
from burnish.infra.http import Request, Response, Unreachable
from burnish.infra.http_client import HttpTransport
from burnish.platform.identity import CallerTokens, Principal

ANSWER_LIMIT = 32 << 20
PATIENCE_SECONDS = 60.0
"""How long the suite waits for a job of its own to end."""

CALLER = Principal("conformance-check", "default").acting()
STRANGER = Principal("conformance-check", "conformance-other").acting()

_Model = TypeVar("_Model", bound=BaseModel)


class Fault(Exception):
    """A point of the contract is not kept."""

    def __init__(self, seen: str, expected: str) -> None:
        super().__init__(f"{seen}; expected: {expected}")
        self.seen = seen
        self.expected = expected


class NotApplicable(Exception):
    """A point cannot be looked at here; the message says why."""


@dataclass(frozen=True)
class Answer:
    """One answer, read whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float

    def told(self) -> str:
        """Return the answer in a few words."""
        text = self.body[:200].decode("utf-8", "replace").replace("\n", " ")
        return f"status {self.status} {self.headers.get('content-type', '')} {text}".strip()

    def json(self) -> Any:
        """Return the JSON of the body, None if it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def as_model(self, model: type[_Model], what: str) -> _Model:
        """Return the body as a model of the protocol.

        Raises:
            Fault: it is none.
        """
        try:
            return model.model_validate(self.json())
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise Fault(f"{what}: {place}: {first['msg']} in {self.told()}", f"a {model.__name__}") from error


@dataclass
class Example:
    """A job that the component accepts."""

    kind: str
    spec: dict[str, Any]


@dataclass
class Ran:
    """A job that the suite ran to its end, with its events and when the first came."""

    view: JobView
    events: list[Event]
    state_at_first: JobView
    content_type: str


@dataclass
class Probe:
    """A running component, and what the suite has learnt of it."""

    url: str
    tokens: CallerTokens | None = None
    examples: list[Example] = field(default_factory=list)
    """Jobs that the author gave; else they are made from the schemas."""
    description: Description | None = None
    tokens_are_refused: bool = False
    """Whether it does not believe a good token: then nothing that needs one can be looked at."""
    _transport: HttpTransport | None = None
    _ran: Ran | None = None
    _example: Example | None = None

    @property
    def component_type(self) -> str:
        """Its type, by its own word."""
        return self.described().component_type

    def described(self) -> Description:
        """Return its description.

        Raises:
            NotApplicable: it gave none.
        """
        if self.description is None:
            raise NotApplicable("it does not describe itself")
        return self.description

    def token(
        self, principal: Principal = CALLER, *, audience: str | None = None, ttl: float = 60,
        instance: str | None = None,
    ) -> str:  # fmt: skip
        """Return a caller token that the component should believe.

        Raises:
            NotApplicable: the suite has no key.
        """
        if self.tokens is None:
            raise NotApplicable("it needs a token: give the key that the component was told to believe (--key-file)")
        if self.tokens_are_refused:
            raise NotApplicable("it needs a token, and the component does not believe the suite's")
        return self.tokens.sign(principal, audience or self.component_type, ttl, instance=instance)

    async def unreachable(self) -> str | None:
        """Return why nobody can be reached there; None: somebody can, whatever they answer."""
        try:
            await self.ask("GET", "/health")
        except Fault as fault:
            if isinstance(fault.__cause__, Unreachable) and not fault.__cause__.sent:
                return fault.__cause__.message
        return None

    async def close(self) -> None:
        """Close the connections."""
        if self._transport is not None:
            await self._transport.close()

    @asynccontextmanager
    async def opened(
        self, method: str, path: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None,
        timeout: float = 10,
    ) -> AsyncIterator[Response]:  # fmt: skip
        """Send a request and give the answer as it comes.

        Raises:
            Fault: there is no answer in time.
        """
        if self._transport is None:
            self._transport = HttpTransport(self.url)
        sent = {
            "accept": "application/json",
            **({"content-type": "application/json"} if body else {}),
            **(headers or {}),
        }
        until = None if DEADLINE_HEADER in sent else time.time() + timeout
        request = Request(method, path, sent, body, deadline=until)
        try:
            async with self._transport.send(request) as response:
                yield response
        except DeadlineExceeded as error:
            raise Fault(f"{method} {path}: no whole answer within {timeout:.0f} s", "an answer in time") from error
        except Unavailable as error:
            raise Fault(f"{method} {path}: {error.message}", "an answer") from error

    async def ask(
        self, method: str, path: str, body: Any = None, *, token: str | None = None,
        headers: Mapping[str, str] | None = None, timeout: float = 10,
    ) -> Answer:  # fmt: skip
        """Send a request (bytes as they are, else as JSON) and return the answer."""
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        sent = {**({} if token is None else {CALLER_HEADER: token}), **(headers or {})}
        began = time.monotonic()
        async with self.opened(method, path, content, headers=sent, timeout=timeout) as response:
            try:
                read = await response.read(ANSWER_LIMIT)
            except BurnishError as error:
                raise Fault(f"{method} {path}: {error.message}", "an answer that ends") from error
            return Answer(response.status, response.headers, read, time.monotonic() - began)

    async def called(self, method: str, path: str, body: Any = None, **more: Any) -> Answer:
        """Send a request as the platform would."""
        return await self.ask(method, path, body, token=self.token(), **more)

    async def expired(self, method: str, path: str, body: Any) -> Answer:
        """Send a request whose deadline has passed."""
        headers = {DEADLINE_HEADER: f"{time.time() - 60:.3f}"}
        try:
            async with asyncio.timeout(10):
                return await self.called(method, path, body, headers=headers)
        except TimeoutError as error:
            raise Fault(f"{method} {path} with a passed deadline: no answer within 10 s", "status 504") from error

    def job(self, kind: str, spec: Mapping[str, Any], job_id: str = "", **more: Any) -> dict[str, Any]:
        """Return the body of a job."""
        return {**JobRequest(job_id=job_id, kind=kind, spec=dict(spec)).model_dump(mode="json"), **more}

    def new_id(self) -> str:
        """Return an id that no job has."""
        return f"check_{secrets.token_hex(8)}"

    def offer(self, kind: str) -> KindOffer:
        """Return what it says of a kind."""
        offers = () if self.description is None else self.description.kinds
        return next(one for one in offers if one.name == kind)

    async def example(self) -> Example:
        """Return a job that it accepts: one of those given, else one made of a kind's schema.

        Raises:
            NotApplicable: there is none.
        """
        self.token()
        if self._example is not None:
            return self._example
        offers = () if self.description is None else self.description.kinds
        made = self.examples or [Example(one.name, instance_of(one.spec_schema)) for one in offers]
        for one in made:
            answer = await self.called("POST", "/jobs/validate", self.job(one.kind, one.spec))
            if answer.status == 200 and not answer.as_model(Validation, "POST /jobs/validate").problems:
                self._example = one
                return one
        what = (
            "it accepts none of the jobs that were given"
            if self.examples
            else "no kind takes what its schema alone shows"
        )
        raise NotApplicable(f"{what}: give a job that it accepts (--job)" if offers else "it offers no kinds")

    async def submit(self, job_id: str, example: Example, **more: Any) -> JobView:
        """Submit a job.

        Raises:
            Fault: it is not accepted.
        """
        answer = await self.called("POST", "/jobs", self.job(example.kind, example.spec, job_id, **more))
        if answer.status != 200:
            raise Fault(f"POST /jobs: {answer.told()}", "status 200 for a job that validates")
        return answer.as_model(JobView, "POST /jobs")

    async def view(self, job_id: str) -> JobView:
        """Return a job that must be there."""
        answer = await self.called("GET", f"/jobs/{job_id}")
        if answer.status != 200:
            raise Fault(f"GET /jobs/{{id}}: {answer.told()}", "status 200 for a job that was accepted")
        return answer.as_model(JobView, "GET /jobs/{id}")

    async def ran(self) -> Ran:
        """Return a job that was run to its end while its events were followed; the same one each time."""
        if self._ran is None:
            example, job_id = await self.example(), self.new_id()
            await self.submit(job_id, example)
            self._ran = await self._follow(job_id)
        return self._ran

    async def _follow(self, job_id: str) -> Ran:
        events: list[Event] = []
        first: JobView | None = None
        headers = {CALLER_HEADER: self.token(), "accept": "text/event-stream"}
        path = f"/jobs/{job_id}/events"
        async with self.opened("GET", path, headers=headers, timeout=PATIENCE_SECONDS) as response:
            if response.status != 200:
                raise Fault(f"GET /jobs/{{id}}/events: status {response.status}", "status 200 and a stream")
            async for event in events_in(response):
                if first is None:
                    first = await self.view(job_id)
                events.append(event)
        if first is None:
            raise Fault("the stream of a job ended without an event", "at least its states")
        return Ran(await self.view(job_id), events, first, response.headers.get("content-type", ""))


def tokens_of(key: bytes) -> CallerTokens:
    """Return what signs with a key: one that ``burnish component key`` made, or an installation's own.

    Raises:
        InvalidRequest: it is too short.
    """
    try:
        return CallerTokens(key)
    except ValueError as error:
        raise InvalidRequest(
            f"the key cannot be used: {error}", where="--key-file", hint="make one with `burnish component key FILE`"
        ) from error


async def events_in(response: Response) -> AsyncIterator[Event]:
    """Yield the events of a stream as they come.

    Raises:
        Fault: one is none of the protocol's.
    """
    pending = ""
    async for chunk in response.chunks():
        pending += chunk.decode("utf-8", "replace").replace("\r\n", "\n")
        while "\n\n" in pending:
            block, _, pending = pending.partition("\n\n")
            lines = [line.removeprefix("data:").strip() for line in block.split("\n") if line.startswith("data:")]
            if not lines:
                continue  # a comment keeps the connection open
            try:
                yield Event.model_validate_json("\n".join(lines))
            except ValidationError as error:
                raise Fault(f"the stream has {block[:200]!r}", "each `data` is an Event") from error


def instance_of(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a small object that fits a JSON Schema, as far as types, defaults and bounds tell."""
    made = _instance(schema, schema, 0)
    return made if isinstance(made, dict) else {}


def _instance(root: Mapping[str, Any], schema: Any, depth: int) -> Any:
    if not isinstance(schema, Mapping) or depth > 10:
        return None
    if isinstance(reference := schema.get("$ref"), str):
        target: Any = root
        for part in reference.removeprefix("#/").split("/"):
            target = target.get(part, {}) if isinstance(target, Mapping) else {}
        return _instance(root, target, depth + 1)
    for word in ("default", "const"):
        if word in schema:
            return schema[word]
    for word in ("examples", "enum"):
        if schema.get(word):
            return schema[word][0]
    for word in ("anyOf", "oneOf", "allOf"):
        if schema.get(word):
            return _instance(root, schema[word][0], depth + 1)
    kind = schema.get("type", "object")
    if kind == "object":
        fields = schema.get("properties", {})
        return {name: _instance(root, fields.get(name, {}), depth + 1) for name in schema.get("required", [])}
    if kind == "array":
        return [_instance(root, schema.get("items", {}), depth + 1)] * int(schema.get("minItems", 0))
    if kind in ("integer", "number"):
        return schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
    return {"string": "x" * max(4, int(schema.get("minLength", 0))), "boolean": False}.get(str(kind))
