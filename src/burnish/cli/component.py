"""``burnish component``: the conformance kit of the component protocol."""

from pathlib import Path
from typing import Annotated

import typer

from burnish.cli.options import Exit, Json

app = typer.Typer(help="For authors of components: check that one keeps the component protocol.", no_args_is_help=True)

KeyFile = Annotated[
    Path | None,
    typer.Option("--key-file", exists=True, dir_okay=False, help="The key that `burnish component key` made and whose public half the component believes."),
]  # fmt: skip


@app.command()
def check(
    url: Annotated[str, typer.Argument(help="Where the component is: what the protocol's paths are below.")],
    key_file: KeyFile = None,
    job: Annotated[
        list[str] | None,
        typer.Option("--job", metavar="JSON", help='A job that it accepts, `{"kind": ..., "spec": {...}}`, or a file of it; else made of its schemas.'),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Run the contract suite against a running component and report point by point."""
    from burnish.cli import conformance
    from burnish.cli.output import console, print_json

    report = conformance.run(url, key_file, job or [])
    if as_json:
        print_json(report.as_json())
    else:
        for line in report.lines():
            console().print(line, markup=False, highlight=False, soft_wrap=True)
    if not report.kept:
        raise typer.Exit(Exit.FAILED)


@app.command()
def key(
    path: Annotated[Path, typer.Argument(help="The new file; its public half is written beside it.")],
    as_json: Json = False,
) -> None:
    """Make a key to check a component with. Start the component with BURNISH_COMPONENT_JWKS set to its public half."""
    from burnish.cli import conformance
    from burnish.cli.output import console, print_json

    public = conformance.make_key(path)
    if as_json:
        return print_json({"key_file": str(path), "jwks": str(public)})
    console().print(
        f"{path} signs; start the component with BURNISH_COMPONENT_JWKS={public}", markup=False, soft_wrap=True
    )
    return None
