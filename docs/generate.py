"""A mkdocs hook: writes the reference pages from the code, so that they cannot be out of date.

The pages exist only in the build. ``python docs/generate.py FOLDER`` writes them into a folder, to look at.
"""

import asyncio
import importlib
import inspect
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

DOCS = Path(__file__).parent
METHODS = ("get", "post", "put", "patch", "delete")


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the generated pages (called by mkdocs)."""
    from mkdocs.structure.files import File

    for path, text in pages():
        old = files.get_file_from_path(path)
        if old is not None:
            files.remove(old)
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> Iterator[tuple[str, str]]:
    """Yield the path and text of every generated page."""
    yield "reference/errors.md", errors()
    yield "reference/states.md", states()
    yield "reference/settings.md", settings()
    yield "reference/configuration.md", configuration()
    yield "reference/permissions.md", permissions()
    yield "reference/component-protocol.md", component_protocol()
    yield "reference/definitions.md", definitions()
    yield "reference/cli.md", command_line()
    yield "reference/api.md", api(openapi())
    yield "decisions/index.md", decisions()


def configuration() -> str:
    """Return the page of everything that can be set while Burnish runs, a section at a time."""
    from burnish.core.configuration import SAME_AS, Configuration, schema

    whole = Configuration.model_json_schema()
    variables = {key: f"`BURNISH_{name.upper()}`" for name, key in SAME_AS.items()}
    parts = [
        "# Configuration", "", "See [how to change it](../how-to/configuration.md).", "",
        "`BURNISH_CONFIGURATION__gateway__max_in_flight=2000` sets `gateway.max_in_flight` for one process alone.", "",
    ]  # fmt: skip
    for section, field in Configuration.model_fields.items():
        about = inspect.getdoc(field.annotation) if field.annotation else None
        head = "| key | type | default | a change | what it sets |\n|---|---|---|---|---|"
        parts += [f"## {section}", "", about or "", "", head]
        for key, one in schema().items():
            if not key.startswith(f"{section}."):
                continue
            notes = [
                "Only administrators see it." if one.sensitive else "",
                f"Also {variables[key]}." if key in variables else "",
            ]
            change = "needs a restart" if one.change == "restart" else "is obeyed at once"
            default = json.dumps(one.default).replace("|", "\\|")
            text = " ".join(part for part in (f"{one.description}.", *notes) if part)
            parts.append(
                f"| `{key}` | {_limits(_property(whole, key), whole)} | `{default}` | {change} | {_cell(text)} |"
            )
        parts.append("")
    return "\n".join(parts)


def _property(whole: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = whole
    for name in key.split("."):
        found = _resolved(found, whole)["properties"][name]
    return found


def _limits(found: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """Return a value's type with its range."""
    if "additionalProperties" in found:
        return f"map of {_limits(found['additionalProperties'], whole)}"
    if "$ref" in found:
        inner = _resolved(found, whole)["properties"]
        return "{" + ", ".join(f"{name}: {_limits(one, whole)}" for name, one in inner.items()) + "}"
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    return " ".join([_type(found), *(f"{word} {found[name]:g}" for name, word in words.items() if name in found)])


def permissions() -> str:
    """Return the page of permissions and roles."""
    from burnish.core.permissions import GIVEN_ROLES, PERMISSIONS, PLATFORM_WIDE, ROLES

    head = f"| permission | allows | {' | '.join(GIVEN_ROLES)} |\n|---|---|{'---|' * len(GIVEN_ROLES)}"
    rows = []
    for name, text in PERMISSIONS.items():
        marks = [("all projects" if name in PLATFORM_WIDE else "yes") if name in ROLES[r] else "" for r in GIVEN_ROLES]
        rows.append(f"| `{name}` | {text} | {' | '.join(marks)} |")
    note = '"all projects": only a role that is bound to every project (`*`) has it.'
    return "\n".join(["# Permissions and roles", "", note, "", head, *rows, ""])


