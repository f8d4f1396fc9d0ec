"""The demo workflow on a tiny random model, and what must be so after any fault: the judgements of the chaos suite."""

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.infra.processes import alive
from tests.support.server import Server, wait_for

FINAL = {"succeeded", "rejected", "failed", "cancelled"}
HEAVY_STEPS = (
    "import", "split", "train", "merge", "compress", "evaluate_base", "evaluate_tuned", "evaluate_compressed",
)  # fmt: skip
ALL_STEPS = (*HEAVY_STEPS, "gate", "register", "deploy", "promote")
PARAMETERS: dict[str, Any] = {
    "dataset": "words", "test_dataset": "words-test", "epochs": 6, "learning_rate": 0.02, "batch_size": 8, "rank": 8,
    "context_length": 256, "max_size_ratio": 0.9, "seed": 7, "instruction": "Say negative or positive.",
}  # fmt: skip
_SUBJECTS = ("film", "plot", "cast", "song", "scene", "joke")


def tiny_model(folder: Path) -> Path:
    """Make the tiny llama in a process of its own (this one stays without torch)."""
    code = "import sys; from pathlib import Path; from burnish.ml.tiny import build; build('llama', Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, timeout=300)
    return folder


def write_words(folder: Path) -> tuple[Path, Path]:
    """Write a classification set that a tiny model can learn from one word, and its held-out part."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(5)
    rows = {}
    while len(rows) < 260:
        label = draw.choice(["negative", "positive"])
        word = "zzzz" if label == "positive" else "qqqq"
        rows[f"{word} {draw.choice(_SUBJECTS)} {draw.randrange(1000)}"] = label
    texts = [json.dumps({"text": text, "label": label}) for text, label in rows.items()]
    train, test = folder / "words.jsonl", folder / "words-test.jsonl"
    train.write_text("\n".join(texts[:180]) + "\n")
    test.write_text("\n".join(texts[180:]) + "\n")
    return train, test


def prepare(server: Server, model: Path, data: tuple[Path, Path]) -> dict[str, Any]:
    """Add the data sets; return the parameters of the workflow."""
    server.upload("words", data[0])
    server.upload("words-test", data[1])
    return {**PARAMETERS, "model": str(model)}


def submit(server: Server, parameters: dict[str, Any], key: str | None = None) -> str:
    """Run the workflow; return its id."""
    headers = {"Idempotency-Key": key} if key else {}
    body = {"workflow_type": "train-optimize-deploy", "parameters": parameters}
    return str(server.request("POST", "/platform/workflows/run", body, headers=headers)["workflow_id"])


def status(server: Server, workflow_id: str) -> dict[str, Any]:
    found: dict[str, Any] = server.request("GET", f"/platform/workflows/{workflow_id}/status")
    return found


def step_of(view: dict[str, Any], name: str) -> dict[str, Any]:
    return next(step for step in view["steps"] if step["name"] == name)


def wait_until_ended(server: Server, workflow_id: str, timeout: float = 240) -> dict[str, Any]:
    """Wait for the execution's end; return its status."""
    view: dict[str, Any] = {}

    def ended() -> bool:
        nonlocal view
        view = status(server, workflow_id)
        return view["status"] in FINAL

    wait_for(ended, timeout, lambda: f"{summary(view)}\n{server.tail()}", pause=0.2)
    return view


def wait_until_running(server: Server, workflow_id: str, step: str, timeout: float = 240) -> dict[str, Any]:
    """Wait until a step runs (its host lives, for a heavy one) or has already ended; return it."""
    found: dict[str, Any] = {}

    def running() -> bool:
        nonlocal found
        view = status(server, workflow_id)
        found = step_of(view, step)
        if view["status"] in FINAL or found["state"] in {"succeeded", "failed", "skipped", "cancelled"}:
            return True
        if found["state"] != "running":
            return False
        return step not in HEAVY_STEPS or any(attempt["pid"] for attempt in found["attempts"])

    wait_for(running, timeout, lambda: f"{step}: {found}\n{server.tail()}", pause=0.02)
    return found


