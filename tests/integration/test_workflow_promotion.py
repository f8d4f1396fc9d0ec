"""From evaluations to an alias: the gate over real artifacts, registration with lineage, promotion, rejection."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from burnish.core.errors import BadData
from burnish.core.specs import DatasetCard, EvaluationResult, ModelCard
from burnish.core.specs.base import ArtifactKind
from burnish.infra.artifact_store import store as artifacts
from burnish.platform.model_registry import service as registry
from burnish.platform.model_registry.schemas import NewVersion
from burnish.platform.workflow.reading import read_text
from tests.support.workflow_engine import Engine, states_of, step_of

DEFINITION = """
name: promotion
parameters:
  base: {type: object}
  candidate: {type: object}
  production: {type: object}
  model: {type: object}
  base_model: {type: object}
  data: {type: dataset}
steps:
  current: {kind: current, with: {name: m}}
  gate:
    kind: gate
    with:
      candidate: candidate
      artifact: "${{ parameters.model }}"
      in_production: "${{ steps.current.result.artifact }}"
      evaluations:
        base: "${{ parameters.base }}"
        candidate: "${{ parameters.candidate }}"
        production: "${{ parameters.production }}"
      rules:
        - {type: better, than: base}
        - {type: better, than: production, in_production: true}
  register:
    kind: register
    needs: [gate]
    with:
      name: m
      model: "${{ parameters.model }}"
      base: "${{ parameters.base_model }}"
      datasets: {train: "${{ parameters.data }}"}
      evaluations: {base: "${{ parameters.base }}", candidate: "${{ parameters.candidate }}"}
      verdict: "${{ steps.gate.result }}"
      seed: 7
  promote: {kind: promote, with: {name: m, version: "${{ steps.register.result.version }}"}}
