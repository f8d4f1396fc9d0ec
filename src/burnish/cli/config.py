"""``burnish config``: show, get, set, unset, explain, versions, diff, rollback, export, import, check, status."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.cli.options import After, Exit, Json, Limit, Url

if TYPE_CHECKING:
    from burnish.client.configuration import ChangeView, KeyChange

app = typer.Typer(
    help="What can be set while Burnish runs: every process obeys a change at once.", no_args_is_help=True
)

Environment = Annotated[
    str | None,
    typer.Option("--environment", "-e", help="Such as production; that of the server's process by default.", show_default=False),
]  # fmt: skip
Reason = Annotated[str, typer.Option("--reason", "-m", help="Why; kept with the version.", show_default=False)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and change nothing.")]
Expected = Annotated[
    int | None,
    typer.Option("--expected-version", min=0, help="Refuse when the newest version is another one by now.", show_default=False),
]  # fmt: skip
Key = Annotated[str, typer.Argument(help="Such as gateway.per_key.burst.")]
_LONGEST_SHOWN = 60


@app.command()
def show(
    section: Annotated[str, typer.Argument(help="Only keys below this one, such as gateway.")] = "",
    changed: Annotated[bool, typer.Option("--changed", help="Only keys that some layer above the defaults has.")] = False,
    environment: Environment = None, url: Url = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Show every key with its value and where that comes from."""
    from burnish.cli.output import console, print_json, print_table
    from burnish.client import Client

    with Client(url) as client:
        found = client.configuration.show(environment=environment)
    kept = [one for one in found.settings if f"{one.key}.".startswith(f"{section}.") or not section]
    kept = [one for one in kept if not changed or one.layer != "defaults"]
    if as_json:
        return print_json(found.model_copy(update={"settings": tuple(kept)}))
    rows = [
        (one.key, "(hidden)" if one.hidden else _short(one.value), one.layer if one.layer == "defaults" else one.origin,
         "restart needed" if one.restart_needed else "")
        for one in kept
    ]  # fmt: skip
    console().print(f"[dim]{found.environment}, version {found.version}[/]")
    return print_table(("key", "value", "from", ""), rows, empty="no such keys")


@app.command()
def get(key: Key, environment: Environment = None, url: Url = None, as_json: Json = False) -> None:
    """Print one value."""
    from burnish.cli.output import print_json
    from burnish.client import Client
    from burnish.core.errors import Forbidden

    with Client(url) as client:
        found = client.configuration.explain(key, environment=environment)
    if as_json:
        return print_json(found)
    if found.hidden:
        raise Forbidden(f"only administrators see the value of {key}", where=key)
    return print(found.value if isinstance(found.value, str) else json.dumps(found.value, ensure_ascii=False))


