"""The page of kinds: what steps can be made of, drawn from what components say at the moment.

What a component says of itself is text here and never markup.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from burnish.platform.workflow.schemas import KindView

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Burnish: kinds of steps</title>
<link rel="stylesheet" href="/api/assets/reference.css">
</head>
<body>
<header>
  <h1>Kinds of steps</h1>
  <p>What a workflow's steps can be made of: <code>component</code> and <code>kind</code>, and what stands in <code>with</code>.
  <a href="/api">API</a> · <a href="/platform/kinds">as JSON</a> · <a href="/docs/">documentation</a></p>
</header>
<main>
"""


def page_of_kinds(kinds: Sequence[KindView]) -> str:
    """Return the page."""
    parts = [_HEAD]
    for component_type, offered in groupby(kinds, key=lambda one: one.component_type):
        own = list(offered)
        parts.append(f'<h2 id="{escape(component_type)}">{escape(component_type)}</h2>\n')
        if own[0].away_since is not None:
            parts.append(
                f"<p><strong>Away since {own[0].away_since:%Y-%m-%d %H:%M:%S} UTC</strong>: as it was last seen.</p>\n"
            )
        parts += [_kind(one) for one in own]
    return "".join([*parts, "</main>\n</body>\n</html>\n"])


def _kind(kind: KindView) -> str:
    step = f"component: {kind.component_type}\nkind: {kind.name}\nwith: {{...}}"
    return (
        f'<details id="{escape(f"{kind.component_type}/{kind.name}")}"><summary><span class="path">{escape(kind.name)}</span> '
        f'<span class="what">{escape(kind.summary)}</span></summary>\n<div class="inside">\n'
        f"<pre>{escape(step)}</pre>\n<h3>with</h3>\n{_fields(kind.spec_schema)}"
        f"<h3>result</h3>\n{_fields(kind.result_schema)}"
        f"<details><summary>JSON Schemas</summary><pre>{escape(_text(kind))}</pre></details>\n</div></details>\n"
    )


def _fields(schema: Mapping[str, Any]) -> str:
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or not properties:
        return '<p class="dim">no fields that are known</p>\n'
    required = schema.get("required") or ()
    rows = []
    for name, field in properties.items():
        told = field if isinstance(field, Mapping) else {}
        default = f"default {json.dumps(told['default'])}" if "default" in told else ""
        need = "required" if name in required else default
        cells = (
            f"<code>{escape(str(name))}</code>",
            escape(_type(told)),
            escape(need),
            escape(str(told.get("description", ""))),
        )
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n")
    return f"<table>\n{''.join(rows)}</table>\n"


def _type(schema: Mapping[str, Any]) -> str:
    if isinstance(reference := schema.get("$ref"), str):
        return reference.rsplit("/", 1)[-1]
    for word in ("anyOf", "oneOf", "allOf"):
        if isinstance(options := schema.get(word), list):
            return " or ".join(dict.fromkeys(_type(one) for one in options if isinstance(one, Mapping)))
    if isinstance(values := schema.get("enum"), list):
        return ", ".join(json.dumps(one) for one in values)
    if "const" in schema:
        return json.dumps(schema["const"])
    return str(schema.get("type", "any"))


def _text(kind: KindView) -> str:
    return json.dumps({"spec": kind.spec_schema, "result": kind.result_schema}, indent=2, ensure_ascii=False)
