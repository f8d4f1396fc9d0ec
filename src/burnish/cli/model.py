"""``burnish model``: list, show, alias."""

from typing import Annotated

import typer

from burnish.cli.options import After, Json, Limit, Url

app = typer.Typer(help="The model registry: versions are immutable, aliases move.", no_args_is_help=True)


@app.command(name="list")
def list_(limit: Limit = 50, after: After = None, url: Url = None, as_json: Json = False) -> None:
    """List models with their latest version and aliases."""
    from burnish.cli.output import ago, print_json, print_table
    from burnish.client import Client

    with Client(url) as client:
        page = client.models.list(after=after, limit=limit)
    if as_json:
        return print_json(page)
    rows = [
        (
            m.name,
            m.latest_version,
            ", ".join(f"{a.alias} -> {a.version}" for a in m.aliases),
            ago(m.created_at),
        )
        for m in page.data
    ]
    return print_table(
        ("name", "latest", "aliases", "made"), rows, empty="no models yet: burnish submit train-optimize-deploy ..."
    )


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="`name`, `name@3` or `name@production`.")],
    url: Url = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Show a model, or one version with its lineage: data, base, configuration, code, seed."""
    from burnish.cli.output import plain, print_json, print_record
    from burnish.client import Client

    with Client(url) as client:
        if "@" in name:
            version = client.models.resolve(name)
            found = {**plain(version), "lineage": client.models.lineage(version.model, version.version)}
        else:
            found = {**client.models.get(name), "versions": plain(client.models.versions(name).data)}
    return print_json(found) if as_json else print_record(found)


@app.command()
def alias(
    name: Annotated[str, typer.Argument(help="The model.")],
    alias_name: Annotated[str, typer.Argument(metavar="ALIAS", help="Such as `production`.")],
    version: Annotated[int, typer.Argument(min=1, help="The version that it is to point at.")],
    url: Url = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Move an alias to a version."""
    from burnish.cli.output import console, print_json
    from burnish.client import Client

    with Client(url) as client:
        moved = client.models.alias(name, alias_name, version)
    return print_json(moved) if as_json else console().print(f"[green]✓[/] {name}@{alias_name} is version {version}")
