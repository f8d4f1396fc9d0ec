"""The whole life of the real small model: what the demo says, leaves behind and re-uses."""

import json
import subprocess
import sys
import time
from typing import Any

import openai
import pytest

from burnish.cli.options import Exit
from tests.e2e.conftest import ROOT, Demo, run_demo
from tests.support.server import wait_for

NAME = "production-quick"


def wait_until_serving(demo: Demo) -> None:
    """A drained replica is started again by the next server."""
    wait_for(
        lambda: demo.server.request("GET", f"/platform/deployments/{NAME}")["state"] == "ready",
        90, lambda: f"{NAME} does not serve again\n{demo.server.tail()}", pause=0.2,
    )  # fmt: skip


def test_the_demo_succeeds_and_its_report_names_what_a_person_asks_for(demo: Demo) -> None:
    assert demo.code == 0, demo.text[-4000:]
    for words in ("base", "tuned", "compressed", "95 %", "tokens/s", "curl", "Q4_1", "openai", "burnish"):
        assert words in demo.text, f"{words!r} is not in the report:\n{demo.text[-4000:]}"


def test_the_gain_excludes_zero_and_compression_is_measured_against_bf16(demo: Demo) -> None:
    gate = demo.result("gate")
    assert gate["verdict"] == "pass", json.dumps(gate, indent=1)
    scores = {name: demo.result(f"evaluate_{name}")["metrics"]["accuracy"] for name in ("base", "tuned", "compressed")}
    assert scores["compressed"]["low"] > scores["base"]["value"], scores
    compressed = demo.result("compress")
    assert compressed["size_bytes"] < 0.6 * compressed["reference_bytes"]
    assert demo.result("evaluate_tuned")["served"]["dtype"].lower().startswith("bf"), "the reference is served in bf16"
    assert demo.result("import")["shipped_as"] == "Q4_1"


def read_examples(demo: Demo, evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    digest = evaluation["examples"]["digest"].removeprefix("sha256:")
    (found,) = demo.home.glob(f"artifacts/objects/*/{digest}/files/examples.jsonl")
    return [json.loads(line) for line in found.read_text().splitlines()]


def read_rows(demo: Demo) -> list[dict[str, Any]]:
    digest = demo.result("split")["test"]["digest"].removeprefix("sha256:")
    (found,) = demo.home.glob(f"artifacts/objects/*/{digest}/files/data.jsonl")
    return [json.loads(line) for line in found.read_text().splitlines()]


def test_an_ordinary_openai_client_reproduces_the_headline_example_by_example(demo: Demo) -> None:
    """What was judged is what is served: change a sampling default of one side and this fails."""
    wait_until_serving(demo)
    evaluation = demo.result("evaluate_compressed")
    examples, rows = read_examples(demo, evaluation), read_rows(demo)
    client = openai.OpenAI(base_url=f"{demo.server.url}/v1", api_key="none")
    labels = sorted({row["label"] for row in rows})
    instruction = f"Classify the text. Answer with one of: {', '.join(labels)}."
    answers = []
    for row in rows:
        content = f"{instruction}\n\n{row['text']}"
        answer = client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": content}], **evaluation["request"]
        )
        answers.append(answer.choices[0].message.content or "")
    predicted = [next(label for label in labels if label.startswith(answer)) for answer in answers]
    assert predicted == [example["prediction"] for example in examples]
    right = sum(label == row["label"] for label, row in zip(predicted, rows, strict=True))
    assert right / len(rows) == pytest.approx(evaluation["metrics"]["accuracy"]["value"])
    client.close()


def test_lineage_leads_from_the_served_version_back_to_the_rows(demo: Demo) -> None:
    lineage = json.dumps(demo.server.request("GET", f"/platform/models/{NAME}/versions/1/lineage"))
    for digest in (demo.result("import")["model"]["digest"], demo.result("split")["train"]["digest"]):
        assert digest in lineage
    assert "sentiment_movie_train" in lineage


@pytest.fixture(scope="module")
def second(demo: Demo) -> tuple[str, float]:
    """What a second demo printed while the server runs, and the seconds it took."""
    wait_until_serving(demo)
    started = time.monotonic()
    again = run_demo(demo.home, demo.model, timeout=120)
    assert again.returncode == 0, (again.stdout + again.stderr)[-4000:]
    return again.stdout, time.monotonic() - started


def test_a_second_demo_reuses_what_is_unchanged(demo: Demo, second: tuple[str, float]) -> None:
    assert second[1] < 60
    heavy = [step for step in demo.execution()["steps"] if step["component"] != "platform" and step["kind"] != "deploy"]
    fresh = [step["name"] for step in heavy if step["state"] == "succeeded" and not step["reused"]]
    assert not fresh, f"run again although nothing had changed: {fresh}"


def between(text: str, first: str, last: str) -> str:
    """Return the lines after the one with ``first`` and before the one with ``last``, without their margin."""
    lines = text.splitlines()
    begin = next(number for number, line in enumerate(lines) if first in line) + 1
    end = next(number for number, line in enumerate(lines) if last in line and number >= begin)
    return "\n".join(line.removeprefix("  ") for line in lines[begin:end]).strip()


def typed(*command: str) -> str:
    """Run what a reader pasted; return what it printed."""
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


def test_what_the_report_prints_works_as_it_is_typed(demo: Demo, second: tuple[str, float]) -> None:
    """The same question four ways, of the same model: each answer is a label, and each way gives the same.

    Breaks with: a line that is folded, an unquoted quote, a command that looks for another home.
    """
    report = second[0]
    chat = between(report, "Talk to it", "The request that reproduces")
    curl = between(report, "The request that reproduces", "The same with the official")
    snippet = between(report, "The same with the official", "In another terminal")
    answer = json.loads(typed("bash", "-c", curl))["choices"][0]["message"]["content"]
    assert answer
    assert "positive".startswith(answer) or "negative".startswith(answer)
    assert typed(sys.executable, "-c", snippet).strip() == answer
    assert typed("bash", "-c", chat).strip()
    others = next(line for line in report.splitlines() if line.startswith("In another terminal"))
    commands = others.removeprefix("In another terminal: ").partition(". In a browser")[0].split(", ")
    shown = [typed("bash", "-c", command) for command in commands]
    assert demo.execution()["workflow_id"] in shown[0]
    assert "promote" in shown[1]
    assert NAME in shown[2]


@pytest.mark.full  # in short, test_workflow_promotion.py rejects, and the CLI's tests see its exit status
def test_the_demo_of_a_training_that_does_nothing_is_rejected(demo: Demo, second: tuple[str, float]) -> None:
    """Its exit status tells; what is in production stays there.

    Breaks with: a gate that lets equal models pass, a demo that takes an end for a success.
    """
    ran = run_demo(demo.home, demo.model, "--set", "max_steps=0", timeout=300)
    assert ran.returncode == Exit.REJECTED, (ran.stdout + ran.stderr)[-4000:]
    assert "untouched" in ran.stdout
    assert demo.result("gate")["verdict"] != "pass"
    versions = demo.server.request("GET", f"/platform/models/{NAME}/versions")["data"]
    assert [(one["version"], one["aliases"]) for one in versions] == [(1, ["production"])]
