"""`burnish components` over a server that answers from a script."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

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


def answer(asked: Asked) -> Answer:
    path = asked.path.partition("?")[0]
    if path == "/platform/components":
        return Answer(body={"data": [LOST, HEALTHY, WAITING], "next": None})
    assert path == "/platform/components/tuning-2"
    return Answer(body={**LOST, "actions": [{"action": "restart", "cause": "it is silent"}]})


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


def test_one_is_shown_with_what_was_done_about_it(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "tuning-2")
    assert "problem: nothing listens there" in text
    assert "cause: it is silent" in text
    assert "tuning-1" not in text


def test_programs_get_json(capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(printed(capsys, "--json"))["data"]
    assert {one["component_id"]: one["status"] for one in data} == {
        "tuning-1": "healthy", "tuning-2": "lost", "data-1": "degraded"
    }  # fmt: skip
    one = json.loads(printed(capsys, "tuning-2", "--json"))
    assert (one["problem"], one["actions"]) == (
        "nothing listens there", [{"action": "restart", "cause": "it is silent"}]
    )  # fmt: skip
