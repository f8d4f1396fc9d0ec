"""Components called by type: embedded and over the network, on both databases."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from burnish.core.errors import Conflict, Forbidden, InvalidRequest, NotFound, Unauthenticated, Unavailable
from burnish.core.pages import Page
from burnish.core.protocol import CALLER_HEADER, JobView, Registration, Validation
from burnish.core.settings import Settings
from burnish.core.states import InstanceState, JobState
from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.database import Database
from burnish.infra.http import AsgiTransport, Request
from burnish.infra.problems import error_from_problem
from burnish.platform.identity import LOCAL, CallerTokens, Principal
from burnish.platform.integrator import Integrator, service, store
from burnish.platform.integrator.judging import Look
from burnish.platform.integrator.probing import _Probe
from burnish.platform.integrator.schemas import ComponentView
from burnish.platform.jobs.component_app import component_app
from burnish.platform.jobs.runtime import JobRuntime
from tests.support.asgi_server import served
from tests.support.jobs_kinds import KINDS

ROOT = Path(__file__).parents[2]
KEY = b"k" * 32
ACTING = LOCAL.acting()


class World:
    """One server's integrator with an embedded component, and what is needed to add another."""

    def __init__(self, url: str, home: Path) -> None:
        self.settings = Settings(
            home=home, database_url=SecretStr(url), node="here", cpus=2, memory_bytes=2 << 30, disk_reserve_bytes=0
        )  # fmt: skip
        self.database = Database(url)
        self.tokens = CallerTokens(KEY)
        self.runtime = JobRuntime(self.database, FileArtifactStore(home / "artifacts"), self.settings, self.tokens)
        self.app = component_app("fine_tuning", KINDS, self.runtime, routes=("/platform/tunings",))
        self.integrator = Integrator(self.database, self.tokens, self.settings)

    async def call(self, method: str, path: str, json: Any = None, principal: Principal = ACTING) -> Any:
        return await self.integrator.call("fine_tuning", method, path, json, principal=principal)

    async def components(self) -> dict[str, ComponentView]:
        async with self.database.read() as session:
            page = await service.Listing().page(session, store.Wanted(), 100)
        return {one.component_id: one for one in Page[ComponentView].model_validate_json(page).data}

    async def register(self, component_id: str, endpoint: str, component_type: str = "fine_tuning") -> None:
        registration = Registration(
            component_id=component_id, component_type=component_type, name="another", version="1",
            health_endpoint=f"{endpoint}/health", api_endpoint=endpoint,
        )  # fmt: skip
        async with self.database.write() as session:
            await service.register(session, registration)

    async def until(self, component_id: str, wanted: Callable[[ComponentView], bool]) -> ComponentView:
        deadline = time.monotonic() + 20
        while True:
            found = (await self.components()).get(component_id)
            if found is not None and wanted(found):
                return found
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.05)


