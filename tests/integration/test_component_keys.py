"""A third party's component at a server that asks everybody who they are: a key that is bound to its id and type."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.component_process import ComponentRun
from tests.support.server import Answered, Server, wait_for


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "home", environment={"BURNISH_AUTH": "on", "BURNISH_DISK_RESERVE_BYTES": "0"})
    yield made
    made.end_everything()


def test_a_key_registers_its_own_component_and_nothing_else(server: Server, tmp_path: Path) -> None:
    server.start()
    found = re.search(r"bk_[A-Za-z0-9_.-]{20,}", server.log.read_text())
    assert found is not None, server.tail()
    as_administrator = {"Authorization": f"Bearer {found.group()}"}

    def ask(method: str, path: str, body: object = None) -> dict[str, object]:
        answer: dict[str, object] = server.request(method, path, body, headers=as_administrator)
        return answer

    bound = {"component_id": "echo-1", "component_type": "echo_metric"}
    key = str(ask("POST", "/platform/identity/keys", {"name": "echo", "component": bound})["key"])
    runs = []
    try:
        for name, secret in (("echo-1", key), ("echo-2", key), ("echo-3", "")):
            run = ComponentRun(tmp_path / name, server.url, environment={"BURNISH_API_KEY": secret} if secret else {})
            runs.append(run.start("--id", name))
        mine, another, without = runs
        wait_for(lambda: "Registered at" in mine.tail(), 90, mine.tail)
        wait_for(lambda: "not registered at" in another.tail(), 90, another.tail)
        wait_for(lambda: "not registered at" in without.tail(), 90, without.tail)
        assert "Registered at" not in another.tail() + without.tail()
        path = "/platform/components/echo-1"
        wait_for(lambda: ask("GET", path)["status"] == "healthy", 90, mine.tail)
        step = {"component": "echo_metric", "kind": "measure", "with": {"text": "abc"}}
        wait_for(lambda: bool(ask("GET", "/platform/kinds?component_type=echo_metric")["data"]), 90)
        body = {"definition": {"name": "x", "steps": {"only": step}}}
        execution = f"/platform/workflows/{ask('POST', '/platform/workflows/run', body)['workflow_id']}/status"
        wait_for(lambda: ask("GET", execution)["status"] == "succeeded", 60, lambda: str(ask("GET", execution)))
        for method, asked in (("GET", "/platform/workflows"), ("DELETE", "/platform/components/fine_tuning-x-1")):
            with pytest.raises(Answered) as refused:
                server.request(method, asked, headers={"Authorization": f"Bearer {key}"})
            assert refused.value.status in {403, 404}, refused.value
        texts = [file.read_text(errors="replace") for file in (mine.log, server.log)]
        assert all(key not in text for text in texts), "the key is in a log"
        mine.stop()
        wait_for(lambda: missing(server, path, as_administrator), 90, "it is deregistered")
    finally:
        for run in runs:
            run.end_everything()


def missing(server: Server, path: str, headers: dict[str, str]) -> bool:
    try:
        server.request("GET", path, headers=headers)
    except Answered as answer:
        return answer.status == 404
    return False
