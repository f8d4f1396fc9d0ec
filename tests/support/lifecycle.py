"""The demo workflow on a tiny random model, and what must be so after any fault: the judgements of the chaos suite."""

import contextlib
import http.client
import json
import random
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.core.errors import BurnishError
from burnish.infra.artifact_store.files import FileArtifactStore
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
    rows: dict[str, str] = {}
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


def broken_promises(
    server: Server, view: dict[str, Any], expected: Outputs, *, host_kills: dict[str, int] | None = None
) -> list[str]:
    """Return everything that is not as it must be after a fault; empty when nothing was lost or done twice.

    Args:
        server: running, after the end of the execution.
        view: the ended execution's status.
        expected: what an undisturbed run made.
        host_kills: by step, how often its host was killed; any other new start of a host is a broken promise.
    """
    wrong: list[str] = []
    if view["status"] != expected.status:
        return [summary(view)]
    found = outputs(view)
    wrong += [f"{name}: {getattr(found, name)} instead of {getattr(expected, name)}"
              for name in ("states", "artifacts", "losses", "scores", "verdict", "version") if getattr(found, name) != getattr(expected, name)]  # fmt: skip
    wrong += _effects(server)
    wrong += _training_events(server, view)
    return wrong + broken_run(server, view, host_kills=host_kills or {})


def broken_run(server: Server, view: dict[str, Any], *, host_kills: dict[str, int] | None = None) -> list[str]:
    """Return what is not as it must be after any execution's end: attempts, jobs, events, processes, artifacts.

    Args:
        server: running.
        view: the ended execution's status.
        host_kills: by step, how often its host was killed; None when nobody counted.
    """
    return _attempts(server, view, host_kills) + _told(server, view) + leftovers(server)


def _effects(server: Server) -> list[str]:
    wrong = []
    versions = server.request("GET", "/platform/models/production/versions")["data"]
    if [one["version"] for one in versions] != [1]:
        wrong.append(f"registered versions {[one['version'] for one in versions]} instead of [1]")
    moves = alias_moves(server)
    if len(moves) != 1:
        wrong.append(f"the alias moved {len(moves)} times")
    deployment = server.request("GET", "/platform/deployments/production")
    if deployment["state"] != "ready":
        wrong.append(f"the deployment is {deployment['state']}")
    if [(one["number"], one["state"]) for one in deployment["revisions"]] != [(1, "serving")]:
        wrong.append(f"revisions {[(one['number'], one['state']) for one in deployment['revisions']]}")
    if (replicas := [one["state"] for one in deployment["replicas"]]) != ["ready"]:
        wrong.append(f"replicas {replicas} instead of one")
    if ask(server) == "":
        wrong.append("the deployed model says nothing")
    return wrong


def alias_moves(server: Server, name: str = "production") -> list[dict[str, Any]]:
    """Return the history of the alias ``production``."""
    moves = server.request("GET", f"/platform/models/{name}/aliases/production/history")
    return list(moves["data"] if isinstance(moves, dict) else moves)


def ask(server: Server, text: str = "zzzz film 1") -> str:
    """Return what the deployed model says."""
    content = f"Say negative or positive.\n\n{text}"
    body = {"model": "production", "max_tokens": 4, "temperature": 0, "messages": [{"role": "user", "content": content}]}  # fmt: skip
    return str(server.request("POST", "/v1/chat/completions", body)["choices"][0]["message"]["content"])


def _attempts(server: Server, view: dict[str, Any], host_kills: dict[str, int] | None) -> list[str]:
    wrong = []
    for step in view["steps"]:
        attempts = step["attempts"]
        if step["state"] == "succeeded" and [one["state"] for one in attempts] != ["succeeded"]:
            wrong.append(f"{step['name']}: attempts {[one['state'] for one in attempts]} for a fault not its own")
        for one in attempts:
            if host_kills is not None and one["restarts"] > host_kills.get(step["name"], 0):
                wrong.append(f"{step['name']}: {one['restarts']} restarts, {host_kills.get(step['name'], 0)} kills")
    page = server.request("GET", f"/platform/jobs?workflow_id={view['workflow_id']}&limit=200")
    wrong += [f"job {one['job_id']} is {one['state']} after the end" for one in page["data"]
              if one["state"] not in {"succeeded", "cancelled", "failed"}]  # fmt: skip
    known = {one["job_id"] for step in view["steps"] for one in step["attempts"]}
    wrong += [f"job {one['job_id']} belongs to no attempt" for one in page["data"] if one["job_id"] not in known]
    return wrong


def _told(server: Server, view: dict[str, Any]) -> list[str]:
    """Check that the event log tells the whole story, once."""
    events = read_events(server, view["workflow_id"])
    wrong = []
    states = [(event["data"].get("step"), event["data"]["state"]) for event in events
              if event["type"] == "state" and event["subject"] == view["workflow_id"]]  # fmt: skip
    for step in view["steps"]:
        told = [state for name, state in states if name == step["name"]]
        if told.count(step["state"]) != 1 or told[-1] != step["state"]:
            wrong.append(f"events of {step['name']}: {told}")
    ends = [state for name, state in states if name is None and state in FINAL]
    if ends != [view["status"]]:
        wrong.append(f"the end was told as {ends}")
    wrong += _told_twice(view, events)
    for job_id in {event["subject"] for event in events if event["subject"].startswith("job_")}:
        ended = [event["data"]["state"] for event in events if event["subject"] == job_id
                 and event["type"] == "state" and event["data"]["state"] in FINAL]  # fmt: skip
        if len(ended) != 1:
            wrong.append(f"the end of job {job_id} was told as {ended}")
    return wrong


