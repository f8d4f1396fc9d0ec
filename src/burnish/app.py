"""The HTTP edge: ``create_app`` puts the gateway before the platform's routes and the components."""

import logging
from collections.abc import MutableMapping
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from burnish.core.settings import Settings
from burnish.core.version import __version__
from burnish.infra import logging as own_logging
from burnish.infra import signals
from burnish.infra.asgi import Receive, Send
from burnish.platform.documentation import api as documentation
from burnish.platform.documentation.openapi import merged
from burnish.platform.gateway import Gateway
from burnish.platform.integrator import api as integrator_api
from burnish.platform.jobs import api as jobs_api
from burnish.platform.jobs.component_app import install_problems
from burnish.platform.model_registry import api as model_registry_api
from burnish.platform.monitoring import api as monitoring_api
from burnish.platform.openai_api import OpenAIFace
from burnish.platform.openai_api import document as openai_document
from burnish.platform.workflow import api as workflow_api
from burnish.wiring import Platform, build

log = logging.getLogger(__name__)


class Application:
    """The ASGI app of one process. ``state.platform`` holds its parts while it runs."""

    def __init__(self, settings: Settings) -> None:
        own_logging.configure(settings.log_level, settings.log_format)
        self.state = SimpleNamespace(platform=None)
        self._settings = settings
        self._gateway: Gateway | None = None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request, or the process's lifespan."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        assert self._gateway is not None, "the lifespan has started"
        await self._gateway(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        platform = build(self._settings)
        self.state.platform = platform
        try:
            await platform.start()
        except BaseException:
            await platform.stop()
            raise
        face = OpenAIFace(platform.integrator)
        self._gateway = Gateway(platform_app(platform), face, platform.integrator, platform.tokens, platform.settings)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await platform.stop()
        await send({"type": "lifespan.shutdown.complete"})


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


def platform_app(platform: Platform) -> FastAPI:
    """Return the platform's own routes."""
    app = FastAPI(title="Burnish", version=__version__, openapi_url=None, docs_url=None, redoc_url=None)
    install_problems(app)
    database, events = platform.database, platform.events

    async def metrics() -> bytes:
        return signals.render()

    app.include_router(monitoring_api.router(platform.checks(), metrics))
    app.include_router(integrator_api.router(database))
    app.include_router(workflow_api.router(database, events, platform.workflows))
    app.include_router(jobs_api.router(database, events))
    app.include_router(model_registry_api.router(database))
    app.include_router(documentation.router())

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> JSONResponse:
        return JSONResponse(await merged(app.openapi(), openai_document(), platform.integrator))

    return app
