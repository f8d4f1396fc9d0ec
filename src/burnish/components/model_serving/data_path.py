"""``/v1`` of the serving component: raw ASGI between the client and a replica.

Upstream is always streamed, as an engine notices only then that nobody listens any more; an answer that is not to be
streamed is put together here. A client that hangs up cancels the generation. While nothing was sent to the client, a
replica that goes away is replaced by another.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from pydantic import ValidationError

from burnish.components.model_serving import completion as c
from burnish.components.model_serving.measure import Measured
from burnish.components.model_serving.naming import Route
from burnish.components.model_serving.peers import Peers, came_from_peer, deadline_of
from burnish.components.model_serving.routing import Routes, Traffic, ready_route
from burnish.core.errors import BurnishError, NotFound, TooLarge, Unavailable, UpstreamFailed
from burnish.core.inference import unsupported, upstream_body
from burnish.core.openai import ChatRequest, CompletionRequest, RequestRefused, envelope, refused
from burnish.infra.http import Request, Response, Unreachable
from burnish.platform.identity import Principal
from burnish.platform.identity.permission import authorize
from burnish.platform.identity.principal import principal_in

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Body = TypeVar("Body", ChatRequest, CompletionRequest)

log = logging.getLogger(__name__)

_MAX_BODY_BYTES = 16 << 20
_ATTEMPTS = 3
_TOKEN = re.compile(rb'"content": ?"')
_JSON = (b"content-type", b"application/json")
_SSE = (b"content-type", b"text/event-stream; charset=utf-8")


@dataclass(frozen=True)
class _Call:
    """One request: what was asked, of whom, and where the answer goes."""

    request: ChatRequest | CompletionRequest
    route: Route
    out: Measured

    @property
    def chat(self) -> bool:
        return isinstance(self.request, ChatRequest)

    @property
    def choices(self) -> int:
        return self.request.n or 1

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def prompts(self) -> tuple[str | None, ...]:
        """The prompts to ask for one after the other; a chat is one."""
        return (None,) if isinstance(self.request, ChatRequest) else self.request.prompts()


class _Started(Exception):
    """The answer failed after its first byte went to the client."""

    def __init__(self, error: BurnishError) -> None:
        super().__init__(error.message)
        self.error = error


class DataPath:
    """The ASGI application."""

    def __init__(self, routes: Routes, traffic: Traffic, peers: Peers) -> None:
        self._routes = routes
        self._traffic = traffic
        self._peers = peers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; errors go out in OpenAI's envelope."""
        try:
            await self._dispatch(scope, receive, send)
        except BurnishError as error:
            await _answer_error(send, error)
        except OSError:
            log.info("the client of %s left", scope["path"])

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        principal = principal_in(scope)
        path, method = scope["path"], scope["method"]
        if path in ("/v1/chat/completions", "/v1/completions"):
            if method != "POST":
                await _refuse_method(send, method, path, "POST")
                return
            authorize(principal, "inference:run")
            await self._generate(scope, principal, receive, send)
        elif path == "/v1/models" or path.startswith("/v1/models/"):
            if method != "GET":
                await _refuse_method(send, method, path, "GET")
                return
            if not principal.may("inference:run"):  # whoever may ask models may see which there are
                authorize(principal, "deployment:read")
            await self._models(path.removeprefix("/v1/models").strip("/"), principal, send)
        else:
            raise NotFound(f"Unknown request URL: {method} {path}", hint="/v1/models lists what is served")

    async def _models(self, name: str, principal: Principal, send: Send) -> None:
        if name:
            route = await self._routes.find(principal.project_id, name)
            if route is None:
                raise _unknown_model(name)
            await _answer(send, 200, _model(route))
        else:
            routes = await self._routes.of_project(principal.project_id)
            await _answer(send, 200, {"object": "list", "data": [_model(route) for route in routes]})

    async def _generate(self, scope: Scope, principal: Principal, receive: Receive, send: Send) -> None:
        path = scope["path"]
        raw = await _read_body(receive)
        request: ChatRequest | CompletionRequest
        request = _parse(ChatRequest, raw) if path == "/v1/chat/completions" else _parse(CompletionRequest, raw)
        route = await self._routes.find(principal.project_id, request.model)
        if route is None:
            raise _unknown_model(request.model)
        if route.elsewhere and not route.targets and not came_from_peer(scope):
            deadline = deadline_of(scope)
            await _until_hang_up(self._peers.forward(route.elsewhere, path, raw, principal, send, deadline), receive)
            return
        for name in unsupported(_asked_for(request), route.spec.engine):
            raise RequestRefused(
                f"Unsupported parameter: '{name}' is not supported by the engine {route.spec.engine} "
                f"that serves '{route.deployment}'.",
                where=name,
                openai_code="unsupported_parameter",
            )
        with Measured(route.deployment, send) as measured:
            try:
                await _until_hang_up(self._respond(_Call(request, route, measured)), receive)
            except BurnishError as error:
                measured.refused(error.status)
                raise

    async def _respond(self, call: _Call) -> None:
        """Generate at a replica; at another one if it went away before the client got anything."""
        avoid: list[str] = []
        lost: BurnishError | None = None
        while len(avoid) < _ATTEMPTS:
            route = await ready_route(self._routes, call.route, avoid)
            if route is None:
                raise lost or Unavailable(
                    f"no replica of deployment {call.route.deployment} is ready", retry_after=5,
                    hint="see GET /platform/deployments/" + call.route.deployment,
                )  # fmt: skip
            current = _Call(call.request, route, call.out)
            async with self._traffic.admit(route, avoid) as (target, transport):
                try:
                    if call.request.stream:
                        await _stream(current, transport.send)
                    else:
                        await _collect(current, transport.send)
                    return
                except _Started as failure:
                    await _break_off(call.out.send, failure.error)
                    return
                except Unreachable as error:
                    # A kept connection that the replica had just closed says nothing about the replica: once more.
                    if not error.sent or lost is not None:
                        avoid.append(target.replica_id)
                    lost = error
            self._routes.distrust()
        raise lost or Unavailable(f"every replica of deployment {call.route.deployment} went away", retry_after=1)


