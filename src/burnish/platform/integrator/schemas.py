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


class Heartbeat(BaseModel):
    """What an instance says with its heartbeat; all of it may be left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    generation: int | None = Field(
        default=None, ge=0, le=2**31 - 1,
        description="The `Burnish-Generation` that registering answered: after a restart the older process's heartbeats are refused",
    )  # fmt: skip
    health: Health | None = Field(default=None, description="As its `/health` would answer")


class ActionView(BaseModel):
    """One action of recovery."""

    model_config = ConfigDict(frozen=True)

    at: datetime
    action: str = Field(description="`route_around`, `restart_requested`, `move_work`, `alert`, ...")
    cause: str


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
    source: str = Field(
        default="registered", description="How it was found: embedded, registered, static, dns or entry_point"
    )
    node: str | None = Field(default=None, description="The machine of a server's own process")
    generation: int = Field(default=0, description="Rises with each registration that begins anew")
    protocol_version: str | None = Field(default=None, description="As its `/describe` says")
    since: datetime | None = Field(default=None, description="When it came into this status")
    weight: float = Field(default=1.0, description="Its share of the calls; 1 is everybody's")
    kinds: tuple[str, ...] = Field(default=(), description="The job kinds that it offers")
    health: Health | None = Field(
        default=None,
        description="As it said last. `waiting_for` and `warm` name jobs and models of every project: whoever may not see "
        "components in all of them (`component:read` in the project `*`) finds them empty",
    )
    failures: int = Field(default=0, description="Health checks failed in a row")
    problem: str | None = Field(default=None, description="Why it is not healthy, in words")
    problem_kind: str | None = Field(default=None, description="The same as a code: refused, silent, late, unfit, ...")
    restarts: int = Field(default=0, description="Restarts asked of its supervisor in this bad spell")
    restart_requested_at: datetime | None = Field(default=None, description="Its supervisor is asked to start it again")
    actions: tuple[ActionView, ...] | None = Field(
        default=None,
        description="What was done about it: the last 20, newest last (only where one instance is asked for)",
    )


class Instance(BaseModel):
    """What a process keeps of an instance that it may call."""

    model_config = ConfigDict(frozen=True)

    component_id: str
    component_type: str
    api_endpoint: str
    status: InstanceState
    description: Description | None = None
    load: float = 0.0
    warm: frozenset[str] = frozenset()
    """What it has loaded."""
    weight: float = 1.0
    failures: int = 0
    problem: str | None = None
    generation: int = 0
    source: str = "registered"
    """How it was found."""

    @property
    def ours(self) -> bool:
        """Whether it is inside a process of Burnish's own."""
        return self.source in ("embedded", "entry_point")

    @property
    def signed_for(self) -> str | None:
        """The id that callers' tokens to it name, so that no other instance believes them; None: it does not know its id.

        One that was found by its address was given an id that it never hears of.
        """
        return None if self.source in ("static", "dns") else self.component_id
