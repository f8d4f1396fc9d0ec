"""``burnish components``."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from burnish.cli.options import Json, Url

if TYPE_CHECKING:
    from burnish.client import Client
    from burnish.client.views import ComponentView

_WATCH_SECONDS = 2.0
_SHOWN_WARM = 3


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(components)


def components(
    component_id: Annotated[str | None, typer.Argument(help="Show this one alone, with what was done about it.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again and again, until Ctrl-C.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """List the instances of components: how they are, what they wait for, and why one is not healthy."""
    from burnish.client import Client

    with Client(url) as client:
        if component_id is not None:
            return _show(client, component_id, as_json=as_json)
        if not watch:
            return _print(client.components(), as_json=as_json)
        while True:
            _print(client.components(), as_json=as_json, clear=not as_json)
            time.sleep(_WATCH_SECONDS)


def _show(client: "Client", component_id: str, *, as_json: bool) -> None:
    from burnish.cli.output import print_json, print_record
    from burnish.client import calls

    found = client.send(calls.get(f"/platform/components/{calls.quoted(component_id)}"))
    return print_json(found) if as_json else print_record(found)


def _print(found: "Sequence[ComponentView]", *, as_json: bool, clear: bool = False) -> None:
    from burnish.cli.output import ago, console, print_json, print_table, state_text

    if as_json:
        return print_json({"data": found}, lines=clear)
    if clear:
        console().clear()
    rows = [
        (
            one.component_id, one.component_type, state_text(one.status), one.version, _load(one),
            (one.health or {}).get("waiting_for") or "", ago(one.last_heartbeat), _warm(one), _place(one), _problem(one),
        )
        for one in sorted(found, key=lambda one: (one.component_type, one.component_id))
    ]  # fmt: skip
    columns = ("component", "type", "state", "version", "load", "waits for", "heartbeat", "warm", "where", "problem")
    return print_table(columns, rows, empty="no components")


def _load(one: "ComponentView") -> str:
    health = one.health or {}
    jobs = f" ({health['running_jobs']}+{health['queued_jobs']} jobs)" if health.get("running_jobs") or health.get("queued_jobs") else ""  # fmt: skip
    return f"{float(health.get('load', 0.0)):.2f}{jobs}"


def _warm(one: "ComponentView") -> str:
    names = list((one.health or {}).get("warm", ()))
    more = f" +{len(names) - _SHOWN_WARM}" if len(names) > _SHOWN_WARM else ""
    return ", ".join(names[:_SHOWN_WARM]) + more


def _place(one: "ComponentView") -> str:
    """Return the node and pid of one of Burnish's own processes, the address of another's."""
    pid = one.metadata.get("pid")
    if one.node and isinstance(pid, int):
        return f"{one.node} pid {pid}"
    return one.node or one.api_endpoint or ""


def _problem(one: "ComponentView") -> str:
    asked = "its restart is asked for" if one.restart_requested_at is not None else ""
    restarted = f"restarted {one.restarts}x" if one.restarts else ""
    return "; ".join(filter(None, (one.problem, asked, restarted)))
