"""``burnish components``."""

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
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
    from burnish.cli.output import print_json
    from burnish.client import calls
    from burnish.client.views import ComponentView

    found = client.send(calls.get(f"/platform/components/{calls.quoted(component_id)}"))
    return print_json(found) if as_json else _describe(ComponentView.model_validate(found))


def _describe(one: "ComponentView") -> None:
    """Print what is known of one instance: how it is and why, what it is, and what was done about it."""
    from rich.table import Table
    from rich.text import Text

    from burnish.cli.output import ago, console, print_table, state_text

    out = console()
    since = f" since {_moment(one.since)} ({ago(one.since)})" if one.since else ""
    out.print(Text.assemble((one.component_id, "bold"), " is ", state_text(one.status), since), soft_wrap=True)
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in _facts(one):
        facts.add_row(f"  {name}", Text(text))
    out.print(facts)
    if not one.actions:
        return out.print("nothing had to be done about it")
    out.print("what was done about it, the newest last:")
    rows = []
    for action in one.actions:
        at = datetime.fromisoformat(str(action["at"])) if "at" in action else None
        rows.append((_moment(at), ago(at), action.get("action", ""), action.get("cause", "")))
    return print_table(("when", "", "action", "cause"), rows, empty="")


def _facts(one: "ComponentView") -> "Iterator[tuple[str, str]]":
    """Return what there is to say of it, by name."""
    from burnish.cli.output import ago

    health = one.health or {}
    if one.problem:
        yield "why", one.problem + (f" ({one.problem_kind})" if one.problem_kind else "")
    if one.failures:
        yield "checks", f"{one.failures} failed in a row"
    if one.restarts or one.restart_requested_at is not None:
        asked = f"; asked for now, since {_moment(one.restart_requested_at)}" if one.restart_requested_at else ""
        yield "restarts", f"{one.restarts} in this bad spell{asked}"
    if health.get("waiting_for"):
        yield "waits for", str(health["waiting_for"])
    if health:
        jobs = f"; {health.get('running_jobs', 0)} jobs run, {health.get('queued_jobs', 0)} wait"
        yield "load", f"{float(health.get('load', 0.0)):.2f}{jobs}"
    if health.get("warm"):
        yield "warm", ", ".join(health["warm"])
    beat = f"{ago(one.last_heartbeat)}, at {_moment(one.last_heartbeat)}" if one.last_heartbeat else "none yet"
    yield "heartbeat", beat
    yield "type", one.component_type + (f", found as {one.source}" if one.source else "")
    protocol = f", protocol {one.protocol_version}" if one.protocol_version else ", protocol not known yet"
    yield "version", (one.version or "-") + protocol
    yield "kinds", ", ".join(one.kinds) or "none"
    yield "endpoint", one.api_endpoint or "-"
    yield "health at", one.health_endpoint or "-"
    if one.node:
        yield "runs on", _place(one)
    if one.registered_at is not None:
        yield "registered", _moment(one.registered_at)


def _moment(at: datetime | None) -> str:
    return "-" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


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
