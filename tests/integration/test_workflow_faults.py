"""What nobody foresaw: faults of the server's own kinds, of its loops, and of components."""

import asyncio
from typing import Any

import pytest

from burnish.core.errors import OutOfDisk
from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.database import Database
from burnish.platform.workflow import store as executions
from burnish.platform.workflow.engine_kinds import EngineKind, NoopResult, NoopSpec
from burnish.platform.workflow.kinds import ENGINE_KINDS
from tests.support.workflow_engine import CHAIN, Engine, engine, states_of, step_of


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

    monkeypatch.setattr(wf.reconciler._resync, "_seconds", 0.02)
    monkeypatch.setattr("burnish.infra.loop._PAUSE_SECONDS", 0.02)
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


async def test_what_steps_hand_on_cannot_grow_without_end(wf: Engine) -> None:
    """Breaks with: a definition of a few kilobytes that takes the server's memory, and that of whoever claims it next."""

    def handing_on(step: str, times: int) -> dict[str, Any]:
        return {"kind": "noop", "with": {"value": f"${{{{ steps.{step}.result.value }}}}" * times}}

    texts = {"a": {"kind": "noop", "with": {"value": "x" * 1000}}, "b": handing_on("a", 100), "c": handing_on("b", 100)}
    view = await wf.until(await wf.submit({"name": "laughs", "steps": texts}), "failed")
    assert states_of(view) == {"a": "succeeded", "b": "succeeded", "c": "failed"}
    assert step_of(view, "c").error.code == "bad_expression"
    many = {f"s{number}": handing_on("b", 15) for number in range(8)}
    view = await wf.until(
        await wf.submit({"name": "many", "steps": {**texts, "c": {"kind": "noop"}, **many}}), "failed"
    )
    failed = [name for name, state in states_of(view).items() if state == "failed"]
    assert 0 < len(failed) < 8, "what fits is kept"
    assert step_of(view, failed[0]).error.code == "limit_exceeded"
