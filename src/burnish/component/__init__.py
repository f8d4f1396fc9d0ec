"""What the author of a component imports: kinds of jobs, and a server for them that registers itself.

::

    class EchoSpec(Spec):
        text: str

    class EchoResult(Spec):
        characters: int

    def measure(spec: EchoSpec, job: JobContext) -> EchoResult: ...

    if __name__ == "__main__":
        serve("echo_metric", {"measure": Kind(EchoSpec, EchoResult, "Measure a text", run="echo_metric:measure")})

Invariants: a component's process needs neither the installation's secret key nor its database. It keeps its jobs in a
home of its own, which one process holds at a time; a job that was accepted survives the process. Callers are believed by
the platform's public keys alone.
"""

from burnish.component.serving import serve
from burnish.core.errors import BurnishError, FieldProblem, JobFailed
from burnish.core.job import JobContext, Stopped
from burnish.core.specs.base import ArtifactRef, Estimate, Resources, Spec
from burnish.platform.jobs.schemas import Check, Kind, LightJob, Wait

__all__ = [
    "ArtifactRef", "BurnishError", "Check", "Estimate", "FieldProblem", "JobContext", "JobFailed", "Kind", "LightJob",
    "Resources", "Spec", "Stopped", "Wait", "serve",
]  # fmt: skip
