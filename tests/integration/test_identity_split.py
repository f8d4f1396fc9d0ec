"""Authentication with several processes on one PostgreSQL: one first key, one answer of all to every key, one chain."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.postgres import PostgresServer
from tests.support.server import Server

pytestmark = pytest.mark.postgres


@pytest.fixture
def servers(postgres_url: str, tmp_path: Path) -> Iterator[list[Server]]:
    """Two platforms that start at once, and a process with components alone."""
    key = tmp_path / "key"
    key.write_bytes(b"s" * 32)
    environment = {
        "BURNISH_AUTH": "on", "BURNISH_SECRET_KEY_FILE": str(key), "BURNISH_ARTIFACT_URL": (tmp_path / "artifacts").as_uri(),
    }  # fmt: skip
    url = postgres_url.replace("postgresql+asyncpg", "postgresql")
    made = [
        Server(tmp_path / name, database_url=url, environment={**environment, "BURNISH_COMPONENTS": roles}, name=name)
        for name, roles in (("one", "platform"), ("two", "platform"), ("three", "data_management"))
    ]
    try:
        for server in made:
            server.start(ready=False)
        for server in made:
            server.wait_ready()
        yield made
        for server in made:
            server.stop()
    finally:
        for server in made:
            server.end_everything()


CUT = (
    "SELECT id FROM audit_head FOR UPDATE; "  # first, as whoever appends
    "ALTER TABLE audit_log DISABLE TRIGGER ALL; "
    "DELETE FROM audit_log WHERE number > (SELECT max(number) - 3 FROM audit_log); "
    "UPDATE audit_head SET (number, hash) = (SELECT number, hash FROM audit_log ORDER BY number DESC LIMIT 1)"
)


def test_processes_share_who_may_come_in(
    servers: list[Server], postgres_server: PostgresServer, postgres_url: str
) -> None:
    """Breaks with, among others: a process that appends to the log without its seal."""
    printed = [re.findall(r"^    (bk_\S+)$", server.log.read_text(), re.MULTILINE) for server in servers]
    assert sorted(map(len, printed)) == [0, 0, 1], "one of them makes the first key, once"
    root = {"authorization": f"Bearer {next(key for keys in printed for key in keys)}"}
    here, there, components = (server.url for server in servers)
    with httpx.Client(timeout=30) as client:

        def made(path: str, body: Any) -> Any:
            answer = client.post(f"{here}/platform/identity/{path}", json=body, headers=root)
            assert answer.status_code == 200, answer.text
            return answer.json()

        made("users", {"id": "ada"})
        made("bindings", {"subject": "ada", "role": "engineer"})
        for url in (here, there, components):
            assert client.get(f"{url}/platform/ready").status_code == 200
            assert client.get(f"{url}/platform/metrics").status_code == 401
            assert client.get(f"{url}/platform/metrics", headers=root).status_code == 200
        rows = b'{"text": "a", "label": "b"}\n{"text": "b", "label": "a"}\n'
        ada = {"authorization": f"Bearer {made('keys', {'subject': 'ada'})['key']}"}
        upload = client.post(f"{there}/platform/datasets?name=d&filename=d.jsonl", content=rows, headers=ada)
        assert upload.status_code == 201, upload.text
        for _ in range(5):
            key = made("keys", {"subject": "ada"})
            bearer = {"authorization": f"Bearer {key['key']}"}
            assert client.get(f"{there}/platform/jobs", headers=bearer).status_code == 200
            assert client.delete(f"{here}/platform/identity/keys/{key['id']}", headers=root).status_code == 204
            began = time.monotonic()
            while client.get(f"{there}/platform/jobs", headers=bearer).status_code == 200:
                assert time.monotonic() - began < 1, "a revoked key stops everywhere within a second"
        verdict = client.get(f"{there}/platform/identity/audit/verify", headers=root).json()
        assert verdict["ok"] is True
        told = client.get(f"{there}/platform/identity/audit", headers=root).json()["data"]
        postgres_server.execute(CUT, postgres_url.rpartition("/")[2])
        verdict = client.get(f"{there}/platform/identity/audit/verify", headers=root).json()
        assert (verdict["ok"], {one["what"] for one in verdict["problems"]}) == (False, {"unsealed"})
    assert ("ada", "dataset:write", "d@1") in {(one["actor"], one["action"], one["object_id"]) for one in told}