@app.command(name="set")
def set_(
    pairs: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...", help="Values are read as YAML.")],
    reason: Reason = "", expected_version: Expected = None, dry_run: DryRun = False,
    environment: Environment = None, url: Url = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Set keys, as one new version: all of it is checked before any of it changes."""
    from burnish.cli.parameters import read_parameters
    from burnish.client import Client

    values = read_parameters(None, pairs)
    with Client(url) as client:
        done = client.configuration.change(
            values, environment=environment, reason=reason, expected_version=expected_version, dry_run=dry_run
        )
    _print_change(done, as_json)


@app.command()
def unset(
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="Keys or sections.")],
    reason: Reason = "", expected_version: Expected = None, dry_run: DryRun = False,
    environment: Environment = None, url: Url = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Take values away, so that a lower layer gives them: the environment, the file, the default."""
    from burnish.client import Client

    with Client(url) as client:
        done = client.configuration.change(
            unset=keys, environment=environment, reason=reason, expected_version=expected_version, dry_run=dry_run
        )
    _print_change(done, as_json)


@app.command()
def explain(key: Key, environment: Environment = None, url: Url = None, as_json: Json = False) -> None:
    """Show what each layer says of a key, and which one won; of a section, its keys."""
    from burnish.cli.output import ago, console, print_json, print_table
    from burnish.client import Client
    from burnish.core.configuration import sections

    if key in sections():
        return show(key, environment=environment, url=url, as_json=as_json)
    with Client(url) as client:
        found = client.configuration.explain(key, environment=environment)
    if as_json:
        return print_json(found)
    how = "a change is obeyed at once" if found.change == "hot" else "a change needs a restart"
    console().print(
        f"[bold]{found.key}[/] in {found.environment}: {found.description}; {how}", markup=True, soft_wrap=True
    )
    rows = [
        ("->" if one.won else "", one.layer, ("(hidden)" if found.hidden else _short(one.value)) if one.given else "-",
         one.origin or "", f"{one.author}, {ago(one.at)}{': ' + one.reason if one.reason else ''}" if one.author else "")
        for one in found.layers
    ]  # fmt: skip
    print_table(("", "layer", "value", "from", "by"), rows, empty="")
    if found.restart_needed:
        console().print(f"restart needed: until then it is {_short(found.value)}")
    return None


@app.command()
def versions(
    environment: Environment = None, limit: Limit = 50, after: After = None, url: Url = None, as_json: Json = False
) -> None:
    """List versions, newest first: who, when, why."""
    from burnish.cli.output import ago, print_json, print_table
    from burnish.client import Client

    with Client(url) as client:
        page = client.configuration.versions(environment=environment, after=after, limit=limit)
    if as_json:
        return print_json(page)
    rows = [
        (one.number, one.action, ago(one.at), one.author, one.reason,
         ", ".join(value.key for value in one.overrides if value.since == one.number))
        for one in page.data
    ]  # fmt: skip
    return print_table(
        ("version", "action", "made", "author", "reason", "new values"), rows, empty="nothing was set yet"
    )


@app.command()
def diff(
    older: Annotated[int, typer.Argument(min=0, help="A version; 0 has no values.")],
    newer: Annotated[int | None, typer.Argument(min=0, help="Another; the newest by default.")] = None,
    environment: Environment = None, url: Url = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Show what differs between two versions."""
    from burnish.cli.output import console, print_json
    from burnish.client import Client

    with Client(url) as client:
        if newer is None:
            newest = client.configuration.versions(environment=environment, limit=1).data
            newer = newest[0].number if newest else 0
        found = client.configuration.diff(older, newer, environment=environment)
    if as_json:
        return print_json(found)
    _print_keys(found.changed)
    return None if found.changed else console().print("no difference")


@app.command()
def rollback(
    to: Annotated[int, typer.Argument(min=0, metavar="VERSION", help="Whose values are to hold again; 0 has none.")],
    reason: Reason = "", expected_version: Expected = None, dry_run: DryRun = False,
    environment: Environment = None, url: Url = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Make a new version with the values of an older one."""
    from burnish.client import Client

    with Client(url) as client:
        done = client.configuration.roll_back(
            to, environment=environment, reason=reason, expected_version=expected_version, dry_run=dry_run
        )
    _print_change(done, as_json)


@app.command()
def export(
    environment: Environment = None,
    version: Annotated[int | None, typer.Option("--version", min=0, help="The newest by default.", show_default=False)] = None,
    url: Url = None,
) -> None:  # fmt: skip
    """Print an environment's values in the database as YAML, for review in git."""
    from burnish.client import Client

    with Client(url) as client:
        sys.stdout.write(client.configuration.export(environment=environment, version=version))


@app.command(name="import")
def import_(
    file: Annotated[Path, typer.Argument(help="YAML, as `export` prints it; - is stdin.")],
    reason: Reason = "", expected_version: Expected = None, dry_run: DryRun = False,
    environment: Environment = None, url: Url = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Replace an environment's values in the database by those of a file."""
    from burnish.client import Client

    with Client(url) as client:
        done = client.configuration.import_document(
            _read(file), environment=environment, reason=reason, expected_version=expected_version, dry_run=dry_run
        )
    _print_change(done, as_json)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A configuration file (BURNISH_CONFIG).")], as_json: Json = False
) -> None:
    """Check a configuration file in all of its environments. Needs no server."""
    from burnish.app import check_configuration_file
    from burnish.cli.output import console, print_json
    from burnish.core.errors import InvalidRequest

    problems = check_configuration_file(file)
    if problems:
        raise InvalidRequest(f"{file} cannot be used", problems=problems)
    if as_json:
        return print_json({"valid": True})
    return console().print(f"[green]✓[/] {file} can be used", soft_wrap=True)


@app.command()
def status(url: Url = None, as_json: Json = False) -> None:
    """Show which process obeys which version, and why one refuses. Exit status 1 when one does."""
    from burnish.cli.output import ago, console, print_json, print_table
    from burnish.client import Client

    with Client(url) as client:
        found = client.configuration.status()
    refusing = [one for one in found if one.state == "refuses"]
    if as_json:
        print_json({"data": found})
    else:
        rows = [
            (one.process, one.environment, one.state, _versions(one.versions), _versions(one.newest), ago(one.obeyed_at),
             ", ".join(one.restart_needed))
            for one in found
        ]  # fmt: skip
        print_table(
            ("process", "environment", "state", "version", "newest", "since", "restart needed for"),
            rows,
            empty="no process",
        )
        for one in refusing:
            for problem in one.problems:
                console().print(f"{one.process}: {problem.where}: {problem.message}", markup=False, soft_wrap=True)
    if refusing:
        raise typer.Exit(Exit.FAILED)


def _print_change(done: "ChangeView", as_json: bool) -> None:
    from burnish.cli.output import console, print_json

    if as_json:
        return print_json(done)
    out = console()
    if not done.changed:
        out.print(f"nothing changes: {done.environment} stays at version {done.version}")
        return None
    _print_keys(done.changed)
    for key in done.restart_needed:
        out.print(f"[yellow]restart needed[/] for {key}", soft_wrap=True)
    for key in done.overridden:
        out.print(f"[yellow]overridden[/] {key}: a variable of the server's process decides it", soft_wrap=True)
    for problem in done.refusals:
        out.print(f"would be refused by {problem.where}: {problem.message}", style="red", markup=False, soft_wrap=True)
    if done.dry_run:
        out.print("[dim]a dry run: nothing was changed[/]")
    else:
        out.print(f"[green]✓[/] {done.environment} is at version {done.version}")
    return None


def _print_keys(changed: Iterable["KeyChange"]) -> None:
    from burnish.cli.output import console

    for one in changed:
        old = "(hidden)" if one.hidden else _short(one.old) if one.old_given else "(not set)"
        new = "(hidden)" if one.hidden else _short(one.new) if one.new_given else "(not set)"
        console().print(f"  {one.key}: {old} -> {new}", markup=False, soft_wrap=True)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 1]}…"


def _versions(numbers: dict[str, int]) -> str:
    if len(numbers) == 1:
        return str(next(iter(numbers.values())))
    return " ".join(f"{name}={number}" for name, number in numbers.items())


def _read(file: Path) -> str:
    from burnish.core.errors import InvalidRequest

    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file} cannot be read: {error}", where=str(file)) from error