"""


def guarded() -> dict[str, Any]:
    """A training before, a deployment before the promotion, and the alias compared with what was judged."""
    found = read_text(DEFINITION)
    steps, judged = found["steps"], "${{ steps.current.result.aliased }}"
    steps["train"] = {"component": "worker", "kind": "work", "with": {"number": 7}}
    steps["gate"]["needs"] = ["train"]
    steps["deploy"] = {"component": "worker", "kind": "work", "needs": ["register"], "with": {"number": 8}}
    steps["promote"]["needs"] = ["deploy"]
    for name in ("register", "promote"):
        steps[name]["with"]["expected"] = judged
    return found


async def publish(wf: Engine, kind: ArtifactKind, files: Mapping[str, str | bytes]) -> dict[str, Any]:
    folder = wf.artifacts.stage("test")
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    ref = wf.artifacts.publish(folder, kind)
    async with wf.database.write() as session:
        await artifacts.record(session, "default", ref)
    return ref.model_dump(mode="json")


async def model(wf: Engine, name: str, **card: Any) -> dict[str, Any]:
    written = ModelCard(name=name, architecture="X", parameters=1, dtype="q8_0", source=f"made {name}", **card)
    return await publish(wf, "gguf", {"burnish.json": written.model_dump_json(), "weights": name})


async def evaluation(wf: Engine, served: dict[str, Any], right: int, n: int = 200) -> dict[str, Any]:
    lines = [json.dumps({"id": f"e{i}", "score": float(i < right)}) for i in range(n)]
    examples = await publish(wf, "report", {"examples.jsonl": "\n".join(lines) + "\n", "of": served["digest"]})
    dataset = await publish(wf, "dataset", {"data.jsonl": "test"})
    return EvaluationResult.model_validate(
        {"task": "classification", "headline": "accuracy", "metrics": {"accuracy": {"value": right / n, "n": n}},
         "dataset": dataset, "examples": examples, "served": {
            "engine": "llama_cpp", "model": served, "dtype": "q8_0", "size_bytes": 1, "memory_bytes": 1,
            "tokens_per_second": 1, "latency_p50_seconds": 1, "latency_p95_seconds": 1, "load_seconds": 1}}
    ).model_dump(mode="json")  # fmt: skip


async def inputs(wf: Engine, name: str, right: int, **more: Any) -> dict[str, Any]:
    base = await model(wf, "base", licence="apache-2.0")
    tuned = await model(wf, name, base=base["digest"])
    card = DatasetCard(format="classification", rows=3, rows_hash="sha256:rows")
    data = await publish(wf, "dataset", {"dataset.json": card.model_dump_json(), "data.jsonl": "{}\n"})
    wf.components.datasets["reviews"] = {"name": "reviews", "version": 2, "artifact": data, "created_at": "x"}
    return {
        "base": await evaluation(wf, base, 100), "candidate": await evaluation(wf, tuned, right), "model": tuned,
        "base_model": base, "data": "reviews", **more,
    }  # fmt: skip


async def alias_of(wf: Engine) -> int | None:
    async with wf.client() as client:
        answer = await client.get("/platform/models/resolve", params={"ref": "m@production"})
    return answer.json()["version"] if answer.status_code == 200 else None


async def test_a_better_model_is_registered_with_its_lineage_and_promoted(wf: Engine) -> None:
    workflow_id = await wf.submit(DEFINITION, **await inputs(wf, "better", 150))
    view = await wf.until(workflow_id, "succeeded")
    assert step_of(view, "gate").result["verdict"] == "pass"
    assert await alias_of(wf) == 1
    async with wf.client() as client:
        lineage = (await client.get("/platform/models/m/versions/1/lineage")).json()
    upstream = lineage["upstream"]
    assert upstream["execution"] == workflow_id
    assert upstream["datasets"][0] | {"digest": ""} == {
        "role": "train", "digest": "", "name": "reviews", "version": 2, "rows": 3, "rows_hash": "sha256:rows",
        "licence": None,
    }  # fmt: skip
    assert (upstream["seed"], upstream["base"]["name"], lineage["licence"]) == (7, "base", "apache-2.0")
    assert upstream["code_version"]
    assert {step["step"] for step in upstream["steps"]} >= {"gate"}
    assert "all 2 rules pass" in upstream["verdict"]
    assert lineage["aliases"] == ["production"]


async def test_the_same_model_again_is_already_in_production(wf: Engine) -> None:
    given = await inputs(wf, "better", 150)
    await wf.until(await wf.submit(DEFINITION, **given), "succeeded")
    view = await wf.until(await wf.submit(DEFINITION, **given), "succeeded")
    assert "already in production" in step_of(view, "gate").result["rules"][1]["sentence"]
    assert step_of(view, "register").result["created"] is False
    assert await alias_of(wf) == 1


async def test_what_a_deployment_serves_is_in_production_whatever_the_alias_says(wf: Engine) -> None:
    """After a roll back of the deployment the alias names a version that nobody is answered by."""
    first = await inputs(wf, "first", 150)
    await wf.until(await wf.submit(DEFINITION, **first), "succeeded")
    second = await inputs(wf, "second", 190, production=first["candidate"])
    await wf.until(await wf.submit(DEFINITION, **second), "succeeded")
    assert await alias_of(wf) == 2
    step = {"kind": "current", "with": {"name": "m", "deployment": "live"}}
    for serving, version in ((None, 2), ("m@1", 1), ("m@2", 2), ("other@1", 2), ("m@9", 2), ("m@1", 1)):
        wf.components.serving = {} if serving is None else {"live": serving}
        view = await wf.until(await wf.submit({"name": "look", "steps": {"current": step}}), "succeeded")
        result = step_of(view, "current").result
        assert (result["found"], result["reference"], result["aliased"]) == (True, f"m@{version}", 2), serving


@pytest.mark.parametrize(("right", "word"), [(152, "inconclusive"), (60, "fail"), (100, "fail")])
async def test_what_does_not_pass_is_rejected_and_production_stays(wf: Engine, right: int, word: str) -> None:
    first = await inputs(wf, "first", 150)
    await wf.until(await wf.submit(DEFINITION, **first), "succeeded")
    given = await inputs(wf, "worse", right, production=first["candidate"])
    workflow_id = await wf.submit(DEFINITION, **given)
    view = await wf.until(workflow_id, "rejected")
    assert states_of(view) == {"current": "succeeded", "gate": "failed", "register": "skipped", "promote": "skipped"}
    assert view.error is not None
    assert (view.error.code, word in view.error.message) == ("rejected", True)
    assert step_of(view, "gate").result["verdict"] == word
    assert await alias_of(wf) == 1
    await wf.ask("retry", workflow_id)
    await wf.until(workflow_id, "running", "rejected")
    view = await wf.until(workflow_id, "rejected")
    async with wf.client() as client:
        assert (await client.get("/platform/models/m")).json()["versions"] == 1


async def test_evidence_that_is_not_what_was_published_fails_the_gate(wf: Engine) -> None:
    given = await inputs(wf, "better", 150)
    folder = wf.artifacts.open(given["candidate"]["examples"]["digest"])
    file = folder / "examples.jsonl"
    file.chmod(0o644)
    text = file.read_text()
    file.write_text(text.replace('"score": 0.0', '"score": 1.0'))
    view = await wf.until(await wf.submit(DEFINITION, **given), "failed")
    assert view.error is not None
    assert view.error.code == "artifact_corrupt"
    assert await alias_of(wf) is None


async def test_an_adapter_that_was_not_evaluated_fails_the_gate(wf: Engine) -> None:
    given = await inputs(wf, "better", 150)
    given["candidate"]["served"]["adapter"] = await publish(wf, "adapter", {"adapter.safetensors": "a"})
    view = await wf.until(await wf.submit(DEFINITION, **given), "failed")
    assert view.error is not None
    assert "none would be deployed as its adapter" in view.error.message


@pytest.mark.parametrize(
    ("name", "content"),
    [("other.jsonl", b"{}"), ("examples.jsonl", b'{"id": "\xff"}'), ("examples.jsonl", b'{"id": 1, "score": 1' + b"0" * 400 + b"}")],
    ids=["no file", "not UTF-8", "no number"],
)  # fmt: skip
async def test_examples_that_cannot_be_read_fail_the_gate(wf: Engine, name: str, content: bytes) -> None:
    given = await inputs(wf, "better", 150)
    given["candidate"]["examples"] = await publish(wf, "report", {name: content})
    view = await wf.until(await wf.submit(DEFINITION, **given), "failed")
    assert view.error is not None
    assert (view.error.code, view.error.where) == ("bad_data", "evaluations.candidate")


async def test_something_else_in_production_must_be_evaluated(wf: Engine) -> None:
    await wf.until(await wf.submit(DEFINITION, **await inputs(wf, "first", 150)), "succeeded")
    view = await wf.until(await wf.submit(DEFINITION, **await inputs(wf, "second", 190)), "failed")
    assert view.error is not None
    assert "no evaluation 'production'" in view.error.message
    other = await model(wf, "other")
    given = await inputs(wf, "third", 190)
    view = await wf.until(await wf.submit(DEFINITION, **{**given, "model": other}), "failed")
    assert view.error is not None
    assert "would be deployed" in view.error.message


async def put_into_production(wf: Engine, artifact: dict[str, Any]) -> None:
    async with wf.database.write() as session:
        new = NewVersion.model_validate({"model": artifact})
        version, _ = await registry.register(session, "default", "m", new, "someone")
        await registry.move_alias(session, "default", "m", "production", version.version, by="someone")


async def finish(wf: Engine, workflow_id: str, step: str) -> None:
    """End a step's job as its component would."""
    wf.finish(await wf.until_step(workflow_id, step, "running"), step)
    await wf.nudge(workflow_id)


