"""``burnish key``: create, list, rotate, revoke."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from burnish.cli.options import After, Json, Limit, Url

if TYPE_CHECKING:
    from burnish.client.identity import KeyView, MintedKey

app = typer.Typer(help="API keys: your own, and those of the projects that you administer.", no_args_is_help=True)
KeyId = Annotated[
    str, typer.Argument(help="Id of the key, as `burnish key list` shows it (not the key).", metavar="KEY_ID")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the key alone, for a pipe.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write the key to this new file, which only you can read.")
]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for; people read it.")] = "",
    subject: Annotated[str | None, typer.Option("--for", help="A user or service account; you by default.")] = None,
    project: Annotated[str | None, typer.Option("--project", help="Where it may be used: one project, or `*` for all of its owner's; the present one by default.")] = None,
    scope: Annotated[list[str] | None, typer.Option("--scope", help="A permission that it is limited to, such as workflow:run. May be given often.")] = None,
    days: Annotated[float | None, typer.Option("--days", min=0, help="How long it lives; the server's default otherwise.")] = None,
    component: Annotated[str | None, typer.Option("--component", metavar="ID:TYPE", help="Make it the credential of this one instance.")] = None,
    output: Output = None, quiet: Quiet = False, url: Url = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Make a key. It is shown this once."""
    from burnish.client import Client

    instance = _instance(component)
    with Client(url) as client, _new_file(output):
        made = client.identity.mint_key(
            name, subject=subject, project=project, scopes=scope or None, days=days or None, component=instance
        )
    _show_once(made, output, quiet, as_json)


@app.command(name="list")
def list_(
    subject: Annotated[str | None, typer.Option("--for", help="Only of this user or service account.")] = None,
    limit: Limit = 50, after: After = None, url: Url = None, as_json: Json = False,
) -> None:  # fmt: skip
    """List keys, without their secrets."""
    from burnish.cli.output import ago, print_json, print_table, state_text
    from burnish.client import Client

    with Client(url) as client:
        page = client.identity.keys(subject=subject, after=after, limit=limit)
    if as_json:
        return print_json(page)
    rows = [
        (key.id, key.name or "-", key.subject, key.project, _scopes(key), ago(key.last_used_at), state_text(_state(key)))
        for key in page.data
    ]  # fmt: skip
    return print_table(
        ("key", "name", "of", "project", "scopes", "last used", "state"), rows, empty="no keys: burnish key create NAME"
    )


@app.command()
def rotate(
    key_id: KeyId,
    overlap: Annotated[float, typer.Option("--overlap", min=0, help="Seconds for which the old key still works.")] = 3600,
    output: Output = None, quiet: Quiet = False, url: Url = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Make a key that can do the same; the old one works for a while yet."""
    from burnish.client import Client

    _refuse_secret(key_id)
    with Client(url) as client, _new_file(output):
        made = client.identity.rotate_key(key_id, overlap_seconds=overlap)
    _show_once(made, output, quiet, as_json)


@app.command()
def revoke(key_id: KeyId, url: Url = None, as_json: Json = False) -> None:
    """End a key at once, on every server of the platform."""
    from burnish.cli.output import console, print_json
    from burnish.client import Client

    _refuse_secret(key_id)
    with Client(url) as client:
        client.identity.revoke_key(key_id)
    return (
        print_json({"id": key_id, "revoked": True}) if as_json else console().print(f"[green]✓[/] {key_id} is revoked")
    )


def _scopes(key: "KeyView") -> str:
    if key.component_id is not None:
        return f"registers {key.component_id}:{key.component_type}"
    if key.scopes is None:
        return "all of its owner's"
    return " ".join(key.scopes) if len(key.scopes) <= 3 else f"{len(key.scopes)} permissions"


def _state(key: "KeyView") -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is None:
        return "in use"
    ended = key.expires_at <= datetime.now(UTC)
    return f"{'expired' if ended else 'until'} {key.expires_at:%Y-%m-%d %H:%M} UTC"


@contextmanager
def _new_file(output: Path | None) -> Iterator[None]:
    """Make the file before the key, so that no key is made that then cannot be kept; without a key there is none."""
    if output is None:
        yield
        return
    try:
        os.close(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise typer.BadParameter(f"{output} cannot be made: {error.strerror}", param_hint="--output") from error
    try:
        yield
    except BaseException:
        output.unlink(missing_ok=True)
        raise


def _show_once(made: "MintedKey", output: Path | None, quiet: bool, as_json: bool) -> None:
    import sys

    from rich.markup import escape

    from burnish.cli.output import command, console, print_json
    from burnish.core.errors import Conflict

    if made.key is None:
        raise Conflict(
            f"the key {made.id} was made, but the connection broke before its secret arrived", where=made.id,
            hint=f"revoke it and make another: {command(f'key revoke {made.id}')}",
        )  # fmt: skip
    if output is not None:
        output.write_text(made.key + "\n", encoding="ascii")
        made = made.model_copy(update={"key": None})
    if as_json:
        return print_json(made)
    if quiet and made.key:
        sys.stdout.write(made.key + "\n")
        return None
    if made.component_id is not None:
        place = f"for the instance {made.component_id}"
    else:
        place = f"in project {made.project}" if made.project != "*" else "in every project"
        if made.scopes is not None and made.subject != made.created_by:
            place += f" ({len(made.scopes)} permissions, which later roles do not add to)"
    what = f"it is in {escape(str(output))}" if output else "it is shown this once:"
    until = f", until {made.expires_at:%Y-%m-%d %H:%M} UTC" if made.expires_at else ""
    console(stderr=True).print(
        f"[green]✓[/] {made.id} of {made.subject} {place}{until}; {what}",
        soft_wrap=True,
    )
    if made.key:
        sys.stdout.write(made.key + "\n")
    return None


def _instance(component: str | None) -> tuple[str, str] | None:
    if component is None:
        return None
    component_id, _, component_type = component.rpartition(":")
    if not component_id:
        raise typer.BadParameter("it is ID:TYPE, such as echo-1:echo_metric", param_hint="--component")
    return component_id, component_type


def _refuse_secret(key_id: str) -> None:
    """Stop somebody who gives the key itself: whoever lists processes has read it."""
    if key_id.startswith("bk_"):
        raise typer.BadParameter(
            "that is a key, not its id, and everyone on this machine could read it: revoke it (`burnish key list` has its id)",
            param_hint="KEY_ID",
        )
