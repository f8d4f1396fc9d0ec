"""The raw ASGI app under ``/v1``."""

import inspect
import re
from collections.abc import MutableMapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from burnish.core.errors import NotFound
from burnish.infra.asgi import Receive, Send
from burnish.infra.http import Request, Response
from burnish.platform.identity import Principal
from burnish.platform.identity.permission import authorize
from burnish.platform.identity.principal import SCOPE_KEY
from burnish.platform.integrator import Integrator
from burnish.platform.integrator.relay import relay

_SERVING = "model_serving"
_ROUTES = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/models"})
_ONE_MODEL = "/v1/models/"
_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]{1,300})"')
_PEEKED_BYTES = 1 << 20


class OpenAIFace:
    """Passes what the serving component answers, from the instance that has the model loaded if there is one.

    Errors are raised: the gateway puts them into OpenAI's envelope.
    """

    def __init__(self, integrator: Integrator) -> None:
        self._integrator = integrator
        self._prefers = "prefer" in inspect.signature(integrator.send).parameters

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            NotFound: there is no such path.
            Forbidden: the caller may not ask models, or see them.
            BurnishError: what the way to the component, or the body, has to say. The answer may have begun.
        """
        template = route_of(scope["path"])
        if template is None:
            raise NotFound(f"Unknown request URL: {scope['method']} {scope['path']}")
        caller: Principal = scope[SCOPE_KEY]
        authorize(caller, permission_of(caller, template))

        def call(request: Request) -> AbstractAsyncContextManager[Response]:
            hint: dict[str, Any] = {"prefer": model_in(request.body)} if self._prefers else {}
            return self._integrator.send(_SERVING, request, caller, **hint)

        await relay(call, scope, receive, send)


def permission_of(caller: Principal, template: str) -> str:
    """Return what a route needs: whoever may ask models may also see which there are."""
    if template.startswith("/v1/models") and not caller.may("inference:run"):
        return "deployment:read"
    return "inference:run"


def route_of(path: str) -> str | None:
    """Return the template of a path under ``/v1``, None if nothing is there."""
    if path.startswith(_ONE_MODEL):
        return f"{_ONE_MODEL}{{model}}" if path != _ONE_MODEL else "/v1/models"
    return path if path in _ROUTES else None


def model_in(body: object) -> str | None:
    """Return what a body seems to name as its model. A hint: it is not parsed, only looked at."""
    if not isinstance(body, bytes) or len(body) > _PEEKED_BYTES:
        return None
    found = _MODEL.search(body)
    return found[1].decode("utf-8", "replace") if found is not None else None
