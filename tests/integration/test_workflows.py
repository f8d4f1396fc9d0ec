"""Executions on both databases: submit, advance, fail, retry, cancel, pause, fork, cache, and crashes in between."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from burnish.core.errors import Conflict, ErrorBody, InvalidRequest, OutOfDisk
from burnish.infra import event_log, reconcile
from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.database import Database
from burnish.platform.identity import Principal
from burnish.platform.workflow import store as executions
from burnish.platform.workflow.engine_kinds import EngineKind, NoopResult, NoopSpec
from burnish.platform.workflow.kinds import ENGINE_KINDS
from tests.support.fake_components import FakeComponents, FakeJob
from tests.support.workflow_engine import Engine, engine, states_of, step_of

CHAIN = """
name: chain
parameters:
  n: {type: integer, default: 3}
  text: {type: string, default: t}
steps:
  a: {component: worker, kind: work, cache: false, with: {number: "${{ parameters.n }}"}}
  b: {component: worker, kind: work, with: {number: "${{ steps.a.result.number }}", text: "${{ parameters.text }}"}}
  side: {kind: noop, with: {value: 1}}
  c: {kind: noop, needs: [side], with: {value: "n=${{ steps.b.result.number }}"}}
"""


@pytest.fixture
async def wf(database: Database, store: FileArtifactStore) -> AsyncIterator[Engine]:
    async with engine(database, store) as found:
        yield found


@pytest.fixture
async def by_hand(database: Database, store: FileArtifactStore) -> AsyncIterator[Engine]:
    async with engine(database, store, FakeComponents(mode="by hand")) as found:
        yield found


async def test_steps_run_in_order_and_pass_results_on(wf: Engine) -> None:
    workflow_id = await wf.submit(CHAIN, n=5)
    view = await wf.until(workflow_id, "succeeded")
    assert step_of(view, "a").result["number"] == 6
    assert step_of(view, "c").result == {"value": "n=7"}
    assert view.steps_done == view.steps_total == 4
    assert step_of(view, "b").artifacts[0].kind == "model"
    assert set(wf.components.submissions.values()) == {1}
    async with wf.database.read() as session:
        events = await event_log.read(session, origin=workflow_id)
    told = [(e.data.get("step"), e.data["state"]) for e in events if e.type == "state"]
    assert told[0] == (None, "pending")
    assert told[-1] == (None, "succeeded")
    assert ("b", "succeeded") in told
    assert told.index(("a", "succeeded")) < told.index(("b", "succeeded"))


async def test_five_noops_are_two_transactions_of_events(wf: Engine) -> None:
    async with wf.client() as client:
        answer = await client.post(
            "/platform/workflows/run", json={"workflow_type": "noop", "parameters": {"value": "v"}}
        )
    assert answer.status_code == 200
    assert answer.json()["status"] == "pending"
    view = await wf.until(answer.json()["workflow_id"], "succeeded")
    assert step_of(view, "five").result == {"value": "v"}
    assert all(len(step.attempts) == 1 for step in view.steps)


async def test_a_failed_step_says_why_and_a_retry_reuses_what_succeeded(wf: Engine) -> None:
    wf.components.failures[4] = [ErrorBody(code="bad_data", message="row 7 has no label", hint="add one")]
    workflow_id = await wf.submit(CHAIN)
    view = await wf.until(workflow_id, "failed")
    assert states_of(view) == {"a": "succeeded", "b": "failed", "side": "succeeded", "c": "skipped"}
    assert (step_of(view, "b").error.code, step_of(view, "b").error.hint) == ("bad_data", "add one")
    assert view.error is not None
    assert view.error.message == "row 7 has no label"
    with pytest.raises(Conflict, match="has ended"):
        await wf.ask("cancel", workflow_id)
    await wf.ask("retry", workflow_id)
    view = await wf.until(workflow_id, "succeeded")
    assert [a.number for a in step_of(view, "b").attempts] == [1, 2]
    assert len(step_of(view, "a").attempts) == 1
    assert view.retries == 1
    with pytest.raises(Conflict, match="nothing to retry"):
        await wf.ask("retry", workflow_id)


async def test_retries_with_backoff_only_for_what_is_worth_it(wf: Engine) -> None:
    lost = ErrorBody(code="host_lost", message="gone", retryable=True)
    wf.components.failures = {1: [lost, lost], 2: [ErrorBody(code="bad_data", message="no")], 3: [lost, lost, lost]}
    definition = {"name": "r", "steps": {
        name: {"component": "worker", "kind": "work", "with": {"number": number},
               "retry": {"attempts": 3, "backoff_seconds": 0.05, "factor": 1}}
        for name, number in (("twice", 1), ("hopeless", 2), ("thrice", 3))
    }}  # fmt: skip
    view = await wf.until(await wf.submit(definition), "failed")
    assert states_of(view) == {"twice": "succeeded", "hopeless": "failed", "thrice": "failed"}
    assert [len(step_of(view, name).attempts) for name in ("twice", "hopeless", "thrice")] == [3, 1, 3]


async def test_cancel_ends_what_runs_and_starts_nothing(by_hand: Engine) -> None:
    workflow_id = await by_hand.submit(CHAIN)
    view = await by_hand.until_step(workflow_id, "a", "running")
    await by_hand.ask("cancel", workflow_id)
    await by_hand.ask("cancel", workflow_id)
    view = await by_hand.until(workflow_id, "cancelled")
    job = by_hand.components.jobs[step_of(view, "a").attempts[0].job_id]
    assert job.cancelled
    assert states_of(view)["b"] == "cancelled"
    assert list(by_hand.components.submissions.values()) == [1]
    await by_hand.ask("retry", workflow_id)
    view = await by_hand.until_step(workflow_id, "a", "running")
    assert [a.number for a in step_of(view, "a").attempts] == [1, 2]


async def test_pause_holds_jobs_and_resume_lets_them_go_on(by_hand: Engine) -> None:
    workflow_id = await by_hand.submit(CHAIN)
    view = await by_hand.until_step(workflow_id, "a", "running")
    job = by_hand.components.jobs[step_of(view, "a").attempts[0].job_id]
    await by_hand.ask("pause", workflow_id)
    await by_hand.until(workflow_id, "paused")
    async with asyncio.timeout(5):
        while str(job.state) != "paused":
            await asyncio.sleep(0.01)
    await by_hand.ask("resume", workflow_id)
    await by_hand.until(workflow_id, "running")
    async with asyncio.timeout(5):
        while str(job.state) != "running":
            await asyncio.sleep(0.01)
    by_hand.finish(view, "a")
    await by_hand.nudge(workflow_id)
    await by_hand.until_step(workflow_id, "b", "running")


async def state_of(job: FakeJob, state: str) -> None:
    async with asyncio.timeout(10):
        while str(job.state) != state:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("verb", ["pause", "resume"])
async def test_a_pause_or_resume_that_did_not_arrive_is_asked_again(by_hand: Engine, verb: str) -> None:
    workflow_id = await by_hand.submit(CHAIN)
    view = await by_hand.until_step(workflow_id, "a", "running")
    job = by_hand.components.jobs[step_of(view, "a").attempts[0].job_id]
    if verb == "resume":
        await by_hand.ask("pause", workflow_id)
        await state_of(job, "paused")
    by_hand.components.failing_calls = {f"/jobs/{job.request.job_id}/{verb}": 1}
    await by_hand.ask(verb, workflow_id)
    await state_of(job, "paused" if verb == "pause" else "running")
    assert not by_hand.components.failing_calls


async def test_a_job_that_cannot_pause_finishes_and_nothing_follows_it_until_resume(by_hand: Engine) -> None:
    by_hand.components.pausable = False
    workflow_id = await by_hand.submit(CHAIN)
    view = await by_hand.until_step(workflow_id, "a", "running")
    await by_hand.ask("pause", workflow_id)
    await by_hand.until(workflow_id, "paused")
    by_hand.finish(view, "a")
    view = await by_hand.until_step(workflow_id, "a", "succeeded")
    assert (view.status, states_of(view)["b"]) == ("paused", "waiting")
    await by_hand.ask("resume", workflow_id)
    await by_hand.until_step(workflow_id, "b", "running")


async def test_a_timeout_cancels_the_job_and_says_so(by_hand: Engine) -> None:
    definition = {"name": "t", "steps": {"a": {"component": "worker", "kind": "work", "timeout": 0.2}}}
    workflow_id = await by_hand.submit(definition)
    view = await by_hand.until_step(workflow_id, "a", "running")
    job = by_hand.components.jobs[step_of(view, "a").attempts[0].job_id]
    job.started()
    view = await by_hand.until(workflow_id, "failed")
    assert job.cancelled
    assert view.error is not None
    assert view.error.code == "limit_exceeded"


async def test_a_timeout_counts_what_ran_and_not_the_night_that_was_paused(by_hand: Engine) -> None:
    definition = {"name": "t", "steps": {"a": {"component": "worker", "kind": "work", "timeout": 3_600}}}
    workflow_id = await by_hand.submit(definition)
    view = await by_hand.until_step(workflow_id, "a", "running")
    job = by_hand.components.jobs[step_of(view, "a").attempts[0].job_id]
    job.started_at, job.ran_seconds = datetime.now(UTC) - timedelta(hours=10), 3_500.0
    await by_hand.ask("pause", workflow_id)
    await state_of(job, "paused")
    await by_hand.ask("resume", workflow_id)
    await state_of(job, "running")
    looks = len(by_hand.components.calls)
    await by_hand.nudge(workflow_id)
    async with asyncio.timeout(10):
        while len(by_hand.components.calls) == looks:
            await asyncio.sleep(0.01)
    assert (await by_hand.status(workflow_id)).status == "running"
    assert not job.cancelled
    job.ran_seconds = 3_600.0
    await by_hand.nudge(workflow_id)
    view = await by_hand.until(workflow_id, "failed")
    assert job.cancelled
    assert view.error is not None
    assert view.error.code == "limit_exceeded"


async def test_waiting_steps_have_timeouts_too(wf: Engine) -> None:
    definition = {"name": "t", "steps": {
        "ask": {"kind": "approve", "timeout": 0.2}, "long": {"kind": "wait", "timeout": 0.2, "with": {"seconds": 300}},
        "short": {"kind": "wait", "timeout": 300, "with": {"seconds": 0.1}},
    }}  # fmt: skip
    view = await wf.until(await wf.submit(definition), "failed")
    assert states_of(view) == {"ask": "failed", "long": "failed", "short": "succeeded"}
    for name in ("ask", "long"):
        error = step_of(view, name).error
        assert (error.code, error.where) == ("limit_exceeded", f"steps.{name}.timeout")


class Odd:
    """A kind of the server's own with a fault in one of its phases."""

    def __init__(self, phase: str, times: int = 1_000) -> None:
        self.phase, self.left = phase, times
        self.calls = 0

    def _fail(self, phase: str) -> None:
        if phase != self.phase:
            return
        self.calls += 1
        self.left -= 1
        if self.left >= 0:
            raise ZeroDivisionError("nobody thought of this")

    async def prepare(self, *_: Any) -> None:
        self._fail("prepare")

    async def apply(self, *_: Any) -> NoopResult:
        self._fail("apply")
        return NoopResult(value=self.phase)

    def waits(self, *_: Any) -> float:
        self._fail("waits")
        return 300.0

    def kind(self) -> EngineKind:
        if self.phase == "waits":
            return EngineKind(NoopSpec, NoopResult, "odd", waits=self.waits)
        if self.phase == "apply":
            return EngineKind(NoopSpec, NoopResult, "odd", apply=self.apply)
        return EngineKind(NoopSpec, NoopResult, "odd", apply=self.apply, prepare=self.prepare)


