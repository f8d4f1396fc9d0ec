"""The Python face of Burnish over its HTTP API: :class:`Client` and :class:`AsyncClient`.

Invariants: imports only ``burnish.core``; every failure is a ``BurnishError`` of the class that the server raised, and
:class:`NotReachable` when there was no server to ask; answers are frozen models that keep fields they don't know.
"""

from burnish.client.asynchronous import AsyncClient
from burnish.client.errors import NotReachable
from burnish.client.synchronous import Client
from burnish.client.views import (
    Chunk,
    ComponentView,
    DatasetView,
    DeploymentView,
    ExecutionView,
    ModelVersionView,
    ModelView,
    StepView,
)
from burnish.core.pages import Page

__all__ = [
    "AsyncClient", "Chunk", "Client", "ComponentView", "DatasetView", "DeploymentView", "ExecutionView", "ModelVersionView",
    "ModelView", "NotReachable", "Page", "StepView",
]  # fmt: skip