def component_protocol() -> str:
    """Return the page of the component protocol."""
    from burnish.core import protocol
    from burnish.core.states import JOB

    routes = protocol.PROTOCOL
    parts = [
        f"# Component protocol, version {protocol.PROTOCOL_VERSION}", "",
        ("What a component and the platform say to each other over HTTP. Our own components are reached exactly so. "
        "[Write a component](../how-to/write-a-component.md) does it in Python in about 20 lines; any language will do, and "
        "`burnish component check URL` tells whether what runs there keeps to it."), "",
        "| route | takes | answers | |", "|---|---|---|---|",
    ]  # fmt: skip
    parts += [
        f"| [{r.method} `{r.path}`](#{_anchor(r)}) | {_model_link(r.body)} | {_model_link(r.answer)} "
        f"| {'open' if r.open else 'caller token'} |"
        for r in routes
    ]
    parts += ["", *_protocol_rules(), "## Routes", ""]
    for route in routes:
        codes = [200, *(() if route.open else (401,)), *route.errors, 503]
        takes = [f"Body: {_model_link(route.body)}.", ""] if route.body else []
        answer = "a stream of" if route.path.endswith("/events") else "a"
        parts += [
            f"### {route.method} `{route.path}` {{ #{_anchor(route)} }}", "", route.says, "", *takes,
            f"Answers {answer} {_model_link(route.answer)}; statuses {', '.join(map(str, sorted(codes)))}.", "",
        ]  # fmt: skip
    parts += ["## States of a job", "", "| state | can become |", "|---|---|"]
    parts += [f"| `{old}` | {_codes(sorted(new)) or '*(final)*'} |" for old, new in JOB.items()]
    parts += ["", "## Bodies", ""]
    for model in _protocol_models():
        schema = {**model.model_json_schema(), "$schema": "https://json-schema.org/draft/2020-12/schema"}
        parts += [f"### {model.__name__}", "", inspect.cleandoc(model.__doc__ or ""), "", *_field_rows(model), ""]
        parts += [
            '??? note "JSON Schema"',
            "    ```json",
            *(f"    {line}" for line in json.dumps(schema, indent=2).splitlines()),
            "    ```",
            "",
        ]
    return "\n".join(parts)


def _protocol_rules() -> list[str]:
    from burnish.core import offers, protocol
    from burnish.platform.jobs.limits import MAX_BODY_BYTES

    reserved = _codes([*offers.PLATFORM_ROUTES, *offers.OWN_ROUTES])
    return [
        "## Rules", "",
        "**Headers.** What the platform sends with every call:", "",
        "| header | |", "|---|---|",
        f"| `{protocol.CALLER_HEADER}` | who asks, as a token (below); a component believes nothing else |",
        f"| `{protocol.DEADLINE_HEADER}` | Unix time in seconds after which nobody waits: a request that comes later is a 504 and does nothing |",
        f"| `{protocol.TRACE_HEADER}` | W3C trace context; an error carries its trace id as `trace_id` |",
        "| `last-event-id` | where a stream of events goes on |", "",
        ("**Caller tokens** are JWTs, signed with Ed25519 (`alg` EdDSA) by a key of `GET /platform/identity/jwks` (the header's "
        "`kid` names it), valid for a minute. Check the signature, `exp`, `aud` (the component's type) and "
        f"`{protocol.INSTANCE_CLAIM}`, where it is: the `component_id` of the one instance that it was sent to; with any other than "
        "your own it was passed on by that one, and is a 401. (Older platforms leave it out, and for what was found by its address; "
        "older components, which do not look, work on.) Claims besides: `sub` who it is, "
        "`prj` the project, `rol` the roles (`platform`: the engine itself, for whoever submitted the work), `scp` what the "
        "credential is limited to. A caller reaches its own project's jobs: another's is a 404, and a job for another is a 403. "
        "A key that is not known may be new: read the set again before refusing."), "",
        ("**Errors** are `application/problem+json` (RFC 9457) with `code` (see [errors](errors.md)), `detail`, `where`, `hint`, "
        "`problems` and `trace_id`. 429 and 503 carry `Retry-After`, and mean that the same request may succeed later."), "",
        ("**Idempotency.** The platform sends a submission again whenever it cannot know that it arrived, and forgets nothing that "
        "it was promised. So the id decides: same id and spec, same job."), "",
        (f"**Limits.** A body has at most {MAX_BODY_BYTES >> 20} MiB (413); data travels as artifacts. A spec names only those of its "
        "project; a result may name these and what the job has published into the platform's store: any other fails its step."), "",
        ("**Versions.** Unknown fields of a message are ignored, so that a version can grow. A component whose "
        "`protocol_version` is unknown is listed with the reason and gets no work."), "",
        (f"**What a description may say.** At most {offers.MAX_KINDS} kinds, with JSON Schemas of objects of at most "
        f"{offers.MAX_SCHEMA_BYTES >> 10} KiB whose references stay inside; names and texts without control characters; at most "
        f"{offers.MAX_ROUTES} path prefixes under `/platform/` that are neither the platform's ({reserved}) nor another "
        "component's. Whatever breaks a rule is refused with the reason, which `burnish components` shows."), "",
        (f"**What a health may say.** At most {protocol.MAX_WARM:,} names of at most {protocol.MAX_NAME} characters in `warm`, at "
        f"most {protocol.MAX_WAITING_FOR:,} characters in `waiting_for`: more than that is no health, on `/health` as in a heartbeat, "
        "and the instance is listed with the reason. Both are shown only to whoever may see components in every project. A "
        f"registration's `metadata` has at most {protocol.MAX_METADATA_BYTES >> 10} KiB of JSON, at most "
        f"{protocol.MAX_METADATA_DEPTH} levels deep (422)."), "",
        ("**Registering.** `POST /platform/components/register` with a [Registration](#registration) and a key of the role "
        "`component` that is bound to this id and type; then `POST /platform/components/{id}/heartbeat` every few seconds "
        "(404: register again), and `DELETE /platform/components/{id}` at the end. No work comes before `/describe` was read."), "",
    ]  # fmt: skip


