"""Deployments with real replica processes of the fake engine."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from burnish.components.model_serving.component import Serving, serving
from burnish.components.model_serving.engines import Engine
from burnish.components.model_serving.reconciler import Timing
from burnish.components.model_serving.schemas import DeploymentView
from burnish.core.settings import Settings
from burnish.core.specs.base import ArtifactRef
from burnish.core.specs.serving import DeploySpec
from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.database import Database
from burnish.infra.http import AiohttpTransport, AsgiTransport, Request

FAKE = Engine(
    "llama_cpp", frozenset({"gguf"}), (sys.executable, str(Path(__file__).parents[1] / "support/fake_engine.py"))
)
TIMING = Timing(start=30, drain=20, drain_grace=0.1, terminate_grace=2, lease=5)
PROJECT = "default"


def model(store: FileArtifactStore, name: str, **fake: Any) -> ArtifactRef:
    """Publish a model that says ``name``."""
    staged = store.stage(name)
    (staged / "fake.json").write_text(json.dumps({"name": name, **fake}))
    return store.publish(staged, "gguf")


class Server:
    """The serving component over a home, as one incarnation of a server runs it."""

    def __init__(self, database: Database, store: FileArtifactStore, home: Path, owner: str = "one") -> None:
        self.database = database
        self.settings = Settings(home=home, node="node")
        self.parts: Serving = serving(
            database, store, self.settings, owner=owner, engines={"llama_cpp": FAKE}, timing=TIMING
        )
        self.transport = AsgiTransport(self.parts.data_path)

    async def deploy(self, ref: ArtifactRef, name: str = "dep", job_id: str | None = None, **more: Any) -> int:
        spec = DeploySpec(deployment=name, model=ref, **more)
        async with self.database.write() as session:
            return (await self.parts.deployments.deploy(session, PROJECT, spec, job_id)).revision

    async def change(self, what: str, name: str = "dep", *args: Any) -> None:
        async with self.database.write() as session:
            await getattr(self.parts.deployments, what)(session, PROJECT, name, *args)

    async def view(self, name: str = "dep") -> DeploymentView:
        async with self.database.read() as session:
            return await self.parts.deployments.view(session, PROJECT, name, self.parts.traffic.in_flight())

    async def until(
        self, wanted: Callable[[DeploymentView], object], name: str = "dep", seconds: float = 30
    ) -> DeploymentView:
        deadline = time.monotonic() + seconds
        while not wanted(view := await self.view(name)):
            assert time.monotonic() < deadline, f"still {view}"
            await asyncio.sleep(0.02)
        return view

    async def serves(self, revision: int, name: str = "dep") -> DeploymentView:
        return await self.until(lambda v: v.state == "ready" and v.serving == revision, name)

    async def chat(self, name: str = "dep", **more: Any) -> tuple[int, dict[str, str], dict[str, Any]]:
        body = {"model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, **more}
        request = Request("POST", "/v1/chat/completions", {}, orjson.dumps(body))
        async with self.transport.send(request) as response:
            return response.status, dict(response.headers), orjson.loads(await response.read())

    async def says(self, name: str = "dep") -> str:
        status, _, body = await self.chat(name)
        assert status == 200, body
        return str(body["choices"][0]["message"]["content"])


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[Server]:
    await server.parts.start()
    try:
        yield server
    finally:
        await server.transport.close()
        await server.parts.stop()


@pytest.fixture
async def server(database: Database, store: FileArtifactStore, home: Path) -> AsyncIterator[Server]:
    made = Server(database, store, home)
    try:
        async with running(made):
            yield made
    finally:
        await end_all(home)


async def end_all(home: Path) -> None:
    """Kill what replicas are left, by the pids of this home's configurations."""
    for pid in pids(home):
        os.kill(pid, signal.SIGKILL)


def pids(home: Path) -> list[int]:
    """Return the living processes whose command line names a replica of this home."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(home / "run" / "replicas") in line:
                found.append(int(entry.name))
    return found


async def test_a_deployed_model_answers(server: Server, store: FileArtifactStore, home: Path) -> None:
    revision = await server.deploy(model(store, "first"), model_version="m@1")
    await server.serves(revision)
    status, headers, body = await server.chat()
    assert (status, body["choices"][0]["message"]["content"]) == (200, "first w1 w2")
    assert body["usage"]["completion_tokens"] == 3
    assert (headers["x-burnish-revision"], headers["x-burnish-model-version"]) == ("1", "m@1")
    assert len(pids(home)) == 1
