"""Routes declare their permission: a dependency that checks it, and that OpenAPI and the tests can read."""

from collections.abc import Awaitable, Callable
from typing import Any, cast

from fastapi.routing import APIRoute
from starlette.requests import Request

from burnish.core.errors import Forbidden
from burnish.core.permissions import PERMISSIONS
from burnish.platform.identity.principal import Principal, current_principal

Dependency = Callable[[Request], Awaitable[Principal]]


def authorize(caller: Principal, permission: str) -> None:
    """Check a permission.

    Raises:
        Forbidden: the caller lacks it; the message names it.
    """
    if not caller.may(permission):
        raise Forbidden(
            f"{caller.subject} lacks the permission {permission} in project {caller.project_id}",
            where=permission,
            hint=f"it allows: {PERMISSIONS[permission]}; ask an administrator for a role or a key that has it",
        )


def requires(permission: str) -> Dependency:
    """Return the dependency of a route that needs ``permission``: it checks, and gives the caller."""
    if permission not in PERMISSIONS:
        raise ValueError(f"there is no permission {permission!r}")

    async def permitted(request: Request) -> Principal:
        caller = await current_principal(request)
        authorize(caller, permission)
        return caller

    cast(Any, permitted).permission = permission
    return permitted


def permission_of(route: APIRoute) -> str | None:
    """Return the permission that a route declares, None if it declares none."""
    found = (getattr(one.call, "permission", None) for one in route.dependant.dependencies)
    return next((str(one) for one in found if one is not None), None)
