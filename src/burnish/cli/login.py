"""``burnish login``, ``logout`` and ``whoami``."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from burnish.cli.options import Json, Url

if TYPE_CHECKING:
    from burnish.client import Client
    from burnish.client.credentials import Credential


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (login, logout, whoami):
        app.command()(command)


def login(
    key: Annotated[
        str | None, typer.Option("--key", metavar="-", help="`-`: read a key from standard input instead of asking.")
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open a browser, or only print the address to open.")
    ] = True,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds to wait for the browser.")] = 300,
    url: Url = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Log in to a server and keep its key for the commands and clients of this user.

    With a login provider the browser opens; without one, a key is asked for and not shown. Keys are kept one a server
    (the processes of a home are one) in ~/.config/burnish/credentials.json, which only you can read.
    """
    from burnish.cli.output import console, print_json
    from burnish.client import Client, credentials

    _refuse_argument(key)
    with Client(url, api_key="") as client:
        ways = client.identity.login_methods()
        if ways.authentication == "off":
            return _say_off(client.url, as_json)
        types = {way.type for way in ways.methods}
        by_browser = key is None and "oidc" in types
        if by_browser:
            found = _by_browser(client, browser, timeout)
        else:
            found = _checked(client.url, _piped() if key else _asked(client.url))
        credentials.store(client.url, found)
        if as_json:
            return print_json({"url": client.url, **found.model_dump(mode="json", exclude={"key"})})
        until = f" until {found.expires_at:%Y-%m-%d %H:%M} UTC" if found.expires_at else ""
        console().print(f"[green]✓[/] logged in to {client.url} as {found.subject}{until}", soft_wrap=True)
        if os.environ.get("BURNISH_API_KEY"):
            console().print("[yellow]BURNISH_API_KEY is set and goes before this login: unset it[/]", soft_wrap=True)
    return None


def logout(url: Url = None, as_json: Json = False) -> None:
    """Forget the key that is kept for a server. A key that `burnish login` got by the browser is revoked, too."""
    from burnish.cli.output import console, print_json
    from burnish.client import Client, credentials
    from burnish.client.address import find_url
    from burnish.core.errors import BurnishError

    address = find_url(url)
    found = credentials.forget(address)
    revoked = False
    if found is not None and found.by_browser and found.key_id is not None:
        try:
            with Client(address, api_key=found.key) as client:
                client.identity.revoke_key(found.key_id)
            revoked = True
        except BurnishError as error:  # it is forgotten here all the same, and ends by itself
            console(stderr=True).print(f"the key could not be revoked: {error.message}", soft_wrap=True, markup=False)
    if as_json:
        return print_json({"url": address, "forgotten": found is not None, "revoked": revoked})
    said = f"[green]✓[/] logged out of {address}" if found else f"no key is kept for {address}"
    console().print(said, soft_wrap=True)
    return None


def whoami(url: Url = None, as_json: Json = False) -> None:
    """Show who you are to a server and what you may do there."""
    from burnish.cli.output import console, print_json
    from burnish.client import Client
    from burnish.core.permissions import PLATFORM_WIDE, permissions_of

    with Client(url) as client:
        me, address = client.identity.me(), client.url
    if as_json:
        return print_json(me)
    out = console()
    out.print(f"[bold]{me.subject}[/] at {address}, project {me.project}", soft_wrap=True)
    for role in me.everywhere:
        out.print(f"  {role} in every project")
    for access in me.projects:
        out.print(f"  {', '.join(access.roles)} in project {access.project}")
    out.print(f"  may here: {' '.join(me.permissions) or 'nothing'}", soft_wrap=True)
    roles = {role for access in me.projects if access.project == me.project for role in access.roles} | {*me.everywhere}
    lacking = permissions_of(roles) - PLATFORM_WIDE - {*me.permissions}
    if lacking and me.credential is not None:
        out.print(
            f"  not with this key ({me.credential}), though the roles allow it: {' '.join(sorted(lacking))}",
            soft_wrap=True,
        )
    return None


def _refuse_argument(key: str | None) -> None:
    if key not in {None, "-"}:
        raise typer.BadParameter(
            "a key on the command line can be read by everyone on this machine: pipe it, with --key -",
            param_hint="--key",
        )


def _say_off(url: str, as_json: bool) -> None:
    from burnish.cli.output import console, print_json

    if as_json:
        return print_json({"url": url, "authentication": "off"})
    console().print(f"authentication is off on {url}: there is nothing to log in to", soft_wrap=True)
    return None


def _piped() -> str:
    return sys.stdin.readline().strip()


def _asked(url: str) -> str:
    from burnish.core.errors import InvalidRequest

    if not sys.stdin.isatty():
        raise InvalidRequest(
            f"{url} has no login provider, and there is no terminal to ask for a key", where="--key",
            hint="pipe a key: burnish login --key - < key.txt",
        )  # fmt: skip
    answer: str = typer.prompt(f"Key for {url}", hide_input=True, err=True)
    return answer.strip()


def _by_browser(client: "Client", browser: bool, timeout: float) -> "Credential":
    import platform

    from burnish.cli.browser import Listener
    from burnish.cli.output import console
    from burnish.client.credentials import Credential

    with Listener() as listener:
        address = listener.login_url(client.url)
        opened = browser and listener.open(address)
        text = "Logging in with your browser" if opened else "Open this address in a browser on this machine"
        console(stderr=True).print(f"{text}: {address}", soft_wrap=True, markup=False)
        if not opened:
            console(stderr=True).print(
                f"Is the browser on another machine? Have it lead here first, there: ssh -N -L {listener.port}:127.0.0.1:{listener.port} "
                f"{platform.node()}; or log in by a key: burnish login --key -",
                soft_wrap=True, markup=False,
            )  # fmt: skip
        code = listener.wait(timeout)
    name = "".join(one if " " <= one <= "~" else "-" for one in platform.node())[:60]
    made = client.identity.exchange_login_code(code, listener.verifier, f"burnish login on {name}")
    return Credential(
        key=made.key, key_id=made.key_id, subject=made.subject, expires_at=made.expires_at, by_browser=True
    )


def _checked(url: str, key: str) -> "Credential":
    """Return the key as it is kept, once the server has taken it."""
    from burnish.client import Client
    from burnish.client.credentials import Credential
    from burnish.core.errors import Unauthenticated

    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise Unauthenticated("that is no key", where="key", hint="a key begins with bk_ and has no spaces")
    with Client(url, api_key=key) as client:
        me = client.identity.me()
    return Credential(key=key, key_id=me.credential, subject=me.subject)
