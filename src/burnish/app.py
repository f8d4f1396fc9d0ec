"""The HTTP edge: ``create_app`` puts the gateway before the platform's routes and the components."""

import asyncio
import logging
from collections.abc import Coroutine, MutableMapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
from fastapi import Depends, FastAPI
from fastapi.responses import Response

from burnish.core.errors import FieldProblem
from burnish.core.settings import Settings
from burnish.core.version import __version__
from burnish.infra import logging as own_logging
from burnish.infra import signals
from burnish.infra.asgi import ASGIApp, Receive, Send
from burnish.infra.fresh import Fresh
from burnish.platform.configuration import api as configuration_api
from burnish.platform.configuration import check_file, secret_api
from burnish.platform.documentation import api as documentation
from burnish.platform.documentation.openapi import ComponentRoutes, merged, secured
from burnish.platform.gateway import Gateway, HttpProtocol
from burnish.platform.gateway.checks import check_origin
from burnish.platform.identity import ANONYMOUS, LOCAL, audit_api, auth_api
from burnish.platform.identity import api as identity_api
from burnish.platform.identity.guard import Guard
from burnish.platform.identity.permission import anyone, document_permissions, requires
from burnish.platform.identity.relayed import Relayed
from burnish.platform.integrator import api as integrator_api
from burnish.platform.jobs import api as jobs_api
from burnish.platform.jobs.component_app import install_problems
from burnish.platform.jobs.mounting import PREFIX as COMPONENTS
from burnish.platform.jobs.mounting import MountedComponents
from burnish.platform.model_registry import api as model_registry_api
from burnish.platform.monitoring import api as monitoring_api
from burnish.platform.monitoring.examination import Finding, examine, port_finding
from burnish.platform.openai_api import OpenAIFace
from burnish.platform.openai_api import document as openai_document
from burnish.platform.workflow import api as workflow_api
from burnish.platform.workflow import kinds_api
from burnish.platform.workflow.kinds import ENGINE_KINDS
from burnish.platform.workflow.views import kind_views
from burnish.wiring import PlatformParts, Process, build, listens_locally, open_installation

log = logging.getLogger(__name__)

_DOCUMENT_SECONDS = 1.0

__all__ = [
    "Application", "Finding", "HttpProtocol", "check_configuration_file", "create_app", "examine", "port_finding",
]  # fmt: skip


class Application:
    """The ASGI app of one process. ``state.process`` holds its parts while it runs."""

    def __init__(self, settings: Settings) -> None:
        own_logging.configure(settings.log_level, settings.log_format)
        self.state = SimpleNamespace(process=None, first_key=None)
        self._settings = settings
        self._edge: Edge | None = None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request, or the process's lifespan."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        assert self._edge is not None, "the lifespan has started"
        await self._edge(scope, receive, send)

    async def finish(self) -> None:
        """Take no new request from now on, and wait until those in flight are answered (SIGTERM); bounded."""
        process = self.state.process
        if self._edge is not None and process is not None:
            seconds = process.configuration().gateway.drain_seconds
            await asyncio.gather(process.integrator.sign_off(), self._edge.finish(seconds))

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        installation = await open_installation(self._settings)
        try:
            process = build(installation)
        except BaseException:
            await installation.close()
            raise
        self.state.process = process
        try:
            await process.start()
            self.state.first_key = await process.first_key()
        except BaseException:
            await process.stop()
            raise
        self._edge = Edge(process)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await process.stop()
        await send({"type": "lifespan.shutdown.complete"})


