"""Routes of logging in and out, under ``/platform/auth``.

All but ``GET`` and ``DELETE /platform/auth/session`` are open: who logs in has no credential yet.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from starlette.requests import Request

from burnish.core.errors import InvalidRequest
from burnish.infra.problems import problems
from burnish.platform.identity.logins import LOGIN_SECONDS, CommandLine, CommandLineKey, Logins, ProviderAnswer
from burnish.platform.identity.permission import anyone, authenticated
from burnish.platform.identity.principal import Principal
from burnish.platform.identity.sessions import (
    COOKIE,
    CSRF_COOKIE,
    NewSession,
    check_same_site,
    cookie_of,
    csrf_of,
    token_of,
)

BROWSER_COOKIE = "burnish_login"
PREFIX = "/platform/auth"
Caller = Annotated[Principal, Depends(authenticated())]
_OPEN = [Depends(anyone())]
_FOUND = "see Location"
_ELSEWHERE = {"content": {"text/plain": {"schema": {"type": "string"}, "example": _FOUND}}}
_Text = Annotated[str, Query(min_length=1, max_length=2048)]
_Challenge = Annotated[str, Query(pattern=r"^[A-Za-z0-9_-]{43}$", description="Base64url of the verifier's SHA-256")]


def _example(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(frozen=True, json_schema_extra={"examples": [example]})


class Method(BaseModel):
    """A way to log in."""

    model_config = ConfigDict(frozen=True)

    type: Literal["key", "oidc"]
    issuer: str | None = Field(default=None, description="Of `oidc`: the provider")
    url: str | None = Field(default=None, description="Of `oidc`: where a browser begins")


class Methods(BaseModel):
    """How one can log in here."""

    model_config = _example(
        {"authentication": "on", "methods": [
            {"type": "oidc", "issuer": "https://login.example.org", "url": "/platform/auth/login"},
            {"type": "key", "issuer": None, "url": None},
        ]}
    )  # fmt: skip

    authentication: Literal["on", "off"] = Field(description="`off`: nobody is asked who they are; there is no login")
    methods: tuple[Method, ...]


class KeyLogin(BaseModel):
    """A page logs in with an API key."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_extra={"examples": [{"key": "bk_a8k2m4p6r0t1_..."}]}
    )

    key: SecretStr = Field(min_length=1, max_length=255)


