"""What may be asked of deployments. Sessions belong to the caller; nothing here commits, waits or touches a process."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.components.model_serving import store
from burnish.components.model_serving.engines import ENGINES, Engine, find
from burnish.components.model_serving.schemas import DeploymentView, ReplicaView, RevisionView
from burnish.components.model_serving.tables import Deployment, Replica, Revision
from burnish.core.errors import Conflict, ErrorBody, FieldProblem, InvalidRequest, NotFound
from burnish.core.ids import new_id
from burnish.core.specs.base import ArtifactRef, digest_of
from burnish.core.specs.serving import DeploySpec
from burnish.core.states import DeploymentState, ReplicaState, RevisionState
from burnish.infra import idempotency
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.database import notify, utcnow
from burnish.infra.reconcile import announce, wake

REFERENCE_OWNER = "revision"
"""Owner kind of the references that keep a revision's artifacts from being collected."""
_SHOWN_REVISIONS = 20
_DEPLOY_ROUTE = "POST /platform/deployments"


@dataclass(frozen=True)
class Requested:
    """What a deploy came to."""

    deployment_id: str
    revision: int
    switched: bool
    """False: this very model is being served already."""


@dataclass(frozen=True)
class Deployments:
    """The rules of deployments on one node."""

    node: str
    cpus: int
    engines: Mapping[str, Engine] = field(default_factory=lambda: ENGINES)

    async def deploy(
        self, session: AsyncSession, project_id: str, spec: DeploySpec, job_id: str | None = None
    ) -> Requested:
        """Want this spec to be served: a new revision, unless the wanted or serving one is the same.

        The same ``job_id`` twice is the same revision.

        Raises:
            InvalidRequest: the engine is unknown or cannot load this.
            Conflict: the deployment is being deleted.
        """
        find(self.engines, spec.engine).check(spec)
        if job_id is not None and (known := await store.revision_of_job(session, project_id, job_id)) is not None:
            return Requested(known.deployment_id, known.number, switched=True)
        row = await store.find(session, project_id, spec.deployment, lock=True)
        if row is None:
            row = await store.find_or_add(
                session,
                Deployment(id=new_id("dep"), project_id=project_id, name=spec.deployment, node=self.node,
                           state=str(DeploymentState.PENDING), last_number=0, deleted=False),
            )  # fmt: skip
        if row.deleted:
            raise Conflict(f"deployment {row.name} is being deleted", hint="wait until it is gone, or use another name")
        if row.wanted is not None and row.wanted == row.serving:
            current = await store.revision(session, row.id, row.wanted)
            if current is not None and same_service(DeploySpec.model_validate(current.spec), spec):
                return Requested(row.id, current.number, switched=False)
        row.last_number += 1
        revision = Revision(id=new_id("rev"), deployment_id=row.id, project_id=project_id, number=row.last_number,
                            spec=spec.model_dump(mode="json"), job_id=job_id, state=str(RevisionState.STARTING),
                            started_at=utcnow())  # fmt: skip
        session.add(revision)
        await session.flush()
        for artifact in filter(None, (spec.model, spec.adapter)):
            await artifacts.refer(session, project_id, artifact.digest, REFERENCE_OWNER, revision.id)
        await self._want(session, row, revision.number)
        return Requested(row.id, revision.number, switched=True)

    async def deploy_once(self, session: AsyncSession, project_id: str, spec: DeploySpec, key: str | None) -> None:
        """Deploy by request of a client: its artifacts must be the project's, and a key used before changes nothing.

        Raises:
            InvalidRequest: as :meth:`deploy` and :meth:`check_artifacts`.
            IdempotencyMismatch: the key came with another spec before.
        """
        digest = digest_of(spec.model_dump(mode="json"))
        if key is not None and await idempotency.remembered(session, project_id, key, _DEPLOY_ROUTE, digest):
            return
        await self.check_artifacts(session, project_id, spec)
        requested = await self.deploy(session, project_id, spec)
        if key is not None:
            made: dict[str, JsonValue] = {"deployment": spec.deployment, "revision": requested.revision}
            await idempotency.remember(session, project_id, key, _DEPLOY_ROUTE, digest, 200, made)

    async def check_artifacts(self, session: AsyncSession, project_id: str, spec: DeploySpec) -> None:
        """Refuse a spec whose artifacts the project does not have.

        Raises:
            InvalidRequest: with a problem for each.
        """
        named: dict[str, ArtifactRef | None] = {"model": spec.model, "adapter": spec.adapter}
        problems = [
            FieldProblem(where=name, message=f"there is no artifact {artifact.digest} in this project")
            for name, artifact in named.items()
            if artifact is not None and await artifacts.find(session, project_id, artifact.digest) is None
        ]
        if problems:
            raise InvalidRequest("the spec names artifacts that are not there", problems=problems,
                                 hint="deploy what a job has published, or a registered version")  # fmt: skip

    async def rollback(self, session: AsyncSession, project_id: str, name: str, number: int | None) -> None:
        """Want an earlier revision again: the one that served before, or the one named.

        Raises:
            NotFound: there is no such deployment or revision.
            Conflict: nothing served before, or it serves already.
        """
        row = await self._found(session, project_id, name, lock=True)
        if number is None:
            current = None if row.serving is None else await store.revision(session, row.id, row.serving)
            number = None if current is None else current.replaced
            if number is None:
                raise Conflict(
                    f"no revision served before the one that deployment {name} serves", hint="name a revision"
                )
        revision = await store.revision(session, row.id, number)
        if revision is None:
            raise NotFound(f"deployment {name} has no revision {number}", where="revision")
        if row.wanted == row.serving == number:
            raise Conflict(f"deployment {name} serves revision {number} already")
        await self._restart(session, row, revision)

    async def stop(self, session: AsyncSession, project_id: str, name: str) -> None:
        """Want nothing to be served; what is in flight is finished. Stopping twice is stopping once."""
        row = await self._found(session, project_id, name, lock=True)
        await self._want(session, row, None)

    async def start(self, session: AsyncSession, project_id: str, name: str) -> None:
        """Want what served last to be served again. Does nothing if something is wanted already.

        Raises:
            Conflict: nothing ever served.
        """
        row = await self._found(session, project_id, name, lock=True)
        if row.wanted is not None:
            return
        served = [r for r in await store.revisions(session, row.id) if r.ready_at is not None]
        if not served:
            raise Conflict(f"deployment {name} never served anything", hint="deploy a model version to it")
        await self._restart(session, row, max(served, key=lambda r: r.ready_at or r.created_at))

    async def delete(self, session: AsyncSession, project_id: str, name: str) -> None:
        """Stop it and forget it. Its rows go when its last replica has ended."""
        row = await self._found(session, project_id, name, lock=True)
        row.deleted = True
        await self._want(session, row, None)

    async def abandon(self, session: AsyncSession, project_id: str, job_id: str) -> None:
        """Stop wanting what a job asked for, unless it serves already (the job was cancelled)."""
        revision = await store.revision_of_job(session, project_id, job_id)
        if revision is None:
            return
        row = await session.get_one(Deployment, revision.deployment_id, with_for_update=True)
        if row.wanted == revision.number != row.serving:
            await self._want(session, row, row.serving)

    async def view(
        self, session: AsyncSession, project_id: str, name: str, in_flight: Mapping[str, int]
    ) -> DeploymentView:
        """Return one deployment.

        Raises:
            NotFound: the project has none of this name.
        """
        return await _view(session, await self._found(session, project_id, name), in_flight)

    async def page(
        self, session: AsyncSession, project_id: str, after: str | None, limit: int, in_flight: Mapping[str, int]
    ) -> tuple[list[DeploymentView], bool]:
        """Return a page of deployments by name, and whether there are more."""
        rows = await store.page(session, project_id, after, limit + 1)
        return [await _view(session, row, in_flight) for row in rows[:limit]], len(rows) > limit

    async def _found(self, session: AsyncSession, project_id: str, name: str, *, lock: bool = False) -> Deployment:
        row = await store.find(session, project_id, name, lock=lock)
        if row is None or row.deleted:
            raise NotFound(f"there is no deployment {name}", where="name", hint="list them: GET /platform/deployments")
        return row

    async def _restart(self, session: AsyncSession, row: Deployment, revision: Revision) -> None:
        if row.wanted == revision.number != row.serving:
            return
        if revision.state not in (RevisionState.SERVING, RevisionState.STARTING, RevisionState.VERIFYING):
            revision.failures, revision.failed_at, revision.error = 0, None, None
            revision.started_at = utcnow()
            await store.move_revision(session, revision, RevisionState.STARTING)
        await self._want(session, row, revision.number)

    async def _want(self, session: AsyncSession, row: Deployment, number: int | None) -> None:
        row.wanted = number
        row.error = None
        row.state = str(DeploymentState.UPDATING)
        await store.say(session, row, {"wanted": number, "serving": row.serving})
        await session.flush()
        await wake(session, Deployment, row.id)
        await announce(session, Deployment)
        await notify(session, store.TOPIC)


