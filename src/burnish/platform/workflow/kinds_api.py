"""Routes of kinds: what steps can be made of."""

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query

from burnish.core.errors import NotFound
from burnish.core.pages import DEFAULT_LIMIT, MAX_LIMIT, Page
from burnish.infra.problems import problems
from burnish.platform.identity import Principal
from burnish.platform.identity.permission import requires
from burnish.platform.workflow.definition import nearest
from burnish.platform.workflow.schemas import KindView

Reader = Annotated[Principal, Depends(requires("workflow:read"))]
_COMPONENT = r"^[a-z][a-z0-9_]*$"
_KIND = r"^[A-Za-z][A-Za-z0-9_.-]*$"
ComponentType = Annotated[str, Path(max_length=100, pattern=_COMPONENT, examples=["platform"])]
KindName = Annotated[str, Path(max_length=100, pattern=_KIND, examples=["noop"])]


def router(kinds: Callable[[], list[KindView]]) -> APIRouter:
    """Return the routes under ``/platform/kinds``; ``kinds`` gives everything that is known, sorted."""
    routes = APIRouter(prefix="/platform/kinds", tags=["workflows"])

    @routes.get("", summary="List kinds of steps", operation_id="list_kinds", responses=problems(401, 422))
    async def list_kinds(
        _: Reader,
        component_type: Annotated[str | None, Query(max_length=100, pattern=_COMPONENT)] = None,
        after: Annotated[str | None, Query(max_length=201, description="`next` of the page before")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
    ) -> Page[KindView]:
        """Give every kind that a step can have, ours and third parties', with the schemas of its spec and result."""
        found = [one for one in kinds() if component_type in (None, one.component_type)]
        behind = [one for one in found if after is None or cursor(one) > after]
        return Page[KindView].of(behind[: limit + 1], limit, cursor)

    @routes.get(
        "/{component_type}/{name}",
        summary="A kind of steps",
        operation_id="get_kind",
        responses=problems(401, 404, 422),
    )
    async def get_kind(component_type: ComponentType, name: KindName, _: Reader) -> KindView:
        """Give one kind."""
        known = kinds()
        for one in known:
            if (one.component_type, one.name) == (component_type, name):
                return one
        hint = nearest(f"{component_type}/{name}", [cursor(one) for one in known])
        raise NotFound(f"there is no kind {component_type}/{name}", where="kind", hint=hint)

    return routes


def cursor(kind: KindView) -> str:
    """Return a kind's place in the list."""
    return f"{kind.component_type}/{kind.name}"
