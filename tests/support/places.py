"""What the chaos suite runs on: homes with their databases, a tiny model, and what an undisturbed run makes of it."""

import asyncio
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from burnish.core.specs.base import ArtifactRef
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.database import Database
from tests.support import lifecycle
from tests.support.server import Server

FULL = bool(os.environ.get("BURNISH_TEST_FULL"))
CELL_BY_CELL = os.environ.get("BURNISH_TEST_FULL") == "cells"
SEED = int(os.environ.get("BURNISH_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
ENVIRONMENT = {"BURNISH_CPUS": "2", "BURNISH_LEASE_SECONDS": "2"}
"""Steps that want two cores run one after the other, on any machine; and a dead server's leases soon end."""


@dataclass(frozen=True)
class Place:
    """A home and a database for servers."""

    dialect: str
    home: Path
    database_url: str | None
    again: Callable[[], "Place"]
    """Makes another one like it."""
    servers: list[Server] = field(default_factory=list)

    def server(self, name: str = "server", **environment: str) -> Server:
        """Return a server that is not started yet."""
        made = Server(
            self.home, database_url=self.database_url, environment={**ENVIRONMENT, **environment}, name=name
        )  # fmt: skip
        self.servers.append(made)
        return made

    def make_known(self, artifact: ArtifactRef) -> None:
        """Make an artifact of the store one of the project's, as a job's outputs are. A server has run here before."""

        async def recorded() -> None:
            database = Database(self.database_url or f"sqlite+aiosqlite:///{self.home / 'burnish.db'}")
            try:
                async with database.write() as session:
                    await artifacts.record(session, "default", artifact)
                    await artifacts.refer(session, "default", artifact.digest, "test", "test")
            finally:
                await database.dispose()

        asyncio.run(recorded())

    def end_everything(self) -> None:
        """End every server and whatever they left."""
        for server in [*self.servers, self.server()]:
            server.end_everything()


@dataclass(frozen=True)
class Material:
    """What a workflow is run on. The same paths for every server: they are part of what artifacts say."""

    model: Path
    data: tuple[Path, Path]


@dataclass(frozen=True)
class Reference:
    """An undisturbed run."""

    outputs: lifecycle.Outputs
    seconds: dict[str, float]
    """How long each step's host ran."""
    answer: str
    """What the deployed model says."""
    home: Path
    """Where the run was; its server has ended."""


def undisturbed(material: Material, home: Path) -> Reference:
    """Run the workflow without any fault."""
    server = Server(home, environment=ENVIRONMENT)
    try:
        server.start()
        workflow_id = lifecycle.submit(server, lifecycle.prepare(server, material.model, material.data))
        view = lifecycle.wait_until_ended(server, workflow_id)
        assert view["status"] == "succeeded", lifecycle.summary(view)
        made = lifecycle.outputs(view)
        wrong = lifecycle.broken_promises(server, view, made)
        assert wrong == [], "\n".join(wrong)
        seconds = {step["name"]: _own_seconds(server, step) for step in view["steps"]}
        answer = lifecycle.ask(server)
    finally:
        server.end_everything()
    return Reference(made, seconds, answer, home)


def _own_seconds(server: Server, step: dict[str, Any]) -> float:
    for attempt in step["attempts"]:
        for event in lifecycle.events_of_job(server, attempt["job_id"]):
            if event["type"] == "state" and event["data"].get("seconds"):
                return float(event["data"]["seconds"])
    return 0.0
