"""``burnish doctor``."""

import asyncio
from typing import TYPE_CHECKING

import typer

from burnish.cli.options import Exit, Home, Json, Url

if TYPE_CHECKING:
    from pathlib import Path

    from burnish.app import Finding
    from burnish.core.settings import Settings

_MARKS = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "problem": "[red]✗[/]"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(home: Home = None, url: Url = None, as_json: Json = False) -> None:
    """Look at the installation and say what to mend; exit status 1 if something must be.

    It is set up as `burnish serve` is, by the same BURNISH_* variables, and works whether or not a server runs.
    """
    from burnish.cli.output import print_json
    from burnish.cli.server import read_settings
    from burnish.core.errors import InvalidRequest

    try:
        settings = read_settings({} if home is None else {"home": home})
    except InvalidRequest as error:
        found = _unusable(error)
    else:
        found = _examine(settings, url)
    broken = any(one.status == "problem" for one in found)
    if as_json:
        print_json({"status": "problem" if broken else "ok", "findings": found})
    else:
        _print(found)
    raise typer.Exit(Exit.FAILED if broken else Exit.DONE)


def _examine(settings: "Settings", url: str | None) -> "list[Finding]":
    from burnish.app import examine, port_finding

    found = asyncio.run(examine(settings))
    return [*found, *(_server(settings, url) or [port_finding(settings)])]


def _server(settings: "Settings", url: str | None) -> "list[Finding]":
    """Ask the server, if one is named or runs on this home; else there is nothing to say of it."""
    from burnish.app import Finding
    from burnish.cli.processes import running_server
    from burnish.client import Client
    from burnish.client.address import living_processes, platform_urls
    from burnish.client.errors import NotReachable
    from burnish.core.errors import BurnishError

    running = running_server(settings.home)
    where = url or next(iter(platform_urls(settings.home)), running.url if running else None)
    others = [one for one in living_processes(settings.home) if one.url != where]
    found = [
        Finding(check="processes", status="ok", message=f"{one.components} runs at {one.url} (pid {one.pid})") for one in others
    ]  # fmt: skip
    if where is None:
        return found
    try:
        with Client(where, home=settings.home) as client:
            ready = client.ready()
    except BurnishError as error:
        said = "; ".join(f"{one.where}: {one.message}" for one in error.problems) or error.message
        gone = "look at its log, and start it again"
        hint = error.hint or (gone if isinstance(error, NotReachable) else "mend that; it is then ready by itself")
        return [*found, Finding(check="server", status="problem", message=f"{where} is not ready: {said}", hint=hint)]
    message = f"{where} is {ready.get('status', 'there')}"
    return [*found, Finding(check="server", status="ok", message=message), *_permitted(where, settings.home)]


def _permitted(where: str, home: "Path") -> "list[Finding]":
    """Whether the API is open to whoever asks here, so that what it lists can be trusted to be whole."""
    from burnish.app import Finding
    from burnish.client import Client
    from burnish.core.errors import BurnishError

    try:
        with Client(where, home=home) as client:
            instances = client.components()
    except BurnishError as error:
        return [
            Finding(
                check="server", status="warning", message=f"it does not say which components it knows: {error.message}",
                hint=error.hint or "give a key that may read them: BURNISH_API_KEY, or burnish login",
            )
        ]  # fmt: skip
    return [Finding(check="server", status="ok", message=f"it knows {len(instances)} instances of components")]


def _unusable(error: "BaseException") -> "list[Finding]":
    from burnish.app import Finding
    from burnish.core.errors import BurnishError

    assert isinstance(error, BurnishError), "what read_settings raises"
    problems = error.problems or ()
    if not problems:
        return [Finding(check="settings", status="problem", message=f"{error.where}: {error.message}", hint=error.hint)]
    return [
        Finding(check="settings", status="problem", message=f"{one.where}: {one.message}", hint=error.hint)
        for one in problems
    ]


def _print(found: "list[Finding]") -> None:
    from rich.markup import escape

    from burnish.cli.output import console

    out = console()
    for one in found:
        out.print(f"{_MARKS[one.status]} [bold]{one.check}[/]: {escape(one.message)}", soft_wrap=True)
        if one.hint and one.status != "ok":
            out.print(f"    {escape(one.hint)}", soft_wrap=True)
    problems = sum(one.status == "problem" for one in found)
    warnings = sum(one.status == "warning" for one in found)
    out.print(f"{problems} to mend, {warnings} to look at, {len(found) - problems - warnings} in order")
