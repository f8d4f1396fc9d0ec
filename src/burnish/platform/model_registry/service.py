"""The rules of the registry: versions are immutable integers, aliases move and remember where they were."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.errors import Conflict, InvalidRequest, NotFound
from burnish.core.specs.base import ArtifactRef
from burnish.core.specs.model import ModelCard
from burnish.infra import event_log
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.database import Database, notify, utcnow
from burnish.platform.model_registry import store
from burnish.platform.model_registry.schemas import (
    AliasMove,
    AliasView,
    Derived,
    Lineage,
    LineageView,
    ModelView,
    NewVersion,
    VersionView,
)
from burnish.platform.model_registry.tables import ModelAliasMoveRow, ModelAliasRow, ModelRow, ModelVersionRow

OWNER = "model_version"

ALIASES_TOPIC = "model_aliases"
"""Notified when an alias moved: requests by it may have to go elsewhere."""


async def register(
    session: AsyncSession, project_id: str, name: str, new: NewVersion, by: str
) -> tuple[VersionView, bool]:
    """Make a version, or return the one that has exactly these artifacts; the flag tells whether it is new.

    Raises:
        NotFound: the project has no such artifact.
    """
    for ref in _refs(new):
        if await artifacts.find(session, project_id, ref.digest) is None:
            raise NotFound(
                f"there is no artifact {ref.digest}", where="model", hint="register what a job has published"
            )
    model = await store.ensure_model(session, project_id, name)
    known = await store.same_artifacts(session, model.id, new.model.digest, _digest(new.adapter))
    if known is not None:
        return await view_of(session, model, known), False
    model.last_version += 1
    row = ModelVersionRow(
        project_id=project_id, model_id=model.id, version=model.last_version, digest=new.model.digest,
        adapter_digest=_digest(new.adapter), base_digest=_base(new), artifact=new.model.model_dump(mode="json"),
        adapter=None if new.adapter is None else new.adapter.model_dump(mode="json"),
        card=None if new.card is None else new.card.model_dump(mode="json"), metrics=dict(new.metrics),
        lineage=new.lineage.model_dump(mode="json"), licence=new.licence or _licence(new), description=new.description,
        created_by=by, created_at=utcnow(),
    )  # fmt: skip
    session.add(row)
    await session.flush()
    for ref in _refs(new):
        await artifacts.refer(session, project_id, ref.digest, OWNER, str(row.id))
    await _tell(session, model, {"registered": row.version, "digest": row.digest}, new.lineage.execution)
    return await view_of(session, model, row), True


def _refs(new: NewVersion) -> list[ArtifactRef]:
    return [new.model] if new.adapter is None else [new.model, new.adapter]


def _digest(ref: ArtifactRef | None) -> str | None:
    return None if ref is None else ref.digest


def _base(new: NewVersion) -> str | None:
    if new.lineage.base is not None:
        return new.lineage.base.digest
    return None if new.card is None else new.card.base


def _licence(new: NewVersion) -> str | None:
    own = None if new.card is None else new.card.licence
    return own or (None if new.lineage.base is None else new.lineage.base.licence)


async def move_alias(
    session: AsyncSession, project_id: str, name: str, alias: str, version: int, *, by: str, reason: str = ""
) -> AliasView:
    """Point an alias at a version. Pointing it where it already points changes nothing.

    Raises:
        NotFound: there is no such model or version.
    """
    model = await _model(session, project_id, name, lock=True)
    await _version(session, model, version)
    return await _point(session, model, alias, version, by=by, reason=reason, rolled_back=False)


async def locked_alias(session: AsyncSession, project_id: str, name: str, alias: str) -> int | None:
    """Return where an alias points, None if nowhere, and keep it there until the unit of work ends.

    A model that is not there yet is made, so that there is something to lock.
    """
    model = await store.ensure_model(session, project_id, name)
    row = await store.alias(session, model.id, alias)
    return None if row is None else row.version


async def roll_back(
    session: AsyncSession, project_id: str, name: str, alias: str, *, by: str, reason: str = ""
) -> AliasView:
    """Point an alias at the version that it had before; again goes one further back.

    Raises:
        NotFound: there is no such model or alias.
        Conflict: it had none before.
    """
    model = await _model(session, project_id, name, lock=True)
    if await store.alias(session, model.id, alias) is None:
        raise NotFound(f"{name} has no alias {alias!r}", where="alias", hint="promote a version first")
    stack = _stack(await store.moves(session, model.id, alias))
    for version in reversed(stack[:-1]):
        if await store.version(session, model.id, version) is not None:
            return await _point(session, model, alias, version, by=by, reason=reason, rolled_back=True)
    raise Conflict(f"{name}@{alias} had no version before", where="alias", hint="point it at a version instead")


def _stack(moves: Sequence[ModelAliasMoveRow]) -> list[int]:
    """Return the versions that an alias could be rolled back through, the present one last."""
    stack: list[int] = []
    for move in moves:
        if move.new_version is None:
            stack = []
        elif move.rolled_back and move.new_version in stack:
            del stack[len(stack) - stack[::-1].index(move.new_version) :]
        else:
            stack.append(move.new_version)
    return stack


async def _point(
    session: AsyncSession, model: ModelRow, alias: str, version: int, *, by: str, reason: str, rolled_back: bool
) -> AliasView:
    row = await store.alias(session, model.id, alias)
    old = None if row is None else row.version
    if row is not None and old == version:
        return AliasView(alias=alias, version=version, moved_at=row.moved_at)
    now = utcnow()
    if row is None:
        session.add(ModelAliasRow(model_id=model.id, alias=alias, version=version, moved_at=now))
    else:
        row.version, row.moved_at = version, now
    session.add(
        ModelAliasMoveRow(
            model_id=model.id, alias=alias, old_version=old, new_version=version, rolled_back=rolled_back, by=by,
            reason=reason, at=now,
        )
    )  # fmt: skip
    await session.flush()
    await notify(session, ALIASES_TOPIC)
    await _tell(
        session, model, {"alias": alias, "from": old, "to": version, "rolled_back": rolled_back, "by": by}, None
    )
    return AliasView(alias=alias, version=version, moved_at=now)


async def remove_alias(session: AsyncSession, project_id: str, name: str, alias: str, *, by: str) -> None:
    """Take an alias away; its history stays.

    Raises:
        NotFound: there is no such model or alias.
    """
    model = await _model(session, project_id, name, lock=True)
    row = await store.alias(session, model.id, alias)
    if row is None:
        raise NotFound(f"{name} has no alias {alias!r}", where="alias")
    move = ModelAliasMoveRow(
        model_id=model.id, alias=alias, old_version=row.version, new_version=None, by=by, at=utcnow()
    )
    session.add(move)
    await store.delete_alias(session, model.id, alias)
    await session.flush()
    await notify(session, ALIASES_TOPIC)
    await _tell(session, model, {"alias": alias, "from": move.old_version, "to": None, "by": by}, None)


async def delete_version(session: AsyncSession, project_id: str, name: str, version: int) -> None:
    """Delete a version and release its artifacts. Its number is not used again.

    Raises:
        NotFound: there is no such version.
        Conflict: an alias points at it, or another version was made from it.
    """
    model = await _model(session, project_id, name, lock=True)
    row = await _version(session, model, version)
    pointing = [a.alias for a in await store.aliases(session, [model.id]) if a.version == version]
    if pointing:
        raise Conflict(f"{name}@{version} is behind the alias {pointing[0]}", where="version",
                       hint="move the alias to another version first")  # fmt: skip
    made = await store.derived(session, project_id, _digests(row), row.id)
    if made:
        raise Conflict(f"{made[0][0]}@{made[0][1]} was made from {name}@{version}", where="version",
                       hint="delete what was made from it first")  # fmt: skip
    await artifacts.release(session, OWNER, str(row.id))
    await session.delete(row)
    await session.flush()
    await _tell(session, model, {"deleted": version}, None)


async def resolve(session: AsyncSession, project_id: str, reference: str) -> VersionView:
    """Return the version that ``name@3``, ``name@production`` or ``name`` (its newest) stands for.

    Raises:
        NotFound: there is none.
    """
    name, _, which = reference.partition("@")
    model = await _model(session, project_id, name)
    if which.isdecimal():
        return await view_of(session, model, await _version(session, model, int(which[:9])))
    if which:
        alias = await store.alias(session, model.id, which)
        if alias is None:
            known = [a.alias for a in await store.aliases(session, [model.id])]
            raise NotFound(f"{name} has no alias {which!r}", where=reference,
                           hint=f"it has: {', '.join(known) or 'none'}, and versions by number")  # fmt: skip
        return await view_of(session, model, await _version(session, model, alias.version))
    newest = await store.latest(session, model.id)
    if newest is None:
        raise NotFound(f"{name} has no version", where=reference)
    return await view_of(session, model, newest)


async def lineage(session: AsyncSession, project_id: str, name: str, version: int) -> LineageView:
    """Return where a version came from, and what came of it.

    Raises:
        NotFound: there is no such version.
    """
    model = await _model(session, project_id, name)
    row = await _version(session, model, version)
    view = await view_of(session, model, row)
    moved = [m for m in await store.moves(session, model.id) if version in {m.old_version, m.new_version}]
    derived = await store.derived(session, project_id, _digests(row), row.id)
    return LineageView(
        reference=view.reference, artifact=view.artifact, upstream=Lineage.model_validate(row.lineage),
        licence=row.licence, aliases=view.aliases, promoted=tuple(_move_view(move) for move in moved),
        derived=tuple(Derived(reference=f"{n}@{v}", digest=digest) for n, v, digest in derived),
    )  # fmt: skip


def _digests(row: ModelVersionRow) -> list[str]:
    return [row.digest] if row.adapter_digest is None else [row.digest, row.adapter_digest]


def _move_view(move: ModelAliasMoveRow) -> AliasMove:
    return AliasMove(
        alias=move.alias, old_version=move.old_version, new_version=move.new_version, rolled_back=move.rolled_back,
        by=move.by, reason=move.reason, at=move.at,
    )  # fmt: skip


async def history(session: AsyncSession, project_id: str, name: str, alias: str) -> list[AliasMove]:
    """Return every move of an alias, oldest first.

    Raises:
        NotFound: there is no such model.
    """
    model = await _model(session, project_id, name)
    return [_move_view(move) for move in await store.moves(session, model.id, alias)]


async def aliases_of(session: AsyncSession, project_id: str, names: Collection[str]) -> Mapping[str, Mapping[str, int]]:
    """Return where the aliases of these models point: ``{model: {alias: version}}``; unknown models have none."""
    found: dict[str, dict[str, int]] = {}
    for name, row in await store.aliases_by_name(session, project_id, names):
        found.setdefault(name, {})[row.alias] = row.version
    return found


async def view_of(session: AsyncSession, model: ModelRow, row: ModelVersionRow) -> VersionView:
    """Return a version with the aliases that point at it."""
    pointing = tuple(a.alias for a in await store.aliases(session, [model.id]) if a.version == row.version)
    return version_view(model.name, row, pointing)


def version_view(name: str, row: ModelVersionRow, aliases: tuple[str, ...]) -> VersionView:
    """Return a version as the API shows it."""
    return VersionView(
        model=name, version=row.version, reference=f"{name}@{row.version}",
        artifact=ArtifactRef.model_validate(row.artifact),
        adapter=None if row.adapter is None else ArtifactRef.model_validate(row.adapter), aliases=aliases,
        card=None if row.card is None else ModelCard.model_validate(row.card), metrics=row.metrics, licence=row.licence,
        base=row.base_digest, execution=row.lineage.get("execution"), description=row.description,
        created_by=row.created_by, created_at=row.created_at,
    )  # fmt: skip


async def get(session: AsyncSession, project_id: str, name: str, version: int) -> VersionView:
    """Return one version.

    Raises:
        NotFound: there is none.
    """
    model = await _model(session, project_id, name)
    return await view_of(session, model, await _version(session, model, version))


async def list_models(session: AsyncSession, project_id: str, after: str | None, limit: int) -> list[ModelView]:
    """Return up to ``limit + 1`` models by name, with their aliases."""
    rows = await store.models(session, project_id, after, limit)
    return await _model_views(session, rows)


async def get_model(session: AsyncSession, project_id: str, name: str) -> ModelView:
    """Return one model.

    Raises:
        NotFound: there is none.
    """
    return (await _model_views(session, [await _model(session, project_id, name)]))[0]


async def list_versions(
    session: AsyncSession, project_id: str, name: str, before: int | None, limit: int
) -> list[VersionView]:
    """Return up to ``limit + 1`` versions, newest first.

    Raises:
        NotFound: there is no such model.
    """
    model = await _model(session, project_id, name)
    pointing = _by_version(await store.aliases(session, [model.id]))
    rows = await store.versions(session, model.id, before, limit)
    return [version_view(model.name, row, tuple(pointing.get(row.version, ()))) for row in rows]


def _by_version(aliases: Sequence[ModelAliasRow]) -> Mapping[int, list[str]]:
    found: dict[int, list[str]] = {}
    for alias in aliases:
        found.setdefault(alias.version, []).append(alias.alias)
    return found


async def _model_views(session: AsyncSession, rows: Sequence[ModelRow]) -> list[ModelView]:
    ids = [row.id for row in rows]
    counts = await store.count_versions(session, ids)
    pointing: dict[str, list[AliasView]] = {}
    for a in await store.aliases(session, ids):
        pointing.setdefault(a.model_id, []).append(AliasView(alias=a.alias, version=a.version, moved_at=a.moved_at))
    views = []
    for row in rows:
        count, newest = counts.get(row.id, (0, None))
        aliases = tuple(pointing.get(row.id, ()))
        views.append(
            ModelView(name=row.name, description=row.description, latest_version=newest, versions=count,
                      aliases=aliases, created_at=row.created_at)
        )  # fmt: skip
    return views


async def _model(session: AsyncSession, project_id: str, name: str, *, lock: bool = False) -> ModelRow:
    found = await store.find_model(session, project_id, name, lock=lock)
    if found is None:
        raise NotFound(f"there is no model {name!r}", where="name", hint="`burnish model list` shows them")
    return found


async def _version(session: AsyncSession, model: ModelRow, number: int) -> ModelVersionRow:
    found = await store.version(session, model.id, number)
    if found is None:
        newest = await store.latest(session, model.id)
        hint = f"the newest is {newest.version}" if newest is not None else "it has no versions"
        raise NotFound(f"{model.name} has no version {number}", where="version", hint=hint)
    return found


async def _tell(session: AsyncSession, model: ModelRow, data: Mapping[str, Any], origin: str | None) -> None:
    await event_log.append(
        session, project_id=model.project_id, subject=model.id, type="action", data={"model": model.name, **data},
        origin=origin,
    )  # fmt: skip


class ModelFinder:
    """Finds what a workflow's ``model`` parameter names, if the registry has it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def __call__(self, project_id: str, reference: str) -> dict[str, Any] | None:
        """Return the version's artifacts, or None where the registry has no model of that name.

        Raises:
            NotFound: it has the model, but not that version or alias.
        """
        name = reference.partition("@")[0]
        async with self._database.read() as session:
            if await store.find_model(session, project_id, name) is None:
                return None
            found = await resolve(session, project_id, reference)
        return {
            "source": None, "artifact": found.artifact.model_dump(mode="json"), "name": found.model,
            "adapter": None if found.adapter is None else found.adapter.model_dump(mode="json"),
            "version": found.version,
        }  # fmt: skip


def check_reference(reference: str) -> str:
    """Return a registry reference.

    Raises:
        InvalidRequest: it is none.
    """
    if not reference or len(reference) > 200 or reference.count("@") > 1:
        raise InvalidRequest(
            f"{reference[:60]!r} is no reference", where="ref", hint="`name`, `name@3` or `name@production`"
        )
    return reference
