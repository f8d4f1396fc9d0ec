"""``burnish config`` at a server: what it says of a change from a dry run to its rollback, and of what is wrong."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from burnish.cli.main import main
from burnish.infra.database import Database
from tests.support.asgi_server import served
from tests.support.configured import Configured, configured

BURST = "gateway.per_key.burst"


@dataclass(frozen=True)
class Said:
    """What a command said, and how it ended."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out or self.err)

    def lines(self) -> list[list[str]]:
        """Return the words of each line."""
        return [line.split() for line in self.out.splitlines()]


@dataclass
class Shell:
    """Where ``burnish config`` is typed."""

    configured: Configured
    url: str
    capsys: pytest.CaptureFixture[str]

    async def config(self, *arguments: str) -> Said:
        """Run a command to its end; no second one at the same time, for what it says is read from this process's output."""
        status = await asyncio.to_thread(self.run, *arguments)
        said = self.capsys.readouterr()
        return Said(status, said.out, said.err)

    def run(self, *arguments: str) -> int:
        with pytest.raises(SystemExit) as caught:
            main(["config", *arguments, "--url", self.url])
        return int(caught.value.code or 0)


@pytest.fixture
async def shell(
    database: Database, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Shell]:
    monkeypatch.setenv("BURNISH_HOME", str(home))
    monkeypatch.setenv("COLUMNS", "200")  # a line of a table is one line, however long ago something was
    async with configured(database, home, environment="production") as found, served(found.app) as url:
        yield Shell(found, url, capsys)


async def test_from_a_dry_run_to_a_rollback(shell: Shell, tmp_path: Path) -> None:
    assert "nothing was set yet" in (await shell.config("versions")).out
    change = ("set", f"{BURST}=7", "jobs.cancel_grace_seconds=3", "--reason", "try")
    dry = await shell.config(*change, "--dry-run")
    for line in (f"{BURST}: (not set) -> 7", "restart needed for jobs.cancel_grace_seconds", "nothing was changed"):
        assert line in dry.out
    assert (await shell.config("versions", "--json")).json()["data"] == []
    assert (await shell.config("get", BURST)).out == "400\n"
    done = await shell.config(*change)
    assert (done.status, "production is at version 1" in done.out) == (0, True)
    assert shell.configured.live.current().gateway.per_key.burst == 7
    assert (await shell.config("get", BURST)).out == "7\n"
    again = (await shell.config(*change, "--json")).json()
    assert (again["version"], again["changed"]) == (1, []), "it is so already"

    told = await shell.config("explain", BURST)
    assert told.out.startswith(f"{BURST} in production: Requests that may come at once; a change is obeyed at once")
    assert ["->", "database", "7", "version", "1", "of", "production", "alice,"] in [line[:8] for line in told.lines()]
    assert ["defaults", "400", "Burnish", "itself"] in told.lines()
    assert ["process", "-"] in told.lines(), "what says nothing is listed, too"
    layers = {one["layer"]: one for one in (await shell.config("explain", BURST, "--json")).json()["layers"]}
    assert {name for name, one in layers.items() if one["won"]} == {"database"}
    assert (layers["database"]["value"], layers["database"]["reason"], layers["file"]["given"]) == (7, "try", False)
    assert "restart" in (await shell.config("explain", "jobs.cancel_grace_seconds")).out

    await shell.config("set", f"{BURST}=9", "--reason", "more")
    listed = await shell.config("versions")
    assert listed.lines()[0] == ["version", "action", "made", "author", "reason", "new", "values"]
    assert [(line[0], line[1], line[-2:]) for line in listed.lines()[1:]] == [
        ("2", "change", ["more", BURST]), ("1", "change", [f"{BURST},", "jobs.cancel_grace_seconds"]),
    ]  # fmt: skip
    assert [one["reason"] for one in (await shell.config("versions", "--json")).json()["data"]] == ["more", "try"]
    assert (await shell.config("diff", "1", "2")).out == f"  {BURST}: 7 -> 9\n"
    assert (await shell.config("diff", "1")).out == f"  {BURST}: 7 -> 9\n", "the newest is the other"
    assert (await shell.config("diff", "2", "2")).out == "no difference\n"
    assert [one["new"] for one in (await shell.config("diff", "0", "1", "--json")).json()["changed"]] == [7, 3]

    exported = await shell.config("export")
    file = tmp_path / "production.yaml"
    file.write_text(exported.out)
    assert "nothing changes" in (await shell.config("import", str(file))).out
    file.write_text(exported.out.replace("burst: 9", "burst: 11"))
    assert f"{BURST}: 9 -> 11" in (await shell.config("import", str(file), "--dry-run")).out
    assert shell.configured.live.current().gateway.per_key.burst == 9
    assert (await shell.config("import", str(file), "--reason", "reviewed", "--json")).json()["version"] == 3
    assert (await shell.config("export", "--version", "2")).out == exported.out
    dry = await shell.config("rollback", "1", "--dry-run")
    assert (f"{BURST}: 11 -> 7" in dry.out, "a dry run" in dry.out) == (True, True)
    assert "production is at version 4" in (await shell.config("rollback", "1", "--reason", "no")).out
    assert (await shell.config("versions")).lines()[1][:2] == ["4", "rollback"]
    assert (await shell.config("get", BURST)).out == "7\n"
    obeyed = (await shell.config("status", "--json")).json()["data"]
    assert [(one["state"], one["versions"]) for one in obeyed] == [("obeys", {"production": 4})]


