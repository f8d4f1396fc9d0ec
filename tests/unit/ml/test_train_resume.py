"""A training killed or paused at any step and resumed ends as the one that was never stopped."""

from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

from burnish.core.errors import JobFailed
from burnish.core.job import Stopped
from burnish.core.specs import ArtifactRef, FineTuningResult, FineTuningSpec
from burnish.ml import text, tiny
from burnish.ml.model import load_tokenizer
from burnish.ml.text import render
from burnish.ml.train import sft
from burnish.testing import LocalJobContext
from tests.support import training

_STEPS = 9


class _Killed(BaseException):
    """Stands for SIGKILL: nothing in the job may catch it."""


def _spec(context: LocalJobContext, **changes: Any) -> FineTuningSpec:
    base: dict[str, Any] = {
        "model": training.model(context), "train": training.dataset(context),
        "validation": training.dataset(context, training.SENTIMENT[:3]), "max_steps": _STEPS, "batch_size": 4,
        "rank": 2, "checkpoint_steps": 2, "learning_rate": 0.01,
    }  # fmt: skip
    return FineTuningSpec(**(base | changes))


def _outcome(result: FineTuningResult) -> dict[str, Any]:
    """Return everything of a result that must not depend on interruptions."""
    return result.model_dump(exclude={"examples_per_second", "peak_memory_bytes", "resumed_from_step"})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    context = LocalJobContext(tmp_path_factory.mktemp("whole"))
    return _outcome(sft(_spec(context, dropout=0.1), context))


@pytest.mark.parametrize("killed_at", range(1, _STEPS + 1))
def test_killed_at_any_step(killed_at: int, tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    context = LocalJobContext(tmp_path)
    spec = _spec(context, dropout=0.1)

    def kill(step: int, values: Mapping[str, float]) -> None:
        if step == killed_at:
            raise _Killed

    context.on_metric = kill
    with pytest.raises(_Killed):
        sft(spec, context)
    again = context.restarted()
    result = sft(spec, again)
    assert result.resumed_from_step == (min(killed_at, _STEPS - 1) // 2 * 2 or None)
    assert _outcome(result) == uninterrupted


def test_killed_again_and_again(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    context = LocalJobContext(tmp_path)
    spec = _spec(context, dropout=0.1)
    for killed_at in (3, 4, 7):

        def kill(step: int, values: Mapping[str, float], at: int = killed_at) -> None:
            if step == at:
                raise _Killed

        context.on_metric = kill
        with pytest.raises(_Killed):
            sft(spec, context)
        context = context.restarted()
    assert _outcome(sft(spec, context)) == uninterrupted


def test_paused_training_goes_on_from_the_very_step(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    context = LocalJobContext(tmp_path)
    spec = _spec(context, dropout=0.1)

    def pause(step: int, values: Mapping[str, float]) -> None:
        if step == 4:
            context.request_stop("pause")

    context.on_metric = pause
    with pytest.raises(Stopped):
        sft(spec, context)
    again = context.restarted()
    result = sft(spec, again)
    assert result.resumed_from_step == 4
    assert _outcome(result) == uninterrupted


def test_a_stop_that_comes_during_a_step_publishes_that_step(tmp_path: Path) -> None:
    context = LocalJobContext(tmp_path)
    spec = _spec(context, checkpoint_steps=100)
    asked = 0

    def stop_requested() -> bool:
        nonlocal asked
        asked += 1
        if asked == 3:
            context.request_stop("pause")
        return asked >= 3

    context.stop_requested = stop_requested  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        sft(spec, context)
    assert [step for step, _ in context.checkpoints] == [3]


@pytest.mark.parametrize("at", [3, _STEPS])
def test_a_stop_that_comes_during_a_validation_loses_no_step(tmp_path: Path, at: int) -> None:
    """Breaks with: a validation that ends the job before what was trained is published."""
    context = LocalJobContext(tmp_path)
    rows = [*training.SENTIMENT[:3]] * 3  # two batches
    spec = _spec(context, dropout=0.1, validation=training.dataset(context, rows))
    whole = _outcome(sft(spec, context.restarted()))

    def stop(done: float, total: float, *, phase: str = "", unit: str = "steps") -> None:
        if phase == "validating" and len(reached) >= at:
            context.request_stop("pause")

    reached: list[int] = []
    context.on_metric = lambda step, values: reached.append(step) if "loss" in values else None
    context.progress = stop  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        sft(spec, context)
    again = context.restarted()
    result = sft(spec, again)
    assert result.resumed_from_step == max(reached)
    assert _outcome(result) == whole


def test_full_fine_tuning_resumes_exactly(tmp_path: Path) -> None:
    whole = LocalJobContext(tmp_path / "whole")
    spec = _spec(whole, method="full", weight_decay=0.1)
    expected = _outcome(sft(spec, whole))
    context = LocalJobContext(tmp_path / "killed")

    def kill(step: int, values: Mapping[str, float]) -> None:
        if step == 5:
            raise _Killed

    context.on_metric = kill
    spec = _spec(context, method="full", weight_decay=0.1)
    with pytest.raises(_Killed):
        sft(spec, context)
    assert _outcome(sft(spec, context.restarted())) == expected


def test_a_checkpoint_of_another_spec_is_refused(tmp_path: Path) -> None:
    context = LocalJobContext(tmp_path)
    sft(_spec(context), context)
    with pytest.raises(JobFailed, match="another spec"):
        sft(_spec(context, learning_rate=0.02), context.restarted())


def test_a_training_that_goes_on_another_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = "transformers.utils.chat_template_utils.datetime"
    whole = LocalJobContext(tmp_path / "whole")
    _days(monkeypatch, clock, 1)
    expected = _outcome(sft(_spec(whole, model=_dated_model(whole)), whole))
    context = LocalJobContext(tmp_path / "paused")
    spec = _spec(context, model=_dated_model(context))

    def kill(step: int, values: Mapping[str, float]) -> None:
        if step == 5:
            raise _Killed

    context.on_metric = kill
    with pytest.raises(_Killed):
        sft(spec, context)
    _days(monkeypatch, clock, 2)
    asked = render(load_tokenizer(context.open(spec.model)), [{"role": "user", "content": "x"}], answer=False)
    assert asked.startswith("Day 2.")  # the template does read the clock
    result = sft(spec, context.restarted())
    assert result.resumed_from_step == 4
    assert _outcome(result) == expected


def _days(monkeypatch: pytest.MonkeyPatch, clock: str, day: int) -> None:
    class Fixed(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Fixed":
            return cls(2026, 1, day)

    monkeypatch.setattr(clock, Fixed)


def _dated_model(context: LocalJobContext) -> ArtifactRef:
    folder = tiny.build("llama", context.root / "dated")
    template = "Day {{ strftime_now('%d') | int }}." + tiny.CHAT_TEMPLATE
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return context.add(folder, "model")


def test_a_checkpoint_of_other_tokens_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = LocalJobContext(tmp_path)
    spec = _spec(context, model=_dated_model(context))
    sft(spec, context)
    monkeypatch.setattr(text, "TRAINING_DATE", date(2026, 1, 3))
    with pytest.raises(JobFailed, match="other tokens"):
        sft(spec, context.restarted())
