"""Routes of a third party's component, which may check nothing itself: the gateway does."""

import pytest

from burnish.core.errors import Unavailable
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


class Notes:
    """A record that can be away."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, str, str]] = []
        self.away = False

    async def note(self, caller: Principal, component_type: str, route: str, path: str) -> None:
        if self.away:
            raise Unavailable("the database does not answer")
        self.found.append((caller.subject, component_type, route, path))


async def test_what_a_third_party_is_asked_to_change_is_noted_before_it_is_asked() -> None:
    """Breaks with: a change through a route of a third party that nobody can find afterwards."""
    notes = Notes()
    async with gateway_stand(keys=KEYS, relayed=notes) as stand:
        stand.way.route_of = lambda path: "echo" if path.startswith("/platform/echo") else "data_management"
        engineer, viewer = ({"authorization": f"Bearer {name}"} for name in ("engineer", "viewer"))
        for method in ("GET", "HEAD", "POST", "DELETE"):
            await stand.client.request(method, "/platform/echo/things/1", headers=engineer)
        await stand.client.post("/platform/echo/things", headers=viewer)
        await stand.client.post("/platform/datasets/ours", headers=engineer)
        route = "/platform/echo/{path}"
        assert notes.found == [
            ("engineer", "echo", f"{method} {route}", "/platform/echo/things/1") for method in ("POST", "DELETE")
        ]
        notes.away, begun = True, stand.component.begun
        assert (await stand.client.post("/platform/echo/things", headers=engineer)).status_code == 503
        assert stand.component.begun == begun, "what leaves no trace is not done"
