"""``burnish kinds``."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.cli.options import Json, Url

if TYPE_CHECKING:
    from burnish.client import Client


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(kinds)


def kinds(
    kind: Annotated[
        str | None, typer.Argument(metavar="[COMPONENT/KIND]", help="Show the fields of this one, or the kinds of a component.")
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """List what a workflow's steps can be made of: the kinds of every component, ours and third parties'."""
    from burnish.client import Client

    with Client(url) as client:
        if kind is not None and "/" in kind:
            return _show(client, kind, as_json=as_json)
        return _list(client, kind, as_json=as_json)


def _list(client: "Client", component_type: str | None, *, as_json: bool) -> None:
    from burnish.cli.output import ago, print_json, print_table
    from burnish.client import calls, views

    found: list[views.KindView] = []
    after: str | None = None
    while True:
        page = client.send(calls.listing("/platform/kinds", views.KindView, after, 500, component_type=component_type))
        found += page.data
        after = page.next
        if after is None:
            break
    if as_json:
        return print_json({"data": found})
    rows = [
        (
            one.component_type,
            one.name,
            one.summary,
            "" if one.away_since is None else f"away since {ago(one.away_since)}",
        )
        for one in found
    ]
    empty = "no kinds" if component_type is None else f"no component {component_type} is known"
    return print_table(("component", "kind", "what it does", ""), rows, empty=empty)


def _show(client: "Client", kind: str, *, as_json: bool) -> None:
    from burnish.cli.output import console, print_json, print_table
    from burnish.client import calls, views

    component_type, _, name = kind.partition("/")
    path = f"/platform/kinds/{calls.quoted(component_type)}/{calls.quoted(name)}"
    found = views.KindView.model_validate(client.send(calls.get(path)))
    if as_json:
        return print_json(found)
    away = "" if found.away_since is None else f" (away since {found.away_since:%Y-%m-%d %H:%M:%S} UTC)"
    console().print(f"{component_type}/{name}: {found.summary}{away}", markup=False)
    for title, schema in (("with", found.spec_schema), ("result", found.result_schema)):
        required = schema.get("required", ())
        rows = [
            (field, _type(one), "required" if field in required else _default(one), one.get("description", ""))
            for field, one in schema.get("properties", {}).items()
        ]
        print_table((title, "type", "default", ""), rows, empty=f"{title}: no fields that are known")
    return None


def _type(schema: Mapping[str, Any]) -> str:
    if isinstance(reference := schema.get("$ref"), str):
        return reference.rpartition("/")[2]
    options = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    if options:
        return " or ".join(dict.fromkeys(_type(one) for one in options))
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    return str(schema.get("type", "any"))


def _default(schema: Mapping[str, Any]) -> str:
    import json

    return json.dumps(schema["default"]) if "default" in schema else ""
