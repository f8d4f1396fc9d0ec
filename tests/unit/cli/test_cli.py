import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from burnish.cli import follow, output
from burnish.cli.main import main
from burnish.cli.output import print_table
from burnish.cli.parameters import read_parameters
from burnish.cli.summary import step_lines
from burnish.client import Client, ExecutionView
from burnish.core.errors import InvalidRequest
from tests.support.scripted_server import Answer, Asked, Script, serving

WORKFLOW = "wf_1"
STEP = {"name": "train", "state": "running", "component": "fine_tuning", "kind": "sft", "attempts": []}


def execution(status: str, *steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "workflow_id": WORKFLOW, "workflow_type": "t", "status": status, "parameters": {},
        "steps": [{**STEP, **step} for step in steps], **more,
    }  # fmt: skip


def run(*arguments: str) -> int:
    """Run the command line in this process and return its exit status."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    code = ended.value.code
    return int(code) if isinstance(code, int) else 0 if code is None else 1


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("BURNISH_URL", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "home"


def test_help_lists_every_command_and_is_quick() -> None:
    best = min(timed_help() for _ in range(3))
    assert best < 0.5, f"`burnish --help` took {best:.2f} s of CPU"


def timed_help() -> float:
    """Return the processor seconds that it takes: what it costs, however busy the machine is."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "burnish.cli", "--help"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    for name in (
        "serve",
        "demo",
        "submit",
        "list",
        "show",
        "logs",
        "cancel",
        "retry",
        "fork",
        "dataset",
        "model",
        "chat",
    ):
        assert name in done.stdout
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, burnish.cli.main; "
        "print([m for m in ('httpx', 'uvicorn', 'pydantic', 'rich.live', 'fastapi', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("shell", "mark"), [("bash", "complete -o"), ("zsh", "#compdef burnish")])
