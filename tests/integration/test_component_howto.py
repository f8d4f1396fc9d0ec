"""The commands of the page "Write a component", run as they stand there."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.component_process import ECHO, ComponentRun
from tests.support.server import Server, wait_for

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "write-a-component.md"


def commands() -> list[tuple[str, list[str]]]:
    """Return each command of the page with what it says to be printed."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line.removeprefix("$ "), []))
            else:
                found[-1][1].append(line)
    return found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "home", environment={"BURNISH_DISK_RESERVE_BYTES": "0"})
    yield made
    made.end_everything()


def test_the_page_can_be_followed(server: Server, tmp_path: Path) -> None:
    runs: list[ComponentRun] = []
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "examples").symlink_to(ROOT / "examples")
    places = {"http://127.0.0.1:8000": "", "http://127.0.0.1:9001": ""}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BURNISH_")}
    try:
        for command, expected in commands():
            words = [_placed(word, places) for word in shlex.split(command)]
            variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
            program, *arguments = words[len(variables) :]
            if (program, arguments) == ("burnish", ["serve"]):
                server.start()
                places["http://127.0.0.1:8000"] = server.url
                printed = server.tail()
            elif program == "python":
                assert (folder / arguments[0]).resolve() == ECHO
                variables = {name: str(folder / value) for name, value in variables.items()}
                run = ComponentRun(tmp_path / f"component-{len(runs)}", server.url, environment=variables)
                runs.append(run)
                run.start(*_free(arguments[1:]))
                if "--port" in arguments:
                    places["http://127.0.0.1:9001"] = run.url
                wait_for(lambda run=run: "egistered a" in run.tail(), 90, run.tail)  # type: ignore[misc]
                printed = run.tail()
                wait_for(lambda: statuses(server) == ["healthy"], 90)
            else:
                assert program == "burnish", command
                own = {**environment, "BURNISH_HOME": str(server.home)}
                done = subprocess.run(
                    [sys.executable, "-m", "burnish.cli", *arguments], cwd=folder, env=own, capture_output=True,
                    text=True, timeout=120, check=False,
                )  # fmt: skip
                assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
                printed = done.stdout
            for line in expected:
                words = [re.escape(_placed(word, places)) for word in line.split()]
                assert re.search(r"\b.*".join(words), printed), f"{command}\nprinted no {line!r}:\n{printed}"
    finally:
        for run in runs:
            run.end_everything()


def statuses(server: Server) -> list[str]:
    found = server.request("GET", "/platform/components?component_type=echo_metric")["data"]
    return [one["status"] for one in found]


def test_the_component_is_about_twenty_lines() -> None:
    lines = [line for line in ECHO.read_text().splitlines() if line.strip()]
    assert len(lines) <= 22


def _placed(word: str, places: dict[str, str]) -> str:
    for given, real in places.items():
        word = word.replace(given, real or given)
    return word


def _free(arguments: list[str]) -> list[str]:
    """Leave the port out: a free one is taken, as other tests run beside this one."""
    if "--port" not in arguments:
        return arguments
    at = arguments.index("--port")
    return arguments[:at] + arguments[at + 2 :]
