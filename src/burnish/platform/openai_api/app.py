"""The raw ASGI app under ``/v1``."""

import re
from collections.abc import MutableMapping
from functools import partial
from typing import Any

import orjson

from burnish.core.errors import BurnishError, NotFound
from burnish.core.openai import envelope
from burnish.infra.asgi import Message, Receive, Send
from burnish.platform.identity import LOCAL
from burnish.platform.identity.principal import SCOPE_KEY
from burnish.platform.integrator import Integrator
from burnish.platform.integrator.relay import relay

_SERVING = "model_serving"
_ROUTES = (
    (re.compile(r"/v1/chat/completions"), "/v1/chat/completions"),
    (re.compile(r"/v1/completions"), "/v1/completions"),
    (re.compile(r"/v1/models/?"), "/v1/models"),
    (re.compile(r"/v1/models/.+"), "/v1/models/{model}"),
)


class OpenAIFace:
    """Passes what the serving component answers, and puts the platform's own errors into OpenAI's envelope."""

    def __init__(self, integrator: Integrator) -> None:
        self._integrator = integrator

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request. A failure after the answer began is raised: the server breaks the connection."""
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            if route_of(scope["path"]) is None:
                raise NotFound(f"Unknown request URL: {scope['method']} {scope['path']}")
            principal = scope.get(SCOPE_KEY, LOCAL)
            await relay(partial(self._integrator.send, _SERVING, principal=principal), scope, receive, noted)
        except BurnishError as error:
            if started:
                raise
            await answer_error(send, error)


def route_of(path: str) -> str | None:
    """Return the template of a path under ``/v1``, None if nothing is there."""
    return next((template for pattern, template in _ROUTES if pattern.fullmatch(path)), None)


async def answer_error(send: Send, error: BurnishError) -> None:
    """Answer with OpenAI's envelope."""
    body = orjson.dumps(envelope(error))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    retry_after = error.retry_after or (1 if error.status in (429, 503) else None)
    if retry_after is not None:
        headers.append((b"retry-after", str(max(1, round(retry_after))).encode()))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
