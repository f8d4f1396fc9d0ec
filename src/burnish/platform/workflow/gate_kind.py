"""The kind ``gate``: loads the examples of evaluations from the artifact store, then judges them."""

import asyncio
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.errors import BadData, FieldProblem, InvalidRequest
from burnish.core.specs.base import ArtifactRef, Spec
from burnish.core.specs.evaluation import EXAMPLES_FILE, EvaluationResult
from burnish.infra.artifact_store.protocol import ArtifactStore
from burnish.platform.workflow.definition import nearest
from burnish.platform.workflow.engine_kinds import EngineKind, EngineStep, Evidence, Rejected
from burnish.platform.workflow.gate import GateEvidence, Rule, Scored, Verdict, judge


class GateSpec(Spec):
    """Judge a candidate by rules over evaluations."""

    evaluations: dict[str, EvaluationResult | None] = Field(
        min_length=1, max_length=20, description="Results of `evaluate` by label; null where there is none"
    )
    candidate: str = Field(description="Label of the evaluation of what would be deployed")
    rules: tuple[Rule, ...] = Field(min_length=1, max_length=50)
    reference_bytes: int | None = Field(default=None, gt=0, description="Size of the uncompressed model")
    in_production: ArtifactRef | None = Field(default=None, description="What is in production; null where nothing is")
    artifact: ArtifactRef | None = Field(
        default=None, description="What will be deployed: must be what the candidate's evaluation served"
    )
    adapter: ArtifactRef | None = Field(default=None, description="What will be deployed on top of `artifact`")
    in_production_adapter: ArtifactRef | None = Field(
        default=None, description="What is in production on top of `in_production`"
    )


async def _prepare(evidence: Evidence, _step: EngineStep, spec: GateSpec) -> Verdict:
    given = {label: result for label, result in spec.evaluations.items() if result is not None}
    _check_artifact(spec)
    loaded = await asyncio.gather(
        *(asyncio.to_thread(load_scored, evidence.store, label, result) for label, result in given.items())
    )
    scored: dict[str, Scored | None] = dict.fromkeys(spec.evaluations)
    scored.update(zip(given, loaded, strict=True))
    found = GateEvidence(
        candidate=spec.candidate, evaluations=scored, reference_bytes=spec.reference_bytes,
        in_production=_digest(spec.in_production), in_production_adapter=_digest(spec.in_production_adapter),
    )  # fmt: skip
    return await asyncio.to_thread(judge, spec.rules, found)  # seconds, where there are many examples


def _check_artifact(spec: GateSpec) -> None:
    candidate = spec.evaluations.get(spec.candidate)
    if candidate is None or spec.artifact is None:
        return
    served = candidate.served
    pairs = (("artifact", served.model, spec.artifact), ("adapter", served.adapter, spec.adapter))
    for where, one, other in pairs:
        if _digest(one) != _digest(other):
            raise InvalidRequest(
                f"the candidate's evaluation served {_short(one)}, but {_short(other)} would be deployed as its {where}",
                where=where, hint=f"evaluate the {where} that is to be deployed",
            )  # fmt: skip


def _digest(ref: ArtifactRef | None) -> str | None:
    return None if ref is None else ref.digest


def _short(ref: ArtifactRef | None) -> str:
    return "none" if ref is None else ref.digest[:19]


def load_scored(store: ArtifactStore, label: str, result: EvaluationResult) -> Scored:
    """Return an evaluation with the ids and scores in its ``examples`` artifact, whose bytes are verified.

    Raises:
        BadData: there is no file of examples, a line is not an example, or a score is not a finite number.
        NotFound, ArtifactCorrupt: the artifact is not there, or not what was published.
    """
    path = store.open(result.examples) / EXAMPLES_FILE
    try:
        return _scored(path, label, result)
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(f"{EXAMPLES_FILE} of {label} cannot be read: {error}",
                      where=f"evaluations.{label}", hint="evaluate it again") from error  # fmt: skip


def _scored(path: Path, label: str, result: EvaluationResult) -> Scored:
    ids, scores = [], []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                example: Mapping[str, Any] = json.loads(line)
                score = float(example["score"])
                ids.append(str(example["id"]))
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                raise BadData(f"{EXAMPLES_FILE} of {label}, line {number}: not an example with `id` and `score`",
                              where=f"evaluations.{label}", hint="evaluate it again") from error  # fmt: skip
            if not math.isfinite(score):
                raise BadData(f"{EXAMPLES_FILE} of {label}, line {number}: the score is {score}",
                              where=f"evaluations.{label}", hint="find out why the model gave no number")  # fmt: skip
            scores.append(score)
    if not ids:
        raise BadData(f"the evaluation {label} has no examples", where=f"evaluations.{label}", hint="evaluate it again")
    return Scored(result, tuple(ids), tuple(scores))


async def _apply(_session: AsyncSession, step: EngineStep, _spec: GateSpec, verdict: Verdict) -> Verdict:
    if verdict.verdict == "pass":
        return verdict
    raise Rejected(
        f"the gate did not pass: {verdict.sentence}", where=f"steps.{step.step}",
        hint=_HINTS[verdict.verdict],
    ).having(verdict)  # fmt: skip


_HINTS = {
    "fail": "what is in production stays; train longer or on more data, or change the rule if it asks for too much",
    "inconclusive": "what is in production stays; evaluate on more examples (`max_test`), or train a better candidate",
}


def gate_problems(spec: Mapping[str, Any], unresolved: tuple[str, ...], where: str) -> Iterator[FieldProblem]:
    """Yield what the gate would find out only after hours of training: labels of nothing, rules without a limit."""
    labels = _labels(spec, unresolved)
    rules = spec.get("rules")
    named = [(f"{where}.candidate", spec.get("candidate"))]
    for position, rule in enumerate(rules if isinstance(rules, list | tuple) else ()):
        if not isinstance(rule, Mapping):
            continue
        place = f"{where}.rules[{position}]"
        named.append((f"{place}.than", rule.get("than")))
        reference = spec.get("reference_bytes") is not None or "reference_bytes" in unresolved
        if lack := _lack(rule, reference):
            yield FieldProblem(where=place, message=f"this rule {lack[0]}", hint=lack[1])
    for place, label in named:
        if labels is not None and isinstance(label, str) and label not in labels:
            yield FieldProblem(where=place, message=f"there is no evaluation {label!r}", hint=nearest(label, labels))


def _labels(spec: Mapping[str, Any], unresolved: tuple[str, ...]) -> set[str] | None:
    """Return the labels of all evaluations; None if they come later."""
    given = spec.get("evaluations")
    if "evaluations" in unresolved or not isinstance(given, Mapping):
        return None
    later = {path.removeprefix("evaluations.").split(".")[0] for path in unresolved if path.startswith("evaluations.")}
    return {*given, *later}


def _lack(rule: Mapping[str, Any], reference: bool) -> tuple[str, str] | None:
    """Return what a rule lacks, and what to do."""
    absolute = {"max_size": "bytes", "max_latency": "seconds"}.get(str(rule.get("type")))
    if absolute is None:
        return None
    if rule.get(absolute) is None and rule.get("ratio") is None:
        return "has no limit", f"give `{absolute}` or `ratio`"
    if rule.get("ratio") is not None and rule.get("than") is None and not (absolute == "bytes" and reference):
        more = " or the gate's `reference_bytes`" if absolute == "bytes" else ""
        return "has a ratio of nothing", f"give `than`{more}"
    return None


GATE = EngineKind(
    GateSpec, Verdict, "Judges evaluations by rules", apply=_apply, prepare=_prepare, writes=False, check=gate_problems
)
