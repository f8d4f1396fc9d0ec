"""Routes of a third party's component, which may check nothing itself: the gateway does."""

import pytest

from burnish.core.protocol import COMPONENT_TYPES
from burnish.platform.identity import Principal
from burnish.platform.identity.permission import permission_relayed
from tests.support.gateway import gateway_stand

KEYS = {
    name: Principal(name, "ml", frozenset({name}), credential=f"key_{name}")
    for name in ("viewer", "engineer", "component")
}


@pytest.mark.parametrize(
    ("method", "permission"),
    [("GET", "workflow:read"), ("HEAD", "workflow:read"), ("POST", "workflow:run"), ("DELETE", "workflow:run")],
)
def test_our_own_routes_declare_what_they_need_and_others_need_a_role(method: str, permission: str) -> None:
    assert permission_relayed("echo", method) == permission
    assert all(permission_relayed(ours, method) is None for ours in COMPONENT_TYPES)


async def test_the_gateway_passes_nothing_to_a_third_party_that_the_role_does_not_allow() -> None:
    async with gateway_stand(keys=KEYS) as stand:
        stand.way.route_of = lambda path: "echo" if path.startswith("/platform/echo") else None
        for name, method, status in (
            ("viewer", "GET", 200), ("viewer", "POST", 403), ("viewer", "DELETE", 403), ("engineer", "POST", 200),
            ("component", "GET", 403), ("component", "POST", 403),
        ):  # fmt: skip
            begun = stand.component.begun
            headers = {"authorization": f"Bearer {name}"}
            answer = await stand.client.request(method, "/platform/echo/things", headers=headers, content=b"x")
            assert (name, method, answer.status_code) == (name, method, status)
            assert stand.component.begun == begun + (status == 200)
