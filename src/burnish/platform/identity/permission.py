"""Routes declare their permission: a dependency that checks it, and that OpenAPI and the tests can read."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any, cast

from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.requests import Request

from burnish.core.errors import Forbidden, Unauthenticated
from burnish.core.permissions import PERMISSIONS
from burnish.core.protocol import COMPONENT_TYPES
from burnish.platform.identity import audit
from burnish.platform.identity.principal import ANONYMOUS, SCOPE_KEY, Principal, current_principal

Dependency = Callable[[Request], Awaitable[Principal]]

OPEN = "open"
"""Declared by routes that need no credential."""
AUTHENTICATED = "authenticated"
"""Declared by routes that need a credential, and no permission."""

_OPEN_PATHS = frozenset(
    {"/", "/health", "/docs", "/api", "/platform/health", "/platform/ready", "/platform/identity/jwks"}
    | {f"/platform/auth/{name}" for name in ("login", "callback", "methods", "exchange")}
)
_OPEN_PREFIXES = ("/docs/", "/api/assets/")
_LOG_IN = ("POST", "/platform/auth/session")
"""To log in nobody needs a credential; to see or end the session, which are other methods of this path, one does."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def is_open(path: str, method: str) -> bool:
    """Tell whether a path may be asked without a credential; its routes see :data:`ANONYMOUS` then and refuse it or not.

    A cookie is none here: a browser sends the one of a session that has ended, too, and is to be let in to log in anew.
    """
    return path in _OPEN_PATHS or path.startswith(_OPEN_PREFIXES) or (method, path) == _LOG_IN


def authorize(caller: Principal, permission: str) -> None:
    """Check a permission.

    Raises:
        Forbidden: the caller lacks it; the message names it.
        Unauthenticated: nobody in particular calls.
    """
    refuse_anonymous(caller)
    if not caller.may(permission):
        raise refusal(caller, permission)


def refuse_anonymous(caller: Principal) -> None:
    """Refuse whoever showed no credential.

    Raises:
        Unauthenticated: nobody in particular calls.
    """
    if caller.subject == ANONYMOUS.subject and caller == ANONYMOUS:
        raise Unauthenticated("the request carries no credential", hint="send a key: `Authorization: Bearer bk_...`")


def authorize_everywhere(caller: Principal, permission: str) -> None:
    """Check that the caller has a permission in every project.

    Raises:
        Forbidden: they have it in this one at most.
    """
    if not caller.may_everywhere(permission):
        raise refusal(caller, permission, "in all projects")


def refusal(caller: Principal, permission: str, where: str | None = None) -> Forbidden:
    """Return the error that names a missing permission, and note it for the audit log."""
    audit.refused(caller, permission)
    place = where or f"in project {caller.project_id}"
    allows = f"it allows: {PERMISSIONS[permission]}"
    if caller.component is not None:
        return Forbidden(
            f"the key {caller.credential} is that of the instance {caller.component[0]}: it lacks the permission {permission}",
            where=permission, hint=f"{allows}; use a key of your own, the instance's can only register it",
        )  # fmt: skip
    whole = replace(caller, scopes=None)
    has = whole.may_everywhere(permission) if where else whole.may(permission)
    if has and caller.scopes is not None and permission not in caller.scopes:
        return Forbidden(
            f"the credential {caller.credential} lacks the permission {permission} {place} ({caller.subject} has it)",
            where=permission, hint=f"{allows}; a key keeps what it was made with: make another (`burnish key create`)",
        )  # fmt: skip
    return Forbidden(
        f"{caller.subject} lacks the permission {permission} {place}", where=permission,
        hint=f"{allows}; ask an administrator for a role or a key that has it",
    )  # fmt: skip


def requires(permission: str) -> Dependency:
    """Return the dependency of a route that needs ``permission``: it checks, and gives the caller.

    A request that may change something leaves an entry in the audit log, in the transaction of its change.
    """
    _check_known(permission)

    async def permitted(request: Request) -> Principal:
        caller = await current_principal(request)
        authorize(caller, permission)
        _note(caller, permission, request)
        return caller

    return _declared(permitted, permission)


def requires_unlogged(permission: str) -> Dependency:
    """Return the same for a route that changes nothing which lasts (a check, a heartbeat): it leaves no entry."""
    _check_known(permission)

    async def permitted(request: Request) -> Principal:
        caller = await current_principal(request)
        authorize(caller, permission)
        audit.nothing_to_note()
        return caller

    return _declared(permitted, permission)


def anyone() -> Dependency:
    """Return the dependency of a route that needs no credential."""

    async def permitted(request: Request) -> Principal:
        found = request.scope.get(SCOPE_KEY)
        return found if isinstance(found, Principal) else ANONYMOUS

    return _declared(permitted, OPEN)


def authenticated() -> Dependency:
    """Return the dependency of a route that needs a credential, and no permission."""

    async def permitted(request: Request) -> Principal:
        caller = await current_principal(request)
        refuse_anonymous(caller)
        _note(caller, AUTHENTICATED, request)
        return caller

    return _declared(permitted, AUTHENTICATED)


def permission_relayed(component_type: str, method: str) -> str | None:
    """Return what a request to a route of a third party's own needs, which may check nothing itself.

    None for our own components: each of their routes declares what it needs, and checks it.
    """
    if component_type in COMPONENT_TYPES:
        return None
    return "workflow:read" if method in SAFE_METHODS else "workflow:run"


def permission_of(route: Any) -> str | None:
    """Return the permission that a route declares, None if it declares none."""
    found = (getattr(one.call, "permission", None) for one in route.dependant.dependencies)
    return next((str(one) for one in found if one is not None), None)


def declared(app: FastAPI) -> Iterable[tuple[str, str, str | None]]:
    """Yield method, path template and permission of every route of an app."""
    for context in iter_route_contexts(app.routes):
        route = getattr(context, "original_route", context)
        if isinstance(route, APIRoute):
            for method in sorted(context.methods or ()):
                yield method, str(getattr(context, "path_format", route.path_format)), permission_of(route)


def document_permissions(app: FastAPI) -> None:
    """Have the app's OpenAPI document name each operation's permission, as ``x-permission``."""
    plain = app.openapi

    def documented() -> dict[str, Any]:
        document = plain()
        for method, path, permission in declared(app):
            operation = document["paths"].get(path, {}).get(method.lower())
            if operation is not None:
                operation["x-permission"] = permission
        return document

    cast(Any, app).openapi = documented


def _note(caller: Principal, permission: str, request: Request) -> None:
    if request.method in SAFE_METHODS:
        audit.nothing_to_note()
    else:
        audit.begin(caller, permission, request)


def _declared(dependency: Dependency, permission: str) -> Dependency:
    cast(Any, dependency).permission = permission
    return dependency


def _check_known(permission: str) -> None:
    if permission not in PERMISSIONS:
        raise ValueError(f"there is no permission {permission!r}")
