"""The split form: one installation as processes of single roles, on PostgreSQL and Redis."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from burnish.core.protocol import CALLER_HEADER
from burnish.platform.identity import LOCAL, CallerTokens
from tests.support import lifecycle
from tests.support.postgres import PostgresServer
from tests.support.redis import RedisServer
from tests.support.server import Answered, Server, wait_for
from tests.support.split import Split

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    server = RedisServer()
    server.start()
    yield server.url
    server.remove()


@pytest.fixture(scope="module")
def split(
    postgres_server: PostgresServer, postgres_template: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Split]:
    """The issue's set: two platforms, fine-tuning, two of serving on two nodes, and the rest."""
    name = postgres_server.create_database(postgres_template)
    homes = {"serving-2": "home2"}
    made = Split(tmp_path_factory.mktemp("split"), postgres_server.url(name), redis_url, homes=homes)
    try:
        yield made.start()
    finally:
        made.end_everything()
        postgres_server.drop_database(name)


def _ask(url: str, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(url + path, headers=dict(headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read() or b"null")


def _instances(server: Server) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.request("GET", "/platform/components?limit=500")["data"]
    return found


def test_each_process_has_its_roles_and_no_more(split: Split) -> None:
    """Breaks with: a component's process that answers for the platform."""
    serving = split["serving-1"].url
    assert _ask(serving, "/health")[0] == 200
    assert _ask(serving, "/platform/health")[0] == 200
    assert _ask(serving, "/platform/ready")[1]["status"] == "ready"
    for path in ("/platform/components", "/platform/workflows", "/openapi.json", "/v1/models", "/docs"):
        assert _ask(serving, path)[0] == 404, path
    assert _ask(serving, "/components/model_serving/describe")[1]["component_type"] == "model_serving"
    assert _ask(serving, "/components/model_serving/v1/models")[0] == 401
    status, problem = _ask(serving, "/components/evaluation/describe")
    assert (status, problem["code"]) == (404, "not_found")
    assert "model_serving" in problem["hint"]
    assert _ask(split["platform-1"].url, "/components/fine_tuning/describe")[0] == 404


def test_every_instance_is_listed_by_either_platform(split: Split) -> None:
    """Breaks with: two processes of a home that take each other's row."""
    for name in ("platform-1", "platform-2"):

        def listed(server: Server = split[name]) -> bool:
            found = [(one["component_type"], one["status"]) for one in _instances(server)]
            return len(found) == 7 and {status for _, status in found} == {"healthy"}

        wait_for(listed, 30, lambda: f"{_instances(split['platform-1'])}\n{split.tails()}")
    rows = _instances(split["platform-1"])
    types = [one["component_type"] for one in rows]
    assert types.count("model_serving") == 2
    nodes = {one["metadata"]["node"] for one in rows if one["component_type"] == "model_serving"}
    assert len(nodes) == 2, "two homes are two nodes"


def test_what_another_instance_was_sent_opens_nothing_here(split: Split) -> None:
    """Breaks with: a third party that registers as a server of models, and passes on what callers' tokens it is sent."""
    tokens = CallerTokens((split["platform-1"].home / "secret.key").read_bytes())
    serving = split["serving-1"].url

    def answer(instance: str | None) -> int:
        token = tokens.sign(LOCAL, "model_serving", instance=instance)
        return _ask(serving, "/components/model_serving/v1/models", {CALLER_HEADER: token})[0]

    ours = [one["component_id"] for one in _instances(split["platform-1"]) if one["component_type"] == "model_serving"]
    assert [answer(one) for one in (*ours, None)] == [200, 200, 200]
    assert answer("model_serving-evil") == 401


def test_a_workflow_runs_from_end_to_end_and_its_model_answers_everywhere(split: Split, tmp_path: Path) -> None:
    """Data, training, compression, gate, registry and deployment, each in a process of its own."""
    first, second = split["platform-1"], split["platform-2"]
    model = lifecycle.tiny_model(tmp_path / "model")
    parameters = lifecycle.prepare(first, model, lifecycle.write_words(tmp_path / "data"))
    workflow_id = lifecycle.submit(first, parameters)
    view = lifecycle.wait_until_ended(second, workflow_id, 300)
    assert view["status"] == "succeeded", f"{lifecycle.summary(view)}\n{split.tails()}"
    jobs = second.request("GET", f"/platform/jobs?workflow_id={workflow_id}&limit=100")["data"]
    assert {one["component_type"] for one in jobs} >= {"data_management", "fine_tuning", "compression", "evaluation"}
    name = first.request("GET", "/platform/deployments")["data"][0]["name"]
    body = {"model": name, "messages": [{"role": "user", "content": "zzzz film"}], "max_tokens": 4}
    for server in (first, second) * 3:  # whichever serving process is asked, the node that has the replica answers
        assert server.request("POST", "/v1/chat/completions", body)["choices"]

    def answered() -> bool:
        try:
            return bool(second.request("POST", "/v1/chat/completions", body, timeout=3)["choices"])
        except (Answered, TimeoutError):
            return False

    for name_, key in (("serving-1", "home"), ("serving-2", "home2")):
        replicas = list((split.root / key / "run" / "replicas").glob("*/config.json"))
        if not replicas:
            split[name_].signal(signal.SIGSTOP)  # the one without the replica is not needed
            try:  # a chat that went there before the news of where the model is warm is not sent twice
                wait_for(answered, 20, split.tails)
            finally:
                split[name_].signal(signal.SIGCONT)


def test_a_process_with_another_key_is_refused(split: Split, tmp_path: Path) -> None:
    """Breaks with: a process whose callers nobody believes, which finds out request by request."""
    environment = {key: value for key, value in split["rest"]._environment.items() if key != "BURNISH_SECRET_KEY_FILE"}
    for key in (None, os.urandom(32)):
        home = tmp_path / f"home-{key is None}"
        home.mkdir()
        if key is not None:
            (home / "secret.key").write_bytes(key)
        done = subprocess.run(
            [sys.executable, "-m", "burnish.cli", "serve", "--home", str(home), "--components", "evaluation"],
            env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert "the secret key of this installation has the fingerprint" in done.stderr
        assert "BURNISH_SECRET_KEY_FILE" in done.stderr
        assert "Traceback" not in done.stderr
        assert key is not None or not (home / "secret.key").exists(), "none was made that is of no use"


def test_a_killed_process_is_routed_around_and_comes_back(split: Split, tmp_path: Path) -> None:
    """Breaks with: an instance that only its own process could bring back into the list."""
    victim, platform = split["rest"], split["platform-1"]
    victim.kill()
    began = time.monotonic()
    try:

        def gone() -> bool:
            try:
                platform.request("GET", "/platform/datasets", timeout=5)
            except (Answered, TimeoutError) as error:
                return isinstance(error, Answered) and error.status == 503
            return False

        wait_for(gone, 10, "requests for a component that is not there are refused at once")
    finally:
        victim.start()

    def back() -> bool:
        try:
            platform.request("GET", "/platform/datasets", timeout=5)
        except (Answered, TimeoutError):
            return False
        return True

    wait_for(back, 30, split.tails)
    assert time.monotonic() - began < 60