def _told_twice(view: dict[str, Any], events: list[dict[str, Any]]) -> list[str]:
    """Check that what a host told once stands once in the log: nothing of it is repeated when only servers died."""
    wrong = []
    for attempt in (one for step in view["steps"] for one in step["attempts"] if one["restarts"] == 0):
        told = [json.dumps([event["type"], event["data"]], sort_keys=True) for event in events
                if event["subject"] == attempt["job_id"] and event["type"] in {"artifact", "metric", "checkpoint"}]  # fmt: skip
        if twice := {one for one in told if told.count(one) > 1}:
            wrong.append(f"{attempt['job_id']}: {len(twice)} events stand twice: {sorted(twice)[:2]}")
    return wrong


def _training_events(server: Server, view: dict[str, Any]) -> list[str]:
    """Check that every step of the training was told, with the loss that the result has."""
    wrong = []
    events = read_events(server, view["workflow_id"])
    train = step_of(view, "train")
    metrics = {event["data"]["step"]: event["data"]["values"].get("loss") for event in events
               if event["type"] == "metric" and event["subject"] == train["attempts"][0]["job_id"]}  # fmt: skip
    history = {point["step"]: point["loss"] for point in train["result"]["history"]}
    if lost := sorted(set(history) - set(metrics)):
        wrong.append(f"events of training steps {lost} are lost")
    if other := [step for step in history if step in metrics and metrics[step] != history[step]]:
        wrong.append(f"events of training steps {other} tell another loss than the result")
    return wrong


def read_events(server: Server, workflow_id: str) -> list[dict[str, Any]]:
    """Return all events of an execution that has ended, its jobs' among them."""
    return _read_stream(f"{server.url}/platform/workflows/{workflow_id}/events")


def events_of_job(server: Server, job_id: str) -> list[dict[str, Any]]:
    """Return all events of a job that has ended; none for a step that has no job."""
    try:
        return _read_stream(f"{server.url}/platform/jobs/{job_id}/events")
    except urllib.error.HTTPError as error:
        error.close()
        return []


def _read_stream(url: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return [json.loads(line[6:]) for line in answer if line.startswith(b"data: ")]


class Follower(threading.Thread):
    """A client that follows an execution through every fault, from the last event it saw."""

    def __init__(self, server: Server, workflow_id: str) -> None:
        super().__init__(name="follower", daemon=True)
        self._server = server
        self._workflow_id = workflow_id
        self._stopping = threading.Event()
        self.events: list[dict[str, Any]] = []

    def run(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                self._follow()
            if self.events and _ends(self.events[-1], self._workflow_id):
                return
            self._stopping.wait(0.1)

    def _follow(self) -> None:
        request = urllib.request.Request(f"{self._server.url}/platform/workflows/{self._workflow_id}/events")
        if self.events:
            request.add_header("Last-Event-ID", self.events[-1]["id"])
        with urllib.request.urlopen(request, timeout=15) as answer:
            for line in answer:
                if line.startswith(b"data: ") and line.endswith(b"\n"):
                    self.events.append(json.loads(line[6:]))

    def lost(self) -> list[str]:
        """End it; return how what it saw differs from what is in the log."""
        self.join(30)
        self._stopping.set()
        seen, kept = [e["id"] for e in self.events], [e["id"] for e in read_events(self._server, self._workflow_id)]
        if seen == kept:
            return []
        missing, more = [one for one in kept if one not in set(seen)], len(seen) - len(set(seen))
        return [f"a follower missed {len(missing)} of {len(kept)} events {missing[:5]} and saw {more} twice"]


def _ends(event: dict[str, Any], workflow_id: str) -> bool:
    data = event["data"]
    return (
        event["subject"] == workflow_id and event["type"] == "state" and "step" not in data and data["state"] in FINAL
    )


def leftovers(server: Server, patience: float = 15) -> list[str]:
    """Return processes and files that nobody owns, once what is ending has had its time to end."""
    deadline = time.monotonic() + patience
    while (orphans := _orphans(server)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return orphans + broken_artifacts(server.home / "artifacts")


def _orphans(server: Server) -> list[str]:
    deployments = server.request("GET", "/platform/deployments")["data"]
    replicas = {replica["pid"] for one in deployments for replica in one["replicas"]}
    wrong = []
    for process in server.processes():
        if process.pid not in replicas and alive(process):
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{process.pid}/cmdline").read_bytes().replace(b"\0", b" ")[:200]
                if command.endswith(b"burnish.cli serve "):
                    continue  # the other server of this home
                wrong.append(f"process {process.pid} without a living row: {command.decode(errors='replace')}")
    return wrong


def broken_artifacts(root: Path) -> list[str]:
    """Return the objects of a store that are not whole: every file is hashed."""
    store = FileArtifactStore(root)
    wrong = []
    for folder in sorted(root.glob("objects/*/*")):
        try:
            store.verify(f"sha256:{folder.name}")
        except BurnishError as error:
            wrong.append(f"partial artifact: {error.message}")
    return wrong
