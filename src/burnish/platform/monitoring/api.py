"""``/platform/health``, ``/platform/ready`` and ``/platform/metrics``."""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from burnish.core.version import __version__
from burnish.infra.fresh import Fresh
from burnish.platform.identity.permission import anyone, requires
from burnish.platform.identity.principal import Principal
from burnish.platform.monitoring.readiness import Check, problems
from burnish.platform.monitoring.schemas import HealthView, ReadyView

READY_SECONDS = 1.0
"""Whoever asks again this soon is told the same: each check costs something."""


def router(checks: Sequence[Check], render_metrics: Callable[[], Awaitable[bytes]]) -> APIRouter:
    """Return the routes; ``checks`` are what readiness means for this process."""
    routes = APIRouter(prefix="/platform", tags=["platform"])
    started = time.monotonic()
    readiness = Fresh(lambda: problems(checks), READY_SECONDS, "readiness")

    @routes.get("/health", summary="Is the process alive", operation_id="health", dependencies=[Depends(anyone())])
    async def health() -> HealthView:
        """Answers while the event loop lives; looks at nothing else. For liveness probes."""
        return HealthView(version=__version__, uptime_seconds=time.monotonic() - started)

    @routes.get(
        "/ready", summary="Is it ready for requests", operation_id="ready",
        responses={503: {"model": ReadyView, "description": "Something is not ready; `checks` names it"}},
    )  # fmt: skip
    async def ready(response: Response, caller: Annotated[Principal, Depends(anyone())]) -> ReadyView:
        """Checks database, schema, artifact store and reconcilers, and names each failure. For readiness probes.

        What a failure is about is told to callers with `metrics:read`; others see `failed`. An answer is up to a second
        old.
        """
        found = await readiness.get()
        fine = not any(found.values())
        response.status_code = 200 if fine else 503
        if not caller.may("metrics:read"):
            found = {name: None if problem is None else "failed" for name, problem in found.items()}
        return ReadyView(status="ready" if fine else "not_ready", checks=found)

    @routes.get(
        "/metrics", summary="Metrics for Prometheus", operation_id="metrics", response_class=Response,
        dependencies=[Depends(requires("metrics:read"))],
        responses={200: {"content": {"text/plain": {"example": 'platform_active_training_jobs 1.0\n'}}, "description": "Prometheus text format"}},
    )  # fmt: skip
    async def metrics() -> Response:
        """Every metric of the catalogue in the Prometheus text format.

        They are the whole platform's, and name deployments and workflows of every project: a role in all of them is
        needed, as a key has it that is made with `burnish key create prometheus --project '*' --scope metrics:read`.
        """
        return Response(await render_metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes
