"""``burnish demo``."""

from typing import Annotated

import typer

from burnish.cli.options import Home, Set


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(
    model: Annotated[str, typer.Option("--model", help="A GGUF file, a folder of safetensors, or a hub name.")] = "",
    exit_after: Annotated[
        bool, typer.Option("--exit", help="End after the report; the status tells whether it worked.")
    ] = False,
    home: Home = None,
    port: Annotated[
        int | None, typer.Option("--port", help="Where to start the server if none runs; 8000 by default.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rows: sooner done, wider intervals.")] = False,
    pairs: Set = None,
) -> None:
    """Take a small model from data to a deployment, on this machine, and report what it gained."""
    from burnish.cli.demonstration import run
    from burnish.cli.parameters import read_parameters

    changed = read_parameters(None, pairs)
    raise typer.Exit(run(model=model, exit_after=exit_after, home=home, port=port, quick=quick, changed=changed))
