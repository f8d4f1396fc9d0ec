"""Whether the jobs of a component succeed: each kind tried once, with a job that was given or that its schema shows."""

import asyncio
import time
from dataclasses import dataclass

from burnish.core.protocol import JobView, Validation
from burnish.core.states import JobState
from burnish.testing.component_probe import PATIENCE_SECONDS, Example, Fault, NotApplicable, Probe, instance_of

_ENDED = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class _Outcome:
    kind: str
    view: JobView | None
    """None: the job was not accepted."""

    def told(self) -> str:
        if self.view is None:
            return f"{self.kind}: not tried, it takes no job that its schema alone shows"
        error = f" ({self.view.error.code}: {self.view.error.message})" if self.view.error is not None else ""
        return f"{self.kind}: {self.view.state}{error}"


async def jobs_succeed(probe: Probe) -> str:
    """A job of each kind, or those that were given alone; return how each ended."""
    probe.token()
    offers = () if probe.description is None else probe.description.kinds
    made = probe.examples or [Example(one.name, instance_of(one.spec_schema)) for one in offers]
    outcomes = await asyncio.gather(*(_tried(probe, one) for one in made))
    told = "; ".join(one.told() for one in outcomes)
    tried = [one.view.state for one in outcomes if one.view is not None]
    failed = [state for state in tried if state is not JobState.SUCCEEDED]
    if not tried:
        raise NotApplicable(
            "no job was accepted that could be tried: give one (--job)" if offers else "it offers no kinds"
        )
    if failed and probe.examples:
        raise Fault(told, "each job that was given succeeds")
    if len(failed) == len(tried):
        raise Fault(told, "a job of one kind at least succeeds; give one that does (--job)")
    if failed:
        raise NotApplicable(f"not of every kind: {told}; give a job that succeeds (--job)")
    return told


async def _tried(probe: Probe, example: Example) -> _Outcome:
    """Run one job to its end; cancel it when that does not come."""
    answer = await probe.called("POST", "/jobs/validate", probe.job(example.kind, example.spec))
    if answer.status != 200 or answer.as_model(Validation, "POST /jobs/validate").problems:
        return _Outcome(example.kind, None)
    job_id, deadline = probe.new_id(), time.monotonic() + PATIENCE_SECONDS
    view = await probe.submit(job_id, example)
    while view.state not in _ENDED:
        if time.monotonic() > deadline:
            await probe.called("POST", f"/jobs/{job_id}/cancel")
            break
        await asyncio.sleep(0.1)
        view = await probe.view(job_id)
    return _Outcome(example.kind, view)
