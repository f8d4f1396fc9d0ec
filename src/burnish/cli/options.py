"""Options that many commands share, and the exit statuses."""

from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Exit(IntEnum):
    """Exit statuses; documented in the CLI reference."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_REACHABLE = 3
    WORKFLOW_FAILED = 4
    REJECTED = 5
    INTERRUPTED = 130


ADDRESSED: dict[str, str] = {}
"""The home and the server that this command line named, as the environment variables that would name them."""


def _named(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> Any:
    source = context.get_parameter_source(parameter.name or "")
    if value and source is not None and source.name == "COMMANDLINE":
        variable = {"home": "BURNISH_HOME", "url": "BURNISH_URL"}[parameter.name or ""]
        ADDRESSED[variable] = str(value.absolute() if isinstance(value, Path) else value)
    return value


Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Url = Annotated[
    str | None,
    typer.Option("--url", envvar="BURNISH_URL", help="The server; by default the one that runs on this home.", show_default=False, callback=_named),
]  # fmt: skip
Home = Annotated[
    Path | None,
    typer.Option("--home", envvar="BURNISH_HOME", help="Where everything lives; ~/.burnish by default.", show_default=False, callback=_named),
]  # fmt: skip
Limit = Annotated[int, typer.Option("--limit", min=1, max=500, help="At most this many.")]
After = Annotated[str | None, typer.Option("--after", help="Go on from this cursor (`next` of the page before).")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A parameter; the value is read as YAML, and ./file is a path from here. May be given often.",
    ),
]
SetFile = Annotated[
    Path | None, typer.Option("--set-file", exists=True, dir_okay=False, help="A YAML or JSON file of parameters.")
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Watch it until it ends.")]
