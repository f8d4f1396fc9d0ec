"""``burnish user`` and ``burnish service-account``."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.cli.options import After, Json, Limit, Url

if TYPE_CHECKING:
    from burnish.client.identity import SubjectView
    from burnish.core.pages import Page

app = typer.Typer(help="People. Those who log in by a provider come by themselves.", no_args_is_help=True)
service_account_app = typer.Typer(help="Accounts of programs; each belongs to a project.", no_args_is_help=True)
User = Annotated[str, typer.Argument(help="Id of the user: a name or an address.")]
Account = Annotated[str, typer.Argument(help="Id of the service account.")]
Shown = Annotated[str, typer.Option("--name", help="Name for people.")]


@app.command()
def add(
    user: User,
    name: Shown = "",
    email: Annotated[str | None, typer.Option("--email", help="Address.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Add a user, without any role yet."""
    from burnish.client import Client

    with Client(url) as client:
        found = client.identity.add_user(user, display_name=name, email=email)
    _said(found, as_json, f"{found.id} is added", f"role grant {found.id} engineer --project default")


@app.command(name="list")
def list_users(limit: Limit = 50, after: After = None, url: Url = None, as_json: Json = False) -> None:
    """List users."""
    from burnish.client import Client

    with Client(url) as client:
        page = client.identity.users(after=after, limit=limit)
    _listed(page, as_json, "user", "no users yet: burnish user add NAME")


@app.command()
def disable(user: User, url: Url = None, as_json: Json = False) -> None:
    """Let a user in no more: keys and sessions end at once. Roles, and what was done, stay."""
    from burnish.client import Client

    with Client(url) as client:
        found = client.identity.disable_user(user)
    _said(found, as_json, f"{found.id} is disabled; keys and sessions have ended")


@app.command()
def enable(user: User, url: Url = None, as_json: Json = False) -> None:
    """Let a disabled user in again. Old keys stay revoked."""
    from burnish.client import Client

    with Client(url) as client:
        found = client.identity.enable_user(user)
    _said(found, as_json, f"{found.id} is enabled", f"key create --for {found.id}")


@service_account_app.command(name="add")
def add_account(account: Account, name: Shown = "", url: Url = None, as_json: Json = False) -> None:
    """Add a service account to the present project (BURNISH_PROJECT), without any role yet."""
    from burnish.client import Client

    with Client(url) as client:
        found = client.identity.add_service_account(account, display_name=name)
    _said(
        found,
        as_json,
        f"{found.id} is added to project {found.project_id}",
        f"role grant {found.id} engineer",
    )


@service_account_app.command(name="list")
def list_accounts(limit: Limit = 50, after: After = None, url: Url = None, as_json: Json = False) -> None:
    """List service accounts."""
    from burnish.client import Client

    with Client(url) as client:
        page = client.identity.service_accounts(after=after, limit=limit)
    _listed(page, as_json, "service account", "no service accounts yet: burnish service-account add NAME")


@service_account_app.command(name="disable")
def disable_account(account: Account, url: Url = None, as_json: Json = False) -> None:
    """Let a service account in no more: its keys end at once."""
    from burnish.client import Client

    with Client(url) as client:
        found = client.identity.disable_service_account(account)
    _said(found, as_json, f"{found.id} is disabled; its keys have ended")


def _said(found: "SubjectView", as_json: bool, text: str, then: str | None = None) -> None:
    from burnish.cli.output import command, console, print_json

    if as_json:
        return print_json(found)
    console().print(f"[green]✓[/] {text}", soft_wrap=True)
    if then:
        console().print(f"  next: {command(then)}", soft_wrap=True, markup=False)
    return None


def _listed(page: "Page[SubjectView]", as_json: bool, noun: str, empty: str) -> None:
    from burnish.cli.output import ago, print_json, print_table, state_text

    if as_json:
        return print_json(page)
    rows: list[tuple[Any, ...]] = [
        (one.id, one.display_name or "-", one.email, one.project_id, ago(one.created_at),
         state_text("disabled") if one.disabled_at else "by a provider" if one.login else "by key")
        for one in page.data
    ]  # fmt: skip
    return print_table((noun, "name", "address", "project", "added", "comes in"), rows, empty=empty)
