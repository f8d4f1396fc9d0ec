"""``burnish audit``: list, export, verify."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from burnish.cli.options import After, Exit, Json, Limit, Url

if TYPE_CHECKING:
    from burnish.client.identity import AuditEntry

app = typer.Typer(help="Who did what: append-only, each entry bound to the one before.", no_args_is_help=True)


@app.command(name="list")
def list_(
    actor: Annotated[str | None, typer.Option("--actor", help="Only of this user or service account.")] = None,
    action: Annotated[str | None, typer.Option("--action", help="Only this, such as key:mint.")] = None,
    limit: Limit = 50, after: After = None, url: Url = None, as_json: Json = False,
) -> None:  # fmt: skip
    """List entries, newest first."""
    from burnish.cli.output import print_json, print_table
    from burnish.client import Client

    with Client(url) as client:
        page = client.identity.audit(actor=actor, action=action, after=after, limit=limit)
    if as_json:
        return print_json(page)
    rows = [
        (one.number, f"{one.at:%Y-%m-%d %H:%M:%S}", one.actor, one.action, _object(one), one.project_id)
        for one in page.data
    ]
    return print_table(("entry", "at (UTC)", "who", "did", "to", "project"), rows, empty="nothing yet")


def _object(entry: "AuditEntry") -> str:
    """Return to what it was done; of a role, whose it is: the id of a binding says nothing to people."""
    if entry.action in {"role:give", "role:take"} and {"role", "subject"} <= entry.details.keys():
        return f"{entry.details['role']} of {entry.details['subject']}"
    return entry.object_id or "-"


@app.command()
def export(
    output: Annotated[Path | None, typer.Option("--output", "-o", dir_okay=False, help="A file; standard output by default.")] = None,
    project: Annotated[str | None, typer.Option("--project", help="Only of this project.")] = None,
    url: Url = None,
) -> None:  # fmt: skip
    """Write all entries as JSON lines, oldest first."""
    import os
    import sys

    from burnish.cli.output import console
    from burnish.client import Client

    with Client(url) as client:
        lines = client.identity.export_audit(project=project)
        if output is None:
            for line in lines:
                sys.stdout.write(line + "\n")
            return
        part = output.with_name(output.name + ".part")  # a broken connection leaves no file that looks whole
        count = 0
        with part.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(line + "\n")
                count += 1
        os.replace(part, output)
    console(stderr=True).print(f"[green]✓[/] {count} entries in {output}", soft_wrap=True)


@app.command()
def verify(url: Url = None, as_json: Json = False) -> None:
    """Check that no entry was changed, removed or put in. Exit status 1 if one was."""
    from burnish.cli.output import console, print_json
    from burnish.client import Client

    with Client(url) as client:
        verdict = client.identity.verify_audit()
    if as_json:
        print_json(verdict)
    elif verdict.ok:
        console().print(
            f"[green]✓[/] {verdict.entries} entries hold; the last one's hash is {verdict.head}", soft_wrap=True
        )
    else:
        count = len(verdict.problems)
        console().print(f"[red]✗[/] {count} {'place does' if count == 1 else 'places do'} not hold:", soft_wrap=True)
        for problem in verdict.problems:
            console().print(f"  {problem.message}", soft_wrap=True, markup=False)
    if not verdict.ok:
        raise typer.Exit(Exit.FAILED)
