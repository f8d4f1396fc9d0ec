"""Third parties' components as processes of their own, at a real server: registered, away, killed, stopped, checked."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from burnish.core.offers import OWN_ROUTES, route_problem
from tests.support.component_process import ECHO, ComponentRun
from tests.support.server import Answered, Server, running_burnish, wait_for

THIRD = Path(__file__).parents[1] / "support" / "third_party.py"
ECHO_FLOW = yaml.safe_load((ECHO.parent / "echo.yaml").read_text())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_burnish(tmp_path_factory.mktemp("platform") / "home", {"BURNISH_DISK_RESERVE_BYTES": "0"}) as found:
        yield found


@pytest.fixture
def started(server: Server, tmp_path: Path) -> Iterator[Callable[..., ComponentRun]]:
    """Starts components that are ended with the test; each waits until the platform calls it healthy."""
    runs: list[ComponentRun] = []

    def start(script: Path = ECHO, name: str = "one", *arguments: str, **environment: str) -> ComponentRun:
        run = ComponentRun(tmp_path / name, server.url, script=script, environment=environment)
        runs.append(run)
        run.start(*arguments)
        wait_for(lambda: any(one["api_endpoint"] == run.url for one in healthy(server)), 90, run.tail)
        wait_for(lambda: offered(server, script.stem), 90, run.tail)
        return run

    yield start
    for run in runs:
        run.end_everything()
    for one in server.request("GET", "/platform/components?limit=500")["data"]:
        if one["component_type"] in {"echo_metric", "third_party"}:
            with suppress(Answered):  # it may have gone by itself meanwhile
                server.request("DELETE", f"/platform/components/{one['component_id']}")


def healthy(server: Server) -> list[dict[str, Any]]:
    return [
        one for one in server.request("GET", "/platform/components?limit=500")["data"] if one["status"] == "healthy"
    ]


def offered(server: Server, component_type: str) -> bool:
    found = server.request("GET", f"/platform/kinds?component_type={component_type}")["data"]
    return bool(found) and found[0]["away_since"] is None


def run_flow(server: Server, definition: Any, **parameters: Any) -> str:
    body = {"definition": definition, "parameters": parameters}
    return str(server.request("POST", "/platform/workflows/run", body)["workflow_id"])


def one_step(kind: str, component: str = "third_party", **spec: Any) -> dict[str, Any]:
    return {"name": "one", "steps": {"only": {"component": component, "kind": kind, "with": spec}}}


def status(server: Server, workflow_id: str) -> dict[str, Any]:
    found: dict[str, Any] = server.request("GET", f"/platform/workflows/{workflow_id}/status")
    return found


def ended(server: Server, workflow_id: str, timeout: float = 120) -> dict[str, Any]:
    final = {"succeeded", "failed", "cancelled"}
    wait_for(
        lambda: status(server, workflow_id)["status"] in final, timeout, lambda: json.dumps(status(server, workflow_id))
    )
    return status(server, workflow_id)


def problems(server: Server, definition: Any, **parameters: Any) -> dict[str, tuple[str, str | None]]:
    body = {"definition": definition, "parameters": parameters}
    found = server.request("POST", "/platform/workflows/validate", body)
    return {one["where"]: (one["message"], one["hint"]) for one in found["problems"]}


def page(server: Server, path: str) -> str:
    import urllib.request

    with urllib.request.urlopen(server.url + path, timeout=10) as answer:
        return str(answer.read().decode())


def burnish(server: Server, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BURNISH_")}
    command = [sys.executable, "-m", "burnish.cli", *arguments]
    return subprocess.run(
        command,
        env={**environment, "BURNISH_URL": server.url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_its_kinds_are_everywhere_while_it_is_there_and_known_when_it_is_gone(
    server: Server, started: Callable[..., ComponentRun]
) -> None:
    unknown = problems(server, ECHO_FLOW, text="x")
    component = started()
    done = ended(server, run_flow(server, ECHO_FLOW, text="hello"))
    assert [step["result"] for step in done["steps"]] == [
        {"echoed": "hellohello", "characters": 10}, {"echoed": "hellohello", "characters": 10}
    ]  # fmt: skip
    assert "no component 'echo_metric' is running" in unknown["steps.first.component"][0]
    misspelt = {"name": "x", "steps": {
        "a": {"component": "echo_metrik", "kind": "measure"}, "b": {"component": "echo_metric", "kind": "mesure"},
        "c": {"component": "echo_metric", "kind": "measure", "with": {"txet": "x"}},
        "d": {"component": "echo_metric", "kind": "measure", "with": {"text": "${{ steps.c.result.charactrs }}"}},
    }}  # fmt: skip
    found = problems(server, misspelt)
    assert found["steps.a.component"][1] == "did you mean `echo_metric`?"
    assert found["steps.b.kind"][1] == "did you mean `measure`?"
    assert found["steps.c.with.txet"][1] == "did you mean 'text'?"
    assert found["steps.d.with.text"][1] == "did you mean `characters`?"

    kind = server.request("GET", "/platform/kinds/echo_metric/measure")
    assert kind["away_since"] is None
    assert kind["spec_schema"]["required"] == ["text"]
    schemas = server.request("GET", "/openapi.json")["components"]["schemas"]
    assert schemas["echo_metric.measure.spec"]["properties"]["repeat"]["default"] == 1
    assert '<details id="echo_metric/measure">' in page(server, "/api/kinds")
    told = burnish(server, "kinds", "echo_metric/measure")
    assert "Measure an echo" in told.stdout, told.stderr

    assert component.stop() == 0
    assert "Deregistered at" in component.tail()
    known = f"{server.url}/platform/kinds/echo_metric/measure"
    wait_for(lambda: server.request("GET", "/platform/kinds/echo_metric/measure")["away_since"] is not None, 90, known)
    away = problems(server, ECHO_FLOW, text="x")
    assert set(away) == {"steps.first.component", "steps.second.component"}
    assert re.search(
        r"'echo_metric' is known, but away since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", away["steps.first.component"][0]
    )
    with pytest.raises(Answered, match="known, but away") as refused:
        run_flow(server, ECHO_FLOW, text="x")
    assert refused.value.status == 503
    assert "steps.c.with" not in "".join(problems(server, misspelt))  # nobody can be asked about the spec itself
    assert "Away since" in page(server, "/api/kinds")
    assert "away since" in burnish(server, "kinds", "echo_metric").stdout
    started()
    wait_for(lambda: problems(server, ECHO_FLOW, text="x") == {}, 90, "it is back")


def test_a_killed_component_finds_its_jobs_again_and_nothing_is_started_twice(
    server: Server, started: Callable[..., ComponentRun]
) -> None:
    component = started(THIRD)
    workflow_id = run_flow(server, one_step("count", to=200))
    wait_for(lambda: bool(hosts(component)), 90, component.tail)
    host = hosts(component)

    def counted() -> float:
        step = status(server, workflow_id)["steps"][0]
        assert step["progress"] == step["attempts"][0]["progress"]
        return float((step["progress"] or {"done": 0})["done"])

    wait_for(lambda: counted() > 0, 30, "how far it is by its component's word")
    component.kill()

    def waits() -> str:
        return str(status(server, workflow_id)["steps"][0]["attempts"][0].get("waiting_for"))

    wait_for(lambda: "third_party does not answer since" in waits(), 90, waits)
    assert re.search(r"third_party does not answer since \d\d:\d\d:\d\d UTC: .+; trying again", waits())
    assert hosts(component) == host, "the host lives on"
    component.start()
    done = ended(server, workflow_id)
    assert done["status"] == "succeeded", done
    assert done["steps"][0]["result"] == {"counted": 200, "began_at": 0}
    assert done["steps"][0]["attempts"][0]["waiting_for"] is None


def hosts(component: ComponentRun) -> list[int]:
    """Return the processes that run jobs of a component."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"burnish.platform.jobs.host" in command and os.fsencode(component.home) + b"/" in command:
            found.append(int(folder.name))
    return sorted(found)


