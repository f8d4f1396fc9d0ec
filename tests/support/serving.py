"""A server with the serving component and the fake engine, for tests of what stands in front of it."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from burnish.components.model_serving import replicas
from burnish.components.model_serving.component import build
from burnish.components.model_serving.engines import Engine
from burnish.components.model_serving.reconciler import Timing
from burnish.core.settings import Settings
from burnish.core.specs.base import ArtifactRef
from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.asgi import ASGIApp
from burnish.infra.database import Database
from burnish.platform.gateway import Gateway
from burnish.platform.identity import CallerTokens
from burnish.platform.integrator import Integrator
from burnish.platform.jobs.component_app import install_problems
from burnish.platform.jobs.runtime import JobRuntime
from burnish.platform.openai_api import OpenAIFace

FAKE = Engine("llama_cpp", frozenset({"gguf"}), (sys.executable, str(Path(__file__).with_name("fake_engine.py"))))
TIMING = Timing(start=30, drain=20, drain_grace=0.1, terminate_grace=2, lease=5)


def fake_model(store: FileArtifactStore, name: str, **fake: Any) -> ArtifactRef:
    """Publish a model that says ``name``, and does what ``fake_engine`` documents."""
    staged = store.stage(name)
    (staged / "fake.json").write_text(json.dumps({"name": name, **fake}))
    return store.publish(staged, "gguf")


def replica_pids(home: Path) -> list[int]:
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


async def end_replicas(home: Path) -> None:
    """Kill what replicas of this home are left, by pid."""
    for pid in replica_pids(home):
        os.kill(pid, signal.SIGKILL)
    for child in replicas._children.values():
        await asyncio.to_thread(child.wait)


@asynccontextmanager
async def listening(app: ASGIApp) -> AsyncIterator[str]:
    """Serve an app on a free port of 127.0.0.1; give its URL."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


@dataclass(frozen=True)
class FakeServer:
    """A whole server, but for its other components."""

    url: str
    gateway: Gateway
    integrator: Integrator
    platform: FastAPI
    home: Path


@asynccontextmanager
async def fake_server(
    database: Database, store: FileArtifactStore, home: Path, engines: dict[str, Engine] | None = None
) -> AsyncIterator[FakeServer]:
    """Run gateway, integrator, jobs and serving behind a real socket."""
    settings = Settings(home=home, node="node")
    tokens = CallerTokens(b"k" * 32)
    runtime = JobRuntime(database, store, settings, tokens)
    component = build(runtime, engines=engines or {"llama_cpp": FAKE}, timing=TIMING)
    integrator = Integrator(database, tokens, settings)
    integrator.embed(component.component_type, component.app)
    platform = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    install_problems(platform)
    gateway = Gateway(platform, OpenAIFace(integrator), integrator, settings)
    await runtime.start()
    await component.start()
    await integrator.start()
    try:
        async with listening(gateway) as url:
            yield FakeServer(url, gateway, integrator, platform, home)
    finally:
        await integrator.stop()
        await component.stop()
        await runtime.stop()
        await runtime.event_log.close()
        await end_replicas(home)