def _protocol_models() -> list[type[BaseModel]]:
    from burnish.core import protocol

    named: list[type[BaseModel]] = [
        model for route in protocol.PROTOCOL for model in (route.body, route.answer) if model is not None
    ]
    inner: list[type[BaseModel]] = [protocol.KindOffer, protocol.Progress, protocol.Registration]
    return list(dict.fromkeys([*named, *inner]))


def _anchor(route: Any) -> str:
    words = "".join(one if one.isalnum() else " " for one in f"{route.method} {route.path}")
    return "-".join(words.lower().split())


def _model_link(model: type[BaseModel] | None) -> str:
    return "" if model is None else f"[{model.__name__}](#{model.__name__.lower()})"


def errors() -> str:
    """Return the page of error codes."""
    from burnish.cli.server import PortBusy
    from burnish.client.errors import NotReachable, UnknownError
    from burnish.core.errors import all_errors

    importlib.import_module("burnish.app")  # so that the packages' own errors are known
    at_client = (NotReachable, UnknownError, PortBusy)
    rows = [
        f"| <a id=\"{e.code}\"></a>`{e.code}` | {e.status if e not in at_client else '-'} "
        f"| {'yes' if e.retryable else 'no'} | {_first_paragraph(e)} |"
        for e in all_errors()
    ]  # fmt: skip
    return "\n".join(
        [
            "# Errors", "",
            ("Native routes answer errors as `application/problem+json` (RFC 9457) with these fields besides `title`, `status` and "
            "`detail`: `code` (stable, below), `where` (a path a reader can follow), `hint` (what to do next), `problems` (each "
            "place that is wrong) and `trace_id` (to find it in the logs). Under `/v1` they stand in OpenAI's envelope."), "",
            ("*Again* tells whether the same thing, sent again unchanged, may succeed; `Retry-After` says when. "
            "Codes without a status are raised by the command line or the client."), "",
            "| code | status | again | meaning |", "|---|---|---|---|", *rows, "",
        ]
    )  # fmt: skip


def states() -> str:
    """Return the page of state machines."""
    from burnish.core import states as machines

    parts = ["# States", "", "Every state change is checked against these tables; each is one event in the log.", ""]
    tables: dict[str, Mapping[Any, frozenset[Any]]] = {
        name: value for name, value in vars(machines).items() if name.isupper() and isinstance(value, dict)
    }
    for name, table in tables.items():
        kind = type(next(iter(table)))
        parts += [f"## {name.capitalize()}", "", inspect.getdoc(kind) or "", "", "| state | can become |", "|---|---|"]
        parts += [f"| `{old}` | {_codes(sorted(new)) or '*(final)*'} |" for old, new in table.items()]
        parts += [""]
    return "\n".join(parts)


