"""``burnish deployment``: list, show, rollback, stop."""

from typing import Annotated

import typer

from burnish.cli.options import After, Json, Url

app = typer.Typer(help="What is served, and its revisions.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The deployment: what clients send as `model`.")]


@app.command(name="list")
def list_(
    limit: Annotated[int, typer.Option("--limit", min=1, max=100, help="At most this many.")] = 50,
    after: After = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """List deployments."""
    from burnish.cli.output import print_json, print_table, state_text
    from burnish.client import Client

    with Client(url) as client:
        page = client.deployments.list(after=after, limit=limit)
    if as_json:
        return print_json(page)
    rows = [(d.name, state_text(d.state), d.serving, d.model_version, len(d.replicas)) for d in page.data]
    return print_table(("name", "state", "revision", "model", "replicas"), rows, empty="nothing is deployed")


@app.command()
def show(name: Name, url: Url = None, as_json: Json = False) -> None:
    """Show a deployment with its revisions and replicas."""
    from burnish.cli.output import print_json, print_record
    from burnish.client import Client

    with Client(url) as client:
        found = client.deployments.get(name)
    return print_json(found) if as_json else print_record(found)


@app.command()
def rollback(
    name: Name,
    revision: Annotated[int | None, typer.Option("--revision", min=1, help="By default the one before.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Serve an earlier revision again. No request is dropped."""
    from burnish.cli.output import console, print_json
    from burnish.client import Client

    with Client(url) as client:
        found = client.deployments.rollback(name, revision)
    return print_json(found) if as_json else console().print(f"[green]✓[/] {name} rolls back")


@app.command()
def start(name: Name, url: Url = None, as_json: Json = False) -> None:
    """Serve again what served before it was stopped."""
    from burnish.cli.output import console, print_json
    from burnish.client import Client

    with Client(url) as client:
        found = client.deployments.start(name)
    return print_json(found) if as_json else console().print(f"[green]✓[/] {name} starts")


@app.command()
def stop(name: Name, url: Url = None, as_json: Json = False) -> None:
    """Drain and end a deployment's replicas."""
    from burnish.cli.output import console, print_json
    from burnish.client import Client

    with Client(url) as client:
        found = client.deployments.stop(name)
    return print_json(found) if as_json else console().print(f"[green]✓[/] {name} stops")
