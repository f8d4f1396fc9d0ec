"""How a process is set up: ``BURNISH_*`` variables, or flags of the same names."""

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from burnish.core.protocol import COMPONENT_TYPES

ALL_ROLES = frozenset(COMPONENT_TYPES) | {"platform"}
"""What a process may be: any of the component types, and the platform."""

NODE_FILE = "node"
"""In the home: the node's name, so that its jobs and replicas stay its own when the machine's name changes."""


def _node_of(home: Path | None) -> str:
    if home is not None:  # else it is wrong itself, and said to be
        with suppress(OSError, UnicodeDecodeError):
            if name := (home / NODE_FILE).read_text(encoding="utf-8").strip():
                return name
    return socket.gethostname()


class Settings(BaseSettings):
    """Settings of one process, read once at start."""

    model_config = SettingsConfigDict(env_prefix="BURNISH_", frozen=True, extra="ignore")

    home: Path = Field(
        default_factory=lambda: Path.home() / ".burnish", validate_default=True, description="Where everything lives"
    )
    host: str = Field(default="127.0.0.1", description="Address to bind to")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to bind to; 0 picks a free one")
    advertise_url: str | None = Field(
        default=None, description="URL under which other processes reach this one; its own address by default"
    )
    database_url: SecretStr | None = Field(
        default=None, description="`postgresql://...`; SQLite in the home by default"
    )
    redis_url: SecretStr | None = Field(default=None, description="`redis://...`; none by default")
    artifact_url: str | None = Field(default=None, description="`file:///...`; a folder in the home by default")
    components: str = Field(default="all", description="Comma-separated component types and `platform`, or `all`")
    auth: Literal["off", "on"] = Field(default="off", description="`off` is possible on loopback only")
    environment: str = Field(default="development")
    config: Path | None = Field(default=None, description="Configuration file")
    secret_key_file: Path | None = Field(default=None, description="Key for secrets; made in the home by default")
    component_id: str | None = Field(default=None, description="Of a process with one component")
    node: str = Field(
        default_factory=lambda given: _node_of(given.get("home")),
        description="Name of this machine, by which hosts are known; the home keeps it, else the host name",
    )
    cpus: int | None = Field(default=None, ge=1, description="Cores that jobs may use; all by default")
    memory_bytes: int | None = Field(default=None, ge=1, description="Memory that jobs may use; 85 % by default")
    disk_reserve_bytes: int = Field(default=512 << 20, ge=0, description="Free space below which nothing is accepted")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "json"
    lease_seconds: float = Field(default=10.0, gt=0.1, description="After this long another server takes over")
    cancel_grace_seconds: float = Field(default=10.0, ge=0, description="From TERM to KILL")
    upload_max_bytes: int = Field(default=10 << 30, ge=1)
    hub_offline: bool = Field(default=False, description="Never ask the Hugging Face hub")

    @field_validator("auth", mode="before")
    @classmethod
    def _switch(cls, given: object) -> object:
        """YAML reads an `on` without quotes as true, and passes that on."""
        return {"true": "on", "false": "off"}.get(str(given).lower(), given)

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        """Processes that are started in other folders get paths inside it, and are found by them."""
        return home.expanduser().resolve()

    @property
    def sqlite_path(self) -> Path:
        """The embedded database's file."""
        return self.home / "burnish.db"

    @property
    def resolved_database_url(self) -> str:
        """The database URL with its async driver: ``sqlite+aiosqlite`` or ``postgresql+asyncpg``."""
        if self.database_url is None:
            return f"sqlite+aiosqlite:///{self.sqlite_path}"
        url = self.database_url.get_secret_value()
        for prefix in ("postgresql://", "postgres://", "postgresql+psycopg://"):
            if url.startswith(prefix):
                return "postgresql+asyncpg://" + url[len(prefix) :]
        if url.startswith("sqlite:///"):
            return "sqlite+aiosqlite:///" + url[len("sqlite:///") :]
        return url

    @property
    def embedded_database(self) -> bool:
        """Whether the database is SQLite, and so one server's alone."""
        return self.resolved_database_url.startswith("sqlite")

    @property
    def resolved_artifact_url(self) -> str:
        """The artifact store's URL."""
        return self.artifact_url or (self.home / "artifacts").resolve().as_uri()

    @property
    def resolved_secret_key_file(self) -> Path:
        """Where the installation's secret key lies: in the home, unless another file is named."""
        return self.secret_key_file or self.home / "secret.key"

    @property
    def with_platform(self) -> bool:
        """Whether this process has the role ``platform``: gateway, integrator, workflows, registry."""
        return "platform" in self.component_set()

    @property
    def jobs_dir(self) -> Path:
        """Folder of the jobs' own folders."""
        return self.home / "jobs"

    @property
    def run_dir(self) -> Path:
        """Folder of sockets, replica configurations and the lock."""
        return self.home / "run"

    @property
    def capacity_cpus(self) -> int:
        """Cores that jobs may use."""
        return self.cpus or os.cpu_count() or 1

    def component_set(self) -> frozenset[str]:
        """The parts that this process runs: component types and ``platform``.

        Raises:
            ValueError: a name is none of them.
        """
        if self.components.strip() == "all":
            return ALL_ROLES
        names = frozenset(name.strip() for name in self.components.split(",") if name.strip())
        if unknown := sorted(names - ALL_ROLES):
            raise ValueError(f"unknown component {unknown[0]!r}; known: {', '.join(sorted(ALL_ROLES))}, or all")
        if not names:
            raise ValueError(f"no component is named; known: {', '.join(sorted(ALL_ROLES))}, or all")
        return names