async def _collect(call: _Call, ask: Callable[[Request], Any]) -> None:
    """Put the whole answer together, then send it."""
    answer = c.Answer(_answer_id(call), call.route.deployment, call.chat, int(time.time()), _alternatives(call.request))
    for number, prompt in enumerate(call.prompts()):
        usage = c.Usage()
        async with ask(_upstream(call, prompt, include_usage=True)) as response:
            await _require_ok(response)
            async for event in c.events(response.chunks()):
                answer.add(event, number * call.choices, usage)
        answer.usage.merge(usage)
    call.out.read(answer.usage.prompt)
    call.out.wrote(answer.usage.completion)
    await _answer(call.out.send, 200, answer.body(), _provenance(call.route))


async def _stream(call: _Call, ask: Callable[[Request], Any]) -> None:
    """Send the answer as it comes."""
    out = _Out(call)
    try:
        if call.chat and call.choices == 1 and _alternatives(call.request) is None:
            async with ask(_upstream(call, None, include_usage=_wants_usage(call.request))) as response:
                await _require_ok(response)
                await _pass_through(response.chunks(), out)
        else:
            await _rewrite(call, ask, out)
        await out.end()
    except BurnishError as error:
        if out.started:
            raise _Started(error) from error
        raise


async def _pass_through(chunks: AsyncIterator[bytes], out: "_Out") -> None:
    """Send bytes as they are: the engine's events are OpenAI's, but for log-probabilities, which are not for here.

    What was not ``[DONE]`` ended early.
    """
    tail = b""
    written = 0
    async for chunk in chunks:
        written += len(_TOKEN.findall(chunk))
        if b"error" in chunk and (b'data: {"error"' in chunk or chunk.startswith(b"error:")):
            raise c.upstream_error(500, chunk.partition(b":")[2].partition(b"\n\n")[0].strip())
        await out.write(chunk)
        tail = (tail + chunk)[-16:]
    out.wrote(written)
    if not tail.rstrip().endswith(b"[DONE]"):
        raise UpstreamFailed("the engine's answer ended early", hint="send the request again")


async def _rewrite(call: _Call, ask: Callable[[Request], Any], out: "_Out") -> None:
    stream = c.CompletionStream(
        _answer_id(call), call.route.deployment, call.chat, int(time.time()), _alternatives(call.request),
        include_usage=_wants_usage(call.request),
    )  # fmt: skip
    total = c.Usage()
    for number, prompt in enumerate(call.prompts()):
        usage = c.Usage()
        async with ask(_upstream(call, prompt, include_usage=True)) as response:
            await _require_ok(response)
            async for event in c.events(response.chunks()):
                for data in stream.rewrite(event, number * call.choices, usage):
                    await out.write(data)
        total.merge(usage)
    call.out.read(total.prompt)
    call.out.wrote(total.completion)
    for data in stream.end(total):
        await out.write(data)


class _Out:
    """A streamed response that starts with its first byte."""

    def __init__(self, call: _Call) -> None:
        self._send = call.out.send
        self._wrote = call.out.wrote
        self._headers = [_SSE, (b"cache-control", b"no-store"), *_provenance(call.route)]
        self.started = False

    async def write(self, data: bytes) -> None:
        if not self.started:
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    def wrote(self, tokens: int) -> None:
        """Count tokens that went to the client: one an event, as engines send them."""
        self._wrote(tokens)

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def _upstream(call: _Call, prompt: str | None, *, include_usage: bool) -> Request:
    body = upstream_body(_asked_for(call.request))
    body["model"] = call.route.deployment
    if prompt is not None:
        body["prompt"] = prompt
    body["stream"] = True
    body.pop("stream_options", None)
    if include_usage:
        body["stream_options"] = {"include_usage": True}
    return Request("POST", call.path, {"content-type": "application/json"}, orjson.dumps(body))


