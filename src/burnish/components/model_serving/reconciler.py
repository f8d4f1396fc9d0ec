"""Advances deployments: load, observe, decide, commit what was decided, act, record."""

import asyncio
import logging
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from burnish.components.model_serving import decide as d
from burnish.components.model_serving import probe, replicas, store
from burnish.components.model_serving.apply import Applied, apply, lose
from burnish.components.model_serving.engines import find
from burnish.components.model_serving.replicas import ReplicaEnded, ReplicaProcesses
from burnish.components.model_serving.routing import Traffic
from burnish.components.model_serving.service import Deployments
from burnish.components.model_serving.tables import Deployment, Replica, Revision
from burnish.core.errors import BadModel, BurnishError, ErrorBody, JobFailed, Unavailable
from burnish.core.specs.base import ArtifactRef
from burnish.core.specs.serving import DeploySpec, EngineConfig
from burnish.core.states import DeploymentState, ReplicaState, RevisionState
from burnish.infra import signals
from burnish.infra.artifact_store import ArtifactStore
from burnish.infra.database import Database, utcnow
from burnish.infra.loop import Periodic
from burnish.infra.processes import ProcessId
from burnish.infra.reconcile import Reconciler, Turn, wake
from burnish.platform.jobs import service as jobs

log = logging.getLogger(__name__)

_SOON = 0.1
_STEADY_SECONDS = 5.0
_RECHECK_SECONDS = 30.0
_SWEEP_SECONDS = 15.0
_KEEP_FOLDER_SECONDS = 3600.0


@dataclass(frozen=True)
class Timing:
    """How patient the reconciler is, in seconds."""

    start: float = 600.0
    drain: float = 300.0
    drain_grace: float = 2.5
    terminate_grace: float = 5.0
    lease: float = 10.0


@dataclass(frozen=True)
class _Rows:
    deployment: Deployment
    revisions: dict[int, Revision]
    replicas: dict[str, Replica]


