"""``burnish serve`` and ``burnish stop``."""

from pathlib import Path
from typing import Annotated

import typer

from burnish.cli.options import Home, Json


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(serve)
    app.command()(stop)


def _option(name: str, text: str, **more: object) -> typer.models.OptionInfo:
    """Return an option whose environment variable has its name: ``--database-url``, ``BURNISH_DATABASE_URL``."""
    variable = "BURNISH_" + name.removeprefix("--").replace("-", "_").upper()
    option: typer.models.OptionInfo = typer.Option(name, envvar=variable, help=text, show_default=False, **more)  # type: ignore[arg-type]
    return option


def serve(
    home: Home = None,
    host: Annotated[str | None, _option("--host", "Address to bind to; 127.0.0.1 by default.")] = None,
    port: Annotated[int | None, _option("--port", "Port; 8000 by default, 0 takes a free one.", min=0, max=65535)] = None,
    database_url: Annotated[
        str | None, _option("--database-url", "`postgresql://...`; SQLite in the home by default.")
    ] = None,
    redis_url: Annotated[str | None, _option("--redis-url", "`redis://...`; none by default.")] = None,
    artifact_url: Annotated[str | None, _option("--artifact-url", "`file:///...`; a folder in the home by default.")] = None,
    components: Annotated[str | None, _option("--components", "Component types and `platform`, by comma; all by default.")] = None,
    auth: Annotated[str | None, _option("--auth", "`off` (on loopback only) or `on`.")] = None,
    environment: Annotated[str | None, _option("--environment", "Name of the environment, such as `production`.")] = None,
    config: Annotated[Path | None, _option("--config", "Configuration file.")] = None,
    secret_key_file: Annotated[Path | None, _option("--secret-key-file", "Key for secrets; made in the home by default.")] = None,
    cpus: Annotated[int | None, _option("--cpus", "Cores that jobs may use; all by default.", min=1)] = None,
    memory_bytes: Annotated[int | None, _option("--memory-bytes", "Memory that jobs may use; 85 % by default.", min=1)] = None,
    hub_offline: Annotated[bool | None, _option("--hub-offline", "Never ask the Hugging Face hub.")] = None,
    log_level: Annotated[str | None, _option("--log-level", "debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, _option("--log-format", "json or text; text in a terminal by default.")] = None,
) -> None:  # fmt: skip
    """Start the server. Ctrl-C drains it and pauses its jobs; SIGTERM leaves what runs running, for the next start."""
    from burnish.cli.server import read_settings, run

    given = {
        "home": home, "host": host, "port": port, "database_url": database_url, "redis_url": redis_url,
        "artifact_url": artifact_url, "components": components, "auth": auth, "environment": environment, "config": config,
        "secret_key_file": secret_key_file, "cpus": cpus, "memory_bytes": memory_bytes, "hub_offline": hub_offline,
        "log_level": log_level, "log_format": log_format,
    }  # fmt: skip
    run(read_settings({name: value for name, value in given.items() if value is not None}))


def stop(
    everything: Annotated[
        bool, typer.Option("--all", help="End jobs and replicas too: checkpoint, pause, drain.")
    ] = False,
    timeout: Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait for its end.")] = 60,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Stop the server of this home, or `burnish up` with all its processes. Jobs and replicas go on without it unless --all."""
    from burnish.cli.output import console, print_json
    from burnish.cli.processes import stop_server
    from burnish.client import address

    stopped = stop_server(address.home(home), everything=everything, timeout=timeout)
    if as_json:
        return print_json(stopped)
    for line in stopped.lines():
        console().print(line, markup=False)
    return None
