"""Authentication for an app that has no gateway before it: what a process without the platform says of itself."""

from collections.abc import MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from burnish.core.errors import BurnishError
from burnish.infra.asgi import ASGIApp, Receive, Send
from burnish.infra.problems import problem_body
from burnish.platform.identity.authentication import Authenticator
from burnish.platform.identity.permission import is_open
from burnish.platform.identity.principal import ANONYMOUS, LOCAL, SCOPE_KEY


class Guard:
    """Puts the principal of each request into its scope; without an authenticator everyone is the local administrator."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator | None) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            if self._authenticator is None:
                principal = LOCAL
            elif is_open(scope["path"], scope["method"]) and "authorization" not in headers:
                principal = ANONYMOUS
            else:
                principal = await self._authenticator.authenticate(headers, method=scope["method"])
        except BurnishError as error:
            status, answer, body = problem_body(error)
            await JSONResponse(body, status, headers=answer)(scope, receive, send)
            return
        await self._app({**scope, SCOPE_KEY: principal}, receive, send)
