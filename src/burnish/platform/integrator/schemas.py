"""The public contract of components' instances."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from burnish.core.protocol import Description, Health
from burnish.core.states import InstanceState


class Registered(BaseModel):
    """The answer to a registration."""

    model_config = ConfigDict(
        frozen=True, json_schema_extra={"examples": [{"status": "success", "component_id": "fine_tuning-gpu-1"}]}
    )

    status: Literal["success"] = "success"
    component_id: str


class ComponentView(BaseModel):
    """One instance of a component."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "id": "5f0c6c0e-6a52-4f0e-9a54-0d7b5f7a2f11", "component_id": "fine_tuning-laptop-1",
                    "component_type": "fine_tuning", "name": "fine tuning", "version": "0.1.0", "status": "healthy",
                    "health_endpoint": "embedded://fine_tuning-laptop-1/health",
                    "api_endpoint": "embedded://fine_tuning-laptop-1", "embedded": True, "kinds": ["import_model", "sft"],
                    "registered_at": "2026-11-24T12:00:00Z", "last_heartbeat": "2026-11-24T12:05:00Z",
                }
            ]
        },
    )  # fmt: skip

    id: str = Field(description="UUID of the row")
    component_id: str
    component_type: str
    name: str
    version: str
    status: InstanceState
    health_endpoint: str
    api_endpoint: str
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    registered_at: datetime | None = None
    last_heartbeat: datetime | None = None
    embedded: bool = Field(default=False, description="Runs inside a server's own process")
    kinds: tuple[str, ...] = Field(default=(), description="The job kinds that it offers")
    health: Health | None = None
    failures: int = Field(default=0, description="Health checks failed in a row")
    problem: str | None = Field(default=None, description="Why it is not healthy, in words")


class Instance(BaseModel):
    """What a process keeps of an instance that it may call."""

    model_config = ConfigDict(frozen=True)

    component_id: str
    component_type: str
    api_endpoint: str
    status: InstanceState
    description: Description | None = None
    load: float = 0.0