async def test_what_others_promoted_meanwhile_stays_until_it_was_judged_against(by_hand: Engine) -> None:
    wf = by_hand
    other = await model(wf, "other")
    given = await inputs(wf, "late", 150, production=await evaluation(wf, other, 190))
    workflow_id = await wf.submit(guarded(), **given)
    await wf.until_step(workflow_id, "current", "succeeded")
    await put_into_production(wf, other)
    await finish(wf, workflow_id, "train")
    view = await wf.until(workflow_id, "failed")
    assert "nothing is in production yet" in step_of(view, "gate").result["rules"][1]["sentence"]
    assert view.error is not None
    assert (view.error.code, view.error.where) == ("conflict", "steps.register")
    assert "pointed at nothing when the candidate was judged, and points at version 1 now" in view.error.message
    assert f"burnish retry {workflow_id}" in (view.error.hint or "")
    assert states_of(view)["deploy"] == "skipped"
    await wf.ask("retry", workflow_id)
    view = await wf.until(workflow_id, "rejected")
    assert [len(step_of(view, name).attempts) for name in ("train", "current", "gate")] == [1, 2, 2]
    assert "better than production" in step_of(view, "gate").result["sentence"]
    assert await alias_of(wf) == 1
    async with wf.client() as client:
        assert (await client.get("/platform/models/m")).json()["versions"] == 1


