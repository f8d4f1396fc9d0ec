"""The serving component by itself over the fake engine, as one incarnation of a server runs it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from burnish.components.model_serving import store as store_module
from burnish.components.model_serving.component import Serving, serving
from burnish.components.model_serving.schemas import DeploymentView
from burnish.core.settings import Settings
from burnish.core.specs.base import ArtifactRef
from burnish.core.specs.serving import DeploySpec
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.asgi import Receive, Send
from burnish.infra.database import Database
from burnish.infra.http import AsgiTransport, Request, Response
from burnish.infra.http_client import HttpTransport
from burnish.platform.identity import LOCAL
from burnish.platform.identity.principal import SCOPE_KEY
from burnish.platform.model_registry import service as model_registry
from burnish.platform.model_registry.schemas import NewVersion
from tests.support.serving import FAKE, TIMING, fake_model

PROJECT = "default"


class Server:
    """The serving component over a home, as one incarnation of a server runs it."""

    def __init__(self, database: Database, store: FileArtifactStore, home: Path, owner: str = "one") -> None:
        self.database = database
        self.settings = Settings(home=home, node="node")
        self.parts: Serving = serving(
            database, store, self.settings, owner=owner, engines={"llama_cpp": FAKE}, timing=TIMING
        )
        self.transport = AsgiTransport(self._as_local)

    async def _as_local(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Stands for the component's check of the caller's token."""
        await self.parts.data_path({**scope, SCOPE_KEY: LOCAL}, receive, send)

    async def deploy(self, ref: ArtifactRef, name: str = "dep", job_id: str | None = None, **more: Any) -> int:
        spec = DeploySpec(deployment=name, model=ref, **more)
        async with self.database.write() as session:
            return (await self.parts.deployments.deploy(session, PROJECT, spec, job_id)).revision

    async def register(self, store: FileArtifactStore, model: str, says: str) -> tuple[ArtifactRef, str]:
        """Register a model that says ``says`` as the next version; return it and what it is called."""
        ref = fake_model(store, says)
        async with self.database.write() as session:
            await artifacts.record(session, PROJECT, ref)
            made, _ = await model_registry.register(session, PROJECT, model, NewVersion(model=ref), "test")
        return ref, made.reference

    async def promote(self, reference: str, alias: str = "production") -> None:
        name, _, number = reference.partition("@")
        async with self.database.write() as session:
            await model_registry.move_alias(session, PROJECT, name, alias, int(number), by="test")

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

    @asynccontextmanager
    async def streaming(self, name: str = "dep", **more: Any) -> AsyncIterator[Response]:
        body = {"model": name, "messages": [{"role": "user", "content": "hi"}], "stream": True, **more}
        async with self.transport.send(Request("POST", "/v1/chat/completions", {}, orjson.dumps(body))) as response:
            yield response

    async def stats(self, view: DeploymentView | None = None) -> dict[str, Any]:
        """Ask the one ready replica of `dep` what it did."""
        async with self.database.read() as session:
            rows = [row for row in await store_module.live_replicas(session) if row.state == "ready"]
        transport = HttpTransport(unix_socket=Path(rows[0].socket))
        try:
            async with transport.send(Request("GET", "/stats")) as response:
                answer: dict[str, Any] = orjson.loads(await response.read())
                return answer
        finally:
            await transport.close()

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
