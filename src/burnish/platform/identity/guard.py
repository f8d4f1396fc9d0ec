"""Authentication for an app that has no gateway before it: what a process without the platform says of itself."""

from collections.abc import MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from burnish.core.errors import BurnishError, Unauthenticated
from burnish.infra.asgi import ASGIApp, Receive, Send
from burnish.infra.problems import problem_body
from burnish.platform.identity.authentication import Authenticator
from burnish.platform.identity.permission import is_open
from burnish.platform.identity.principal import ANONYMOUS, LOCAL, SCOPE_KEY, Principal


class Guard:
    """Puts the principal of each request into its scope.

    Without an authenticator everyone is ``unasked``: the local administrator, or, where others than this machine can
    ask, nobody.
    """

    def __init__(self, app: ASGIApp, authenticator: Authenticator | None, unasked: Principal = LOCAL) -> None:
        self._app = app
        self._authenticator = authenticator
        self._unasked = unasked

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            if self._authenticator is None:
                principal = self._unasked
                if principal == ANONYMOUS and not is_open(scope["path"], scope["method"]):
                    raise Unauthenticated(
                        "this process can be reached from other machines and asks nobody who they are", where="BURNISH_AUTH",
                        hint="for more than its health turn authentication on there (BURNISH_AUTH=on), or bind to 127.0.0.1",
                    )  # fmt: skip
            elif is_open(scope["path"], scope["method"]) and "authorization" not in headers:
                principal = ANONYMOUS
            else:
                principal = await self._authenticator.authenticate(headers, method=scope["method"])
        except BurnishError as error:
            status, answer, body = problem_body(error)
            await JSONResponse(body, status, headers=answer)(scope, receive, send)
            return
        await self._app({**scope, SCOPE_KEY: principal}, receive, send)
