"""``burnish secret``: set, list, remove, rotate-key, rewrap. Values come from stdin or a prompt, never from an argument."""

import getpass
import sys
from pathlib import Path
from typing import Annotated

import typer

from burnish.cli.options import After, Json, Limit, Url

app = typer.Typer(
    help="Values that are kept encrypted; a configuration value refers to one as secret://NAME.", no_args_is_help=True
)
Name = Annotated[str, typer.Argument(help="Letters, digits, `.`, `_` and `-`.")]


@app.command(name="set")
def set_(name: Name, url: Url = None, as_json: Json = False) -> None:
    """Set a secret. Its value is read from stdin (one newline at the end is left out), or asked for in a terminal."""
    from burnish.cli.output import console, print_json
    from burnish.client import Client

    value = _value(name)
    with Client(url) as client:
        made = client.secrets.set(name, value)
    if as_json:
        return print_json(made)
    return console().print(f"[green]✓[/] {made.reference} (version {made.version})", soft_wrap=True)


@app.command(name="list")
def list_(limit: Limit = 50, after: After = None, url: Url = None, as_json: Json = False) -> None:
    """List secrets, without their values."""
    from burnish.cli.output import ago, print_json, print_table
    from burnish.client import Client

    with Client(url) as client:
        page = client.secrets.list(after=after, limit=limit)
    if as_json:
        return print_json(page)
    rows = [(one.name, one.reference, one.version, one.author, ago(one.updated_at), one.key) for one in page.data]
    return print_table(
        ("name", "reference", "version", "author", "set", "data key"), rows, empty="no secrets: burnish secret set NAME"
    )


@app.command()
def remove(name: Name, url: Url = None) -> None:
    """Remove a secret that the configuration does not refer to."""
    from burnish.cli.output import console
    from burnish.client import Client

    with Client(url) as client:
        client.secrets.remove(name)
    console().print(f"[green]✓[/] {name} is removed", soft_wrap=True)


@app.command(name="rotate-key")
def rotate_key(url: Url = None, as_json: Json = False) -> None:
    """Encrypt every secret with a new data key. Cut short, it is finished by the server's next start."""
    from burnish.cli.output import console, print_json
    from burnish.client import Client

    with Client(url) as client:
        done = client.secrets.rotate_key()
    if as_json:
        return print_json(done)
    return console().print(f"[green]✓[/] data key {done.key}: {done.reencrypted} secrets were encrypted anew")


@app.command()
def rewrap(
    new_key_file: Annotated[
        Path | None,
        typer.Option("--new-key-file", help="The installation's next key, a file on the server's machine.", show_default=False),
    ] = None,
    finish: Annotated[bool, typer.Option("--finish", help="Every process has the new key: let the old one go.")] = False,
    url: Url = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Exchange the installation's key: prepare with --new-key-file, start every process with it, then --finish."""
    from burnish.cli.output import command, console, print_json
    from burnish.client import Client

    if (new_key_file is None) == (not finish):
        raise typer.BadParameter("give either --new-key-file FILE or --finish")
    with Client(url) as client:
        done = (
            client.secrets.finish_rewrap()
            if new_key_file is None
            else client.secrets.rewrap(str(new_key_file.absolute()))
        )
    if as_json:
        return print_json(done)
    keys = ", ".join(done.installation_keys) or "none yet: there are no secrets"
    console().print(f"[green]✓[/] installation keys that open the secrets: {keys}", soft_wrap=True)
    if new_key_file is not None:
        console().print(
            f"Stop every process, start each with BURNISH_SECRET_KEY_FILE={new_key_file.absolute()}, then: {command('secret rewrap --finish')}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    return None


def _value(name: str) -> str:
    if sys.stdin.isatty():
        value = getpass.getpass(f"Value of {name}: ")
        if value != getpass.getpass("Once more: "):
            raise typer.BadParameter("the two differ; nothing was set")
    else:
        value = sys.stdin.read()
        value = value.removesuffix("\n").removesuffix("\r")
    if not value:
        raise typer.BadParameter("the value is empty; nothing was set")
    return value