def _asked_for(request: ChatRequest | CompletionRequest) -> dict[str, Any]:
    """Return the body as it was accepted, without what asks for nothing."""
    body = request.model_dump(mode="json", exclude_none=True, by_alias=True)
    if body.get("response_format", {}).get("type") == "text":
        del body["response_format"]
    # The token's own log-probability alone is asked for as one alternative, which is left out of the answer: engines
    # take 0 for none at all, and llama.cpp takes the lack of a number for 20.
    if isinstance(request, ChatRequest):
        if request.logprobs:
            body["top_logprobs"] = max(1, request.top_logprobs or 0)
    elif request.logprobs == 0:
        body["logprobs"] = 1
    return body


async def _require_ok(response: Response) -> None:
    if response.status != 200:
        raise c.upstream_error(response.status, await response.read())


async def _until_hang_up(work: Awaitable[None], receive: Receive) -> None:
    """Do the work unless the client goes: servers do not cancel an application whose client hung up."""
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in (task, gone):
            one.cancel()
        results = await asyncio.gather(task, gone, return_exceptions=True)
    if isinstance(results[0], Exception):
        raise results[0]


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read_body(receive: Receive) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestRefused("the client went before it had sent its request")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > _MAX_BODY_BYTES:
            raise TooLarge(f"the body is larger than {_MAX_BODY_BYTES >> 20} MiB", hint="send a shorter prompt")
        if not message.get("more_body", False):
            return b"".join(parts)


def _parse(model: type[Body], raw: bytes) -> Body:
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise RequestRefused(
                f"We could not parse the JSON body of your request: {error.errors()[0]['msg']}",
                            ) from error  # fmt: skip
        raise refused(error) from error


def _wants_usage(request: ChatRequest | CompletionRequest) -> bool:
    return request.stream_options is not None and request.stream_options.include_usage


def _alternatives(request: ChatRequest | CompletionRequest) -> int | None:
    """Return how many alternatives to show for each token; None: no log-probabilities."""
    if isinstance(request, ChatRequest):
        return (request.top_logprobs or 0) if request.logprobs else None
    return request.logprobs


def _answer_id(call: _Call) -> str:
    return ("chatcmpl-" if call.chat else "cmpl-") + secrets.token_hex(12)


def _provenance(route: Route) -> list[tuple[bytes, bytes]]:
    headers = [(b"x-burnish-revision", str(route.revision).encode())]
    if route.spec.model_version is not None:
        headers.append((b"x-burnish-model-version", route.spec.model_version.encode()))
    return headers


def _model(route: Route) -> Mapping[str, object]:
    return {
        "id": route.deployment, "object": "model", "created": route.created, "owned_by": "burnish",
        "model_version": route.spec.model_version, "revision": route.revision,
        "context_length": route.spec.context_length,
    }  # fmt: skip


def _unknown_model(name: str) -> BurnishError:
    return ModelNotFound(f"The model '{name}' does not exist", where="model",
                          hint="GET /v1/models lists what is served")  # fmt: skip


class ModelNotFound(RequestRefused):
    """No deployment of the caller's project goes by this name."""

    code = "model_not_found"
    status = 404
    openai_code = "model_not_found"


class WrongMethod(RequestRefused):
    """The path has no such method."""

    code = "method_not_allowed"
    status = 405
    openai_code = "method_not_supported"


async def _refuse_method(send: Send, method: str, path: str, allowed: str) -> None:
    error = WrongMethod(f"Not allowed to {method} on {path} (HINT: {allowed})")
    await _answer(send, error.status, envelope(error), [(b"allow", allowed.encode())])


async def _answer(
    send: Send, status: int, body: Mapping[str, object], headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    data = orjson.dumps(body)
    length = (b"content-length", str(len(data)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [_JSON, length, *(headers or ())]})
    await send({"type": "http.response.body", "body": data})


async def _answer_error(send: Send, error: BurnishError) -> None:
    headers = []
    if error.retry_after is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after))).encode()))
    await _answer(send, error.status, envelope(error), headers)


async def _break_off(send: Send, error: BurnishError) -> None:
    """End a stream that failed half-way: an error event, and no ``[DONE]``."""
    data = b"data: " + orjson.dumps(envelope(error)) + b"\n\n"
    await send({"type": "http.response.body", "body": data, "more_body": False})