@pytest.fixture
async def world(database_url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = World(database_url, home)
    made.integrator.embed("fine_tuning", made.app)
    await made.runtime.start()
    await made.integrator.start()
    yield made
    await made.integrator.stop()
    await made.runtime.stop()
    await made.runtime.event_log.close()
    for folder in made.runtime.backend.folders().values():
        made.runtime.backend.remove(folder)
    await made.database.dispose()


def job(job_id: str, kind: str, spec: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"job_id": job_id, "kind": kind, "spec": spec, **more}


async def test_an_embedded_component_runs_a_job_by_type_alone(world: World) -> None:
    view = JobView.model_validate(await world.call("POST", "/jobs", job("job_a", "count", {"to": 5})))
    assert view.state == JobState.QUEUED
    request = Request("GET", "/jobs/job_a/events", {}, deadline=time.time() + 60)
    text = b""
    async with world.integrator.send("fine_tuning", request, ACTING) as response:
        assert response.status == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        async for chunk in response.chunks():  # the stream ends with the job
            text += chunk
    assert text.count(b"event: metric") == 5
    view = JobView.model_validate(await world.call("GET", "/jobs/job_a"))
    assert view.state == JobState.SUCCEEDED
    assert view.result is not None
    assert view.result["counted"] == 5


async def test_problems_are_placed_and_name_the_nearest_field(world: World) -> None:
    answer = Validation.model_validate(
        await world.call("POST", "/jobs/validate", job("", "count", {"to": -1, "secnods": 1, "cpus": "x"}))
    )
    found = {problem.where: problem for problem in answer.problems}
    assert set(found) == {"spec.to", "spec.secnods", "spec.cpus"}
    assert found["spec.secnods"].hint == "did you mean 'seconds'?"
    unknown = Validation.model_validate(await world.call("POST", "/jobs/validate", job("", "cont", {})))
    assert unknown.problems[0].where == "kind"
    assert unknown.problems[0].hint == "did you mean 'count'?"
    with pytest.raises(InvalidRequest) as refused:
        await world.call("POST", "/jobs", job("job_b", "count", {"to": -1}))
    assert refused.value.problems[0].where == "spec.to"
    with pytest.raises(NotFound):
        await world.call("GET", "/jobs/job_b")


async def test_what_is_filled_in_later_is_not_complained_about(world: World) -> None:
    spec = {"more": [{"digest": "sha256:" + "0" * 64, "kind": "report"}]}
    body = job("", "copy", spec, partial=True, unresolved=["source"])
    answer = Validation.model_validate(await world.call("POST", "/jobs/validate", body))
    assert [problem.where for problem in answer.problems] == ["spec.more.0"]
    assert "no artifact" in answer.problems[0].message
    whole = Validation.model_validate(await world.call("POST", "/jobs/validate", job("", "copy", {})))
    assert [problem.where for problem in whole.problems] == ["spec.source"]


async def test_a_job_that_can_never_fit_is_refused(world: World) -> None:
    answer = Validation.model_validate(
        await world.call(
            "POST", "/jobs/validate", job("", "count", {"to": 1}, resources={"cpus": 3, "memory_bytes": 4 << 30})
        )
    )
    assert [problem.where for problem in answer.problems] == ["resources.cpus", "resources.memory_bytes"]
    assert "3 cpus; the largest node has 2 cpus" in answer.problems[0].message


async def test_the_caller_is_verified_and_keeps_to_its_project(world: World) -> None:
    transport = AsgiTransport(world.app)
    for token, expected in (("", Unauthenticated), (world.tokens.sign(LOCAL, "evaluation"), Unauthenticated)):
        async with transport.send(Request("GET", "/jobs/job_x", {CALLER_HEADER: token})) as response:
            body = await response.read()
            assert response.status == 401
            assert response.headers["content-type"] == "application/problem+json"
            assert isinstance(error_from_problem({"code": "unauthenticated", "detail": body.decode()}, 401), expected)
    stranger = Principal("eve", "other", frozenset()).acting()
    await world.call("POST", "/jobs", job("job_c", "count", {"to": 1}))
    with pytest.raises(NotFound):
        await world.call("GET", "/jobs/job_c", principal=stranger)
    with pytest.raises(NotFound):
        await world.call("POST", "/jobs/job_c/cancel", {}, principal=stranger)
    with pytest.raises(Forbidden):
        await world.call("POST", "/jobs", job("job_d", "count", {"to": 1}), principal=stranger)


async def test_the_same_id_is_the_same_job_and_no_other(world: World) -> None:
    first = await world.call("POST", "/jobs", job("job_e", "count", {"to": 2}))
    again = await world.call("POST", "/jobs", job("job_e", "count", {"to": 2}))
    assert again["job_id"] == first["job_id"]
    with pytest.raises(Conflict):
        await world.call("POST", "/jobs", job("job_e", "count", {"to": 3}))


async def test_embedded_instances_are_rows_and_a_restart_updates_them(world: World) -> None:
    found = await world.components()
    assert list(found) == ["fine_tuning-here-1"]
    one = found["fine_tuning-here-1"]
    assert one.status == InstanceState.HEALTHY
    assert one.embedded
    assert set(one.kinds) == set(KINDS)
    assert world.integrator.route_of("/platform/tunings/3") == "fine_tuning"
    assert world.integrator.route_of("/platform/tuningsandmore") is None
    assert world.integrator.kinds()["fine_tuning", "wait_for_file"].heavy is False
    await world.integrator.stop()
    assert (await world.components())["fine_tuning-here-1"].status == InstanceState.DRAINING
    await world.integrator.start()
    assert list(await world.components()) == ["fine_tuning-here-1"]
    with pytest.raises(Unavailable, match="none is registered"):
        await world.integrator.call("evaluation", "GET", "/health", principal=ACTING)


async def test_a_remote_instance_is_described_called_and_lost(world: World) -> None:
    other = component_app("evaluation", KINDS, world.runtime)
    async with served(other) as endpoint:
        await world.register("remote-1", endpoint, "evaluation")
        found = await world.until("remote-1", lambda one: one.status == InstanceState.HEALTHY)
        assert set(found.kinds) == set(KINDS)
        await wait_for(lambda: remembered(world, "remote-1") == InstanceState.HEALTHY)
        answer = await world.integrator.call("evaluation", "POST", "/jobs/missing/cancel", {}, principal=ACTING)
        assert answer["state"] == "cancelled"
    async with world.database.write() as session:
        await service.heartbeat(session, "remote-1")
    gone = await world.until("remote-1", lambda one: one.status == InstanceState.UNHEALTHY)
    assert gone.failures >= 3
    await wait_for(lambda: remembered(world, "remote-1") == InstanceState.UNHEALTHY)
    with pytest.raises(Unavailable, match="remote-1 is unhealthy"):
        await world.integrator.call("evaluation", "GET", "/jobs/missing", principal=ACTING)


async def test_what_is_known_of_an_instance_goes_with_it(world: World) -> None:
    """Breaks with: a process that keeps something of every instance that it ever looked at."""
    prober = world.integrator._prober
    async with served(component_app("evaluation", KINDS, world.runtime)) as endpoint:
        await world.register("remote-1", endpoint, "evaluation")
        await wait_for(lambda: remembered(world, "remote-1") == InstanceState.HEALTHY)
        assert "remote-1" in prober._described
        late = asyncio.create_task(never())
        prober._late["remote-1"] = _Probe(late, 1)
        async with world.database.write() as session:
            await store.remove(session, "remote-1")
        await wait_for(lambda: not prober._described and not prober._late)
        await wait_for(late.cancelled)


async def never() -> Look:
    """A probe that is not answered."""
    await asyncio.sleep(600)
    raise AssertionError("it has been forgotten by then")


async def test_an_instance_of_another_type_gets_no_call(world: World) -> None:
    async with served(world.app) as endpoint:
        await world.register("liar", endpoint, "compression")
        found = await world.until("liar", lambda one: one.failures > 0)
        assert found.status in (InstanceState.STARTING, InstanceState.UNHEALTHY)
        assert "it says that it is a fine_tuning" in (found.problem or "")
        with pytest.raises(Unavailable):
            await world.integrator.call("compression", "GET", "/health", principal=ACTING)


def remembered(world: World, component_id: str) -> InstanceState | None:
    found = world.integrator.instances.get(component_id)
    return None if found is None else found.status


async def wait_for(wanted: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
