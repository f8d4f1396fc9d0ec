"""The whole life of the real small model: what the demo says, leaves behind and re-uses."""

import json
import time
from typing import Any

import openai
import pytest

from tests.e2e.conftest import Demo, run_demo
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


def test_a_second_demo_reuses_what_is_unchanged(demo: Demo) -> None:
    wait_until_serving(demo)
    started = time.monotonic()
    again = run_demo(demo.home, demo.model, timeout=120)
    assert again.returncode == 0, (again.stdout + again.stderr)[-4000:]
    assert time.monotonic() - started < 60
    heavy = [step for step in demo.execution()["steps"] if step["component"] != "platform" and step["kind"] != "deploy"]
    fresh = [step["name"] for step in heavy if step["state"] == "succeeded" and not step["reused"]]
    assert not fresh, f"run again although nothing had changed: {fresh}"