def same_service(one: DeploySpec, other: DeploySpec) -> bool:
    """Tell whether two specs are served alike; which registry version the bytes go by does not matter."""
    return one.model_copy(update={"model_version": None}) == other.model_copy(update={"model_version": None})


async def _view(session: AsyncSession, row: Deployment, in_flight: Mapping[str, int]) -> DeploymentView:
    revisions = await store.revisions(session, row.id, _SHOWN_REVISIONS)
    replicas = await store.live_replicas(session, row.id)
    serving = next((r for r in revisions if r.number == row.serving), None)
    return DeploymentView(
        id=row.id, name=row.name, state=DeploymentState(row.state), wanted=row.wanted, serving=row.serving,
        model_version=None if serving is None else serving.spec.get("model_version"), error=_error(row.error),
        revisions=tuple(_revision_view(revision) for revision in revisions),
        replicas=tuple(_replica_view(replica, in_flight) for replica in replicas),
        created_at=row.created_at, updated_at=row.updated_at,
    )  # fmt: skip


def _revision_view(row: Revision) -> RevisionView:
    return RevisionView(
        number=row.number, state=RevisionState(row.state), spec=DeploySpec.model_validate(row.spec),
        replaced=row.replaced, failures=row.failures, error=_error(row.error), job_id=row.job_id,
        created_at=row.created_at, ready_at=row.ready_at,
    )  # fmt: skip


def _replica_view(row: Replica, in_flight: Mapping[str, int]) -> ReplicaView:
    return ReplicaView(
        id=row.id, revision=row.revision, state=ReplicaState(row.state), pid=row.pid, cpus=row.cpus,
        memory_bytes=row.memory_bytes, in_flight=in_flight.get(row.id, 0), error=_error(row.error),
        created_at=row.created_at, ready_at=row.ready_at,
    )  # fmt: skip


def _error(value: dict[str, object] | None) -> ErrorBody | None:
    return None if value is None else ErrorBody.model_validate(value)
