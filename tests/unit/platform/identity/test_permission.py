"""What each role may do, where, and what a credential takes away."""

import pytest
from fastapi import APIRouter, Depends, FastAPI

from burnish.core.errors import Forbidden, Unauthenticated
from burnish.core.permissions import GIVEN_ROLES, PERMISSIONS, PLATFORM_WIDE, ROLES
from burnish.platform.identity import ANONYMOUS, LOCAL, Principal
from burnish.platform.identity.permission import (
    authorize,
    authorize_everywhere,
    declared,
    document_permissions,
    is_open,
    requires,
)
from burnish.platform.identity.refusals import Refusal, Refusals


@pytest.mark.parametrize("role", [*ROLES, "unheard-of"])
@pytest.mark.parametrize("permission", PERMISSIONS)
def test_a_role_gives_what_the_table_says_and_platform_wide_things_only_everywhere(role: str, permission: str) -> None:
    has = permission in ROLES.get(role, frozenset())
    in_project = Principal("ada", "ml", frozenset({role}))
    everywhere = Principal("ada", "ml", frozenset({role}), everywhere=frozenset({role}))
    assert in_project.may(permission) == (has and permission not in PLATFORM_WIDE)
    assert everywhere.may(permission) == has
    assert not in_project.may_everywhere(permission)
    assert everywhere.may_everywhere(permission) == has
    for one in (in_project, everywhere):
        assert (permission in one.permissions()) == one.may(permission)
        scoped = Principal(one.subject, one.project_id, one.roles, frozenset({"model:read"}), one.everywhere)
        assert scoped.may(permission) == (one.may(permission) and permission == "model:read")


def test_the_roles_that_are_given_grow_and_none_of_them_works_for_components() -> None:
    viewer, engineer, administrator = (ROLES[name] for name in GIVEN_ROLES)
    assert viewer < engineer < administrator
    assert "component:work" not in administrator
    assert not any("component:work" in ROLES[name] for name in (*GIVEN_ROLES, "component"))
    writes = {"model:deploy", "dataset:write", "workflow:run", "configuration:write", "identity:write", "inference:run"}
    assert not viewer & writes


def test_acting_for_somebody_is_work_and_what_was_checked_at_submit() -> None:
    plain, more = LOCAL.acting(), Principal("ada", "ml", frozenset({"viewer"})).acting("deployment:read")
    assert (plain.subject, more.subject, more.project_id) == ("local", "ada", "ml")
    assert plain.permissions() == {"component:work"}
    assert more.permissions() == {"component:work", "deployment:read"}
    assert more.acting().permissions() == {"component:work"}


def test_a_refusal_names_the_permission_and_who_shows_nothing_is_asked_to_log_in() -> None:
    with pytest.raises(Forbidden, match="ada lacks the permission model:deploy in project ml") as refused:
        authorize(Principal("ada", "ml", frozenset({"viewer"})), "model:deploy")
    assert refused.value.where == "model:deploy"
    with pytest.raises(Forbidden, match="in all projects"):
        authorize_everywhere(Principal("ada", "ml", frozenset({"administrator"})), "identity:write")
    with pytest.raises(Unauthenticated):
        authorize(ANONYMOUS, "model:read")


def test_a_route_declares_a_permission_that_exists_and_the_document_has_it() -> None:
    with pytest.raises(ValueError, match="no permission"):
        requires("model:delpoy")
    inner, outer, app = APIRouter(prefix="/b"), APIRouter(prefix="/a"), FastAPI()

    @inner.get("/c")
    async def named(_: Principal = Depends(requires("model:read"))) -> int:  # noqa: B008
        return 1

    @inner.post("/c")
    async def forgotten() -> int:
        return 1

    outer.include_router(inner)
    app.include_router(outer)
    document_permissions(app)
    found = {(method, path): permission for method, path, permission in declared(app)}
    assert found == {("GET", "/a/b/c"): "model:read", ("POST", "/a/b/c"): None}
    operations = app.openapi()["paths"]["/a/b/c"]
    assert operations["get"]["x-permission"] == "model:read"
    assert operations["post"]["x-permission"] is None


@pytest.mark.parametrize("path", ["/platform/jobs", "/platform/metrics", "/platform/healthy", "/v1/models", "/openapi.json",
                                  "/platform/identity/me", "/platform/auth/session", "/platform/health/"])  # fmt: skip
def test_only_a_few_paths_are_open(path: str) -> None:
    assert not is_open(path, "GET")
    assert is_open("/platform/health", "GET")


def test_refusals_are_counted_rather_than_kept_when_there_are_many() -> None:
    refusals = Refusals()
    for _ in range(50):
        refusals.add(Refusal("eve", "request:refused"))
    for number in range(500):
        refusals.add(Refusal(f"eve{number}", "request:refused"))
    kept, dropped = refusals.take()
    assert (kept[0].actor, kept[0].times) == ("eve", 50)
    assert len(kept) == 120
    assert dropped == 500 - 119
    refusals.add(Refusal("eve", "request:refused"))
    assert refusals.take() == ([], 1), "the same again within a minute is only counted"


def test_strangers_take_no_room_from_what_users_are_refused() -> None:
    """Breaks with: one budget for those who came in and those who did not."""
    refusals = Refusals()
    for number in range(1000):
        refusals.add(Refusal(f"stranger{number}", "login:failed", stranger=True))
    for number in range(100):
        refusals.add(Refusal(f"ada{number}", "request:refused"))
    kept, dropped = refusals.take()
    assert sum(one.stranger for one in kept) == 20
    assert sum(one.actor.startswith("ada") for one in kept) == 100
    assert dropped == 980
