"""One installation as several processes on PostgreSQL and Redis, as an administrator runs it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.server import Server

REST = "data_management,hyperparameter_optimization,compression,evaluation"
ROLES: Mapping[str, str] = {
    "platform-1": "platform", "platform-2": "platform", "fine_tuning": "fine_tuning", "serving-1": "model_serving",
    "serving-2": "model_serving", "rest": REST,
}  # fmt: skip
"""What each process of the issue's set offers."""


class Split:
    """The processes by name. Those that name the same home are one node."""

    def __init__(
        self, root: Path, database_url: str, redis_url: str | None, *, homes: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None, roles: Mapping[str, str] = ROLES,
    ) -> None:  # fmt: skip
        """``homes``: home by process, where it is not ``home``; all homes have the key of the first."""
        self.root = root
        shared = {
            "BURNISH_ARTIFACT_URL": (root / "artifacts").as_uri(), "BURNISH_LEASE_SECONDS": "3",
            **({"BURNISH_REDIS_URL": redis_url} if redis_url else {}), **(environment or {}),
        }  # fmt: skip
        self._first = root / "home"
        self.processes: dict[str, Server] = {}
        for name, components in roles.items():
            home = root / (homes or {}).get(name, "home")
            own = {"BURNISH_COMPONENTS": components}
            if home != self._first:
                own["BURNISH_SECRET_KEY_FILE"] = str(self._first / "secret.key")
            self.processes[name] = Server(home, database_url=database_url, environment={**shared, **own}, name=name)

    def __getitem__(self, name: str) -> Server:
        return self.processes[name]

    def start(self, names: Sequence[str] | None = None) -> "Split":
        """Start them at once, the first of all before the others; wait until all are ready."""
        chosen = [self.processes[name] for name in names or self.processes]
        if not (self._first / "secret.key").exists():
            chosen.pop(0).start()
        for one in chosen:
            one.start(ready=False)
        for one in chosen:
            one.wait_ready()
        return self

    def end_everything(self) -> None:
        for one in self.processes.values():
            one.end_everything()

    def tails(self) -> str:
        return "\n".join(f"--- {name}\n{one.tail(15)}" for name, one in self.processes.items())