@pytest.mark.parametrize("phase", ["prepare", "apply", "waits"])
async def test_what_fails_unforeseen_again_and_again_is_a_failure(
    database: Database, store: FileArtifactStore, phase: str
) -> None:
    odd = Odd(phase)
    definition = {"name": "o", "steps": {"odd": {"kind": "odd"}, "beside": {"kind": "noop", "with": {"value": 1}}}}
    async with engine(database, store, kinds={**ENGINE_KINDS, "odd": odd.kind()}) as wf:
        view = await wf.until(await wf.submit(definition), "failed")
        assert view.error is not None
        assert (view.error.code, view.error.where) == ("internal", "steps.odd")
        assert "ZeroDivisionError: nobody thought of this" in view.error.message
        assert odd.calls == 3
        assert states_of(view)["beside"] == "succeeded"


@pytest.mark.parametrize("phase", ["prepare", "apply"])
async def test_what_fails_unforeseen_once_is_tried_again(
    database: Database, store: FileArtifactStore, phase: str
) -> None:
    odd = Odd(phase, times=2)
    definition = {"name": "o", "steps": {"odd": {"kind": "odd"}}}
    async with engine(database, store, kinds={**ENGINE_KINDS, "odd": odd.kind()}) as wf:
        view = await wf.until(await wf.submit(definition), "succeeded")
        assert step_of(view, "odd").result == {"value": phase}


