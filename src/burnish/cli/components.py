"""``burnish components``."""

import typer

from burnish.cli.options import Json, Url


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(components)


def components(url: Url = None, as_json: Json = False) -> None:
    """List the components of the platform and how they are."""
    from burnish.cli.output import ago, print_json, print_table, state_text
    from burnish.client import Client

    with Client(url) as client:
        found = client.components()
    if as_json:
        return print_json({"data": found})
    rows = [(c.component_id, c.component_type, c.version, state_text(c.status), ago(c.last_heartbeat)) for c in found]
    return print_table(("component", "type", "version", "status", "heartbeat"), rows, empty="no components")
