"""`burnish components` over a server that answers from a script."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from burnish.cli.main import main
from tests.support.scripted_server import Answer, Asked, serving

NOW = datetime.now(UTC)


def row(component_id: str, status: str, **more: Any) -> dict[str, Any]:
    return {
        "component_id": component_id, "component_type": "fine_tuning", "name": "fine tuning", "version": "1.2",
        "status": status, "last_heartbeat": (NOW - timedelta(seconds=5)).isoformat(), "metadata": {}, **more,
    }  # fmt: skip


HEALTHY = row(
    "tuning-1", "healthy",
    health={"status": "ok", "load": 0.25, "running_jobs": 2, "queued_jobs": 3, "warm": ["a", "b", "c", "d", "e"]},
    node="gpu-7", metadata={"pid": 4711},
)  # fmt: skip
LOST = row(
    "tuning-2", "lost", problem="nothing listens there", restarts=2, restart_requested_at=NOW.isoformat(),
    last_heartbeat=None,
)  # fmt: skip
WAITING = row(
    "data-1",
    "degraded",
    component_type="data",
    api_endpoint="http://10.0.0.7:9000",
    health={"status": "ok", "waiting_for": "the database"},
)
DETAIL = {
    "since": "2026-11-24T11:00:00Z", "protocol_version": "1.0", "kinds": ["sft", "import_model"], "source": "registered",
    "api_endpoint": "http://10.0.0.8:9000", "health_endpoint": "http://10.0.0.8:9000/health",
    "registered_at": "2026-11-20T08:00:00Z", "actions": [],
}  # fmt: skip


def answer(asked: Asked) -> Answer:
    path = asked.path.partition("?")[0]
    if path == "/platform/components":
        return Answer(body={"data": [LOST, HEALTHY, WAITING], "next": None})
    if path == "/platform/components/tuning-1":
        moment_ago = datetime.now(UTC) - timedelta(seconds=5)  # the file may have been read long before
        return Answer(body={**HEALTHY, **DETAIL, "last_heartbeat": moment_ago.isoformat()})
    if path == "/platform/components/data-1":
        return Answer(body=WAITING | {"problem": "the database", "problem_kind": "degraded"})
    assert path == "/platform/components/tuning-2"
    actions = [
        {"at": "2026-11-24T12:00:05Z", "action": "route_around", "cause": "nothing listens there"},
        {"at": "2026-11-24T12:00:06Z", "action": "restart_requested", "cause": "it [is] silent"},
    ]
    return Answer(body={**LOST, "since": "2026-11-24T12:00:04Z", "failures": 7, "actions": actions})


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("BURNISH_URL", raising=False)
    monkeypatch.setenv("COLUMNS", "220")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return what the command prints."""
    with serving(answer) as server, pytest.raises(SystemExit) as ended:
        main(("components", *arguments, "--url", server.url))
    assert not ended.value.code
    return capsys.readouterr().out


def test_each_instance_is_a_row_by_type_and_id(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks with: a column under another's name, a cause that is left out."""
    head, *lines = printed(capsys).splitlines()
    columns = ("component", "type", "state", "version", "load", "waits for", "heartbeat", "warm", "where", "problem")
    starts = [head.index(column if column != "component" else "component ") for column in columns]
    assert starts == sorted(starts)
    ends = [*starts[1:], None]
    cells = [
        {name: line[a:b].strip() for name, a, b in zip(columns, starts, ends, strict=True)} for line in lines
    ]  # fmt: skip
    assert [one["component"] for one in cells] == ["data-1", "tuning-1", "tuning-2"]
    waiting, healthy, lost = cells
    assert (waiting["type"], waiting["state"], waiting["waits for"]) == ("data", "degraded", "the database")
    assert (healthy["state"], healthy["version"], healthy["load"]) == ("healthy", "1.2", "0.25 (2+3 jobs)")
    assert (healthy["warm"], healthy["waits for"], healthy["problem"]) == ("a, b, c +2", "", "")
    assert healthy["heartbeat"].endswith("ago")
    assert (waiting["where"], healthy["where"], lost["where"]) == ("http://10.0.0.7:9000", "gpu-7 pid 4711", "")
    assert (lost["state"], lost["load"]) == ("lost", "0.00")
    assert lost["problem"] == "nothing listens there; its restart is asked for; restarted 2x"


def facts(text: str) -> dict[str, str]:
    """Return what a description says, by its names."""
    lines = [line for line in text.splitlines() if line.startswith("  ")]
    return {line[2:].partition("  ")[0]: line[2:].partition("  ")[2].strip() for line in lines}


def test_one_is_shown_with_why_and_with_what_was_done_about_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks with: a cause that is left out, a bracket that is taken for markup."""
    text = printed(capsys, "tuning-2")
    assert text.startswith("tuning-2 is lost since 2026-11-24 12:00:04 UTC (")
    found = facts(text)
    assert found["why"] == "nothing listens there"
    assert found["checks"] == "7 failed in a row"
    assert found["restarts"].startswith(f"2 in this bad spell; asked for now, since {NOW:%Y-%m-%d %H:%M:%S} UTC")
    assert found["heartbeat"] == "none yet"
    assert found["kinds"] == "none"
    assert "load" not in found, "it has said nothing of itself"
    done = [line.split("  ") for line in text.splitlines() if "2026-11-24 12:00:0" in line][1:]
    assert [[cell.strip() for cell in row if cell.strip()] for row in done] == [
        ["2026-11-24 12:00:05 UTC", ANY, "route_around", "nothing listens there"],
        ["2026-11-24 12:00:06 UTC", ANY, "restart_requested", "it [is] silent"],
    ]
    assert "tuning-1" not in text


def test_one_that_is_well_is_shown_with_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "tuning-1")
    assert text.startswith("tuning-1 is healthy since 2026-11-24 11:00:00 UTC (")
    found = facts(text)
    age = found.pop("heartbeat")
    assert re.fullmatch(r"\d+(\.\d)? s ago, at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", age)
    assert found == {
        "load": "0.25; 2 jobs run, 3 wait", "warm": "a, b, c, d, e", "type": "fine_tuning, found as registered",
        "version": "1.2, protocol 1.0", "kinds": "sft, import_model", "endpoint": "http://10.0.0.8:9000",
        "health at": "http://10.0.0.8:9000/health", "runs on": "gpu-7 pid 4711", "registered": "2026-11-20 08:00:00 UTC",
    }  # fmt: skip
    assert text.endswith("nothing had to be done about it\n")


def test_one_that_waits_says_for_what(capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(printed(capsys, "data-1"))
    assert (found["why"], found["waits for"]) == ("the database (degraded)", "the database")
    assert found["version"] == "1.2, protocol not known yet"


def test_programs_get_json(capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(printed(capsys, "--json"))["data"]
    assert {one["component_id"]: one["status"] for one in data} == {
        "tuning-1": "healthy", "tuning-2": "lost", "data-1": "degraded"
    }  # fmt: skip
    one = json.loads(printed(capsys, "tuning-2", "--json"))
    assert (one["problem"], one["actions"]) == (
        "nothing listens there", [ANY, ANY]
    )  # fmt: skip
    assert one["actions"][1]["cause"] == "it [is] silent"