def settings() -> str:
    """Return the page of settings."""
    from burnish.core.configuration import SAME_AS
    from burnish.core.settings import Settings

    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default_factory or field.default in {None, PydanticUndefined} else f"`{field.default}`"
        text = field.description or ""
        if name in SAME_AS:
            text = f"The process's own value of [`{SAME_AS[name]}`](configuration.md)"
        rows.append(f"| `BURNISH_{name.upper()}` | {default} | {text} |")
    return "\n".join(
        ["# Settings", "", inspect.getdoc(Settings) or "", "",
         ("`burnish serve` takes the most used ones as flags of the same names (`--database-url` is `BURNISH_DATABASE_URL`). "
         "Clients read `BURNISH_URL` and `BURNISH_API_KEY`."), "",
         "| variable | default | meaning |", "|---|---|---|", *rows, ""]
    )  # fmt: skip


def definitions() -> str:
    """Return the page of the definition format and the built-in definitions."""
    from burnish.platform.workflow import definition as form

    parts = [
        "# Workflow definitions",
        "",
        "See [Write a workflow](../how-to/write-a-workflow.md) for how to use them.",
        "",
    ]
    for title, model in (("A parameter", form.Parameter), ("A step", form.Step), ("A step's `retry`", form.Retry)):
        parts += [f"## {title}", "", inspect.getdoc(model) or "", "", *_field_rows(model), ""]
    for file in sorted((Path(form.__file__).parent / "definitions").glob("*.y*ml")):
        shown = form.read(file.read_text(encoding="utf-8"))
        parts += [
            f"## {shown.name}",
            "",
            shown.description.strip(),
            "",
            "| parameter | type | default | |",
            "|---|---|---|---|",
        ]
        parts += [
            f"| `{name}` | {p.type} | {'**required**' if p.required else _value(p.default)} | {_cell(p.description)} |"
            for name, p in shown.parameters.items()
        ]
        parts += ["", "```yaml", file.read_text(encoding="utf-8").rstrip(), "```", ""]
    return "\n".join(parts)


def command_line() -> str:
    """Return the page of commands."""
    from typer.main import get_command

    from burnish.cli.main import app
    from burnish.cli.options import Exit

    root = get_command(app)
    parts = [
        "# Command line",
        "",
        "Every command that talks to a server takes `--url` (`BURNISH_URL`) and `--json`.",
        "",
    ]
    parts += ["| exit status | meaning |", "|---|---|"]
    parts += [f"| {status.value} | {status.name.lower().replace('_', ' ')} |" for status in Exit]
    for name, command in _commands(root, "burnish"):
        parts += ["", f"## {name}", "", inspect.cleandoc(command.help or ""), ""]
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        usage = " ".join(_argument(p) for p in arguments)
        parts += ["```console", f"$ {name} {usage}".rstrip() + (" [OPTIONS]" if command.params else ""), "```", ""]
        parts += [f"- `{_argument(p)}`: {_cell(p.help or '')}" for p in arguments] + [""]
        options = [p for p in command.params if p.param_type_name == "option" and "--help" not in p.opts]
        if options:
            parts += ["| option | variable | |", "|---|---|---|"]
            parts += [
                f"| {_codes([*p.opts, *p.secondary_opts])} | {_codes(_variables(p))} | {_cell(p.help or '')} |"
                for p in options
            ]
    return "\n".join([*parts, ""])


def api(schema: Mapping[str, Any]) -> str:
    """Return the page of routes from the OpenAPI schema."""
    parts = [
        "# HTTP API", "",
        ("A running server has this as `/openapi.json` and, to browse, at `/api`. [Errors](errors.md) have one form; lists are paged "
        "by `after` and `limit`; an `Idempotency-Key` on a POST that creates makes a repetition safe."), "",
    ]  # fmt: skip
    tags: dict[str, list[str]] = {}
    for path, item in schema["paths"].items():
        for method in [one for one in METHODS if one in item]:
            tag = (item[method].get("tags") or ["other"])[0]
            tags.setdefault(tag, []).extend(_operation(method, path, item[method], schema))
    for tag, lines in sorted(tags.items()):
        parts += [f"## {tag}", "", *lines]
    return "\n".join(parts)


