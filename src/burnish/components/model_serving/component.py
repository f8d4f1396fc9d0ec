"""Puts the serving component together."""

from collections.abc import Mapping
from dataclasses import dataclass

from burnish.components.model_serving.api import router
from burnish.components.model_serving.data_path import DataPath
from burnish.components.model_serving.engines import ENGINES, Engine
from burnish.components.model_serving.kinds import deploy_kind
from burnish.components.model_serving.peers import Peers
from burnish.components.model_serving.reconciler import DeploymentReconciler, Timing
from burnish.components.model_serving.replicas import ReplicaProcesses
from burnish.components.model_serving.routing import COMPONENT_TYPE, Routes, Traffic
from burnish.components.model_serving.service import Deployments
from burnish.core.settings import Settings
from burnish.infra.artifact_store import ArtifactStore
from burnish.infra.database import Database
from burnish.platform.identity import CallerTokens
from burnish.platform.jobs.component_app import component_app
from burnish.platform.jobs.embedding import Component
from burnish.platform.jobs.runtime import JobRuntime
from burnish.platform.model_registry import service as model_registry

ROUTES = ("/platform/deployments",)


@dataclass(frozen=True)
class Serving:
    """The parts of the serving component. ``start`` and ``stop`` run its loop; replicas outlive both."""

    deployments: Deployments
    routes: Routes
    traffic: Traffic
    peers: Peers
    reconciler: DeploymentReconciler
    data_path: DataPath

    async def start(self) -> None:
        """Start advancing deployments."""
        await self.reconciler.start()

    async def drain(self) -> list[str]:
        """End this machine's replicas once they are idle, and start no others; the next start serves again."""
        return await self.reconciler.drain()

    async def stop(self) -> None:
        """Stop; the replicas live on and are found again at the next start."""
        await self.reconciler.stop()
        await self.traffic.close()
        await self.peers.close()


def serving(
    database: Database,
    artifacts: ArtifactStore,
    settings: Settings,
    *,
    owner: str,
    engines: Mapping[str, Engine] = ENGINES,
    timing: Timing | None = None,
    tokens: CallerTokens | None = None,
) -> Serving:
    """Return the component's parts, not started. ``tokens``: to pass requests to other nodes that serve them."""
    deployments = Deployments(settings.node, settings.capacity_cpus, engines)
    traffic = Traffic()
    routes = Routes(database, model_registry.aliases_of, (model_registry.ALIASES_TOPIC,), node=settings.node)
    processes = ReplicaProcesses(settings.run_dir / "replicas")
    reconciler = DeploymentReconciler(
        database, artifacts, deployments, traffic, processes, owner=owner,
        timing=timing or Timing(lease=settings.lease_seconds),
    )  # fmt: skip
    peers = Peers(tokens, COMPONENT_TYPE)
    routes.on_read += [traffic.keep_only, peers.keep_only]
    return Serving(deployments, routes, traffic, peers, reconciler, DataPath(routes, traffic, peers))


def build(runtime: JobRuntime, *, engines: Mapping[str, Engine] = ENGINES, timing: Timing | None = None) -> Component:
    """Return the component over a runtime's database, store and settings."""
    parts = serving(
        runtime.database, runtime.store, runtime.settings, owner=runtime.owner, engines=engines, timing=timing,
        tokens=runtime.tokens,
    )  # fmt: skip
    app = component_app(
        COMPONENT_TYPE,
        {"deploy": deploy_kind(parts.deployments)},
        runtime,
        routers=[router(runtime.database, parts.deployments, parts.traffic)],
        routes=ROUTES,
        extra_asgi={"/v1": parts.data_path},
        warm=parts.routes.warm,
    )
    return Component(
        COMPONENT_TYPE, app, start=parts.start, stop=parts.stop, alive=lambda: parts.reconciler.alive, drain=parts.drain
    )
