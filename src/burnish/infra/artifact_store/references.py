"""Artifact references in JSON data, and whether a project has what they name.

Content has one address for all, so a digest opens nothing by itself: a project has an artifact where a row says so.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.errors import FieldProblem
from burnish.core.specs.base import ArtifactRef, Digest
from burnish.infra.artifact_store import store

_FIELDS = tuple(ArtifactRef.model_fields)


def references_in(value: Any, where: str = "") -> Iterator[tuple[str, ArtifactRef]]:
    """Yield every artifact reference in JSON data with its place (``where.train.0``), one inside another, too."""
    if isinstance(value, Mapping):
        if isinstance(value.get("digest"), str) and "kind" in value:
            try:
                found = ArtifactRef.model_validate({name: value[name] for name in _FIELDS if name in value})
            except ValidationError:
                pass
            else:
                yield where, found
        for name, inner in value.items():
            yield from references_in(inner, f"{where}.{name}" if where else str(name))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from references_in(inner, f"{where}.{index}" if where else str(index))


async def problems_with(
    session: AsyncSession, project_id: str, value: Any, where: str, besides: Collection[Digest] = ()
) -> list[FieldProblem]:
    """Return a problem for each reference to an artifact that the project does not have, whether anybody has it or not.

    ``besides``: what is about to be recorded as the project's.
    """
    references = [found for found in references_in(value, where) if found[1].digest not in besides]
    if not references:
        return []
    known = await store.known(session, project_id, {reference.digest for _, reference in references})
    return [not_there(place, one.digest) for place, one in references if one.digest not in known]


def not_there(where: str, digest: Digest) -> FieldProblem:
    """Return what is said of an artifact that the project does not have: nothing of what others have."""
    return FieldProblem(
        where=where, message=f"there is no artifact {digest} in this project",
        hint="use the reference that a job's result or a dataset version gives",
    )  # fmt: skip
