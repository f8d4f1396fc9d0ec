"""The judgement itself: what is broken, or no better, is never promoted, and what is in production stays.

Every test goes on from a copy of an undisturbed run: version 1 is in production there, and serves.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from burnish.infra.artifact_store.files import FileArtifactStore
from tests.support import branches, lifecycle
from tests.support.places import Material, Place, Reference
from tests.support.server import Server, wait_for


@pytest.fixture
def served(sqlite_place: Place, reference: Reference) -> Iterator[Server]:
    """A server over a copy of the undisturbed run's home, whose deployment is ready."""
    shutil.copytree(
        reference.home, sqlite_place.home, dirs_exist_ok=True, ignore=shutil.ignore_patterns("run", "*.log")
    )
    server = sqlite_place.server().start()
    wait_for(lambda: _ready(server), 60, server.tail)
    yield server
    server.end_everything()


def _ready(server: Server) -> bool:
    return bool(server.request("GET", "/platform/deployments/production")["state"] == "ready")


def _untouched(server: Server, reference: Reference) -> None:
    """Version 1 is in production as before, and answers as before."""
    assert [one["new_version"] for one in lifecycle.alias_moves(server)] == [1]
    deployment = server.request("GET", "/platform/deployments/production")
    assert (deployment["state"], deployment["serving"]) == ("ready", 1)
    assert lifecycle.ask(server) == reference.answer
    assert lifecycle.leftovers(server) == []


def _flip(root: Path, digest: str) -> None:
    """Flip bytes in the middle of an object's largest file."""
    name = digest.removeprefix("sha256:")
    files = (root / "objects" / name[:2] / name / "files").rglob("*")
    path = max((path for path in files if path.is_file()), key=lambda path: path.stat().st_size)
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        old = stream.read(64)
        stream.seek(-len(old), os.SEEK_CUR)
        stream.write(bytes(255 - byte for byte in old))


def _take_away(root: Path, digest: str) -> None:
    """Remove an object that a test damaged, so that the others can be judged."""
    name = digest.removeprefix("sha256:")
    folder = root / "objects" / name[:2] / name
    for current, _, _ in os.walk(folder):
        Path(current).chmod(0o700)
    shutil.rmtree(folder)


def _ref(reference: Reference, name: str, kind: str = "gguf") -> dict[str, Any]:
    return {"digest": reference.outputs.artifacts[name], "kind": kind}


def _release(model: dict[str, Any], asked_before: str) -> dict[str, Any]:
    """Return register, deploy and promote, with a person asked before one of them."""
    steps: dict[str, Any] = {
        "register": {"kind": "register", "with": {"name": "production", "model": model}},
        "deploy": {"component": "model_serving", "kind": "deploy", "with": {
            "deployment": "production", "model": "${{ steps.register.result.artifact }}", "context_length": 256,
            "model_version": "${{ steps.register.result.reference }}"}},
        "promote": {"kind": "promote", "with": {
            "name": "production", "version": "${{ steps.register.result.version }}",
            "deployment": "${{ steps.deploy.result }}"}},
    }  # fmt: skip
    names = list(steps)
    before = names[names.index(asked_before) - 1 : names.index(asked_before)]
    steps["ask"] = {"kind": "approve", "needs": before}
    steps[asked_before]["needs"] = ["ask"]
    return {"name": "release", "steps": steps}


@pytest.mark.parametrize("moment", ["register", "deploy"])
def test_bytes_flipped_after_the_judgement_are_not_served(served: Server, reference: Reference, moment: str) -> None:
    """The uncompressed model is to replace the compressed one; its file changes while a person is asked.

    Breaks with: an artifact opened without its hash, a check that trusts an earlier one, an alias that moves before
    the deployment serves.
    """
    model = _ref(reference, "merged")
    workflow_id = branches.run(served, _release(model, moment))
    wait_for(
        lambda: lifecycle.step_of(lifecycle.status(served, workflow_id), "ask")["state"] == "running", 30, served.tail
    )
    _flip(served.home / "artifacts", model["digest"])
    served.request("POST", f"/platform/workflows/{workflow_id}/steps/ask/approve", {"approved": True})
    view = lifecycle.wait_until_ended(served, workflow_id, 90)
    assert view["status"] == "failed", lifecycle.summary(view)
    assert lifecycle.step_of(view, moment)["error"]["code"] == "artifact_corrupt", lifecycle.summary(view)
    assert lifecycle.step_of(view, "promote")["state"] != "succeeded"
    _take_away(served.home / "artifacts", model["digest"])
    _untouched(served, reference)


