"""What health and readiness answer."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class HealthView(BaseModel):
    """The process answers."""

    model_config = ConfigDict(
        frozen=True, json_schema_extra={"examples": [{"status": "healthy", "version": "0.1.0", "uptime_seconds": 12.5}]}
    )

    status: Literal["healthy"] = "healthy"
    version: str
    uptime_seconds: float = Field(ge=0)


class ReadyView(BaseModel):
    """Whether requests are worth sending here; each check with its problem, or null.

    Whoever may not read metrics sees `failed` in place of the problem.
    """

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "status": "ready",
                    "checks": {"database": None, "schema": None, "artifact_store": None, "reconcilers": None},
                }
            ]
        },
    )

    status: Literal["ready", "not_ready"]
    checks: dict[str, str | None]
