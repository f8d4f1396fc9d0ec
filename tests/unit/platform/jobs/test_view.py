"""What the protocol's view of a job says of its time."""

import time

import pytest

from burnish.platform.jobs.service import view_of
from burnish.platform.jobs.tables import JobTable


def job(**values: object) -> JobTable:
    return JobTable(id="job_1", kind="sft", run="module:function", project_id="default", **values)


def test_the_seconds_that_a_job_ran_leave_pauses_out() -> None:
    long_ago = time.time() - 36_000
    running = view_of(job(state="running", ran_seconds=100.0, host_started_at=time.time() - 20))
    assert running.ran_seconds == pytest.approx(120, abs=5)
    paused = view_of(job(state="paused", ran_seconds=120.0, host_started_at=None, queued_at=long_ago))
    assert paused.ran_seconds == 120
    behind = view_of(job(state="running", ran_seconds=100.0, host_started_at=time.time() + 60))
    assert behind.ran_seconds == 100, "a clock that was set back takes nothing away"


def test_what_needs_no_host_says_no_time_of_its_own() -> None:
    light = JobTable(id="job_2", kind="deploy", run=None, project_id="default", state="running", ran_seconds=0.0)
    assert view_of(light).ran_seconds is None
