"""Executions on both databases: submit, advance, fail, retry, cancel, pause, fork, cache, and crashes in between."""

import asyncio
import json
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from burnish.core.errors import Conflict, ErrorBody, InvalidRequest
from burnish.infra import event_log, reconcile
from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.database import Database
from burnish.platform.identity import Principal
from tests.support.fake_components import FakeComponents, FakeJob
from tests.support.workflow_engine import CHAIN, Engine, engine, states_of, step_of


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
    await looked_at(by_hand, workflow_id)
    assert (await by_hand.status(workflow_id)).status == "running"
    assert not job.cancelled
    job.ran_seconds = 3_600.0
    await by_hand.nudge(workflow_id)
    view = await by_hand.until(workflow_id, "failed")
    assert job.cancelled
    assert view.error is not None
    assert view.error.code == "limit_exceeded"


async def test_a_timeout_does_not_count_the_night_after_a_power_cut(
    database: Database, store: FileArtifactStore
) -> None:
    """Until its host has been looked for, a job that ended with the power seems to have run ever since.

    Breaks with: a timeout that is applied to what the first look after a start shows.
    """
    async with engine(database, store, FakeComponents(mode="by hand"), settle_seconds=2) as after:
        workflow_id = await after.submit(
            {"name": "t", "steps": {"a": {"component": "worker", "kind": "work", "timeout": 3_600}}}
        )
        view = await after.until_step(workflow_id, "a", "running")
        job = after.components.jobs[step_of(view, "a").attempts[0].job_id]
        await state_of(job, "running")
        job.started_at, job.ran_seconds = datetime.now(UTC) - timedelta(hours=10), 36_000.0
        await looked_at(after, workflow_id)
        assert not job.cancelled
        job.ran_seconds = 60.0  # its host was found dead
        await looked_at(after, workflow_id)
        assert (await after.status(workflow_id)).status == "running"
        job.ran_seconds = 36_000.0  # it is no matter of the power cut
        await after.until(workflow_id, "failed")
        assert job.cancelled


async def looked_at(wf: Engine, workflow_id: str) -> None:
    """Wait until the engine has asked for its jobs once more."""
    looks = len(wf.components.calls)
    await wf.nudge(workflow_id)
    async with asyncio.timeout(10):
        while len(wf.components.calls) == looks:
            await asyncio.sleep(0.01)


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


async def test_a_cached_step_is_reused_and_says_so(wf: Engine) -> None:
    definition = CHAIN.replace("cache: false", "cache: true").replace("kind: work,", "kind: work, cache: true,", 1)
    definition = definition.replace("kind: work, cache: true, cache: true", "kind: work, cache: true")
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