def openapi() -> dict[str, Any]:
    """Return the schema that a server with everything answers; one is started on an empty home, without a port."""
    import httpx

    from burnish.app import create_app
    from burnish.core.settings import Settings

    async def ask(folder: Path) -> dict[str, Any]:
        app: Any = create_app(Settings(home=folder, log_level="error"))
        to_app: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        from_app: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        to_app.put_nowait({"type": "lifespan.startup"})
        life = asyncio.create_task(app({"type": "lifespan"}, to_app.get, from_app.put))
        started = asyncio.create_task(from_app.get())
        await asyncio.wait({life, started}, return_when=asyncio.FIRST_COMPLETED)
        if life.done():
            started.cancel()
            life.result()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            answer = await client.get("/openapi.json")
        to_app.put_nowait({"type": "lifespan.shutdown"})
        await life
        return dict(answer.raise_for_status().json())

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(ask(Path(folder)))


def decisions() -> str:
    """Return the index of decisions with a line for each."""
    files = sorted((DOCS / "decisions").glob("[0-9]*.md"))
    titles = [file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ") for file in files]
    lines = [f"- [{title}]({file.name})" for title, file in zip(titles, files, strict=True)]
    text = (DOCS / "decisions" / "index.md").read_text(encoding="utf-8")
    return text.replace("<!-- generated: decisions -->", "\n".join(lines))


def _operation(method: str, path: str, operation: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    lines = [f"### {method.upper()} `{path}`", "", operation.get("summary", ""), ""]
    if description := operation.get("description"):
        lines += [description, ""]
    if parameters := operation.get("parameters"):
        lines += ["| parameter | in | type | |", "|---|---|---|---|"]
        for found in parameters:
            p = _resolved(found, schema)
            name = f"`{p['name']}`" + (" *(required)*" if p.get("required") else "")
            lines.append(f"| {name} | {p['in']} | {_type(p.get('schema', {}))} | {_cell(p.get('description', ''))} |")
        lines += [""]
    for kind, content in (operation.get("requestBody") or {}).get("content", {}).items():
        lines += [f"Body: {_type(content.get('schema', {}))} as `{kind}`.", ""]
        lines += _example(content)
    lines += ["| answer | |", "|---|---|"]
    for status, found in operation.get("responses", {}).items():
        answer = _resolved(found, schema)
        types = {_type(content.get("schema", {})) for content in answer.get("content", {}).values()} - {"any"}
        lines.append(f"| {status} | {_cell(answer.get('description', ''))} {' '.join(sorted(types))} |")
    return [*lines, ""]


def _example(content: Mapping[str, Any]) -> list[str]:
    examples = content.get("examples") or {}
    value = content.get("example") or next((e.get("value") for e in examples.values()), None)
    if value is None:
        value = next(iter(content.get("schema", {}).get("examples", [])), None)
    return [] if value is None else ["```json", json.dumps(value, indent=2, ensure_ascii=False), "```", ""]


def _resolved(value: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in value:
        return value
    found: Any = schema
    for part in value["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return dict(found)


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return f"`{schema['$ref'].rsplit('/', 1)[-1]}`"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_type(part) for part in schema[key]))
    if "enum" in schema:
        return _codes(schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _field_rows(model: type[BaseModel]) -> list[str]:
    properties = model.model_json_schema(by_alias=True).get("properties", {})
    rows = ["| field | type | default | |", "|---|---|---|---|"]
    for name, found in properties.items():
        what = _cell(found.get("description", ""))
        rows.append(f"| `{name}` | {_type(found)} | {_value(found.get('default'))} | {what} |")
    return rows


def _commands(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return str(name) if parameter.required else f"[{name}]"


def _variables(parameter: Any) -> list[str]:
    found = parameter.envvar
    return [] if not found else [found] if isinstance(found, str) else list(found)


def _first_paragraph(subject: type) -> str:
    return _cell((inspect.getdoc(subject) or "").split("\n\n")[0])


def _codes(values: Any) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _value(value: Any) -> str:
    return "" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    for path, text in pages():
        target = Path(sys.argv[1]) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
