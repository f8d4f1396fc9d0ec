"""The whole API with authentication on, as each role: whatever is sent is answered as documented, and nobody gets in without."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_whole_api import NEEDS_WHAT_IS_THERE, STREAMS
from tests.support.server import Server

FULL = bool(os.environ.get("BURNISH_TEST_FULL"))
SELF_HARM = r"/(disable|rotate|rewrap|rotate-key|finish)$|^/platform/auth/"
"""Never fuzzed here: what ends the credentials that the run itself uses, and logins, which have tests of their own."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("roles") / "home", environment={"BURNISH_AUTH": "on"})
    try:
        yield running.start()
        running.stop()
    finally:
        running.end_everything()


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
    lines = []
    for name, statuses in NEEDS_WHAT_IS_THERE.items():
        expected = json.dumps(["2xx", "3xx", "401", "403", "404", "409", "429", "5xx", *map(str, statuses)])
        lines += ["[[operations]]", f'include-name = "{name}"',
                  f"checks.positive_data_acceptance.expected-statuses = {expected}"]  # fmt: skip
    document = server.request("GET", "/openapi.json", headers={"authorization": f"Bearer {keys['viewer']}"})
    (tmp_path / "openapi.json").write_text(json.dumps(document))  # not each role may read it
    (tmp_path / "schemathesis.toml").write_text("\n".join(lines) + "\n")
    arguments = [
        "--config-file", "schemathesis.toml", "run", "openapi.json", "--url", server.url, "--checks", "all", "--no-color",
        "--header", f"Authorization: Bearer {keys[role]}", "--exclude-path-regex", f"{STREAMS}|{SELF_HARM}",
        "--exclude-operation-id", "revoke_key", "--exclude-operation-id", "take_role", "--max-examples", "30" if FULL else "1",
        "--phases", "examples,coverage,fuzzing" if FULL else "examples,fuzzing", "--generation-database", "none", "--seed", "1",
        "--continue-on-failure", "--request-timeout", "30", "--warnings", "off",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-20_000:]
    ready = server.request("GET", "/platform/ready")
    assert ready["status"] == "ready"
    assert "Traceback" not in server.tail(100_000)