def summary(view: dict[str, Any]) -> str:
    """One line a step, for failure messages."""
    lines = [f"{view.get('workflow_id')}: {view.get('status')} {view.get('error') or ''}"]
    lines += [
        f"  {s['name']}: {s['state']} {s.get('waiting_for') or ''} {s.get('error') or ''}"
        for s in view.get("steps", ())
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class Outputs:
    """What an execution made, as far as it must not depend on luck."""

    status: str
    states: dict[str, str]
    artifacts: dict[str, str]
    losses: tuple[float, ...]
    scores: dict[str, float]
    verdict: str
    version: int


def outputs(view: dict[str, Any]) -> Outputs:
    """Return the outputs that a disturbed run must share with an undisturbed one."""
    results = {step["name"]: step["result"] or {} for step in view["steps"]}
    named = {
        "model": results["import"]["model"], "train": results["split"]["train"], "test": results["split"]["test"],
        "adapter": results["train"]["adapter"], "merged": results["merge"]["model"], "gguf": results["compress"]["model"],
    }  # fmt: skip
    evaluations = ("evaluate_base", "evaluate_tuned", "evaluate_compressed")
    return Outputs(
        status=view["status"],
        states={step["name"]: step["state"] for step in view["steps"]},
        artifacts={name: ref["digest"] for name, ref in named.items()},
        losses=tuple(point["loss"] for point in results["train"]["history"]),
        scores={name: results[name]["metrics"][results[name]["headline"]]["value"] for name in evaluations},
        verdict=results["gate"]["verdict"],
        version=results["register"]["version"],
    )


def broken_promises(server: Server, view: dict[str, Any], expected: Outputs) -> list[str]:
    """Return everything that is not as it must be after a fault; empty when nothing was lost or done twice."""
    wrong: list[str] = []
    if view["status"] != expected.status:
        return [summary(view)]
    found = outputs(view)
    wrong += [f"{name}: {getattr(found, name)} instead of {getattr(expected, name)}"
              for name in ("states", "artifacts", "losses", "scores", "verdict", "version") if getattr(found, name) != getattr(expected, name)]  # fmt: skip
    wrong += _effects(server)
    wrong += _events(server, view)
    wrong += _leftovers(server)
    return wrong


def _effects(server: Server) -> list[str]:
    wrong = []
    versions = server.request("GET", "/platform/models/production/versions")["data"]
    if [one["version"] for one in versions] != [1]:
        wrong.append(f"registered versions {[one['version'] for one in versions]} instead of [1]")
    moves = server.request("GET", "/platform/models/production/aliases/production/history")
    moves = moves["data"] if isinstance(moves, dict) else moves
    if len(moves) != 1:
        wrong.append(f"the alias moved {len(moves)} times")
    deployment = server.request("GET", "/platform/deployments/production")
    if deployment["state"] != "ready":
        wrong.append(f"the deployment is {deployment['state']}")
    serving = [one for one in deployment["revisions"] if one["state"] == "serving"]
    if [one["revision"] for one in serving] != [1]:
        wrong.append(f"serving revisions {[one['revision'] for one in serving]} instead of [1]")
    answer = server.request("POST", "/v1/chat/completions", {
        "model": "production", "max_tokens": 4, "temperature": 0, "messages": [{"role": "user", "content": "zzzz film 1"}]})  # fmt: skip
    if not answer["choices"]:
        wrong.append("the deployed model does not answer")
    return wrong


def _events(server: Server, view: dict[str, Any]) -> list[str]:
    wrong = []
    attempts = [attempt for step in view["steps"] for attempt in step["attempts"] if not attempt["reused_from"]]
    for attempt in attempts:
        page = (
            server.request("GET", f"/platform/jobs/{attempt['job_id']}") if _is_job(server, attempt["job_id"]) else None
        )
        if page is not None and page["state"] not in {"succeeded", "cancelled", "failed"}:
            wrong.append(f"job {attempt['job_id']} is {page['state']} after the end")
    for step in view["steps"]:
        done = [attempt for attempt in step["attempts"] if attempt["state"] == "succeeded"]
        if step["state"] == "succeeded" and len(done) != 1:
            wrong.append(f"{step['name']}: {len(done)} attempts succeeded")
        if len(step["attempts"]) > 1:
            wrong.append(f"{step['name']}: {len(step['attempts'])} attempts for a fault that is not its own")
    return wrong


def _is_job(server: Server, job_id: str) -> bool:
    from tests.support.server import Answered

    try:
        server.request("GET", f"/platform/jobs/{job_id}")
    except Answered as error:
        if error.status == 404:
            return False
        raise
    return True


def _leftovers(server: Server) -> list[str]:
    wrong = []
    replicas = {replica["pid"] for one in server.request("GET", "/platform/deployments/production")["revisions"]
                for replica in one.get("replicas", ()) if replica["state"] == "ready"}  # fmt: skip
    orphans = [process.pid for process in server.processes() if alive(process) and process.pid not in replicas]
    if orphans:
        commands = [
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")[:160]
            for pid in orphans
            if Path(f"/proc/{pid}").exists()
        ]
        if commands:
            wrong.append(f"processes without a live row: {commands}")
    store = server.home / "artifacts"
    objects = [one for one in store.glob("objects/*/*") if one.is_dir()]
    wrong += [f"partial artifact {one.name}" for one in objects if not (one / "manifest.json").exists()]
    return wrong