@pytest.mark.full
def test_sigterm_pauses_what_can_pause_and_the_next_start_goes_on_from_there(
    server: Server, started: Callable[..., ComponentRun]
) -> None:
    component = started(THIRD)
    workflow_id = run_flow(server, one_step("count", to=100))
    wait_for(lambda: bool(hosts(component)), 90, component.tail)
    wait_for(lambda: any(f.stat().st_size for f in component.home.glob("jobs/*/events.jsonl")), 90, component.tail)
    assert component.stop() == 0
    assert not hosts(component)
    component.start()
    done = ended(server, workflow_id)
    assert done["status"] == "succeeded", done
    result = done["steps"][0]["result"]
    assert result["counted"] == 100
    assert result["began_at"] > 0, "it went on from its checkpoint"


def test_a_home_has_one_process_and_one_component(server: Server, started: Callable[..., ComponentRun]) -> None:
    component = started()
    assert f"another process (pid {component.pid})" in component.refused()
    assert component.stop() == 0
    assert "is the home of echo_metric-" in component.refused("--id", "echo-other")
    assert "--port" in component.refused("--port", "99999")
    assert "unrecognized arguments: --prot" in component.refused("--prot", "1")


@pytest.mark.full
def test_it_registers_again_when_it_was_forgotten_and_when_the_platform_comes_back(
    server: Server, started: Callable[..., ComponentRun]
) -> None:
    component = started(ECHO, "one", "--id", "echo-again")
    server.request("DELETE", "/platform/components/echo-again")
    wait_for(lambda: component.tail().count("Registered at") == 2, 60, component.tail)
    wait_for(lambda: any(one["component_id"] == "echo-again" for one in healthy(server)), 90, component.tail)
    server.kill()
    server.start(environment={"BURNISH_PORT": server.url.rpartition(":")[2]})
    wait_for(lambda: any(one["component_id"] == "echo-again" for one in healthy(server)), 60, component.tail)
    assert ended(server, run_flow(server, ECHO_FLOW, text="x"))["status"] == "succeeded"


