"""Serving twice: two processes on one node, two nodes, a node that is lost, and a database that is away."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from burnish.components.model_serving.component import build
from burnish.core.configuration import defaults
from burnish.core.protocol import CALLER_HEADER
from burnish.core.settings import Settings
from burnish.core.specs.serving import DeploySpec
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.database import Database
from burnish.infra.http import Request
from burnish.infra.http_client import HttpTransport
from burnish.infra.processes import identify
from burnish.platform.identity import LOCAL, CallerTokens
from burnish.platform.jobs import store as nodes
from burnish.platform.jobs.embedding import Component
from burnish.platform.jobs.mounting import MountedComponents
from burnish.platform.jobs.runtime import JobRuntime
from tests.support import databases
from tests.support.postgres import PostgresServer
from tests.support.serving import FAKE, TIMING, end_replicas, fake_model, listening, replica_pids

pytestmark = pytest.mark.postgres
TOKENS = CallerTokens(b"k" * 32)


class Instance:
    """A process of serving: its runtime, its component, and its address."""

    def __init__(self, database_url: str, artifacts: Path, home: Path, node: str) -> None:
        home.mkdir(exist_ok=True)
        self.home = home
        self.database = Database(database_url)
        self.store = FileArtifactStore(artifacts)
        self.settings = Settings(
            home=home, node=node, artifact_url=artifacts.as_uri(), disk_reserve_bytes=0, lease_seconds=2
        )
        self.component: Component
        self.runtime: JobRuntime
        self.url = ""

    async def run(self, ready: asyncio.Event, end: asyncio.Event) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await self.mounted(scope, receive, send)

        async with listening(app) as url:
            self.url = url
            settings = self.settings.model_copy(update={"advertise_url": url})
            self.runtime = JobRuntime(self.database, self.store, settings, TOKENS)
            self.component = build(self.runtime, engines={"llama_cpp": FAKE}, timing=TIMING)
            self.mounted = MountedComponents({"model_serving": self.component.app}, defaults)
            await self.database.start()
            await self.runtime.start()
            await self.component.start()
            ready.set()
            await end.wait()
            await self.component.stop()
            await self.runtime.stop()
        await self.database.dispose()

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        headers = {CALLER_HEADER: TOKENS.sign(LOCAL, "model_serving"), "content-type": "application/json"}
        transport = HttpTransport(self.url)
        try:
            content = b"" if body is None else orjson.dumps(body)
            async with transport.send(
                Request(method, f"/components/model_serving{path}", headers, content)
            ) as response:
                return response.status, orjson.loads(await response.read() or b"null")
        finally:
            await transport.close()

    async def chat(self, name: str = "dep", **more: Any) -> tuple[int, Any]:
        body = {"model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, **more}
        return await self.ask("POST", "/v1/chat/completions", body)

    async def says(self, name: str = "dep") -> str:
        status, body = await self.chat(name)
        assert status == 200, body
        return str(body["choices"][0]["message"]["content"])

    async def deploy(self, says: str, name: str = "dep", **fake: Any) -> None:
        reference = fake_model(self.store, says, **fake)
        async with self.database.write() as session:
            await artifacts.record(session, "default", reference)
        status, body = await self.ask("POST", "/platform/deployments", DeploySpec(deployment=name, model=reference).model_dump(mode="json"))  # fmt: skip
        assert status == 200, body

    async def ready(self, name: str = "dep", seconds: float = 40) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while True:
            status, body = await self.ask("GET", f"/platform/deployments/{name}")
            if status == 200 and body["state"] == "ready":
                return dict(body)
            assert time.monotonic() < deadline, body
            await asyncio.sleep(0.05)


class World:
    """Instances that are started and ended one by one."""

    def __init__(self, database_url: str, root: Path) -> None:
        self.url, self.root = database_url, root
        self._ends: dict[Instance, tuple[asyncio.Task[None], asyncio.Event]] = {}

    async def start(self, home: str, node: str) -> Instance:
        one = Instance(self.url, self.root / "artifacts", self.root / home, node)
        ready, end = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(one.run(ready, end))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            waiting.cancel()
            task.result()
        self._ends[one] = (task, end)
        return one

    async def stop(self, one: Instance) -> None:
        task, end = self._ends.pop(one)
        end.set()
        await task


@pytest.fixture
async def world(postgres_url: str, tmp_path: Path) -> AsyncIterator[World]:
    made = World(postgres_url, tmp_path)
    try:
        yield made
    finally:
        for one in list(made._ends):
            await made.stop(one)
        for home in tmp_path.glob("home*"):  # all before any is waited for: the waiting knows no homes
            for pid in replica_pids(home):
                os.kill(pid, signal.SIGKILL)
        await end_replicas(tmp_path)


async def test_two_processes_of_a_node_serve_the_same_replicas(world: World) -> None:
    """Breaks with: a replica that only the process that started it can reach, or that its end takes along."""
    first, second = await world.start("home", "here"), await world.start("home", "here")
    await first.deploy("one")
    pid = (await second.ready())["replicas"][0]["pid"]
    assert (await first.says(), await second.says()) == ("one w1 w2", "one w1 w2")
    for one in (first, second):
        assert (await one.ask("GET", "/health"))[1]["warm"] == ["dep"]
    await world.stop(first)
    assert await second.says() == "one w1 w2"
    assert (await second.ready())["replicas"][0]["pid"] == pid
    assert identify(pid) is not None


async def test_a_request_for_another_nodes_replica_is_passed_on(world: World) -> None:
    """Breaks with: an instance that tries another machine's socket; a request that is passed round and round."""
    first, second = await world.start("home1", "n1"), await world.start("home2", "n2")
    await first.deploy("one")
    await first.ready()
    assert await second.says() == "one w1 w2"
    assert (await second.chat(n=2))[1]["choices"][1]["index"] == 1
    status, body = await second.chat(logprobs=7)
    assert status == 400, "its errors are passed on as they are"
    assert body["error"]["type"] == "invalid_request_error"
    warm = [(await one.ask("GET", "/health"))[1]["warm"] for one in (first, second)]
    assert warm == [["dep"], []]
    await world.stop(first)
    status, body = await second.chat()
    assert status == 503
    assert "error" in body


