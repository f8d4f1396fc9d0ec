"""``burnish project`` and ``burnish role``."""

from typing import Annotated

import typer

from burnish.cli.options import After, Json, Limit, Url

app = typer.Typer(help="Projects own everything: data, models, deployments, runs.", no_args_is_help=True)
role_app = typer.Typer(help="Who may do what where: viewer, engineer, administrator.", no_args_is_help=True)
Subject = Annotated[str, typer.Argument(help="A user or service account.")]
Role = Annotated[str, typer.Argument(help="viewer, engineer or administrator.")]
Project = Annotated[
    str | None, typer.Option("--project", help="The project; `*` is all of them; the present one by default.")
]


@app.command()
def create(
    project: Annotated[str, typer.Argument(help="Its id: small letters, digits, - and _; it never changes.")],
    name: Annotated[str, typer.Option("--name", help="Name for people.")] = "",
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Make a project."""
    from burnish.cli.output import command, console, print_json
    from burnish.client import Client

    with Client(url) as client:
        made = client.identity.add_project(project, display_name=name)
    if as_json:
        return print_json(made)
    console().print(f"[green]✓[/] {made.id} is made", soft_wrap=True)
    console().print(f"  next: {command(f'role grant NAME engineer --project {made.id}')}", soft_wrap=True, markup=False)
    return None


@app.command(name="list")
def list_projects(limit: Limit = 50, after: After = None, url: Url = None, as_json: Json = False) -> None:
    """List the projects that you administer."""
    from burnish.cli.output import ago, print_json, print_table
    from burnish.client import Client

    with Client(url) as client:
        page = client.identity.projects(after=after, limit=limit)
    if as_json:
        return print_json(page)
    rows = [(one.id, one.display_name or "-", ago(one.created_at), one.created_by or "-") for one in page.data]
    return print_table(("project", "name", "made", "by"), rows, empty="no projects: burnish project create NAME")


@role_app.command()
def grant(subject: Subject, role: Role, project: Project = None, url: Url = None, as_json: Json = False) -> None:
    """Give a role. Nobody can give more than they have."""
    from burnish.cli.output import console, print_json
    from burnish.client import Client

    with Client(url) as client:
        given = client.identity.give_role(subject, role, project)
    if as_json:
        return print_json(given)
    console().print(f"[green]✓[/] {given.subject} is {given.role} in {_place(given.project)}", soft_wrap=True)
    return None


@role_app.command()
def revoke(subject: Subject, role: Role, project: Project = None, url: Url = None, as_json: Json = False) -> None:
    """Take a role away; it holds on every server within a second."""
    from burnish.cli.output import console, print_json
    from burnish.client import Client
    from burnish.core.errors import NotFound

    with Client(url) as client:
        place = project or client.identity.me().project
        page = client.identity.roles(subject=subject, limit=500)
        found = next((one for one in page.data if (one.role, one.project) == (role, place)), None)
        if found is None:
            raise NotFound(
                f"{subject} is not {role} in {_place(place)}",
                where=subject,
                hint=f"see `burnish role list --of {subject}`",
            )
        client.identity.take_role(found.id)
    if as_json:
        return print_json(found)
    console().print(f"[green]✓[/] {subject} is no longer {role} in {_place(place)}", soft_wrap=True)
    return None


@role_app.command(name="list")
def list_roles(
    subject: Annotated[str | None, typer.Option("--of", help="Only of this user or service account.")] = None,
    limit: Limit = 50, after: After = None, url: Url = None, as_json: Json = False,
) -> None:  # fmt: skip
    """List who has which role."""
    from burnish.cli.output import print_json, print_table
    from burnish.client import Client

    with Client(url) as client:
        page = client.identity.roles(subject=subject, after=after, limit=limit)
    if as_json:
        return print_json(page)
    rows = [
        (one.subject, one.role, one.project, "the login provider" if one.source == "oidc" else one.created_by or "-")
        for one in page.data
    ]
    return print_table(("who", "role", "project", "given by"), rows, empty="no roles are given yet")


def _place(project: str) -> str:
    return "every project" if project == "*" else f"project {project}"
