"""A process's own components at ``/components/{component_type}/...``, where other processes call them.

Nothing of the gateway stands before them: each checks the caller's token itself. So what comes in here is held to the
gateway's other rules: no NUL in a URL, no body beyond an upload's limit, a typed answer to every failure, and while
authentication is off no page of another site.
"""

import logging
import re
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import orjson

from burnish.core.configuration import Current
from burnish.core.errors import BurnishError, MalformedRequest, NotFound, TooLarge
from burnish.core.protocol import TRACE_HEADER
from burnish.infra.asgi import ASGIApp, Message, Receive, Send
from burnish.infra.logging import trace_id_of
from burnish.infra.problems import problem_body

log = logging.getLogger(__name__)

PREFIX = "/components/"
_SEE_LOG = "the log of the component's server has more under this trace id"
_PATH = re.compile(r"/components/([a-z][a-z0-9_]*)(/.*)?", re.DOTALL)


class MountedComponents:
    """The ASGI app below :data:`PREFIX`."""

    def __init__(
        self, components: Mapping[str, ASGIApp], configuration: Current,
        check: Callable[[Mapping[str, str]], None] = lambda headers: None,
    ) -> None:  # fmt: skip
        """``check`` raises if the headers (names in lower case) are not fit for an answer."""
        self._components = components
        self._configuration = configuration
        self._check = check

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request. A failure after the answer began is raised: the server breaks the connection."""
        started = crashed = False

        async def noted(message: Message) -> None:
            nonlocal started, crashed
            crashed = crashed or (not started and _says_crash(message))
            if not crashed:
                started = started or message["type"] == "http.response.start"
                await send(message)

        try:
            self._check({name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]})
            app, inner = self._find(scope)
            await app(inner, _limited(receive, self._configuration().gateway.max_upload_bytes), noted)
        except BurnishError as error:
            if started:
                raise
            await _answer(error, scope, send)
        except Exception:  # raised on, the server would close a connection on which others' requests come as well
            if started:
                raise
            log.exception("%s %s failed", scope["method"], scope["path"][:200])
            await _answer(BurnishError("something went wrong here that should not", hint=_SEE_LOG), scope, send)

    def _find(self, scope: MutableMapping[str, Any]) -> tuple[ASGIApp, MutableMapping[str, Any]]:
        path: str = scope["path"]
        if "\0" in path or b"%00" in scope.get("query_string", b""):
            raise MalformedRequest("there is a NUL (%00) in the URL", where="path", hint="leave it out")
        match = _PATH.fullmatch(path)
        app = self._components.get(match[1]) if match else None
        if match is None or app is None:
            here = ", ".join(sorted(self._components)) or "none"
            raise NotFound(f"this process has no component at {path[:200]!r}", where="path", hint=f"here are: {here}")
        prefix = f"{PREFIX}{match[1]}"
        raw: bytes = scope.get("raw_path") or path.encode()
        return app, {**scope, "path": match[2] or "/", "raw_path": raw.removeprefix(prefix.encode()) or b"/"}


def _says_crash(message: Message) -> bool:
    """Tell whether this is the head of the framework's own answer to an exception, which it raises besides."""
    if message["type"] != "http.response.start" or message["status"] != 500:
        return False
    kinds = (value for name, value in message.get("headers", ()) if name.lower() == b"content-type")
    return any(kind.startswith(b"text/plain") for kind in kinds)


def _limited(receive: Receive, limit: int) -> Receive:
    left = limit

    async def limited() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise TooLarge(f"the body is larger than {limit} bytes", where="body", hint="send less")
        return message

    return limited


async def _answer(error: BurnishError, scope: MutableMapping[str, Any], send: Send) -> None:
    trace = next((value for name, value in scope["headers"] if name == TRACE_HEADER.encode()), b"")
    status, headers, document = problem_body(error, trace_id_of(trace.decode("latin-1")))
    body = orjson.dumps(document)
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    raw.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
