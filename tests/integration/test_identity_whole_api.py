"""The whole API with authentication on, as each role: whatever is sent is answered as documented, and nobody gets in without."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fuzzing import FULL, fuzz, tolerances
from tests.support.server import Server, running_burnish

SELF_HARM = r"/(disable|rotate|rewrap|rotate-key|finish)$|^/platform/auth/"
"""Never fuzzed here: what ends the credentials that the run itself uses, and logins, which have tests of their own."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    unlimited = {"BURNISH_CONFIGURATION__gateway__anonymous__per_address__requests_per_second": "0"}
    with running_burnish(tmp_path_factory.mktemp("roles") / "home", {"BURNISH_AUTH": "on", **unlimited}) as found:
        yield found


@pytest.fixture(scope="module")
def keys(server: Server) -> dict[str, str]:
    root = re.findall(r"^    (bk_\S+)$", server.log.read_text(), re.MULTILINE)[0]
    headers = {"authorization": f"Bearer {root}"}
    found = {"platform administrator": root}
    for role in ("viewer", "engineer", "administrator"):
        server.request("POST", "/platform/identity/users", {"id": role + "-1"}, headers=headers)
        server.request("POST", "/platform/identity/bindings", {"subject": role + "-1", "role": role}, headers=headers)
        found[role] = server.request("POST", "/platform/identity/keys", {"subject": role + "-1"}, headers=headers)[
            "key"
        ]
    asked = {"component": {"component_id": "echo-1", "component_type": "echo"}}
    found["component"] = server.request("POST", "/platform/identity/keys", asked, headers=headers)["key"]
    return found


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "role",
    [
        "viewer",
        *(
            pytest.param(role, marks=pytest.mark.full)
            for role in ("engineer", "administrator", "platform administrator", "component")
        ),
    ],
)
def test_whatever_is_sent_is_answered_as_documented(
    server: Server, keys: dict[str, str], role: str, tmp_path: Path
) -> None:
    document = server.request("GET", "/openapi.json", headers={"authorization": f"Bearer {keys['viewer']}"})
    (tmp_path / "openapi.json").write_text(json.dumps(document))  # not each role may read it
    fuzz(
        "openapi.json", tmp_path, "--url", server.url, "--exclude-operation-id", "revoke_key", "--exclude-operation-id", "take_role",
        examples=12 if FULL else 1, phases="examples,coverage,fuzzing" if FULL else "examples,fuzzing",
        left_out=[SELF_HARM], configuration=tolerances(),
        headers={"Authorization": f"Bearer {keys[role]}"},
    )  # fmt: skip
    ready = server.request("GET", "/platform/ready")
    assert ready["status"] == "ready"
    assert "Traceback" not in server.tail(100_000)