def test_light_work_own_checks_and_own_routes(
    server: Server, started: Callable[..., ComponentRun], tmp_path: Path
) -> None:
    started(THIRD)
    waiting = run_flow(server, one_step("wait", file=str(tmp_path / "later.txt")))
    step = "later.txt is not there"
    wait_for(lambda: step in json.dumps(status(server, waiting)), 90, lambda: json.dumps(status(server, waiting)))
    (tmp_path / "later.txt").write_text("here I am")
    assert ended(server, waiting)["steps"][0]["result"] == {"text": "here I am"}
    assert problems(server, one_step("count", to=13)) == {"steps.only.with.to": ("13 brings bad luck", "take 12")}
    assert server.request("GET", "/platform/greetings/anna") == {"greeting": "hello anna", "project": "default"}
    document = server.request("GET", "/openapi.json")
    operation = document["paths"]["/platform/greetings/{name}"]["get"]
    assert operation["tags"] == ["third_party"]
    assert operation["operationId"] == "third_party_greet"
    assert "502" in operation["responses"]
    assert "Greeting" in document["components"]["schemas"]


@pytest.mark.full
def test_artifacts_of_a_shared_store_go_in_and_come_out(
    server: Server, started: Callable[..., ComponentRun], tmp_path: Path
) -> None:
    store = (server.home / "artifacts").resolve().as_uri()
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n{"text": "b"}\n')
    source = server.upload("shared", rows)["artifact"]
    component = started(THIRD, "sharing", BURNISH_ARTIFACT_URL=store)
    done = ended(server, run_flow(server, one_step("stamp", source=source)))
    assert done["status"] == "succeeded", done
    result = done["steps"][0]["result"]
    assert result["names"]
    assert (server.home / "artifacts" / "objects" / result["stamped"]["digest"][7:9]).is_dir()
    assert component.stop() == 0
    alone = started(THIRD, "alone")
    found = problems(server, one_step("stamp", source=source))
    assert "there is no artifact" in found["steps.only.with.source"][0]
    missing = {**source, "digest": "sha256:" + "0" * 64}
    assert alone.stop() == 0
    started(THIRD, "sharing", BURNISH_ARTIFACT_URL=store)
    assert "there is no artifact" in problems(server, one_step("stamp", source=missing))["steps.only.with.source"][0]


def test_the_conformance_kit_passes_ours_and_the_example(
    server: Server, tmp_path: Path, started: Callable[..., ComponentRun]
) -> None:
    key = tmp_path / "check.key"
    made = json.loads(burnish(server, "component", "key", str(key), "--json").stdout)
    assert key.stat().st_mode & 0o077 == 0
    assert b'"d"' not in Path(made["jwks"]).read_bytes()
    assert burnish(server, "component", "key", str(key)).returncode == 1
    component = ComponentRun(tmp_path / "echo", server.url, environment={
        "BURNISH_COMPONENT_JWKS": made["jwks"], "BURNISH_ARTIFACT_URL": (tmp_path / "shared").as_uri(),
    })  # fmt: skip
    try:
        component.start("--id", "echo-checked")
        report = checked(server, component.url, key)
        assert {one["verdict"] for one in report["points"]} == {"pass"}, faults(report)
        told = burnish(server, "component", "check", component.url)
        assert told.returncode == 0
        assert "as far as was looked at" in told.stdout
    finally:
        component.end_everything()
    gone = burnish(server, "component", "check", component.url)
    assert gone.returncode == 3
    assert "not_reachable" in gone.stderr


def test_every_route_of_the_platform_is_kept_for_it(server: Server) -> None:
    own = [path for path in server.request("GET", "/openapi.json")["paths"] if not path.startswith(tuple(OWN_ROUTES))]
    assert len(own) > 40
    free = [path for path in own if route_problem(re.sub(r"[{}]", "", path), "third_party", {}) is None]
    assert not free, f"add these to burnish.core.offers.PLATFORM_ROUTES, or a component could take them: {free}"


def test_our_own_components_keep_the_protocol(server: Server, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "film {n}", "label": "{n % 2}"}}\n' for n in range(40)))
    artifact = server.upload("checked", rows)["artifact"]
    jobs = {"data_management": {"kind": "split", "spec": {"dataset": artifact}}}
    types = (
        "data_management",
        "fine_tuning",
        "hyperparameter_optimization",
        "compression",
        "evaluation",
        "model_serving",
    )
    looked_at = {}
    for component_type in types:
        given = [json.dumps(jobs[component_type])] if component_type in jobs else []
        report = checked(server, f"{server.url}/components/{component_type}", server.home / "secret.key", *given)
        assert report["kept"], faults(report)
        looked_at[component_type] = report["counts"]["pass"]
    assert looked_at["data_management"] == len(report["points"]), looked_at  # with a job of its own: every point
    assert min(looked_at.values()) >= 14, looked_at


def checked(server: Server, url: str, key: Path, *jobs: str) -> dict[str, Any]:
    options = [part for job in jobs for part in ("--job", job)]
    done = burnish(server, "component", "check", url, "--key-file", str(key), "--json", *options)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def faults(report: dict[str, Any]) -> list[str]:
    return [f"{one['point']}: {one['seen']}; {one['expected']}" for one in report["points"] if one["verdict"] != "pass"]
