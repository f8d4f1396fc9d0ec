"""A node dies with everything on it: its job ends on another node, with the result that it would have had."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support import lifecycle
from tests.support.postgres import PostgresServer
from tests.support.server import wait_for
from tests.support.split import Split

pytestmark = pytest.mark.postgres

ROLES = {
    "platform": "platform,data_management",
    "tuning-1": "fine_tuning",
    "tuning-2": "fine_tuning",
}  # fmt: skip
QUICKLY = {
    "BURNISH_CONFIGURATION__integrator__lease_seconds": "4",
    "BURNISH_CONFIGURATION__integrator__lost_until_moved_seconds": "2",
    "BURNISH_CONFIGURATION__integrator__probe_seconds": "1",
}


def _train(model: str) -> dict[str, Any]:
    rows = "${{ parameters.dataset.artifact }}"
    return {
        "name": "train", "parameters": {"dataset": {"type": "dataset", "required": True}},
        "steps": {
            "import": {"component": "fine_tuning", "kind": "import_model", "with": {"source": model}},
            "train": {
                "component": "fine_tuning", "kind": "sft", "needs": ["import"],
                "with": {
                    "model": "${{ steps.import.result.model }}", "train": rows, "max_steps": 40, "batch_size": 8,
                    "checkpoint_steps": 5, "seed": 7, "rank": 8,
                },
            },
        },
    }  # fmt: skip


def _run(split: Split, given: dict[str, Any]) -> str:
    body = {"definition": given, "parameters": {"dataset": "words"}}
    return str(split["platform"].request("POST", "/platform/workflows/run", body)["workflow_id"])


def _job(split: Split, workflow_id: str) -> dict[str, Any]:
    page = split["platform"].request("GET", f"/platform/jobs?workflow_id={workflow_id}&limit=10")["data"]
    return next((job for job in page if job["kind"] == "sft"), {})


def _adapter(view: dict[str, Any]) -> str:
    return str(lifecycle.step_of(view, "train")["result"]["adapter"]["digest"])


@pytest.mark.full  # in short, test_split_jobs.py moves a real job off a lost node
def test_a_job_of_a_node_that_dies_ends_elsewhere_with_the_same_result(
    postgres_url: str, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """Breaks with: a job that waits for a node for ever; one that begins anew; checkpoints that only its node has."""
    homes = {"tuning-1": "home1", "tuning-2": "home2"}
    split = Split(tmp_path, postgres_url, None, homes=homes, roles=ROLES, environment=QUICKLY)
    try:
        split.start()
        given = _train(str(lifecycle.tiny_model(tmp_path / "model")))
        split["platform"].upload("words", lifecycle.write_words(tmp_path / "data")[0])
        undisturbed = lifecycle.wait_until_ended(split["platform"], _run(split, given))
        assert undisturbed["status"] == "succeeded", f"{lifecycle.summary(undisturbed)}\n{split.tails()}"
        nodes = {(tmp_path / home / "node").read_text().strip(): name for name, home in homes.items()}
        assert len(nodes) == 2

        workflow_id = _run(split, given)
        wait_for(lambda: (_job(split, workflow_id).get("progress") or {}).get("done", 0) >= 10, 120, split.tails)
        job = _job(split, workflow_id)
        victim = split[nodes[job["node"]]]
        victim.kill()
        for process in victim.processes():
            os.kill(process.pid, signal.SIGKILL)
        moved = lifecycle.wait_until_ended(split["platform"], workflow_id, 180)
        assert moved["status"] == "succeeded", f"{lifecycle.summary(moved)}\n{split.tails()}"
        after = _job(split, workflow_id)
        assert after["node"] != job["node"]
        events = lifecycle.events_of_job(split["platform"], job["job_id"])
        reasons = [str(one["data"].get("reason")) for one in events if one["type"] == "state"]
        assert any("is lost; it goes on elsewhere from its checkpoint at step" in reason for reason in reasons), reasons
        assert _adapter(moved) == _adapter(undisturbed)
        history = lifecycle.step_of(moved, "train")["result"]["history"]
        assert json.dumps(history) == json.dumps(lifecycle.step_of(undisturbed, "train")["result"]["history"])
    finally:
        split.end_everything()
