"""What users send by mistake or worse, through the whole stack: a clear error with place and mend; the server goes on."""

import gzip
import json
import os
import pickle
import struct
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fuzzing import FULL
from tests.support.server import Answered, Server, running_burnish, wait_for

GOOD = b'{"text": "A great movie", "label": "positive"}\n'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # As many cores are declared as let the imports below run at once.
    with running_burnish(tmp_path_factory.mktemp("bad") / "home", {"BURNISH_CPUS": "8"}) as found:
        yield found


@pytest.fixture(autouse=True)
def still_serving(server: Server) -> Iterator[None]:
    """After each of them the same process is ready, and has crashed nowhere."""
    pid = server.pid
    yield
    assert server.request("GET", "/platform/ready")["status"] == "ready"
    assert (server.pid, server.running) == (pid, True)
    assert "Traceback" not in server.tail(100_000)


def refused(server: Server, method: str, path: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    """Send what is wrong; return the status and the problem."""
    with pytest.raises(Answered) as caught:
        server.request(method, path, body, headers={name.replace("_", "-"): value for name, value in headers.items()})
    problem: dict[str, Any] = json.loads(caught.value.text)
    return caught.value.status, problem


def upload(server: Server, data: bytes, **query: str) -> tuple[int, dict[str, Any]]:
    path = "/platform/datasets?" + urllib.parse.urlencode({"filename": "rows.jsonl", "name": "bad", **query})
    return refused(server, "POST", path, data, Content_Type="application/octet-stream")


BOMB = gzip.compress(b'{"text": "%s", "label": "a"}\n' % (b"x" * (4 << 20)) * 20)
"""80 MiB of rows in 80 KiB."""


@pytest.mark.parametrize(
    ("data", "filename", "status", "where", "says"),
    [
        (GOOD + b"{broken\n", "a.jsonl", 422, "line 2", "JSON"),
        (GOOD + b'{"text": "no label"}\n', "a.jsonl", 422, "line 2", "label"),
        (b"colour,size\nred,3\n", "a.csv", 422, "columns", "expected one of"),
        (GOOD + b'{"text": "caf\xe9", "label": "x"}\n', "a.jsonl", 422, "line 2", "UTF-8"),
        (b"", "a.jsonl", 422, "", "empty|no rows"),
        (b"PK\x03\x04 a document", "a.docx", 415, "a.docx", "ZIP"),
        (b"PAR1 and nothing more", "a.parquet", 422, "", "Parquet|parquet"),
        (GOOD + b'{"text": "' + b"x" * (20 << 20), "a.jsonl", 413, "line 2", "line"),
        (BOMB, "a.jsonl.gz", 413, "after decompression", "to 1"),
    ],
    ids=["broken", "incomplete", "columns", "latin1", "empty", "docx", "parquet", "line", "bomb"],
)
def test_a_dataset_that_is_none(server: Server, data: bytes, filename: str, status: int, where: str, says: str) -> None:
    found, problem = upload(server, data, filename=filename)
    places = [problem["where"] or "", *(one["where"] for one in problem["problems"])]
    texts = [problem["detail"], *(one["message"] for one in problem["problems"])]
    assert found == status, problem
    assert any(where in place for place in places), problem
    assert any(word in text for word in says.split("|") for text in texts), problem
    assert problem["hint"] or any(one["hint"] for one in problem["problems"]), problem
    assert refused(server, "GET", "/platform/datasets/bad", None)[0] == 404


def test_a_filename_that_climbs_is_a_name(server: Server, tmp_path: Path) -> None:
    """The path is cut off the name: nothing is written beside the home, and the card names the file alone."""
    before = {path for path in server.home.parent.rglob("*") if server.home not in path.parents}
    path = "/platform/datasets?name=climbs&filename=" + urllib.parse.quote("../../../../evil.jsonl", safe="")
    made = server.request("POST", path, GOOD, headers={"Content-Type": "application/octet-stream"})
    assert made["card"]["source"] == "evil.jsonl"
    assert {path for path in server.home.parent.rglob("*") if server.home not in path.parents} == before
    assert not list(server.home.rglob("evil*"))


def run(server: Server, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    return refused(server, "POST", "/platform/workflows/run", body)


NOOP = {"kind": "noop"}
LEARN = {"model": "no/such-model", "dataset": "nothing", "name": "m"}


@pytest.mark.parametrize(
    ("body", "where", "says"),
    [
        ({"workflow_type": "train-optimize-deploy", "parameters": LEARN}, "parameters.dataset", "nothing"),
        ({"workflow_type": "deploy-model", "parameters": {"model": "/nowhere", "deployment": "d"}},
         "steps.import.with.source", "/nowhere"),
        ({"workflow_type": "deploy-model", "parameters": {"model": "m@7", "deployment": "d"}}, "model", "m"),
        ({"workflow_type": "noop", "parameters": {"valeu": "x"}}, "parameters.valeu", "valeu"),
        ({"definition": {"name": "x", "steps": {"a": {**NOOP, "needs": ["b"]}, "b": {**NOOP, "needs": ["a"]}}}},
         "steps.", "circle"),
        ({"definition": {"name": "x", "steps": {"a": {**NOOP, "needs": ["ghost"]}}}}, "steps.a.needs", "ghost"),
        ({"definition": {"name": "x", "steps": {"a": {**NOOP, "with": {"value": "${{ steps.ghost.result.value }}"}}}}},
         "steps.a.with.value", "ghost"),
        ({"definition": {"name": "x", "steps": {"a": {**NOOP, "with": {"value": "${{ parameters.ghost }}"}}}}},
         "steps.a.with.value", "ghost"),
        ({"definition": {"name": "x", "steps": {"a": {"kind": "nop"}}}}, "steps.a.kind", "nop"),
        ({"definition": {"name": "x", "steps": {"a": {"kind": "sft", "component": "fine_tunning"}}}},
         "steps.a.component", "fine_tunning"),
        ({"definition": "name: x\nsteps: [unclosed"}, "", ""),
        ({"definition": "name: x\nsteps: {a: &a {kind: noop, with: *a}}"}, "", ""),
    ],
    ids=["dataset", "path", "version", "parameter", "cycle", "need", "step", "reference", "kind", "component", "yaml",
         "alias"],
)  # fmt: skip
def test_a_workflow_that_cannot_be_run(server: Server, body: dict[str, Any], where: str, says: str) -> None:
    status, problem = run(server, body)
    assert status == 422, problem
    places = [problem["where"] or "", *(one["where"] for one in problem["problems"])]
    assert any(where in place for place in places), problem
    assert says in json.dumps(problem), problem
    assert problem["hint"] or any(one["hint"] for one in problem["problems"]), problem
    assert server.request("GET", "/platform/workflows")["data"] == []


class Runs:
    """What makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def importing(source: Path) -> dict[str, Any]:
    step = {"component": "fine_tuning", "kind": "import_model", "with": {"source": str(source)}}
    return {"definition": {"name": "bring", "steps": {"import": step}}}


def folder(path: Path, weights: bytes, **config: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    (path / "model.safetensors").write_bytes(weights)
    return path


def weights(shape: int, end: int, data: bytes) -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [shape], "data_offsets": [0, end]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


def test_pickles_are_refused_before_anything_is_accepted(server: Server, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    source = folder(tmp_path / "pickled", b"")
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(pickle.dumps(Runs(ran)))
    for path in (source, source / "pytorch_model.bin"):
        status, problem = run(server, importing(path))
        assert (status, problem["where"]) == (422, "steps.import.with.source"), problem
        assert "pickle" in problem["detail"]
        assert "safetensors" in problem["hint"]
    assert not ran.exists()


def test_models_that_lie_or_bring_code_fail_their_step_and_nothing_else(server: Server, tmp_path: Path) -> None:
    """What only reading shows is the step's error: `bad_model`, not retried, with the file and the mend.

    In short two of them go through the whole stack; test_import_model.py reads many more.
    """
    ran = tmp_path / "ran"
    strange = folder(
        tmp_path / "strange", weights(4, 16, bytes(16)), model_type="strange",
        auto_map={"AutoModelForCausalLM": "modeling_strange.Strange"},
    )  # fmt: skip
    (strange / "modeling_strange.py").write_text(f"import os; os.mkdir({str(ran)!r})")
    gguf = tmp_path / "lies.gguf"
    gguf.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0) + bytes(64))
    disguised = folder(tmp_path / "disguised", pickle.dumps(Runs(ran)))
    sources = {disguised: "safetensors", strange: "trust_remote_code"}
    if FULL:
        short = folder(tmp_path / "short", weights(1 << 40, 16, bytes(16)))
        sources |= {gguf: "tensors", short: "safetensors"}
    ids = {path: server.request("POST", "/platform/workflows/run", importing(path))["workflow_id"] for path in sources}
    for path, says in sources.items():
        view = ended(server, ids[path])
        assert view["status"] == "failed", view
        (step,) = view["steps"]
        assert step["error"]["code"] == "bad_model", step
        assert says in step["error"]["message"], step
        assert str(path) in step["error"]["where"], step
        assert step["error"]["hint"], step
        assert [attempt["number"] for attempt in step["attempts"]] == [1]
    assert not ran.exists()
    assert list((server.home / "artifacts").rglob("*.safetensors")) == []
    assert server.request("POST", "/platform/workflows/run", {"workflow_type": "noop"})["status"] == "pending"


def ended(server: Server, workflow_id: str) -> dict[str, Any]:
    """Wait until an execution has ended; return it."""
    path = f"/platform/workflows/{workflow_id}/status"
    wait_for(
        lambda: server.request("GET", path)["completed_at"] is not None, 90, lambda: str(server.request("GET", path))
    )
    view: dict[str, Any] = server.request("GET", path)
    return view
