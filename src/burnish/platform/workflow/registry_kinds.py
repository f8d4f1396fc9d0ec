"""The kinds ``current``, ``register`` and ``promote``: what a workflow asks of the model registry.

``register`` gathers the lineage by itself: dataset cards, the base's card and the jobs that the execution ran.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.errors import Conflict, NotFound
from burnish.core.specs.base import ArtifactRef, Spec, digest_of
from burnish.core.specs.data import DATASET_CARD_FILE, DatasetCard
from burnish.core.specs.evaluation import EvaluationResult
from burnish.core.specs.model import MODEL_CARD_FILE, ModelCard
from burnish.core.specs.serving import DEPLOYMENT_PATTERN
from burnish.core.version import __version__
from burnish.infra.artifact_store.protocol import ArtifactStore
from burnish.platform.identity import Principal
from burnish.platform.model_registry import service as registry
from burnish.platform.model_registry.schemas import (
    AliasName,
    BaseUse,
    DatasetUse,
    Lineage,
    ModelName,
    NewVersion,
    StepUse,
    VersionView,
)
from burnish.platform.workflow import store
from burnish.platform.workflow.engine_kinds import EngineKind, EngineStep, Evidence

_READS = "deployment:read"
"""What ``current`` asks for beyond the registry; who submitted it was found to have it."""

_SUMMED_UP = frozenset({"history"})
"""Fields of a training's result that are too long for a lineage: the job keeps them."""


class CurrentSpec(Spec):
    """Find the version that is in production."""

    name: ModelName
    alias: AliasName = "production"
    deployment: str | None = Field(
        default=None,
        pattern=DEPLOYMENT_PATTERN,
        description="What this deployment serves counts, if that is a version of the model: after a roll back the "
        "alias may name another",
    )


class CurrentResult(Spec):
    """The version, where there is one."""

    found: bool
    version: int | None = None
    reference: str | None = None
    artifact: ArtifactRef | None = None
    adapter: ArtifactRef | None = None
    aliased: int | None = Field(
        default=None, description="The version that the alias points at; another one than `version` after a roll back"
    )


async def _served(evidence: Evidence, step: EngineStep, spec: CurrentSpec) -> str | None:
    """Return the version of the model that the deployment serves, as ``name@3``."""
    if spec.deployment is None:
        return None
    principal = Principal(step.submitted_by, step.project_id).acting(_READS)
    try:
        view = await evidence.ask(
            "model_serving", "GET", f"/platform/deployments/{spec.deployment}", principal=principal
        )
    except NotFound:
        return None
    reference = view.get("model_version")
    return reference if reference and reference.partition("@")[0] == spec.name else None


async def _current(session: AsyncSession, step: EngineStep, spec: CurrentSpec, served: str | None) -> CurrentResult:
    aliased = await _resolved(session, step, f"{spec.name}@{spec.alias}")
    found = aliased if served is None else await _resolved(session, step, served) or aliased
    if found is None:
        return CurrentResult(found=False)
    return CurrentResult(
        found=True, version=found.version, reference=found.reference, artifact=found.artifact, adapter=found.adapter,
        aliased=None if aliased is None else aliased.version,
    )  # fmt: skip


async def _resolved(session: AsyncSession, step: EngineStep, reference: str) -> VersionView | None:
    try:
        return await registry.resolve(session, step.project_id, reference)
    except NotFound:
        return None


