"""``burnish dataset``: add, list, show, preview."""

from pathlib import Path
from typing import Annotated, Any

import typer

from burnish.cli.options import After, Json, Limit, Url

app = typer.Typer(help="Datasets and their immutable versions.", no_args_is_help=True)


@app.command()
def add(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSONL, CSV or Parquet.")],
    name: Annotated[str | None, typer.Option("--name", help="By default the file's name without its suffix.")] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", help="classification, prompt_completion, chat or text; found by itself by default."),
    ] = None,
    columns: Annotated[
        str | None, typer.Option("--columns", help="Which column is which: text=review,label=stars.")
    ] = None,
    duplicates: Annotated[
        str | None, typer.Option("--duplicates", help="Rows equal to an earlier row: keep or drop.")
    ] = None,
    bad_rows: Annotated[
        str | None, typer.Option("--bad-rows", help="Rows that cannot be read: fail, or drop and count.")
    ] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="Kept with the dataset.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Upload a file as a new version. The same content again is the same version."""
    from burnish.cli.output import console, print_json
    from burnish.client import Client

    with Client(url) as client:
        added = client.datasets.add(
            file, name=name, format=form, columns=columns, duplicates=duplicates, bad_rows=bad_rows, licence=licence
        )
    if as_json:
        return print_json(added)
    card = added.card
    console().print(
        f"[green]✓[/] {added.name}@{added.version}: {card.rows} rows, {card.format}{'' if added.created else ' (unchanged)'}"
    )
    for problem in added.dropped_rows:
        console().print(f"  [yellow]left out[/] {problem.where}: {problem.message}")
    for line in _findings(card):
        console().print(f"  [yellow]{line}[/]")
    return None


@app.command(name="list")
def list_(limit: Limit = 50, after: After = None, url: Url = None, as_json: Json = False) -> None:
    """List datasets."""
    from burnish.cli.output import ago, print_json, print_table, size
    from burnish.client import Client

    with Client(url) as client:
        page = client.datasets.list(after=after, limit=limit)
    if as_json:
        return print_json(page)
    rows = [
        (d.name, d.version, d.card.rows, d.card.format, size(d.artifact.size_bytes), ago(d.created_at))
        for d in page.data
    ]
    return print_table(
        ("name", "version", "rows", "format", "size", "added"), rows, empty="no datasets yet: burnish dataset add FILE"
    )


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="`reviews`, or a version: `reviews@2`.")],
    url: Url = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Show a dataset, its versions and what was found in its rows."""
    from burnish.cli.output import print_json, print_record
    from burnish.client import Client

    with Client(url) as client:
        found = client.datasets.get(name)
    return print_json(found) if as_json else print_record(found)


@app.command()
def preview(
    name: Annotated[str, typer.Argument(help="`reviews`, or a version: `reviews@2`.")],
    limit: Annotated[int, typer.Option("--limit", min=1, max=200, help="At most this many.")] = 10, url: Url = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Show the first rows."""
    from burnish.cli.output import print_json, print_table
    from burnish.client import Client

    with Client(url) as client:
        found = client.datasets.preview(name, limit=limit)
    if as_json:
        return print_json(found)
    rows: list[dict[str, Any]] = found["rows"]
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "extra"))
    return print_table(columns, [[row.get(column) for column in columns] for row in rows], empty="no rows")


def _findings(card: Any) -> list[str]:
    found = (
        (card.exact_duplicates, "exact duplicates"), (card.near_duplicates, "near duplicates"), (card.dropped, "rows dropped")
    )  # fmt: skip
    return [f"{count} {what}" for count, what in found if count]