class DeploymentReconciler:
    """Runs the replicas of this machine's deployments."""

    def __init__(
        self,
        database: Database,
        artifacts: ArtifactStore,
        deployments: Deployments,
        traffic: Traffic,
        processes: ReplicaProcesses,
        *,
        owner: str,
        timing: Timing | None = None,
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._deployments = deployments
        self._traffic = traffic
        self._processes = processes
        self._timing = timing or Timing()
        self._checks: dict[str, _Check] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._sweeper = Periodic(self._sweep_all, _SWEEP_SECONDS, "replica-sweep", database.topic(jobs.LOST_TOPIC))
        self.reconciler = Reconciler(
            database, Deployment, self._turn, name="deployments", owner=owner, lease_seconds=self._timing.lease,
            where=Deployment.node == deployments.node,
        )  # fmt: skip

    async def start(self) -> None:
        """Start the loop; replicas that lived on without a server are found alive and kept."""
        await self.reconciler.start()
        await self._sweeper.start()

    async def stop(self) -> None:
        """Stop the loop. The replicas live on."""
        await self.reconciler.stop()
        await self._sweeper.stop()
        tasks = [*self._watches.values(), *(check.task for check in self._checks.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._watches.clear()
        self._checks.clear()

    @property
    def alive(self) -> bool:
        """Whether its loops run (readiness)."""
        return self.reconciler.alive and self._sweeper.alive

    async def drain(self) -> list[str]:
        """Stop, then end this machine's replicas, each once it is idle (or after the drain's bound); say which.

        What is wanted stays as it is: the next start serves it again.
        """
        await self.stop()
        async with self._database.read() as session:
            rows = [row for row in await store.live_replicas(session) if row.node == self._deployments.node]
        await asyncio.gather(*(self._drain_one(row) for row in rows))
        return [f"replica {row.id} (pid {row.pid}, revision {row.revision}) ended" for row in rows]

    async def _drain_one(self, replica: Replica) -> None:
        await self._traffic.idle(replica.id, self._timing.drain)
        await asyncio.to_thread(
            self._processes.end, replica.id, process_of(replica), self._timing.terminate_grace, keep_log=False
        )
        await self._traffic.drop(replica.id)
        async with self._database.write() as session:
            row = await store.replica(session, replica.id)
            if row.state not in store.ENDED_REPLICA:
                row.ended_at = utcnow()
                await store.move_replica(session, row, ReplicaState.STOPPED)

    async def _turn(self, turn: Turn) -> float | None:
        rows = await self._load(turn)
        if rows is None:
            return None
        facts = await self._observe(rows)
        actions = d.decide(facts)
        words = {
            a.replica: await asyncio.to_thread(self._why, rows, a) for a in actions if isinstance(a, d.LoseReplica)
        }
        applied = Applied()
        if actions or rows.deployment.state != d.state_of(facts, failed=rows.deployment.error is not None):
            async with turn.write() as session:
                applied = await apply(session, self._deployments, self._processes, rows.deployment, actions, words)
            if applied.stale:
                return 0.0
        await self._act(turn, rows, actions)
        if applied.gone:
            return None
        return self._pause(facts, actions)

    async def _load(self, turn: Turn) -> _Rows | None:
        async with turn.read() as session:
            deployment = await session.get(Deployment, turn.key)
            if deployment is None:
                return None
            revisions = {revision.number: revision for revision in await store.live_revisions(session, turn.key)}
            living = {replica.id: replica for replica in await store.live_replicas(session, turn.key)}
            for replica in living.values():
                if replica.revision not in revisions:
                    ended = await store.revision(session, turn.key, replica.revision)
                    assert ended is not None, "a replica has a revision"
                    revisions[ended.number] = ended
            return _Rows(deployment, revisions, living)

    async def _observe(self, rows: _Rows) -> d.DeploymentFacts:
        now = time.time()
        in_flight = self._traffic.in_flight()
        facts = []
        for replica in rows.replicas.values():
            process = await asyncio.to_thread(self._processes.observe, replica.id, process_of(replica))
            draining = now - replica.draining_since if replica.draining_since is not None else 0.0
            idle = in_flight.get(replica.id, 0) == 0
            if idle and process == "alive" and replica.state == ReplicaState.DRAINING:
                idle = not await probe.busy(Path(replica.socket))
            if process == "alive":
                self._watch(replica)
            facts.append(
                d.ReplicaFacts(
                    replica.id,
                    replica.revision,
                    ReplicaState(replica.state),
                    process,
                    self._result(replica.id),
                    age=now - replica.created_at.timestamp(),
                    idle=idle,
                    draining=draining,
                )
            )
        revisions = tuple(
            d.RevisionFacts(
                revision.number,
                RevisionState(revision.state),
                int(revision.spec["replicas"]),
                revision.failures,
                since_failure=1e9 if revision.failed_at is None else now - revision.failed_at,
                artifact=self._result(revision.id),
            )
            for revision in rows.revisions.values()
        )
        return d.DeploymentFacts(
            rows.deployment.wanted, rows.deployment.serving, revisions, tuple(facts), start_seconds=self._timing.start,
            drain_seconds=self._timing.drain, drain_grace_seconds=self._timing.drain_grace,
        )  # fmt: skip

    async def _act(self, turn: Turn, rows: _Rows, actions: list[d.Action]) -> None:
        """What is not a row: processes and background checks. Each is safe to repeat."""
        for action in actions:
            match action:
                case d.CheckArtifact(number):
                    revision = rows.revisions[number]
                    self._begin(revision.id, turn.key, self._whole(DeploySpec.model_validate(revision.spec)))
                case d.Verify(replica_id):
                    replica = rows.replicas[replica_id]
                    self._begin(replica_id, turn.key, self._generates(replica, rows.deployment.name))
                case d.Spawn(replica_id):
                    await self._spawn(turn, rows, rows.replicas[replica_id])
                case d.LoseReplica(replica_id) | d.Terminate(replica_id) | d.Ended(replica_id):
                    await self._end(rows, rows.replicas[replica_id], lost=isinstance(action, d.LoseReplica))
                case d.Switch() | d.FailRevision() | d.Retire():
                    self._checks.pop(rows.revisions[action.revision].id, None)
                case _:
                    pass

    async def _spawn(self, turn: Turn, rows: _Rows, replica: Replica) -> None:
        """Start the process and record who it is. A process whose lease was lost meanwhile is the next owner's to find."""
        spec = DeploySpec.model_validate(rows.revisions[replica.revision].spec)
        try:
            config = await asyncio.to_thread(self._config, rows.deployment.name, spec, replica)
            engine = find(self._deployments.engines, spec.engine)
            process = await asyncio.to_thread(self._processes.start, replica.id, engine, config)
        except (ReplicaEnded, BlockingIOError) as error:
            log.info("%s", error)
            return
        except (BurnishError, OSError) as error:
            body = error.body() if isinstance(error, BurnishError) else _unstartable(error)
            async with turn.write() as session:
                await lose(session, replica.id, body)
            return
        async with turn.write() as session:
            row = await store.replica(session, replica.id)
            if row.state in store.ENDED_REPLICA:
                return
            row.pid, row.process_started, row.boot_id = process.pid, process.started_ticks, process.boot_id

    def _config(self, name: str, spec: DeploySpec, replica: Replica) -> EngineConfig:
        def folder(artifact: ArtifactRef) -> str:
            return str(self._artifacts.open(artifact, verify=False))

        return EngineConfig(
            engine=spec.engine, model_dir=folder(spec.model),
            adapter_dir=None if spec.adapter is None else folder(spec.adapter), served_name=name,
            socket=replica.socket, context_length=spec.context_length, parallel=spec.parallel, threads=replica.cpus,
        )  # fmt: skip

    async def _end(self, rows: _Rows, replica: Replica, *, lost: bool) -> None:
        self._checks.pop(replica.id, None)
        if (watch := self._watches.pop(replica.id, None)) is not None:
            watch.cancel()
        if lost:
            self._checks.pop(rows.revisions[replica.revision].id, None)  # its files are checked before each start
        grace = 0.0 if lost else self._timing.terminate_grace
        await asyncio.to_thread(self._processes.end, replica.id, process_of(replica), grace, keep_log=lost)
        await self._traffic.drop(replica.id)

    def _why(self, rows: _Rows, action: d.LoseReplica) -> ErrorBody:
        """Say why a replica was lost, with its last words."""
        replica = rows.replicas[action.replica]
        tail = self._processes.last_words(replica.id)
        said = f"; its log ends with: {tail}" if tail else "; it logged nothing"
        if action.error is not None:
            return action.error.model_copy(update={"message": action.error.message + said})
        if replica.state == ReplicaState.STARTING:
            return BadModel(f"the replica ended while it loaded the model{said}", hint="check the model's files").body()
        hint = "if its log says nothing, the machine may have run out of memory"
        return JobFailed(f"the replica's process (pid {replica.pid}) ended{said}", hint=hint).body()

    # Background checks: their results are facts of the next turn.

    def _begin(self, key: str, deployment_id: str, work: "Coroutine[None, None, ErrorBody | None]") -> None:
        if key in self._checks:
            work.close()
            return
        self._checks[key] = _Check(asyncio.create_task(self._checked(key, deployment_id, work), name=f"check-{key}"))

    async def _checked(self, key: str, deployment_id: str, work: "Coroutine[None, None, ErrorBody | None]") -> None:
        try:
            error = await work
        except BurnishError as failure:
            error = failure.body()
        except OSError as failure:
            error = _unstartable(failure)
        if (check := self._checks.get(key)) is not None:
            check.result, check.at = error or "good", time.monotonic()
        await self._wake(deployment_id)

    async def _wake(self, deployment_id: str) -> None:
        with suppress(Unavailable):  # then the next turn comes by itself, only later
            async with self._database.write() as session:
                await wake(session, Deployment, deployment_id)

    def _result(self, key: str) -> d.Check:
        check = self._checks.get(key)
        if check is None:
            return "unknown"
        if isinstance(check.result, ErrorBody) and time.monotonic() - check.at > _RECHECK_SECONDS:
            del self._checks[key]
            return "unknown"
        if check.result == "running" and check.task.done():
            del self._checks[key]
            return "unknown"
        return check.result

    async def _whole(self, spec: DeploySpec) -> ErrorBody | None:
        for artifact in filter(None, (spec.model, spec.adapter)):
            await asyncio.to_thread(self._artifacts.verify, artifact)
        return None

    async def _generates(self, replica: Replica, name: str) -> ErrorBody | None:
        socket = Path(replica.socket)
        process = process_of(replica)
        while not await probe.answers(socket):
            if await asyncio.to_thread(self._processes.observe, replica.id, process) != "alive":
                return None  # the next turn sees that it is dead
            await asyncio.sleep(_SOON)
        return await probe.generate(socket, name)

    def _watch(self, replica: Replica) -> None:
        """Give the deployment a turn as soon as the replica's process ends."""
        process = process_of(replica)
        if replica.id not in self._watches and process is not None:
            self._watches[replica.id] = asyncio.create_task(
                self._watched(replica.deployment_id, process), name=f"watch-{replica.id}"
            )

    async def _watched(self, deployment_id: str, process: ProcessId) -> None:
        await replicas.ended(process)
        await self._wake(deployment_id)

    def _pause(self, facts: d.DeploymentFacts, actions: list[d.Action]) -> float:
        if any(not isinstance(action, d.CheckArtifact | d.Verify) for action in actions):
            return 0.0
        waits = [_STEADY_SECONDS]
        waits += [_SOON for replica in facts.replicas if replica.state is ReplicaState.DRAINING]
        for revision in facts.revisions:
            left = d.backoff(revision.failures) - revision.since_failure
            if left > 0:
                waits.append(left)
        return min(waits)

    # Orphans: a process without a living row.

    async def _sweep_all(self) -> None:
        await self.take_over()
        await self.sweep()

    async def take_over(self) -> list[str]:
        """Make deployments of lost nodes this node's, whichever asks first; return their ids.

        Replicas that live on over there are ended by that node when it comes back: their rows have ended.
        """
        async with self._database.write() as session:
            nodes = [node for node in await jobs.lost_nodes(session) if node != self._deployments.node]
            taken = await store.take_deployments(session, nodes, self._deployments.node) if nodes else []
        if taken:
            log.warning("%d deployments of lost nodes (%s) are served here now", len(taken), ", ".join(nodes))
        return taken

    async def sweep(self) -> list[str]:
        """End processes of replicas whose rows have ended or are gone; return their ids."""
        known = await asyncio.to_thread(self._processes.known)
        async with self._database.read() as session:
            deployments, states = await store.counts(session)
            signals.set_counts(signals.DEPLOYMENTS, deployments, DeploymentState)
            signals.set_counts(signals.REPLICAS, states, ReplicaState, engine="all")
            living = {replica.id for replica in await store.live_replicas(session)}
        orphans = []
        for replica_id in known:
            if replica_id in living:
                continue
            if await asyncio.to_thread(self._processes.locked, replica_id):
                orphans.append(replica_id)
                log.warning("replica %s lives without a row: ending it", replica_id)
                await asyncio.to_thread(self._processes.end, replica_id, None, 0.0, keep_log=False)
            await asyncio.to_thread(self._processes.forget_after, replica_id, _KEEP_FOLDER_SECONDS)
        return orphans


@dataclass
class _Check:
    task: asyncio.Task[None]
    result: d.Check = "running"
    at: float = 0.0


def process_of(replica: Replica) -> ProcessId | None:
    """Return who a replica's process is known to be."""
    if replica.pid is None or replica.process_started is None or replica.boot_id is None:
        return None
    return ProcessId(replica.pid, replica.process_started, replica.boot_id)


def _unstartable(error: OSError) -> ErrorBody:
    return JobFailed(f"the replica could not be started: {error}", hint="see the server's log").body()