class DatasetGiven(BaseModel):
    """A dataset as a parameter of type ``dataset`` resolves to."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str | None = None
    version: str | int | None = None
    artifact: ArtifactRef


class _Replacing(Spec):
    """What was judged against the version behind an alias, and is to replace that one and no other."""

    name: ModelName
    alias: AliasName = "production"
    expected: int | None = Field(
        default=None,
        description="The version that the alias had when the candidate was judged against it, null for none: "
        "a conflict if it has another by now. Left out, nothing is compared",
    )


class RegisterSpec(_Replacing):
    """Make a model version."""

    model: ArtifactRef = Field(description="What is served")
    adapter: ArtifactRef | None = None
    base: ArtifactRef | None = Field(default=None, description="The model that it was made from")
    trained_adapter: ArtifactRef | None = Field(default=None, description="The adapter that was merged into it")
    datasets: dict[str, ArtifactRef | DatasetGiven | None] = Field(
        default_factory=dict, max_length=20, description="By role: `source`, `train`, `validation`, `test`"
    )
    training: dict[str, JsonValue] | None = Field(default=None, description="The training step's result")
    compression: dict[str, JsonValue] | None = Field(default=None, description="The compression step's result")
    evaluations: dict[str, EvaluationResult | None] = Field(default_factory=dict, max_length=20)
    verdict: dict[str, JsonValue] | None = Field(default=None, description="The gate's result")
    seed: int | None = None
    licence: str | None = Field(default=None, max_length=255)
    description: str = Field(default="", max_length=10_000)


class RegisterResult(Spec):
    """The version."""

    name: str
    version: int
    reference: str
    created: bool = Field(description="False where this very model was registered before")
    artifact: ArtifactRef


@dataclass(frozen=True)
class _Cards:
    model: ModelCard | None
    base: ModelCard | None
    datasets: Mapping[str, DatasetCard]


async def _read_cards(evidence: Evidence, _step: EngineStep, spec: RegisterSpec) -> _Cards:
    return await asyncio.to_thread(_cards, evidence.store, spec)


def _cards(artifact_store: ArtifactStore, spec: RegisterSpec) -> _Cards:
    given = {role: ref for role, one in spec.datasets.items() if (ref := _ref(one)) is not None}
    return _Cards(
        _card(artifact_store, spec.model, MODEL_CARD_FILE, ModelCard),
        None if spec.base is None else _card(artifact_store, spec.base, MODEL_CARD_FILE, ModelCard),
        {
            role: card
            for role, ref in given.items()
            if (card := _card(artifact_store, ref, DATASET_CARD_FILE, DatasetCard)) is not None
        },
    )


def _card(artifact_store: ArtifactStore, ref: ArtifactRef, name: str, model: type[BaseModel]) -> Any:
    """Return what an artifact says about itself; None for one that says nothing (a third party's, say)."""
    path = artifact_store.open(ref) / name
    try:
        return model.model_validate(json.loads(path.read_text("utf-8")))
    except (FileNotFoundError, ValueError, ValidationError):
        return None


def _ref(one: ArtifactRef | DatasetGiven | None) -> ArtifactRef | None:
    return one.artifact if isinstance(one, DatasetGiven) else one


async def _judged_against(session: AsyncSession, step: EngineStep, spec: _Replacing) -> int | None:
    """Lock the model, check that its alias is where it was when the candidate was judged, and return where that is.

    Raises:
        Conflict: it points elsewhere.
    """
    now = await registry.locked_alias(session, step.project_id, spec.name, spec.alias)
    wanted = {spec.expected, spec.version} if isinstance(spec, PromoteSpec) else {spec.expected}
    if "expected" in spec.model_fields_set and now not in wanted:
        then, there = ["nothing" if version is None else f"version {version}" for version in (spec.expected, now)]
        raise Conflict(
            f"{spec.name}@{spec.alias} pointed at {then} when the candidate was judged, and points at {there} now",
            where=f"steps.{step.step}", hint=f"`burnish retry {step.workflow_id}` judges it against what is there now",
        )  # fmt: skip
    return now


async def _refuse_a_second(session: AsyncSession, step: EngineStep, spec: RegisterSpec, now: int | None) -> None:
    """Let one execution at a time go from registration to promotion: the second would deploy over the first.

    Raises:
        Conflict: another one is on that way.
    """
    for workflow_id, steps, other in await store.registered(session, step.project_id, step.workflow_id):
        same = (other.spec.get("name"), other.spec.get("alias", "production")) == (spec.name, spec.alias)
        stands = steps.get(other.step, {}).get("state") == "succeeded"
        if same and stands and "expected" in other.spec and (other.result or {}).get("version") != now:
            raise Conflict(
                f"{workflow_id} is about to put another version behind {spec.name}@{spec.alias}",
                where=f"steps.{step.step}", hint=f"when it has ended (or was cancelled), `burnish retry {step.workflow_id}`",
            )  # fmt: skip


async def _register(session: AsyncSession, step: EngineStep, spec: RegisterSpec, cards: _Cards) -> RegisterResult:
    now = await _judged_against(session, step, spec)
    if "expected" in spec.model_fields_set:
        await _refuse_a_second(session, step, spec, now)
    lineage = Lineage(
        execution=step.workflow_id, workflow_type=step.workflow_type, definition_digest=step.definition_digest,
        parameters=dict(step.parameters), datasets=_datasets(spec, cards), base=_base(spec, cards),
        adapter=None if spec.trained_adapter is None else spec.trained_adapter.digest, seed=spec.seed,
        training={key: value for key, value in (spec.training or {}).items() if key not in _SUMMED_UP},
        code_version=_code_version(spec), steps=await _steps(session, step),
        verdict=None if spec.verdict is None else str(spec.verdict.get("sentence", "")),
    )  # fmt: skip
    new = NewVersion(
        model=spec.model, adapter=spec.adapter, card=cards.model, metrics=_metrics(spec), lineage=lineage,
        licence=spec.licence, description=spec.description,
    )  # fmt: skip
    view, created = await registry.register(session, step.project_id, spec.name, new, step.submitted_by)
    return RegisterResult(
        name=view.model, version=view.version, reference=view.reference, created=created, artifact=view.artifact
    )


def _datasets(spec: RegisterSpec, cards: _Cards) -> tuple[DatasetUse, ...]:
    found = []
    for role, one in spec.datasets.items():
        ref = _ref(one)
        if ref is None:
            continue
        card = cards.datasets.get(role)
        named = one if isinstance(one, DatasetGiven) else None
        found.append(
            DatasetUse(
                role=role, digest=ref.digest, name=None if named is None else named.name,
                version=None if named is None else named.version, rows=None if card is None else card.rows,
                rows_hash=None if card is None else card.rows_hash, licence=None if card is None else card.licence,
            )
        )  # fmt: skip
    return tuple(found)


def _base(spec: RegisterSpec, cards: _Cards) -> BaseUse | None:
    if spec.base is None:
        return None
    card = cards.base
    if card is None:
        return BaseUse(digest=spec.base.digest)
    return BaseUse(
        digest=spec.base.digest, name=card.name, source=card.source, licence=card.licence, shipped_as=card.shipped_as
    )


def _code_version(spec: RegisterSpec) -> str:
    trained_by = (spec.training or {}).get("code_version")
    return str(trained_by) if trained_by else __version__


async def _steps(session: AsyncSession, step: EngineStep) -> tuple[StepUse, ...]:
    found = await store.succeeded_attempts(session, step.project_id, step.workflow_id)
    rows = {(row.step, row.item): row for row in sorted(found, key=lambda row: row.number)}.values()
    return tuple(
        StepUse(
            step=row.step, component=row.component, kind=row.kind, job_id=row.reused_from or row.job_id,
            spec_digest=digest_of(row.spec),
        )
        for row in rows
    )  # fmt: skip


def _metrics(spec: RegisterSpec) -> dict[str, JsonValue]:
    """Return each evaluation's numbers and what compression cost, in short."""
    found: dict[str, JsonValue] = {}
    for label, result in spec.evaluations.items():
        if result is not None:
            numbers = result.model_dump(mode="json", include={"task", "headline", "metrics", "served"})
            found[label] = numbers
    if spec.compression is not None:
        found["compression"] = {key: value for key, value in spec.compression.items() if key != "params"}
    return found


class PromoteSpec(_Replacing):
    """Point an alias at a version, once its deployment is verified."""

    version: int = Field(ge=1)
    deployment: dict[str, JsonValue] | None = Field(
        default=None, description="Result of `deploy`: naming it here makes this step wait for it"
    )
    reason: str = Field(default="", max_length=2_000)


class PromoteResult(Spec):
    """Where the alias points now."""

    name: str
    alias: str
    version: int
    replaced: int | None = None


async def _promote(session: AsyncSession, step: EngineStep, spec: PromoteSpec, _prepared: Any) -> PromoteResult:
    before = await _judged_against(session, step, spec)
    reason = spec.reason or f"promoted by {step.workflow_id}"
    await registry.move_alias(
        session, step.project_id, spec.name, spec.alias, spec.version, by=step.submitted_by, reason=reason
    )
    return PromoteResult(name=spec.name, alias=spec.alias, version=spec.version, replaced=before)


REGISTRY_KINDS: Mapping[str, EngineKind] = {
    "current": EngineKind(
        CurrentSpec,
        CurrentResult,
        "Finds the version in production: what a deployment serves, or an alias points at",
        apply=_current,
        prepare=_served,
        writes=False,
        live=True,
        permission=_READS,
    ),
    "register": EngineKind(
        RegisterSpec,
        RegisterResult,
        "Makes a model version, with its lineage",
        apply=_register,
        prepare=_read_cards,
        permission="model:write",
    ),
    "promote": EngineKind(
        PromoteSpec, PromoteResult, "Points an alias at a model version", apply=_promote, permission="model:write"
    ),
}
