"""Tiny real kinds: what hosts run in tests of jobs."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from pydantic import Field

from burnish.core.errors import BadData, FieldProblem
from burnish.core.job import JobContext
from burnish.core.specs.base import ArtifactRef, Resources, Spec
from burnish.platform.jobs.schemas import Check, Kind, LightJob, Wait


class CountSpec(Spec):
    """Count to ``to``, a checkpoint every ``checkpoint_every`` steps."""

    to: int = Field(ge=0)
    seconds: float = Field(default=0.0, ge=0, description="A step")
    checkpoint_every: int | None = None
    crash_at: int | None = Field(default=None, description="Kill the own process with KILL, at this step")
    crash_marker: str | None = Field(default=None, description="Crash only while this file is not there")
    fail_at: int | None = None
    ignore_stop: bool = False
    children: int = Field(default=0, description="Processes of its own that sleep for long")
    cpus: int = 1
    memory_bytes: int = 512 << 20
    wall_seconds: float | None = None
    effects: str | None = Field(default=None, description="A file that gets a line for each start and step")


class CountResult(Spec):
    """What was counted."""

    counted: int
    resumed_from: int
    output: ArtifactRef | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    descriptors: list[str] = Field(default_factory=list)


class CopySpec(Spec):
    """Copy an artifact."""

    source: ArtifactRef
    more: list[ArtifactRef] = Field(default_factory=list)


class CopyResult(Spec):
    """The copy."""

    copy_of: ArtifactRef
    output: ArtifactRef


class AllocSpec(Spec):
    """Take memory, then sleep."""

    allocate_bytes: int
    memory_bytes: int
    in_child: bool = False
    seconds: float = 60.0


class Nothing(Spec):
    """Nothing."""


class OddSpec(Spec):
    """Say what cannot be stored, everywhere."""

    fail: bool = False


class OddResult(Spec):
    """A result with characters that no database keeps."""

    said: dict[str, str]
    output: ArtifactRef


ODD = "nul \0, half a pair \ud83d."


class WaitSpec(Spec):
    """A light job that waits for a file."""

    path: str
    fail: bool = False
    odd: bool = False
    tidy_turns: int = 0


def count(spec: CountSpec, context: JobContext) -> CountResult:
    """Count, with checkpoints, and publish how far it came."""
    start = 0 if context.resume_from is None else int((context.resume_from / "step").read_text())
    _effect(spec, f"start {start} {os.getpid()}")
    for _ in range(spec.children):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    context.log(f"counting from {start}")
    for step in range(start + 1, spec.to + 1):
        time.sleep(spec.seconds)
        _maybe_break(spec, step)
        context.metric(step, {"loss": 1 / step, "pid": os.getpid()})
        context.progress(step, spec.to, phase="counting")
        stopping = context.stop_requested() and not spec.ignore_stop
        if stopping or (spec.checkpoint_every and step % spec.checkpoint_every == 0):
            staged = context.stage("checkpoint")
            (staged / "step").write_text(str(step))
            context.publish_checkpoint(staged, step)
        if not spec.ignore_stop:
            context.check_stop()
    staged = context.stage("output")
    (staged / "count").write_text(str(spec.to))
    output = context.publish(staged, "report", {"to": spec.to})
    return CountResult(
        counted=spec.to, resumed_from=start, output=output, environment=dict(os.environ), descriptors=_descriptors()
    )


def _descriptors() -> list[str]:
    """Return what this process has open; the host's other threads open and close some meanwhile."""
    found = []
    for path in sorted(Path("/proc/self/fd").iterdir()):
        with suppress(FileNotFoundError):
            if path.exists():
                found.append(os.readlink(path))
    return found


def _effect(spec: CountSpec, line: str) -> None:
    if spec.effects is not None:
        with Path(spec.effects).open("a") as stream:
            stream.write(line + "\n")


