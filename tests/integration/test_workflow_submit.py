"""What is refused at submit, with place and mend."""

import json
from typing import Any

import httpx
import pytest

from tests.support.workflow_engine import CHAIN, Engine


async def test_everything_wrong_is_told_at_once_with_place_and_mend(wf: Engine) -> None:
    definition = {"name": "bad", "parameters": {"data": {"type": "dataset", "required": True}}, "steps": {
        "a": {"component": "worker", "kind": "wrk"},
        "b": {"component": "worker", "kind": "work", "with": {"number": "abc", "txt": 1}},
        "c": {"component": "worker", "kind": "work", "with": {"number": "${{ steps.b.result.nubmer }}"}},
        "d": {"component": "worker", "kind": "work", "with": {"source": "${{ steps.b.result.number }}"}},
        "e": {"component": "wroker", "kind": "work"},
        "f": {"kind": "noop", "with": {"valu": 1}},
    }}  # fmt: skip
    body = {"definition": definition, "parameters": {"data": "nowhere"}}
    async with wf.client() as client:
        answer = await client.post("/platform/workflows/run", json=body)
        assert answer.status_code == 422, answer.text
        problems = {problem["where"]: problem for problem in answer.json()["problems"]}
        assert set(problems) == {
            "parameters.data", "steps.a.kind", "steps.b.with.number", "steps.b.with.txt", "steps.c.with.number",
            "steps.d.with.source", "steps.e.component", "steps.f.with.valu",
        }  # fmt: skip
        assert "work" in problems["steps.a.kind"]["hint"]
        assert problems["steps.c.with.number"]["hint"] == "did you mean `number`?"
        checked = (await client.post("/platform/workflows/validate", json=body)).json()
        assert not checked["valid"]
        assert len(checked["problems"]) == 8
        missing = await client.post("/platform/workflows/run", json={"workflow_type": "nop"})
        assert (missing.status_code, missing.json()["hint"]) == (404, "did you mean `noop`?")
        cycle = {"definition": "{name: c, steps: {a: {kind: noop, needs: [b]}, b: {kind: noop, needs: [a]}}}"}
        answer = await client.post("/platform/workflows/run", json=cycle)
        assert "a needs b needs a" in answer.json()["detail"]
        assert (await client.get("/platform/workflows")).json()["data"] == []


async def test_a_component_that_came_this_moment_is_not_said_to_be_missing(wf: Engine) -> None:
    """Breaks with: an answer from what was known a moment ago, which nobody who sees the component there can mend."""
    wf.components.hidden.add("work")
    body = {"definition": {"name": "x", "steps": {"a": {"component": "worker", "kind": "work"}}}}
    async with wf.client() as client:
        for _ in range(2):
            answer = await client.post("/platform/workflows/validate", json=body)
            assert answer.json()["problems"] == []
    assert wf.components.refreshes == 1, "only where something is missing"


async def problems_of(wf: Engine, steps: dict[str, Any], **more: Any) -> dict[str, str]:
    body = {"definition": {"name": "bad", "steps": steps, **more}}
    async with wf.client() as client:
        answer = await client.post("/platform/workflows/run", json=body)
    assert answer.status_code == 422, answer.text
    return {problem["where"]: f"{problem['message']}: {problem['hint']}" for problem in answer.json()["problems"]}


async def sent(wf: Engine, method: str, path: str, body: dict[str, Any]) -> httpx.Response:
    """Send a body as it is: httpx itself would not write half a surrogate."""
    async with wf.client() as client:
        return await client.request(
            method, f"/platform/{path}", content=json.dumps(body).encode(), headers={"content-type": "application/json"}
        )


@pytest.mark.parametrize("text", ["\ud800", "a\0b"], ids=["half a surrogate", "NUL"])
async def test_text_that_cannot_be_kept_is_refused(wf: Engine, text: str) -> None:
    definition = {"name": "x", "steps": {"a": {"kind": "noop", "with": {"value": text}}}}
    for body in (
        {"workflow_type": "noop", "parameters": {"value": text}}, {"definition": definition},
        {"definition": '{name: x, steps: {a: {kind: noop, with: {value: "\\0"}}}}'},
        {"definition": {"name": "x", "steps": {"a": {"kind": "noop", "with": {text: 1}}}}},
    ):  # fmt: skip
        answer = await sent(wf, "POST", "workflows/run", body)
        assert answer.status_code == 422, (body, answer.text)
        assert "cannot be stored" in answer.json()["detail"]
        answer = await sent(wf, "POST", "workflows/validate", body)
        assert answer.json()["valid"] is False
    workflow_id = await wf.submit(CHAIN)
    answer = await sent(wf, "POST", f"workflows/{workflow_id}/fork", {"parameters": {"text": text}})
    assert answer.status_code == 422, answer.text


