"""Puts the serving component together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from burnish.components.model_serving.data_path import DataPath
from burnish.components.model_serving.engines import ENGINES, Engine
from burnish.components.model_serving.reconciler import DeploymentReconciler, Timing
from burnish.components.model_serving.replicas import ReplicaProcesses
from burnish.components.model_serving.routing import Routes, Traffic
from burnish.components.model_serving.service import Deployments
from burnish.core.settings import Settings
from burnish.infra.artifact_store import ArtifactStore
from burnish.infra.database import Database

COMPONENT_TYPE = "model_serving"
ROUTES = ("/platform/deployments",)


@dataclass(frozen=True)
class Serving:
    """The parts of the serving component. ``start`` and ``stop`` run its loop; replicas outlive both."""

    deployments: Deployments
    routes: Routes
    traffic: Traffic
    reconciler: DeploymentReconciler
    data_path: DataPath

    async def start(self) -> None:
        """Start advancing deployments."""
        await self.reconciler.start()

    async def stop(self) -> None:
        """Stop; the replicas live on and are found again at the next start."""
        await self.reconciler.stop()
        await self.traffic.close()


def serving(
    database: Database,
    artifacts: ArtifactStore,
    settings: Settings,
    *,
    owner: str,
    engines: Mapping[str, Engine] = ENGINES,
    timing: Timing | None = None,
) -> Serving:
    """Return the component's parts, not started."""
    deployments = Deployments(settings.node, settings.capacity_cpus, engines)
    traffic = Traffic()
    routes = Routes(database, names)
    processes = ReplicaProcesses(settings.run_dir / "replicas")
    reconciler = DeploymentReconciler(
        database, artifacts, deployments, traffic, processes, owner=owner,
        timing=timing or Timing(lease=settings.lease_seconds),
    )  # fmt: skip
    return Serving(deployments, routes, traffic, reconciler, DataPath(routes, traffic))


async def names(session: AsyncSession, project_id: str, model_version: str | None) -> Sequence[str]:
    """Return how else a registry version is called."""
    return () if model_version is None else (model_version,)