def _maybe_break(spec: CountSpec, step: int) -> None:
    if spec.fail_at == step:
        raise BadData(f"row {step} is broken", where=f"line {step}", hint="mend the row")
    if spec.crash_at == step:
        marker = None if spec.crash_marker is None else Path(spec.crash_marker)
        if marker is None or not marker.exists():
            if marker is not None:
                marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def copy(spec: CopySpec, context: JobContext) -> CopyResult:
    """Publish a copy of the source's files."""
    source = context.open(spec.source)
    staged = context.stage("copy")
    for path in source.iterdir():
        (staged / path.name).write_bytes(path.read_bytes())
    return CopyResult(copy_of=spec.source, output=context.publish(staged, spec.source.kind))


def alloc(spec: AllocSpec, context: JobContext) -> Nothing:
    """Take memory in this process or in a child."""
    code = f"import time; held = b'x' * {spec.allocate_bytes}; time.sleep({spec.seconds})"
    if spec.in_child:
        subprocess.run([sys.executable, "-c", code], check=True)
    else:
        held = bytearray(os.urandom(1 << 20) * (spec.allocate_bytes >> 20))
        deadline = time.monotonic() + spec.seconds
        while time.monotonic() < deadline:
            context.check_stop()
            time.sleep(0.05)
        del held
    return Nothing()


def fail(_spec: Nothing, _context: JobContext) -> Nothing:
    """Fail as a bug does."""
    print("printed before it failed")
    raise RuntimeError("this is a bug")


def leave(_spec: Nothing, _context: JobContext) -> Nothing:
    """End the process without a result."""
    print("leaving without a word")
    os._exit(3)


def say_odd(spec: OddSpec, context: JobContext) -> OddResult:
    """Put characters that cannot be stored wherever a job can put any."""
    context.log(ODD)
    context.progress(1, 2, phase=ODD)
    context.metric(1, {ODD: 1.0})
    staged = context.stage("output")
    (staged / "a").write_text("a")
    output = context.publish(staged, "report", {ODD: [ODD]})
    if spec.fail:
        raise BadData(ODD, where=ODD, hint=ODD, problems=[FieldProblem(where=ODD, message=ODD)])
    return OddResult.model_construct(said={"nul \0": ODD}, output=output)


async def wait_for_file(job: LightJob) -> Nothing | Wait:
    """Be done when the file is there."""
    spec: WaitSpec = job.spec
    if job.cancel_requested and spec.tidy_turns and not os.path.exists(spec.path + ".tidied"):
        open(spec.path + ".tidied", "w").close()  # noqa: ASYNC230
        return Wait(0.05, "tidying", cleaning=True)
    odd = ODD if spec.odd else ""
    if spec.fail:
        raise BadData(f"the file can never come{odd}")
    if Path(spec.path).exists():
        await job.log("found it")
        return Nothing()
    await job.progress(0, 1, f"waiting{odd}")
    return Wait(0.2, f"waits for {spec.path}{odd}")


async def check_copy(check: Check) -> list[FieldProblem]:
    """Refuse a source that also stands among ``more``."""
    source = check.spec.get("source")
    if source is not None and source in check.spec.get("more", []):
        return [FieldProblem(where="spec.more", message="holds the source too")]
    return []


def count_resources(spec: CountSpec) -> Resources:
    """As the spec says."""
    return Resources(cpus=spec.cpus, memory_bytes=spec.memory_bytes, wall_seconds=spec.wall_seconds)


_HERE = "tests.support.jobs_kinds"
KINDS: dict[str, Kind] = {
    "count": Kind(CountSpec, CountResult, "Count", run=f"{_HERE}:count", resources=count_resources, pausable=True),
    "copy": Kind(CopySpec, CopyResult, "Copy an artifact", run=f"{_HERE}:copy", check=check_copy),
    "alloc": Kind(
        AllocSpec, Nothing, "Take memory", run=f"{_HERE}:alloc",
        resources=lambda spec: Resources(cpus=1, memory_bytes=spec.memory_bytes),
    ),
    "fail": Kind(Nothing, Nothing, "Fail", run=f"{_HERE}:fail"),
    "leave": Kind(Nothing, Nothing, "End without a result", run=f"{_HERE}:leave", max_restarts=1),
    "say_odd": Kind(OddSpec, OddResult, "Say what cannot be stored", run=f"{_HERE}:say_odd"),
    "wait_for_file": Kind(WaitSpec, Nothing, "Wait for a file", advance=wait_for_file),
}  # fmt: skip