async def test_a_promotion_under_way_is_not_deployed_over(by_hand: Engine) -> None:
    wf = by_hand
    better = await inputs(wf, "better", 190)
    good = await inputs(wf, "good", 150, production=better["candidate"])
    first, second = await wf.submit(guarded(), **better), await wf.submit(guarded(), **good)
    await finish(wf, first, "train")
    await wf.until_step(first, "deploy", "running")
    await finish(wf, second, "train")
    view = await wf.until(second, "failed")
    assert view.error is not None
    assert f"{first} is about to put another version behind m@production" in view.error.message
    await finish(wf, first, "deploy")
    await wf.until(first, "succeeded")
    await wf.ask("retry", second)
    await wf.until(second, "rejected")
    assert await alias_of(wf) == 1


async def test_an_alias_moved_during_the_deployment_is_not_moved_back(by_hand: Engine) -> None:
    wf = by_hand
    workflow_id = await wf.submit(guarded(), **await inputs(wf, "mine", 150))
    await finish(wf, workflow_id, "train")
    await wf.until_step(workflow_id, "deploy", "running")
    await put_into_production(wf, await model(wf, "theirs"))
    await finish(wf, workflow_id, "deploy")
    view = await wf.until(workflow_id, "failed")
    assert view.error is not None
    assert (view.error.code, view.error.where) == ("conflict", "steps.promote")
    assert await alias_of(wf) == 2


async def test_a_fork_is_judged_against_what_the_first_run_promoted(wf: Engine) -> None:
    first = await inputs(wf, "first", 190)
    workflow_id = await wf.submit(guarded(), **first)
    await wf.until(workflow_id, "succeeded")
    worse = await inputs(wf, "worse", 150, production=first["candidate"])
    view = await wf.until(await wf.fork(workflow_id, **{k: worse[k] for k in ("candidate", "model", "production")}),
                          "rejected")  # fmt: skip
    assert (step_of(view, "train").reused, step_of(view, "current").reused) == (True, False)
    assert step_of(view, "current").result["version"] == 1
    assert await alias_of(wf) == 1


@pytest.mark.parametrize(("given", "looks"), [({}, 1), ({"deployment": "m"}, 2)])
async def test_a_retry_keeps_what_it_found_in_production_while_that_stands(
    by_hand: Engine, given: dict[str, str], looks: int
) -> None:
    """What a deployment serves cannot be compared within a transaction: it is asked again in any case."""
    wf = by_hand
    definition = guarded()
    definition["steps"]["current"]["with"] |= given
    await put_into_production(wf, await model(wf, "theirs"))
    workflow_id = await wf.submit(definition, **await inputs(wf, "mine", 190, production=None))
    await wf.until_step(workflow_id, "current", "succeeded")
    wf.finish(await wf.until_step(workflow_id, "train", "running"), "train", BadData("it failed"))
    await wf.nudge(workflow_id)
    await wf.until(workflow_id, "failed")
    await wf.ask("retry", workflow_id)
    view = await wf.until_step(workflow_id, "train", "running")
    view = await wf.until_step(workflow_id, "current", "succeeded")
    assert [len(step_of(view, name).attempts) for name in ("train", "current")] == [2, looks]
