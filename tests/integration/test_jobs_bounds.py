"""What a job says of itself is kept within bounds, however much it is."""

from burnish.core.errors import BadData, FieldProblem
from burnish.core.states import JobState
from burnish.infra import event_log
from burnish.infra.database import Database
from burnish.platform.jobs import recording, service, store
from burnish.platform.jobs.tables import JobTable


async def test_an_error_without_measure_is_kept_within_bounds(database: Database) -> None:
    """Breaks with: a row, an event and an answer that each carry all that a job wrote into its error."""
    problems = [FieldProblem(where=f"line {n}", message="is odd") for n in range(5000)]
    error = BadData("x" * 1_000_000, where="y" * 1_000_000, problems=problems)
    async with database.write() as session:
        made = JobTable(
            id="job_e", project_id="default", component_type="fine_tuning", kind="sft", run="module:function",
            state=JobState.RUNNING, priority=0, node="here",
        )  # fmt: skip
        await store.insert(session, made)
        job = await store.find(session, "job_e", lock=True)
        assert job is not None
        await recording.failed(session, job, error.body())
    async with database.read() as session:
        view = service.view_of(await service.get(session, "job_e", "default"))
        events = await event_log.read(session, subject="job_e")
    assert view.state == JobState.FAILED
    assert view.error is not None
    assert view.error.message.endswith(" ... (992000 characters cut)")
    assert len(view.error.problems) == 100
    assert len(view.error.model_dump_json()) < 30_000
    assert len(str(events[-1].data)) < 9_000