async def test_a_stream_is_passed_on_as_it_comes(world: World) -> None:
    first, second = await world.start("home1", "n1"), await world.start("home2", "n2")
    await first.deploy("one", token_seconds=0.2)
    await first.ready()
    headers = {CALLER_HEADER: TOKENS.sign(LOCAL, "model_serving"), "content-type": "application/json"}
    body = {"model": "dep", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "stream": True}
    transport = HttpTransport(second.url)
    try:
        request = Request("POST", "/components/model_serving/v1/chat/completions", headers, orjson.dumps(body))
        async with transport.send(request) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            chunks = [chunk async for chunk in response.chunks()]
    finally:
        await transport.close()
    assert b"".join(chunks).rstrip().endswith(b"[DONE]")
    assert len(chunks) > 1


async def test_a_lost_nodes_deployment_is_served_by_another(world: World) -> None:
    """Breaks with: a deployment that waits for its node; replicas of the lost node that go on when it is back."""
    first, second = await world.start("home1", "n1"), await world.start("home2", "n2")
    await first.deploy("one")
    old = (await first.ready())["replicas"][0]["pid"]
    await world.stop(first)
    async with second.database.write() as session:
        await nodes.claim_node(session, "home_1", "n1")
        await nodes.mark_lost(session, "n1")
    deadline = time.monotonic() + 30
    while True:
        status, body = await second.chat()
        if status == 200:
            break
        assert time.monotonic() < deadline, body
        await asyncio.sleep(0.1)
    new = (await second.ready())["replicas"][0]["pid"]
    assert new != old
    assert identify(old) is not None, "the lost node's process lives on, as in a partition"
    back = await world.start("home1", "n1")
    deadline = time.monotonic() + 20
    while identify(old) is not None and (Path(f"/proc/{old}/stat").read_text().rpartition(")")[2].split()[0] != "Z"):
        assert time.monotonic() < deadline, "the node that came back ends what others have taken over"
        await asyncio.sleep(0.05)
    assert await back.says() == "one w1 w2"


async def test_without_the_database_running_deployments_answer(tmp_path: Path) -> None:
    """Breaks with: a table of routes that has to be read again before a request may pass."""
    server = PostgresServer()
    server.start()
    try:
        name = server.create_database()
        await asyncio.to_thread(databases.prepare, server.url(name))
        made = World(server.url(name), tmp_path)
        one = await made.start("home", "here")
        await one.deploy("one")
        await one.ready()
        assert await one.says() == "one w1 w2"
        await asyncio.to_thread(server.stop)
        waits = []
        until = time.monotonic() + 6
        while time.monotonic() < until:
            began = time.monotonic()
            assert await one.says() == "one w1 w2"
            waits.append(time.monotonic() - began)
        assert max(waits) < 3, waits
        assert sorted(waits)[len(waits) // 2] < 0.5
        health = (await one.ask("GET", "/health"))[1]
        assert (health["status"], health["warm"]) == ("degraded", ["dep"])
        began = time.monotonic()
        assert (await one.ask("POST", "/platform/deployments/dep/stop"))[0] == 503
        assert time.monotonic() - began < 2
        await asyncio.to_thread(server.start)
        deadline = time.monotonic() + 10
        while (await one.ask("GET", "/platform/deployments/dep"))[0] != 200:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        await made.stop(one)
    finally:
        server.remove()
        await end_replicas(tmp_path / "home")
