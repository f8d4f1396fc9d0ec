"""A server's job side without HTTP: for tests of jobs in real hosts."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from burnish.core.protocol import Event, JobRequest, JobView
from burnish.core.settings import Settings
from burnish.infra import event_log
from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.database import Database
from burnish.infra.processes import identify
from burnish.platform.identity import CallerTokens
from burnish.platform.jobs import service
from burnish.platform.jobs.runtime import JobRuntime
from burnish.platform.jobs.validation import validate
from tests.support.jobs_kinds import KINDS

ROOT = Path(__file__).parents[2]
COMPONENT = "fine_tuning"


class Bench:
    """A server's job side, without HTTP."""

    def __init__(self, url: str, home: Path, **settings: Any) -> None:
        options: dict[str, Any] = {
            "home": home, "database_url": SecretStr(url), "node": "here", "cpus": 4, "memory_bytes": 4 << 30,
            "disk_reserve_bytes": 0, "lease_seconds": 2.0, "cancel_grace_seconds": 1.0,
        }  # fmt: skip
        self.settings = Settings(**(options | settings))
        self.database = Database(url)
        self.store = FileArtifactStore(home / "artifacts")
        self.runtime = self.new_runtime()

    def new_runtime(self, **settings: Any) -> JobRuntime:
        """Another server's job side, on the same node."""
        chosen = self.settings.model_copy(update=settings)
        runtime = JobRuntime(self.database, self.store, chosen, CallerTokens(b"k" * 32))
        runtime.offer(COMPONENT, KINDS)
        return runtime

    async def submit(self, job_id: str, kind: str, spec: dict[str, Any], **more: Any) -> JobView:
        request = JobRequest(job_id=job_id, kind=kind, spec=spec, **more)
        answer, parsed = await validate(request, KINDS, self.database, self.store)
        assert not answer.problems, answer.problems
        assert answer.spec is not None
        assert answer.resources is not None
        async with self.database.write() as session:
            return await service.accept(
                session, request, KINDS[kind], COMPONENT, dict(answer.spec), parsed, answer.resources
            )

    async def view(self, job_id: str) -> JobView:
        async with self.database.read() as session:
            return service.view_of(await service.get(session, job_id, "default"))

    async def until(self, job_id: str, wanted: Callable[[JobView], bool], seconds: float = 60) -> JobView:
        deadline = time.monotonic() + seconds
        while True:
            view = await self.view(job_id)
            if wanted(view):
                return view
            if time.monotonic() > deadline:
                events = [(e.type, e.data) for e in await self._visible_events(job_id)]
                raise AssertionError(f"{view!r}\n{events[-20:]}")
            await asyncio.sleep(0.03)

    async def ended(self, job_id: str) -> JobView:
        return await self.until(job_id, lambda view: view.finished_at is not None)

    async def counted(self, job_id: str, least: int) -> JobView:
        return await self.until(job_id, lambda view: view.progress is not None and view.progress.done >= least)

    async def cancel(self, job_id: str) -> JobView:
        async with self.database.write() as session:
            return await service.cancel(session, job_id, "default", COMPONENT)

    async def pause(self, job_id: str) -> JobView:
        async with self.database.write() as session:
            return await service.pause(session, job_id, "default")

    async def resume(self, job_id: str) -> JobView:
        async with self.database.write() as session:
            return await service.resume(session, job_id, "default")

    async def events(self, job_id: str) -> list[Event]:
        """The job's events; all of them once it has ended: an open transaction may hide the last for a moment."""
        ended = (await self.view(job_id)).finished_at is not None
        deadline = time.monotonic() + 15
        while True:
            found = await self._visible_events(job_id)
            if not ended or any(service.ends_job(event) for event in found):
                return found
            assert time.monotonic() < deadline, f"the event that ended {job_id} is lost"
            await asyncio.sleep(0.05)

    async def _visible_events(self, job_id: str) -> list[Event]:
        found: list[Event] = []
        async with self.database.read() as session:
            while page := await event_log.read(session, subject=job_id, after=found[-1].id if found else None):
                found += page
        return found

    async def steps(self, job_id: str) -> list[int]:
        return [int(str(e.data["step"])) for e in await self.events(job_id) if e.type == "metric"]

    async def states(self, job_id: str) -> list[str]:
        return [str(e.data["state"]) for e in await self.events(job_id) if e.type == "state"]

    def folder(self, job_id: str) -> Path:
        return self.settings.jobs_dir / job_id


async def gone(pid: int, seconds: float = 10) -> None:
    """Wait until nobody lives at a pid."""
    deadline = time.monotonic() + seconds
    while identify(pid) is not None:
        assert time.monotonic() < deadline, f"process {pid} lives"
        await asyncio.sleep(0.02)
