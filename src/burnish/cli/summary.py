"""One line on what a step is doing or has found, from its progress or its typed result."""

from typing import Any

from burnish.cli.output import seconds, size
from burnish.client import ExecutionView, StepView
from burnish.core.protocol import Progress

METRICS = {"loss": "loss {:.3f}", "examples_per_second": "{:.1f} examples/s", "tokens_per_second": "{:.0f} tokens/s"}
"""The metrics that people look for while it runs, in this order."""


def step_lines(view: ExecutionView) -> dict[str, str]:
    """Return what there is to say about each step, by its name; jobs of this execution are called by their steps."""
    names = {attempt.job_id: step.name for step in view.steps for attempt in step.attempts if attempt.job_id}
    found = {}
    for step in view.steps:
        line = step_line(step)
        if step.state == "running" and "job_" in line:
            for job_id, name in names.items():
                line = line.replace(job_id, name)
        found[step.name] = line
    return found


def step_line(step: StepView) -> str:
    """Return what there is to say about a step besides its state."""
    if step.error is not None and step.state in {"failed", "retrying"}:
        return step.error.message
    if step.result is not None:
        return "; ".join(filter(None, ("unchanged, re-used" if step.reused else "", result_line(step.result))))
    if step.state == "running" and step.progress is not None and step.progress.total > 0:
        return progress_line(step.progress)
    if step.waiting_for:
        return step.waiting_for if step.waiting_for.startswith("waits") else f"waits for {step.waiting_for}"
    return step.reason or ""


def progress_line(progress: Progress) -> str:
    """Return phase, position, metrics and time left."""
    parts = [progress.phase] if progress.phase else []
    if progress.total > 1:
        parts.append(f"{progress.done:.0f}/{progress.total:.0f} {progress.unit}")
    elif progress.total > 0:
        parts.append(f"{progress.done / progress.total:.0%}")
    parts += [form.format(progress.metrics[name]) for name, form in METRICS.items() if name in progress.metrics]
    begun = progress.total > 0 and progress.done / progress.total > 0.02  # before that a guess would be wild
    if progress.seconds_left is not None and begun:
        parts.append(f"{seconds(progress.seconds_left)} left")
    return "  ".join(parts)


def result_line(result: Any) -> str:
    """Return the main finding of a result, of each with `foreach`; empty for kinds that this version does not know."""
    if isinstance(result, list):
        return "; ".join(filter(None, map(result_line, result)))
    if not isinstance(result, dict):
        return ""
    for mark, line in _LINES.items():
        if mark in result:
            return str(line(result))
    return ""


def share(metric: dict[str, Any]) -> str:
    """Return an estimate with its interval: ``0.870 [0.83, 0.90]``."""
    text = f"{metric['value']:.3f}"
    if metric.get("low") is None or metric.get("high") is None:
        return text
    return f"{text} [{metric['low']:.3f}, {metric['high']:.3f}]"


def _split(result: dict[str, Any]) -> str:
    leaks = result["exact_leaks"] + result["near_leaks"]
    found = f", {leaks} leaks into the test set dropped" if leaks else ""
    return (
        f"{result['train_rows']} train, {result['validation_rows']} validation, {result['test_rows']} test rows{found}"
    )


def _imported(result: dict[str, Any]) -> str:
    shipped = f", shipped as {result['shipped_as']}" if result.get("shipped_as") else ""
    return f"{result['name']}, {result['parameters'] / 1e6:.0f} M weights{shipped}"


def _trained(result: dict[str, Any]) -> str:
    losses = (
        f"loss {result['first_loss']:.3f} -> {result['final_loss']:.3f}, "
        if result.get("final_loss") is not None
        else ""
    )
    memory = f", peak {size(result['peak_memory_bytes'])}" if result.get("peak_memory_bytes") else ""
    return f"{losses}{result['examples']} examples at {result['examples_per_second']:.1f}/s{memory}"


def _compressed(result: dict[str, Any]) -> str:
    return (
        f"{result['dtype']}: {size(result['reference_bytes'])} -> {size(result['size_bytes'])} "
        f"({result['bits_per_weight']:.2f} bits a weight)"
    )


def _evaluated(result: dict[str, Any]) -> str:
    speed = result["served"]["tokens_per_second"]
    return f"{result['headline']} {share(result['metrics'][result['headline']])}, {speed:.0f} tokens/s"


def _judged(result: dict[str, Any]) -> str:
    return str(result["sentence"])


def _deployed(result: dict[str, Any]) -> str:
    served = "serves" if result["switched"] else "served it already"
    return f"{result['deployment']} revision {result['revision']} {served}, ready in {seconds(result['ready_seconds'])}"


def _current(result: dict[str, Any]) -> str:
    return f"{result['reference']} is in production" if result["found"] else "nothing is in production yet"


def _promoted(result: dict[str, Any]) -> str:
    before = f", before: version {result['replaced']}" if result.get("replaced") else ""
    return f"{result['name']}@{result['alias']} is version {result['version']}{before}"


def _registered(result: dict[str, Any]) -> str:
    return f"{result['reference']}{'' if result['created'] else ', registered before'}"


_LINES = {
    "train_rows": _split, "architecture": _imported, "data_order_hash": _trained, "bits_per_weight": _compressed,
    "headline": _evaluated, "alias": _promoted, "verdict": _judged, "switched": _deployed, "found": _current, "created": _registered,
}  # fmt: skip
