"""An execution reads what its project has, and nothing of another's, whatever digest is named where.

Each of these breaks if the platform takes a digest for a right: at submit, when a step begins, or in a result.
"""

from typing import Any

import pytest

from burnish.core.errors import InvalidRequest
from burnish.core.specs.base import ArtifactKind, ArtifactRef
from burnish.infra.artifact_store import store as artifacts
from burnish.platform.identity import Principal
from tests.support.workflow_engine import Engine, step_of

THEIRS = Principal("eve", "theirs", frozenset({"administrator"}))
UNKNOWN = ArtifactRef(digest="sha256:" + "0" * 64, kind="model")
WORK = {"component": "worker", "kind": "work"}


async def made(wf: Engine, project_id: str, text: str = "secret", kind: ArtifactKind = "model") -> ArtifactRef:
    folder = wf.artifacts.stage("made")
    (folder / "weights").write_text(text)
    ref = wf.artifacts.publish(folder, kind)
    async with wf.database.write() as session:
        await artifacts.record(session, project_id, ref)
    return ref


async def has(wf: Engine, project_id: str, ref: ArtifactRef) -> bool:
    async with wf.database.read() as session:
        return await artifacts.find(session, project_id, ref.digest) is not None


def said(ref: ArtifactRef, text: str) -> str:
    """Return what is said of an artifact, without its digest: so that answers can be compared."""
    assert ref.digest in text
    return text.replace(ref.digest, "it")


def named(ref: ArtifactRef) -> dict[str, Any]:
    return ref.model_dump(mode="json")


def specs(ref: ArtifactRef) -> dict[str, dict[str, Any]]:
    """Return steps that name an artifact, each in its way."""
    evaluation = {
        "task": "classification", "headline": "accuracy", "metrics": {"accuracy": {"value": 1, "n": 1}},
        "dataset": named(ref), "examples": {**named(ref), "kind": "report"}, "served": {
            "engine": "llama_cpp", "model": named(ref), "dtype": "q8_0", "size_bytes": 1, "memory_bytes": 1,
            "tokens_per_second": 1, "latency_p50_seconds": 1, "latency_p95_seconds": 1, "load_seconds": 1},
    }  # fmt: skip
    return {
        "component": {**WORK, "with": {"source": named(ref)}},
        "echo": {"kind": "noop", "with": {"value": [{"deep": {**named(ref), "more": 1}}]}},
        "hidden": {"kind": "noop", "with": {"value": {"digest": "sha256:zz", "kind": "model", "in": named(ref)}}},
        "gate": {"kind": "gate", "with": {"candidate": "a", "evaluations": {"a": evaluation}, "rules": [
            {"type": "max_size", "bytes": 10}]}},
        "register": {"kind": "register", "with": {"name": "m", "model": named(ref)}},
        "lineage": {"kind": "register", "with": {"name": "m", "model": named(ref), "base": named(ref)}},
    }  # fmt: skip


@pytest.mark.parametrize("name", list(specs(UNKNOWN)))
async def test_a_spec_that_names_another_projects_artifact_is_refused_at_submit(wf: Engine, name: str) -> None:
    foreign = await made(wf, "default")
    told = []
    for ref in (foreign, UNKNOWN):
        with pytest.raises(InvalidRequest) as refused:
            await wf.submit_as(THEIRS, {"name": "x", "steps": {"only": specs(ref)[name]}})
        found = [(one.where, one.message) for one in refused.value.problems if "no artifact" in one.message]
        assert found
        assert all(where.startswith("steps.only.with") for where, _ in found)
        told.append([(where, said(ref, message)) for where, message in found])
    assert told[0] == told[1], "a foreign and an unknown one are told apart"
    assert wf.components.submissions == {}


async def test_one_that_a_parameter_names_is_refused_too(wf: Engine) -> None:
    foreign = await made(wf, "default")
    definition = {
        "name": "x", "parameters": {"thing": {"type": "object"}},
        "steps": {"only": {**WORK, "with": {"source": "${{ parameters.thing }}"}}},
    }  # fmt: skip
    with pytest.raises(InvalidRequest) as refused:
        await wf.submit_as(THEIRS, definition, thing=named(foreign))
    assert refused.value.problems[0].where == "steps.only.with.source"
    await wf.until(await wf.submit(definition, thing=named(foreign)), "succeeded")


@pytest.mark.parametrize("kind", ["component", "gate", "echo"])
async def test_a_digest_that_comes_as_text_is_refused_when_the_step_begins(wf: Engine, kind: str) -> None:
    """At submit nobody knows it: another step's result says it."""
    foreign = await made(wf, "default")
    told = []
    for ref in (foreign, UNKNOWN):
        step = specs(ref)[kind]
        late = {**step, "with": replaced(step["with"], ref.digest, "${{ steps.first.result.text }}")}
        steps = {"first": {**WORK, "with": {"text": ref.digest}}, "second": late}
        workflow_id = await wf.submit_as(THEIRS, {"name": "x", "steps": steps})
        view = await wf.until(workflow_id, "failed", project_id="theirs")
        error = step_of(view, "second").error
        assert error.code == "invalid_request"
        told.append((said(ref, error.message), error.where, error.hint))
        assert not await has(wf, "theirs", ref)
        jobs = {attempt.job_id for attempt in step_of(view, "second").attempts}
        assert not jobs & wf.components.submissions.keys(), "it was sent to its component"
    assert told[0] == told[1]


def replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {name: replaced(inner, old, new) for name, inner in value.items()}
    if isinstance(value, list):
        return [replaced(inner, old, new) for inner in value]
    return new if value == old else value


async def test_a_result_that_names_what_the_job_did_not_make_fails_its_step(wf: Engine) -> None:
    foreign = await made(wf, "default")
    nobodys = wf.artifacts.stage("x")
    (nobodys / "weights").write_text("in the store, and in no row")
    told = []
    for ref in (foreign, UNKNOWN, wf.artifacts.publish(nobodys, "model")):
        wf.components.claimed = ref
        steps = {"first": WORK, "second": {**WORK, "with": {"source": "${{ steps.first.result.artifact }}"}}}
        workflow_id = await wf.submit_as(THEIRS, {"name": "x", "steps": steps})
        view = await wf.until(workflow_id, "failed", project_id="theirs")
        first = step_of(view, "first")
        told.append((first.error.code, said(ref, first.error.message), first.result))
        assert not await has(wf, "theirs", ref)
        assert step_of(view, "second").state == "skipped"
    assert told[0] == told[1] == told[2]
    assert told[0][0] == "job_failed"


async def test_equal_bytes_are_each_projects_own(wf: Engine) -> None:
    """One object, published by a job of each: neither learns of the other, and both have it."""
    definition = {"name": "x", "steps": {"first": WORK, "second": {**WORK, "with": {
        "source": "${{ steps.first.result.artifact }}"}}}}  # fmt: skip
    ours = await wf.until(await wf.submit(definition), "succeeded")
    ref = ArtifactRef.model_validate(step_of(ours, "first").result["artifact"])
    assert not await has(wf, "theirs", ref)
    theirs = await wf.until(await wf.submit_as(THEIRS, definition), "succeeded", project_id="theirs")
    assert step_of(theirs, "first").result["artifact"] == named(ref)
    assert await has(wf, "theirs", ref)
    assert await has(wf, "default", ref)


async def test_a_result_may_give_what_the_project_has(wf: Engine) -> None:
    wf.components.claimed = await made(wf, "default")
    view = await wf.until(await wf.submit({"name": "x", "steps": {"only": WORK}}), "succeeded")
    assert step_of(view, "only").result["artifact"] == named(wf.components.claimed)