class Exchange(BaseModel):
    """The command line asks for its key."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_extra={"examples": [{"code": "q3J...", "verifier": "v" * 43}]}
    )

    code: SecretStr = Field(min_length=1, max_length=255)
    verifier: SecretStr = Field(min_length=43, max_length=128)
    name: str = Field(
        default="burnish login", min_length=1, max_length=100, pattern=r"^[ -~]+$", description="Of the key"
    )


class SessionView(BaseModel):
    """Who is logged in."""

    model_config = _example(
        {"subject": "ada@example.org", "project_id": "ml-team", "roles": ["engineer"], "credential": "ses_01k9zq7d3x8m2v5n0c4r6t1y",
         "csrf_token": "5f" * 32, "expires_at": "2026-11-24T12:00:00Z"}
    )  # fmt: skip

    subject: str
    project_id: str
    roles: tuple[str, ...]
    credential: str | None = Field(description="Id of the session or key")
    csrf_token: str | None = Field(
        default=None, description="Send it as `X-CSRF-Token` with whatever changes something; null with a key"
    )
    expires_at: datetime | None = None


class Ended(BaseModel):
    """Nobody is logged in any more."""

    model_config = _example({"ended": True})

    ended: bool = Field(description="False: there was no session, the caller came with a key")


def router(logins: Logins) -> APIRouter:
    """Return the routes under ``/platform/auth``."""
    routes = APIRouter(prefix=PREFIX, tags=["login"])
    _browser(routes, logins)
    _command_line(routes, logins)
    _session(routes, logins)
    return routes


def _browser(routes: APIRouter, logins: Logins) -> None:
    @routes.get("/methods", summary="Ways to log in", operation_id="login_methods", dependencies=_OPEN)
    async def methods() -> Methods:
        """Tell how one can log in here. Open."""
        issuer = logins.issuer
        found = [Method(type="oidc", issuer=issuer, url=f"{PREFIX}/login")] if issuer else []
        if not logins.on:
            return Methods(authentication="off", methods=())
        return Methods(authentication="on", methods=(*found, Method(type="key")))

    @routes.get(
        "/login", summary="Log in by the provider", operation_id="login", status_code=302, response_class=Response,
        dependencies=_OPEN,
        responses={302: {"description": "To the provider", **_ELSEWHERE}, **problems(404, 409, 422, 503)},
    )  # fmt: skip
    async def login(
        request: Request,
        next: Annotated[str, Query(max_length=2048, description="Path to open afterwards")] = "/",  # noqa: A002
        cli: Annotated[str | None, Query(max_length=500, description="Port where the command line listens")] = None,
        challenge: _Challenge | None = None,
        state: Annotated[str, Query(max_length=200, pattern=r"^[A-Za-z0-9_-]*$")] = "",
    ) -> Response:
        """Send the browser to the login provider. Open."""
        begun = await logins.begin(_callback_url(request, logins), next, _target(cli, challenge, state))
        response = _redirect(begun.url)
        response.set_cookie(BROWSER_COOKIE, begun.browser, max_age=int(LOGIN_SECONDS), **_private(request, PREFIX))
        return response

    @routes.get(
        "/callback", summary="Come back from the provider", operation_id="login_callback", status_code=302,
        response_class=Response, dependencies=_OPEN,
        responses={302: {"description": "Logged in: to `next`, or to the command line", **_ELSEWHERE}, **problems(401, 403, 404, 409, 422, 503)},
    )  # fmt: skip
    async def callback(
        request: Request,
        state: _Text | None = None,
        code: _Text | None = None,
        error: _Text | None = None,
        iss: _Text | None = None,
    ) -> Response:
        """End a login that this browser began. Open."""
        headers = _headers(request)
        answer = ProviderAnswer(code, error, iss)
        landed = await logins.finish(state, cookie_of(headers, BROWSER_COOKIE), answer, old=token_of(headers))
        response = _redirect(landed.url)
        response.delete_cookie(BROWSER_COOKIE, path=PREFIX)
        if landed.session is not None:
            _set_session(response, request, landed.session)
        return response


def _command_line(routes: APIRouter, logins: Logins) -> None:
    @routes.post(
        "/exchange", summary="Turn a login code into a key", operation_id="exchange_login_code", dependencies=_OPEN,
        responses=problems(401, 403, 409, 422, 503),
    )  # fmt: skip
    async def exchange(body: Exchange, response: Response) -> CommandLineKey:
        """Give the command line a key that lives as long as a session. Open; the code and its verifier are the proof."""
        response.headers["cache-control"] = "no-store"
        return await logins.exchange(body.code.get_secret_value(), body.verifier.get_secret_value(), body.name)


def _session(routes: APIRouter, logins: Logins) -> None:
    @routes.post(
        "/session", summary="Log in with a key", operation_id="create_session", dependencies=_OPEN,
        responses=problems(401, 403, 409, 422, 503),
    )  # fmt: skip
    async def create_session(body: KeyLogin, request: Request, response: Response) -> SessionView:
        """Begin a session of the page with an API key; it ends with the key and has its scopes. Open."""
        headers = _headers(request)
        check_same_site(headers, logins.public_url)
        caller, made = await logins.open_session(body.key.get_secret_value(), old=token_of(headers))
        _set_session(response, request, made)
        return _view(caller, made.id, made.csrf, made.expires_at)

    @routes.get("/session", summary="Who is logged in", operation_id="get_session", responses=problems(401, 503))
    async def get_session(request: Request, caller: Caller, response: Response) -> SessionView:
        """Tell who the caller is; for a session also its CSRF token."""
        response.headers["cache-control"] = "no-store"
        token = token_of(_headers(request)) if "authorization" not in request.headers else None
        expires_at = await logins.expiry(token) if token else None
        return _view(caller, caller.credential, csrf_of(token) if token else None, expires_at)

    @routes.delete("/session", summary="Log out", operation_id="delete_session", responses=problems(401, 403, 503))
    async def delete_session(request: Request, caller: Caller, response: Response) -> Ended:
        """End the session at once. With a key instead of a session there is nothing to end."""
        token = token_of(_headers(request)) if "authorization" not in request.headers else None
        if token is not None:
            await logins.close_session(token, caller)
        response.delete_cookie(COOKIE, path="/")
        response.delete_cookie(CSRF_COOKIE, path="/")
        return Ended(ended=token is not None)


def _target(cli: str | None, challenge: str | None, state: str) -> CommandLine | None:
    if cli is None:
        return None
    if challenge is None:
        raise InvalidRequest(
            "the command line's login needs a challenge", where="challenge",
            hint="send the base64url of the SHA-256 of a verifier that you keep",
        )  # fmt: skip
    return CommandLine(url=cli, challenge=challenge, state=state)


def _view(caller: Principal, credential: str | None, csrf: str | None, expires_at: datetime | None) -> SessionView:
    roles = tuple(sorted(caller.roles | caller.everywhere))
    return SessionView(
        subject=caller.subject, project_id=caller.project_id, roles=roles, credential=credential, csrf_token=csrf,
        expires_at=expires_at,
    )  # fmt: skip


def _headers(request: Request) -> dict[str, str]:
    return {name.lower(): value for name, value in request.headers.items()}


def _callback_url(request: Request, logins: Logins) -> str:
    """Return where the provider sends the browser back to: it refuses what was not registered there."""
    base = logins.public_url or f"{request.url.scheme}://{request.headers.get('host', 'localhost')}"
    return f"{base.rstrip('/')}{PREFIX}/callback"


def _redirect(url: str) -> RedirectResponse:
    response = RedirectResponse(
        url, status_code=302, headers={"cache-control": "no-store", "referrer-policy": "no-referrer"}
    )
    response.body, response.media_type = _FOUND.encode(), "text/plain"
    response.headers["content-type"], response.headers["content-length"] = "text/plain; charset=utf-8", str(len(_FOUND))
    return response


def _private(request: Request, path: str) -> dict[str, Any]:
    return {"path": path, "httponly": True, "samesite": "lax", "secure": request.url.scheme == "https"}


def _set_session(response: Response, request: Request, made: NewSession) -> None:
    """Set both cookies. They carry no end of their own: the server decides that, and renews it with use."""
    response.headers["cache-control"] = "no-store"
    options = _private(request, "/")
    response.set_cookie(COOKIE, made.token, **options)
    response.set_cookie(CSRF_COOKIE, made.csrf, **{**options, "httponly": False})