def test_flipped_bytes_fail_before_they_are_measured(served: Server, reference: Reference) -> None:
    """Breaks with: an evaluation that opens its model without its hash."""
    model = _ref(reference, "merged")
    _flip(served.home / "artifacts", model["digest"])
    given = {"name": "measure", "steps": {
        "evaluate": {"component": "evaluation", "kind": "evaluate", "with": {
            "model": model, "dataset": _ref(reference, "test", "dataset"), "context_length": 256}},
        "promote": {"kind": "promote", "needs": ["evaluate"], "with": {"name": "production", "version": 1}}}}  # fmt: skip
    view = lifecycle.wait_until_ended(served, branches.run(served, given), 90)
    assert view["status"] == "failed", lifecycle.summary(view)
    assert lifecycle.step_of(view, "evaluate")["error"]["code"] == "artifact_corrupt", lifecycle.summary(view)
    _take_away(served.home / "artifacts", model["digest"])
    _untouched(served, reference)


def test_a_model_whose_weights_are_garbage_does_not_pass_the_gate(
    served: Server, sqlite_place: Place, reference: Reference
) -> None:
    """It was published like that, so its digest is right: only what it answers can tell.

    Breaks with: a gate that passes what it could not tell apart, a rejected execution that goes on to register.
    """
    store = FileArtifactStore(served.home / "artifacts")
    staged = store.stage("garbage")
    shutil.copytree(store.open(reference.outputs.artifacts["gguf"]), staged, dirs_exist_ok=True)
    staged.chmod(0o755)
    weights = max((path for path in staged.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    weights.chmod(0o644)
    with weights.open("r+b") as stream:
        stream.seek(-(weights.stat().st_size // 3), os.SEEK_END)
        stream.write(b"\x2e" * (weights.stat().st_size // 3))  # as q8_0 blocks: finite scales, equal weights
    published = store.publish(staged, "gguf")
    sqlite_place.make_known(published)
    garbage = published.model_dump(mode="json")
    steps: dict[str, Any] = {
        name: {"component": "evaluation", "kind": "evaluate", "with": {
            "model": model, "dataset": _ref(reference, "test", "dataset"), "context_length": 256, "label": name}}
        for name, model in (("tuned", _ref(reference, "gguf")), ("candidate", garbage))
    }  # fmt: skip
    steps["gate"] = {"kind": "gate", "with": {
        "candidate": "candidate", "artifact": garbage,
        "evaluations": {name: f"${{{{ steps.{name}.result }}}}" for name in ("tuned", "candidate")},
        "rules": [{"type": "not_worse", "than": "tuned", "margin": 0.05}]}}  # fmt: skip
    steps["register"] = {"kind": "register", "needs": ["gate"], "with": {"name": "production", "model": garbage}}
    view = lifecycle.wait_until_ended(served, branches.run(served, {"name": "garbage", "steps": steps}), 120)
    assert view["status"] == "rejected", lifecycle.summary(view)
    assert lifecycle.step_of(view, "gate")["result"]["verdict"] == "fail"
    assert lifecycle.step_of(view, "register")["state"] != "succeeded"
    versions = served.request("GET", "/platform/models/production/versions")["data"]
    assert [one["version"] for one in versions] == [1]
    _untouched(served, reference)


def test_a_training_of_no_steps_is_not_promoted(served: Server, reference: Reference, material: Material) -> None:
    """Breaks with: a gate that takes equal for better, or that compares with the tuned model alone."""
    parameters = {**lifecycle.PARAMETERS, "model": str(material.model), "max_steps": 0}
    view = lifecycle.wait_until_ended(served, lifecycle.submit(served, parameters), 240)
    assert view["status"] == "rejected", lifecycle.summary(view)
    gate = lifecycle.step_of(view, "gate")
    assert gate["result"]["verdict"] != "pass"
    assert view["error"]["hint"]
    assert lifecycle.step_of(view, "import")["reused"]  # unchanged since the run that went before
    assert {lifecycle.step_of(view, name)["state"] for name in ("register", "deploy", "promote")} <= {"skipped", "cancelled", "waiting"}  # fmt: skip
    _untouched(served, reference)
