"""How a component's process is set up: flags of its script, or ``BURNISH_*`` variables."""

import argparse
import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from burnish.client.address import find_url
from burnish.core.errors import FieldProblem, InvalidRequest

_ID = r"^[A-Za-z0-9][A-Za-z0-9._:-]*$"


class Options(BaseModel):
    """Everything that the author of a component leaves to whoever starts it."""

    model_config = ConfigDict(frozen=True)

    component_id: str = Field(min_length=1, max_length=255, pattern=_ID)
    home: Path
    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    platform_url: str
    api_key: SecretStr | None = None
    advertise_url: str | None = None
    artifact_url: str | None = None
    jwks: Path | None = None
    drain_seconds: float = Field(default=30.0, ge=0)
    log_level: str = Field(default="info", pattern=r"^(debug|info|warning|error)$")


_FLAGS = {
    "--id": ("component_id", "BURNISH_COMPONENT_ID", "its id at the platform; by default its type and this machine's name"),
    "--home": ("home", "BURNISH_COMPONENT_HOME", "where it keeps its jobs; ~/.burnish-components/<id> by default"),
    "--host": ("host", "BURNISH_COMPONENT_HOST", "address to listen on; 127.0.0.1 by default"),
    "--port": ("port", "BURNISH_COMPONENT_PORT", "port; a free one by default"),
    "--url": ("platform_url", "BURNISH_URL", "the platform; by default the server of this machine's home"),
    "--advertise-url": ("advertise_url", "BURNISH_ADVERTISE_URL", "where the platform reaches it; its own address by default"),
    "--artifact-url": ("artifact_url", "BURNISH_ARTIFACT_URL", "the platform's artifacts (file:///...), if this machine sees them"),
    "--jwks": ("jwks", "BURNISH_COMPONENT_JWKS", "file of public keys to believe instead of a platform's, at none of which it then registers (for checks)"),
    "--drain-seconds": ("drain_seconds", "BURNISH_COMPONENT_DRAIN_SECONDS", "time that jobs get to end on SIGTERM; 30 by default"),
    "--log-level": ("log_level", "BURNISH_LOG_LEVEL", "debug, info, warning or error"),
}  # fmt: skip


def read_options(
    component_type: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None
) -> Options:
    """Return the options from flags, then variables, then defaults. The key is read from ``BURNISH_API_KEY`` alone.

    Raises:
        InvalidRequest: a value cannot be used; ``problems`` names each.
        SystemExit: a flag is unknown, or ``--help`` was asked for.
    """
    environment = os.environ if environment is None else environment
    parser = argparse.ArgumentParser(
        prog=component_type, description=f"The Burnish component {component_type}.", allow_abbrev=False
    )
    for flag, (name, variable, text) in _FLAGS.items():
        parser.add_argument(flag, dest=name, default=environment.get(variable) or None, help=f"{text} ({variable})")
    given = {name: value for name, value in vars(parser.parse_args(list(arguments))).items() if value is not None}
    given.setdefault("component_id", default_id(component_type, socket.gethostname()))
    given.setdefault("home", Path.home() / ".burnish-components" / re.sub(r"[^\w.-]", "_", str(given["component_id"])))
    given["home"] = Path(given["home"]).expanduser().resolve()
    given["platform_url"] = find_url(given.get("platform_url"))
    given["api_key"] = environment.get("BURNISH_API_KEY") or None
    try:
        return Options.model_validate(given)
    except ValidationError as error:
        flags = {name: flag for flag, (name, _, _) in _FLAGS.items()}
        problems = [
            FieldProblem(where=flags.get(str(one["loc"][0]), str(one["loc"][0])), message=one["msg"])
            for one in error.errors(include_input=False, include_url=False)
        ]
        told = "; ".join(f"{one.where}: {one.message}" for one in problems)
        raise InvalidRequest(f"the options cannot be used: {told}", problems=problems) from error


def default_id(component_type: str, host: str) -> str:
    """Return the id of a component that was given none: one of a type on a machine."""
    return f"{component_type}-{re.sub(r'[^A-Za-z0-9._-]+', '-', host) or 'node'}"[:255]