async def test_an_absent_component_is_waited_for_and_shown(by_hand: Engine) -> None:
    by_hand.components.mode = "at once"
    workflow_id = await by_hand.submit(CHAIN)
    by_hand.components.down = True
    await by_hand.ask("pause", workflow_id)
    await by_hand.ask("resume", workflow_id)
    async with asyncio.timeout(10):
        while (view := await by_hand.status(workflow_id)).status != "succeeded":
            waits = step_of(view, "a").waiting_for or step_of(view, "b").waiting_for
            if waits is not None:
                assert "worker does not answer" in waits
                by_hand.components.down = False
            await asyncio.sleep(0.02)
    assert set(by_hand.components.submissions.values()) == {1}


async def test_the_loops_outlive_any_error(wf: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, once: the watcher that ended with it would leave every execution waiting for jobs that have ended."""
    failed: list[str] = []

    def failing(name: str, error: Exception) -> None:
        real = getattr(executions, name)

        async def once(*args: Any, **kwargs: Any) -> Any:
            if failed.count(name) < 1:
                failed.append(name)
                raise error
            failed.append(name)
            return await real(*args, **kwargs)

        monkeypatch.setattr(executions, name, once)

    monkeypatch.setattr("burnish.platform.workflow.reconciler._RESYNC_SECONDS", 0.02)
    monkeypatch.setattr("burnish.platform.workflow.reconciler._PAUSE_SECONDS", 0.02)
    failing("with_finished_jobs", OutOfDisk("the disk is full"))
    failing("parked_wrongly", RuntimeError("something else"))
    await wf.reconciler.stop()
    await wf.reconciler.start()
    async with asyncio.timeout(10):
        while not all(failed.count(name) > 1 for name in ("with_finished_jobs", "parked_wrongly")):
            await asyncio.sleep(0.01)
    assert wf.reconciler.alive


async def test_an_answer_that_is_none_is_shown_and_asked_for_again(by_hand: Engine) -> None:
    by_hand.components.odd_answers = True
    workflow_id = await by_hand.submit({"name": "o", "steps": {"a": {"component": "worker", "kind": "work"}}})
    async with asyncio.timeout(10):
        while (said := step_of(await by_hand.status(workflow_id), "a").waiting_for) is None:
            await asyncio.sleep(0.02)
    assert "none of the protocol's" in said
    by_hand.components.odd_answers = False
    await by_hand.nudge(workflow_id)
    by_hand.finish(await by_hand.until_step(workflow_id, "a", "running"), "a")
    await by_hand.nudge(workflow_id)
    await by_hand.until(workflow_id, "succeeded")


async def test_a_cached_step_is_reused_and_says_so(wf: Engine) -> None:
    definition = CHAIN.replace("cache: false", "cache: true").replace("kind: work,", "kind: work, cache: true,", 1)
    definition = definition.replace("kind: work, cache: true, cache: true", "kind: work, cache: true")
    folder = wf.artifacts.stage("x")
    (folder / "weights").write_text("w")
    wf.components.artifact = wf.artifacts.publish(folder, "model")
    first = await wf.until(await wf.submit(definition), "succeeded")
    second = await wf.until(await wf.submit(definition), "succeeded")
    assert step_of(second, "a").reused
    assert step_of(second, "a").result == step_of(first, "a").result
    assert step_of(second, "a").attempts[0].reused_from == step_of(first, "a").attempts[0].job_id
    third = await wf.until(await wf.submit(definition, n=9), "succeeded")
    assert not step_of(third, "a").reused
    wf.artifacts.sweep(lambda: set(), grace_seconds=-1)
    fourth = await wf.until(await wf.submit(definition), "succeeded")
    assert not step_of(fourth, "a").reused, "its artifact is gone: it must run again"


async def test_a_fork_keeps_what_its_parameters_do_not_touch(wf: Engine) -> None:
    first = await wf.submit(CHAIN)
    await wf.until(first, "succeeded")
    wf.components.submissions.clear()
    view = await wf.until(await wf.fork(first, text="other"), "succeeded")
    assert view.forked_from == first
    assert step_of(view, "a").reused
    assert not step_of(view, "b").reused
    assert step_of(view, "b").result["text"] == "other"
    assert len(wf.components.submissions) == 1
    view = await wf.until(await wf.fork(first, from_step="a"), "succeeded")
    assert not step_of(view, "a").reused
    assert step_of(view, "side").reused
    with pytest.raises(InvalidRequest, match="no step 'aa'"):
        await wf.fork(first, from_step="aa")
    with pytest.raises(InvalidRequest, match="rank"):
        await wf.fork(first, rank=1)


async def test_foreach_runs_an_item_each_and_collects(wf: Engine) -> None:
    definition = {"name": "f", "parameters": {"ranks": {"type": "list"}}, "steps": {
        "each": {"component": "worker", "kind": "work", "foreach": "${{ parameters.ranks }}",
                 "with": {"number": "${{ item }}", "text": "i${{ index }}"}},
        "sum": {"kind": "noop", "with": {"value": "${{ steps.each.result[1].number }}", }},
    }}  # fmt: skip
    view = await wf.until(await wf.submit(definition, ranks=[4, 8, 16]), "succeeded")
    assert [one["number"] for one in step_of(view, "each").result] == [5, 9, 17]
    assert step_of(view, "sum").result == {"value": 9}
    assert step_of(view, "each").items == 3


async def test_approval_waits_for_a_person(wf: Engine) -> None:
    definition = {"name": "p", "steps": {
        "ask": {"kind": "approve", "with": {"message": "ship it?"}}, "ship": {"kind": "noop", "needs": ["ask"]}}}  # fmt: skip
    yes, no = await wf.submit(definition), await wf.submit(definition)
    for workflow_id in (yes, no):
        await wf.until_step(workflow_id, "ask", "running")
    async with wf.client() as client:
        for workflow_id, approved in ((yes, True), (no, False)):
            async with asyncio.timeout(10):
                while True:
                    path = f"/platform/workflows/{workflow_id}/steps/ask/approve"
                    answer = await client.post(path, json={"approved": approved, "comment": "hm"})
                    if answer.status_code == 200:
                        break
                    assert answer.status_code == 409, answer.text
                    await asyncio.sleep(0.02)
    view = await wf.until(yes, "succeeded")
    assert step_of(view, "ask").result["approved_by"] == "local"
    view = await wf.until(no, "rejected")
    assert states_of(view)["ship"] == "skipped"


@pytest.mark.parametrize("seed", range(6))
async def test_crashes_at_any_call_lose_nothing_and_repeat_nothing(
    database: Database, store: FileArtifactStore, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "_BACKOFF_SECONDS", (0.02, 0.05))
    components = Crashing(random.Random(seed))
    wide = {"name": "wide", "steps": {
        "a": {"component": "worker", "kind": "work", "with": {"number": 1}},
        **{f"b{i}": {"component": "worker", "kind": "work", "with": {"number": "${{ steps.a.result.number }}", "text": f"{i}"}}
           for i in range(4)},
        "c": {"kind": "noop", "needs": [f"b{i}" for i in range(4)]},
    }}  # fmt: skip
    async with engine(database, store, components) as wf:
        components.calm = True
        ids = [await wf.submit(wide) for _ in range(3)]
        components.calm = False
        for workflow_id in ids:
            view = await wf.until(workflow_id, "succeeded", timeout=60)
            assert all(len(step.attempts) == 1 for step in view.steps), "an attempt was lost and made anew"
            assert step_of(view, "b3").result["number"] == 3
    assert components.crashes > 0
    assert len(components.jobs) == 15


class Crashing(FakeComponents):
    """Loses what the engine has in memory, before or after a call took effect."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.chance = chance
        self.calm = False
        self.crashes = 0

    async def call(
        self, component_type: str, method: str, path: str, json: Any = None, *,
        principal: Principal, timeout: float = 30, query: Mapping[str, str] | None = None,
    ) -> Any:  # fmt: skip
        moment = self.chance.random()
        if self.crashes < 12 and not self.calm and moment < 0.15:
            self.crashes += 1
            raise RuntimeError("the server died before the call")
        answer = await super().call(component_type, method, path, json, principal=principal, query=query)
        if self.crashes < 12 and not self.calm and moment > 0.8:
            self.crashes += 1
            raise RuntimeError("the server died after the call")
        return answer


async def test_an_idempotency_key_makes_one_execution(wf: Engine) -> None:
    body = {"workflow_type": "noop", "parameters": {"value": "x"}}
    async with wf.client() as client:
        answers = await asyncio.gather(
            *(client.post("/platform/workflows/run", json=body, headers={"Idempotency-Key": "k1"}) for _ in range(8))
        )
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["workflow_id"] for answer in answers}) == 1
        other = {"workflow_type": "noop", "parameters": {"value": "y"}}
        answer = await client.post("/platform/workflows/run", json=other, headers={"Idempotency-Key": "k1"})
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")
        page = (await client.get("/platform/workflows", params={"limit": 10})).json()
        assert len(page["data"]) == 1


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


async def test_the_event_stream_resumes_and_ends_with_the_execution(wf: Engine) -> None:
    workflow_id = await wf.submit(CHAIN)
    await wf.until(workflow_id, "succeeded")
    async with wf.client() as client:
        text = (await client.get(f"/platform/workflows/{workflow_id}/events")).text
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
        assert events[-1]["data"]["state"] == "succeeded"
        middle = events[2]["id"]
        again = await client.get(f"/platform/workflows/{workflow_id}/events", headers={"Last-Event-ID": middle})
        rest = [json.loads(line[6:]) for line in again.text.splitlines() if line.startswith("data: ")]
        assert rest == events[3:]
        bad = await client.get(f"/platform/workflows/{workflow_id}/events", headers={"Last-Event-ID": "x"})
        assert bad.status_code == 400
        assert (await client.get("/platform/workflows/wf_nothing/status")).status_code == 404


async def test_another_projects_execution_is_not_found(wf: Engine) -> None:
    workflow_id = await wf.submit(CHAIN)
    async with wf.database.read() as session:
        with pytest.raises(Exception, match="there is no execution"):
            await wf.service.get(session, "other", workflow_id)