class Edge:
    """Decides by the path who answers: the process's components, to other processes; its health; else the gateway.

    A process without the role ``platform`` has no gateway: besides its components it only says how it is.
    """

    def __init__(self, process: Process) -> None:
        apps: dict[str, ASGIApp] = {one.component_type: one.app for one in process.components}
        local = listens_locally(process.settings)
        if process.authenticator is None and local:
            self._components = MountedComponents(apps, process.configuration, check_origin)
        else:
            self._components = MountedComponents(apps, process.configuration)
        self._about = Guard(about_app(process), process.authenticator, LOCAL if local else ANONYMOUS)
        self.gateway = None if process.platform is None else gateway(process, process.platform)
        self._rest: ASGIApp = self._about if self.gateway is None else self.gateway
        self._asked = 0
        self._answered = asyncio.Event()
        self._answered.set()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = scope.get("path", "")
        if scope["type"] == "http" and path.startswith(COMPONENTS):
            await self._counted(scope, receive, send)
        elif scope["type"] == "http" and path == "/health":
            await self._about(scope, receive, send)
        else:
            await self._rest(scope, receive, send)

    async def finish(self, seconds: float) -> None:
        """Take no new request from outside, and wait until those in flight, other processes' too, are answered; bounded."""
        waits: list[Coroutine[Any, Any, bool]] = [asyncio.wait_for(self._answered.wait(), seconds)]
        if self.gateway is not None:
            self.gateway.drain()
            waits.append(self.gateway.drained(seconds))
        await asyncio.gather(*waits, return_exceptions=True)

    async def _counted(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer another process's request to a component."""
        self._asked += 1
        self._answered.clear()
        try:
            await self._components(scope, receive, send)
        finally:
            self._asked -= 1
            if self._asked == 0:
                self._answered.set()


def create_app(settings: Settings | None = None, components: set[str] | None = None) -> Application:
    """Return the app of one process: everything, or the named components alone.

    Args:
        settings: how the process is set up; from ``BURNISH_*`` variables by default.
        components: component types and ``platform``, instead of ``settings.components``.
    """
    settings = settings or Settings()
    if components is not None:
        settings = settings.model_copy(update={"components": ",".join(sorted(components))})
    return Application(settings)


def check_configuration_file(path: Path) -> tuple[FieldProblem, ...]:
    """Return everything that is wrong with a configuration file, in whichever environment; no server is needed."""
    return check_file(path)


def gateway(process: Process, parts: PlatformParts) -> Gateway:
    """Return what answers everything that does not come from another process of Burnish."""
    face = OpenAIFace(process.integrator)
    return Gateway(
        platform_app(process, parts),
        face,
        process.integrator,
        process.settings,
        authenticator=process.authenticator,
        configuration=process.configuration,
        limits=parts.buckets.limiter,
        relayed=Relayed(process.database),
    )


def _app() -> FastAPI:
    """Return an app without routes. It never redirects by itself: that would lead wherever the request's Host says."""
    app = FastAPI(
        title="Burnish", version=__version__, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    install_problems(app)
    return app


def about_app(process: Process) -> FastAPI:
    """Return what a process says of itself, whatever its roles: health, readiness, metrics."""
    app = _app()
    app.include_router(monitoring_api.router(process.checks(), metrics))

    @app.api_route("/health", methods=["GET", "HEAD"], include_in_schema=False, dependencies=[Depends(anyone())])
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


async def metrics() -> bytes:
    """Return this process's metrics in Prometheus's format."""
    return signals.render()


def platform_app(process: Process, parts: PlatformParts) -> FastAPI:
    """Return the platform's own routes."""
    app = _app()
    database, events = process.database, process.events
    app.include_router(monitoring_api.router(process.checks(), metrics))
    app.include_router(integrator_api.router(database, process.configuration))
    app.include_router(workflow_api.router(database, events, parts.workflows))
    app.include_router(kinds_api.router(lambda: kind_views(parts.offers, ENGINE_KINDS)))
    app.include_router(jobs_api.router(database, events))
    app.include_router(model_registry_api.router(database))
    app.include_router(configuration_api.router(database, parts.live_configuration))
    app.include_router(secret_api.router(database, parts.live_configuration, parts.secrets))
    app.include_router(identity_api.router(database, parts.credentials))
    app.include_router(audit_api.router(database, process.tokens))
    app.include_router(auth_api.router(parts.logins))
    app.include_router(documentation.router())
    app.include_router(documentation.kinds_router(lambda: kind_views(parts.offers, ENGINE_KINDS)))

    routes = ComponentRoutes(process.integrator)

    async def written() -> bytes:
        document = await merged(app.openapi(), openai_document(), routes, parts.offers.kinds())
        return orjson.dumps(document if process.authenticator is None else secured(document))

    found = Fresh(written, _DOCUMENT_SECONDS, "openapi")  # putting it together asks every component

    @app.get("/openapi.json", include_in_schema=False, dependencies=[Depends(requires("component:read"))])
    async def openapi() -> Response:
        return Response(await found.get(), media_type="application/json")

    document_permissions(app)
    return app