async def test_what_is_wrong_is_told_with_its_place_and_the_nearest_name(shell: Shell, tmp_path: Path) -> None:
    wrong = await shell.config("set", "gateway.per_key.brust=5", "gateway.max_in_flight=many", "gateway.batch_share=7")
    assert (wrong.status, wrong.out) == (1, "")
    for line in ("set.gateway.per_key.brust", f"did you mean {BURST}?", "set.gateway.max_in_flight", "valid integer"):
        assert line in wrong.err
    places = {
        one["where"]
        for one in (await shell.config("set", "gateway.batch_share=7", "--json")).json()["error"]["problems"]
    }
    assert places == {"set.gateway.batch_share"}
    for command in ("explain", "get"):
        unknown = await shell.config(command, "gateway.per_key.brust")
        assert (unknown.status, f"did you mean {BURST}?" in unknown.err) == (1, True)
    unset = await shell.config("unset", "gatway")
    assert (unset.status, "did you mean gateway" in unset.err) == (1, True)
    file = tmp_path / "wrong.yaml"
    file.write_text("gateway:\n  per_key:\n    burst: many\n")
    imported = await shell.config("import", str(file))
    assert (imported.status, "document:3" in imported.err) == (1, True), imported.err
    absent = await shell.config("import", str(tmp_path / "nowhere.yaml"))
    assert (absent.status, "cannot be read" in absent.err) == (1, True)
    assert (await shell.config("rollback", "9")).status == 1
    assert "there is no version 9 of production" in (await shell.config("diff", "0", "9")).err
    assert (await shell.config("show", "-e", "prod")).status == 1
    assert (await shell.config("versions", "--json")).json()["data"] == [], "none of it was obeyed"


async def test_of_two_writers_at_once_one_is_told_what_the_other_changed(shell: Shell) -> None:
    """Breaks with: an expected version that the command does not pass on."""
    statuses = await asyncio.gather(
        *(asyncio.to_thread(shell.run, "set", f"{BURST}={n}", "--expected-version", "0") for n in (5, 6))
    )
    said = shell.capsys.readouterr()
    won = 5 + statuses.index(0)
    assert sorted(statuses) == [0, 1]
    assert "production is at version 1 by now, by alice, not at 0" in said.err
    assert f"was not set, is {won}" in said.err
    assert (await shell.config("get", BURST)).out == f"{won}\n"
    assert (await shell.config("set", f"{BURST}=8", "--expected-version", "1", "--json")).json()["version"] == 2
    back = await shell.config("rollback", "0", "--expected-version", "1", "--json")
    assert (back.status, back.json()["error"]["code"]) == (1, "conflict")