def test_completion_is_printed_and_completes(shell: str, mark: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("completion", shell) == 0
    assert mark in capsys.readouterr().out
    environment = dict(
        os.environ, _BURNISH_COMPLETE=f"complete_{shell}", COMP_WORDS="burnish dep", COMP_CWORD="1",
        _TYPER_COMPLETE_ARGS="burnish dep",
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", "from burnish.cli.main import main; main()"], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert "deployment" in done.stdout


def test_the_bash_script_completes_in_bash() -> None:
    script = (
        f'export PATH={Path(sys.executable).parent}:$PATH; eval "$(burnish completion bash)"; '
        'COMP_WORDS=(burnish dataset ""); COMP_CWORD=2; _burnish_completion burnish; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["add", "list", "show", "preview"]


def test_wrong_usage_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("submit") == 2
    assert run("no-such-command") == 2
    assert capsys.readouterr().out == ""


def test_no_server_is_3_and_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "--url", "http://127.0.0.1:9") == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert "no Burnish server answers at http://127.0.0.1:9" in said.err
    assert "burnish serve" in said.err


def test_an_error_says_what_where_and_next(capsys: pytest.CaptureFixture[str]) -> None:
    problem = {
        "detail": "the definition cannot be run", "code": "invalid_request", "where": "parameters.rank", "hint": "mend it",
        "problems": [{"where": "parameters.rank", "message": "is text", "hint": "write a number"}],
    }  # fmt: skip
    with serving(lambda _: Answer(422, problem)) as server:
        assert run("submit", "train", "--url", server.url) == 1
        said = capsys.readouterr()
        for part in (
            "the definition cannot be run",
            "invalid_request",
            "parameters.rank",
            "is text",
            "write a number",
            "mend it",
        ):
            assert part in said.err
        assert run("submit", "train", "--url", server.url, "--json") == 1
        said = capsys.readouterr()
    assert json.loads(said.err)["error"]["problems"][0]["message"] == "is text"
    assert said.out == ""


def test_set_values_are_yaml_and_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "given.yaml"
    file.write_text("rank: 4\nname: from file\n")
    pairs = [
        "rank=8",
        "rate=1e-3",
        "flag=true",
        "names=[a, b]",
        'text="1.0"',
        "empty=",
        "path=./a=b",
    ]
    assert read_parameters(file, pairs) == {
        "rank": 8, "name": "from file", "rate": 0.001, "flag": True, "names": ["a", "b"], "text": "1.0", "empty": "",
        "path": "./a=b",
    }  # fmt: skip
    with pytest.raises(InvalidRequest) as caught:
        read_parameters(None, ["rank", "x=[1"])
    assert [problem.where for problem in caught.value.problems] == ["--set rank", "--set x"]


def test_submit_prints_the_id_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    definition = tmp_path / "own.yaml"
    definition.write_text("name: own\nsteps: {a: {kind: noop}}\n")
    with serving(lambda _: Answer(body={"workflow_id": WORKFLOW, "status": "pending"})) as server:
        assert run("submit", str(definition), "--set", "n=3", "--url", server.url, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"workflow_id": WORKFLOW, "status": "pending"}
    assert server.asked[0].json() == {
        "definition": {"name": "own", "steps": {"a": {"kind": "noop"}}}, "parameters": {"n": 3},
    }  # fmt: skip


def lives(*views: dict[str, Any]) -> Script:
    """Answer each look at the status with the next view, the last one for ever; events say that something changed."""
    left = list(views)

    def script(asked: Asked) -> Answer:
        if asked.path.endswith("/events"):
            return Answer(lines=[": keep-alive", ""])
        return Answer(body=left.pop(0) if len(left) > 1 else left[0])

    return script


def test_logs_are_those_of_the_jobs_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """A step that was re-used has another execution's job; one that was refused has none.

    Breaks with: the first job that is not found ends the printing.
    """

    def step(name: str, **attempt: Any) -> dict[str, Any]:
        one = {"number": 1, "state": "succeeded", **attempt}
        return {"name": name, "component": "worker", "kind": "work", "state": "succeeded", "attempts": [one]}

    steps = [step("import", job_id="job_new", reused_from="job_old"), step("train", job_id="job_refused")]

    def script(asked: Asked) -> Answer:
        if asked.path.endswith("/status"):
            return Answer(body={**execution("failed"), "steps": steps})
        if "job_old" in asked.path:
            return Answer(body={"data": [{"at": "2026-11-25T01:02:03Z", "level": "info", "message": "imported"}]})
        return Answer(404, {"title": "Not Found", "status": 404, "detail": "there is no such job", "code": "not_found"})

    with serving(script) as server:
        assert run("logs", WORKFLOW, "--url", server.url) == 0
    said = capsys.readouterr().out
    assert "import" in said
    assert "imported" in said


@pytest.mark.parametrize(("status", "code"), [("succeeded", 0), ("failed", 4), ("cancelled", 4), ("rejected", 5)])
def test_follow_ends_with_a_status_for_each_ending(status: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    progress = {"done": 12, "total": 40, "metrics": {"loss": 0.51234, "examples_per_second": 9.8}, "seconds_left": 65}
    views = (execution("running", {"progress": progress}), execution(status, {"state": "succeeded"}))
    with serving(lives(*views)) as server:
        assert run("show", WORKFLOW, "--follow", "--url", server.url) == code
    said = capsys.readouterr().out
    assert "12/40 steps  loss 0.512  9.8 examples/s  1 min 05 s left" in said
    assert f"{WORKFLOW} {status}" in said


def test_follow_is_never_silent_and_waits_for_a_server_that_restarts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "SILENCE", 0.2)
    looks = 0

    def script(asked: Asked) -> Answer:
        nonlocal looks
        if asked.path.endswith("/events"):
            return Answer(503, {"detail": "starting", "code": "unavailable"})
        looks += 1
        if looks in {2, 3, 4}:
            return Answer(503, {"detail": "starting", "code": "unavailable"})
        return Answer(body=execution("running" if looks < 5 else "succeeded", {}))

    with serving(script) as server, Client(server.url) as client:
        view = follow.follow(client, WORKFLOW)
    assert view.status == "succeeded"
    assert "the server has not answered for" in capsys.readouterr().out


def test_follow_as_json_prints_events_and_ends_with_the_execution(capsys: pytest.CaptureFixture[str]) -> None:
    event = {
        "id": "1",
        "subject": WORKFLOW,
        "type": "state",
        "at": "2026-01-01T00:00:00Z",
        "data": {"state": "succeeded"},
    }

    def script(asked: Asked) -> Answer:
        if asked.path.endswith("/events"):
            return Answer(lines=[f"data: {json.dumps(event)}", ""])
        return Answer(body=execution("succeeded", {"state": "succeeded"}))

    with serving(script) as server:
        assert run("show", WORKFLOW, "--follow", "--json", "--url", server.url) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["event"]["data"] == {"state": "succeeded"}
    assert lines[-1]["execution"]["status"] == "succeeded"


def test_show_prints_what_failed_and_what_next(capsys: pytest.CaptureFixture[str]) -> None:
    error = {
        "code": "bad_data",
        "message": "line 17 has no label",
        "hint": "add one",
        "where": "line 17",
        "problems": [],
    }
    view = execution("failed", {"state": "failed", "error": error}, {"name": "deploy", "state": "skipped"})
    with serving(lambda _: Answer(body=view)) as server:
        assert run("show", WORKFLOW, "--url", server.url) == 0
    said = capsys.readouterr().out
    for part in ("line 17 has no label", "add one", "bad_data", "skipped"):
        assert part in said


def test_a_job_that_is_waited_for_is_called_by_its_step() -> None:
    attempt = {"job_id": "job_abc", "number": 1, "state": "running"}
    waits = {"name": "split", "waiting_for": "waits for 1 cpu; job_abc holds 2, job_other holds 1"}
    view = ExecutionView.model_validate(execution("running", {"attempts": [attempt]}, waits))
    assert step_lines(view)["split"] == "waits for 1 cpu; train holds 2, job_other holds 1"


def test_the_live_table_draws_every_state() -> None:
    states = ("waiting", "running", "retrying", "succeeded", "failed", "skipped", "cancelled")
    view = ExecutionView.model_validate(execution("running", *[{"name": state, "state": state} for state in states]))
    console = output.console()
    with console.capture() as captured:
        console.print(follow.LiveTable(view).render())
    for state in states:
        assert state in captured.get()


def test_chat_prints_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    chunk = {"choices": [{"delta": {"content": "positive"}, "finish_reason": "stop"}]}
    with serving(lambda _: Answer(lines=[f"data: {json.dumps(chunk)}", "", "data: [DONE]", ""])) as server:
        assert run("chat", "production", "good?", "--url", server.url) == 0
    assert capsys.readouterr().out == "positive\n"
    assert server.asked[0].json()["messages"] == [{"role": "user", "content": "good?"}]


def test_what_other_commands_are_given_is_never_folded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: columns that all shrink alike in a narrow terminal."""
    monkeypatch.setenv("COLUMNS", "60")
    identifier = "wf_01m88f5gay6sseg4tdtc6k"
    print_table(
        ("execution", "workflow", "submitted"), [(identifier, "train-optimize-deploy", "2 minutes ago " * 3)], empty=""
    )
    assert identifier in capsys.readouterr().out