async def test_a_nul_in_plain_fields_is_refused(wf: Engine) -> None:
    """Half a surrogate is none of theirs: they are text by themselves, and its decoding fails."""
    digest = "sha256:" + "0" * 64
    for method, path, body in (
        ("POST", "workflows/wf_1/steps/a/approve", {"approved": True, "comment": "a\0b"}),
        ("PUT", "models/m/aliases/production", {"version": 1, "reason": "a\0b"}),
        ("POST", "models/m/versions", {"model": {"digest": digest, "kind": "gguf"}, "description": "a\0b"}),
    ):
        answer = await sent(wf, method, path, body)
        assert (answer.status_code, "cannot be stored" in answer.text) == (422, True), (path, answer.text)


async def test_a_reference_under_any_name_is_placed(wf: Engine) -> None:
    work = {"component": "worker", "kind": "work"}
    odd = {**work, "with": {"a[b]": "${{ steps.a.result.number }}", "c[": {"]d.e": ["${{ steps.a.result.number }}"]}}}
    found = await problems_of(wf, {"a": work, "b": odd})
    assert {"steps.b.with.a[b]", "steps.b.with.c[.]d.e[0]"} <= set(found)


async def test_what_cannot_be_evaluated_is_told_at_submit(wf: Engine) -> None:
    noop: dict[str, Any] = {"kind": "noop"}
    parameters = {"most": {"type": "integer"}, "list": {"type": "list", "default": list(range(1_001))}}
    steps = {
        "first": noop,
        "when": {**noop, "when": "parameters.most > 100"},
        "later": {**noop, "when": "steps.first.result.value > parameters.most"},
        "none": {**noop, "foreach": "${{ parameters.most }}"},
        "nowhere": {**noop, "foreach": "${{ parameters.list.x }}"},
        "long": {**noop, "foreach": "${{ parameters.list }}"},
        "codes": {**noop, "retry": {"on": ["limit_exceeded", "limit_exceded"]}},
        "theirs": {"component": "worker", "kind": "work", "retry": {"on": ["zzz_of_their_own", "host_losst"]}},
    }
    found = await problems_of(wf, steps, parameters=parameters)
    assert set(found) == {
        "steps.when.when", "steps.none.foreach", "steps.nowhere.foreach", "steps.long.foreach", "steps.codes.retry.on[1]",
        "steps.theirs.retry.on[1]",
    }  # fmt: skip
    assert "cannot compare null with a number" in found["steps.when.when"]
    assert "did you mean `limit_exceeded`?" in found["steps.codes.retry.on[1]"]


async def test_a_gate_that_could_never_judge_is_refused(wf: Engine) -> None:
    evaluations = {"base": "${{ steps.a.result.number }}", "tuned": None}
    rules = [
        {"type": "better", "than": "bsae"}, {"type": "max_size"}, {"type": "max_size", "ratio": 0.5},
        {"type": "max_latency", "ratio": 2}, {"type": "max_size", "ratio": 0.5, "than": "base"},
        {"type": "better", "than": "base"}, {"type": "max_latency", "seconds": 1},
    ]  # fmt: skip
    given: dict[str, Any] = {"evaluations": evaluations, "candidate": "tunde", "rules": rules}
    gate = {"kind": "gate", "with": given}
    steps = {"a": {"component": "worker", "kind": "work"}, "gate": gate}
    found = await problems_of(wf, steps)
    place = "steps.gate.with"
    assert {where for where in found if where.startswith(place)} >= {
        f"{place}.candidate", f"{place}.rules[0].than", *(f"{place}.rules[{n}]" for n in (1, 2, 3)),
    }  # fmt: skip
    assert not any(f"{place}.rules[{n}]" in where for where in found for n in (4, 5, 6))
    assert "did you mean `tuned`?" in found[f"{place}.candidate"]
    given["reference_bytes"] = 100
    assert f"{place}.rules[2]" not in await problems_of(wf, steps)
