"""A component of somebody else's: it measures a text, in its own process, and tells of it as it goes."""

from burnish.component import JobContext, Kind, Spec, serve


class EchoSpec(Spec):
    text: str
    repeat: int = 1


class EchoResult(Spec):
    echoed: str
    characters: int


def measure(spec: EchoSpec, job: JobContext) -> EchoResult:
    for done in range(spec.repeat):
        job.check_stop()
        job.progress(done + 1, spec.repeat, phase="echoing")
        job.metric(done + 1, {"characters": float(len(spec.text) * (done + 1))})
    return EchoResult(echoed=spec.text * spec.repeat, characters=len(spec.text) * spec.repeat)


if __name__ == "__main__":
    kind = Kind(EchoSpec, EchoResult, "Measure an echo", run="echo_metric:measure")
    serve("echo_metric", {"measure": kind}, version="1.0")
