"""A third party's component with every sort of work, run as a script: slow, light, over artifacts, with a route."""

import time
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from burnish.component import ArtifactRef, Check, FieldProblem, JobContext, Kind, LightJob, Resources, Spec, Wait, serve
from burnish.platform.identity import Principal, current_principal


class CountSpec(Spec):
    to: int
    pace: float = 0.05


class CountResult(Spec):
    counted: int
    began_at: int


class FileSpec(Spec):
    file: Path
    """A light job waits for it."""


class FileResult(Spec):
    text: str


class StampSpec(Spec):
    source: ArtifactRef


class StampResult(Spec):
    stamped: ArtifactRef
    names: tuple[str, ...]


class Greeting(BaseModel):
    greeting: str
    project: str


def count(spec: CountSpec, job: JobContext) -> CountResult:
    began = 0 if job.resume_from is None else int((job.resume_from / "at").read_text())
    for at in range(began, spec.to):
        if job.stop_requested():
            folder = job.stage("checkpoint")
            (folder / "at").write_text(str(at))
            job.publish_checkpoint(folder, at)
            job.check_stop()
        job.progress(at, spec.to)
        time.sleep(spec.pace)
    return CountResult(counted=spec.to, began_at=began)


def stamp(spec: StampSpec, job: JobContext) -> StampResult:
    names = tuple(sorted(path.name for path in job.open(spec.source).iterdir()))
    folder = job.stage("stamped")
    (folder / "stamp.txt").write_text(f"seen: {', '.join(names)}")
    return StampResult(stamped=job.publish(folder, "report"), names=names)


async def wait_for_file(job: LightJob) -> FileResult | Wait:
    if not job.spec.file.exists():
        return Wait(0.1, f"{job.spec.file.name} is not there")
    return FileResult(text=job.spec.file.read_text())


async def check_count(check: Check) -> list[FieldProblem]:
    if check.spec.get("to") == 13:
        return [FieldProblem(where="spec.to", message="13 brings bad luck", hint="take 12")]
    return []


routes = APIRouter()


@routes.get("/platform/greetings/{name}", summary="Greet", operation_id="greet", tags=["theirs"])
async def greet(name: str, caller: Annotated[Principal, Depends(current_principal)]) -> Greeting:
    return Greeting(greeting=f"hello {name}", project=caller.project_id)


def small(_: object) -> Resources:
    return Resources(memory_bytes=256 << 20)


if __name__ == "__main__":
    kinds = {
        "count": Kind(
            CountSpec, CountResult, "Count", run="third_party:count", pausable=True, check=check_count, resources=small
        ),
        "wait": Kind(FileSpec, FileResult, "Wait for a file", advance=wait_for_file),
        "stamp": Kind(StampSpec, StampResult, "Stamp an artifact", run="third_party:stamp", resources=small),
    }
    serve("third_party", kinds, version="2.1", routers=[routes], routes=["/platform/greetings"])
