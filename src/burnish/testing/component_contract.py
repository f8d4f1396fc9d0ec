"""What every component promises, as one suite that runs against anyone's running component.

``await check(Probe(url, tokens))`` goes through :data:`POINTS` and tells of each: kept, not kept (what was seen, what
was expected), or not applicable and why. ``burnish component check URL`` prints it. The suite submits small jobs of its
own, in the project ``default``, under ids that begin with ``check_``.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from burnish.core.errors import InvalidRequest
from burnish.core.offers import check_offer, schema_problem
from burnish.core.protocol import CALLER_HEADER, PROTOCOL_VERSION, Description, Health, JobView, Validation
from burnish.core.states import JobState
from burnish.platform.identity import CallerTokens, Principal
from burnish.testing.component_kinds import jobs_succeed
from burnish.testing.component_probe import (
    CALLER,
    PATIENCE_SECONDS,
    STRANGER,
    Answer,
    Fault,
    NotApplicable,
    Probe,
    events_in,
)

FAST_SECONDS = 3.0
"""The platform's probe waits this long."""
_DESCRIBE_BYTES = 4 << 20
_OVERSIZE_BYTES = 17 << 20
_QUICK_JOB_SECONDS = 2.0
_ENDED = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
_TRACEPARENT = f"00-{_TRACE}-00f067aa0ba902b7-01"

Check = Callable[[Probe], Awaitable[str | None]]


@dataclass(frozen=True)
class Point:
    """One promise: its name, what the protocol says, and how it is looked at."""

    name: str
    says: str
    check: Check


@dataclass(frozen=True)
class Finding:
    """What came of one point."""

    point: str
    says: str
    verdict: Literal["pass", "fail", "not applicable"]
    seen: str = ""
    expected: str = ""


async def check(probe: Probe) -> list[Finding]:
    """Look at every point, one after the other. A point that fails does not end the suite."""
    found = []
    try:
        for point in POINTS:
            found.append(await _look(point, probe))
    finally:
        await probe.close()
    return found


async def _look(point: Point, probe: Probe) -> Finding:
    try:
        seen = await point.check(probe)
    except Fault as fault:
        return Finding(point.name, point.says, "fail", fault.seen, fault.expected)
    except NotApplicable as reason:
        return Finding(point.name, point.says, "not applicable", str(reason))
    return Finding(point.name, point.says, "pass", seen or "")


async def health(probe: Probe) -> None:
    """`GET /health`."""
    answer = await probe.ask("GET", "/health", timeout=FAST_SECONDS * 2)
    _expect(answer, 200, "GET /health without a token")
    answer.as_model(Health, "GET /health")
    if answer.seconds > FAST_SECONDS:
        raise Fault(f"GET /health took {answer.seconds:.1f} s", f"an answer within {FAST_SECONDS:.0f} s")


async def describe(probe: Probe) -> None:
    """`GET /describe`."""
    answer = await probe.ask("GET", "/describe", timeout=FAST_SECONDS * 2)
    _expect(answer, 200, "GET /describe without a token")
    if len(answer.body) > _DESCRIBE_BYTES:
        raise Fault(f"GET /describe has {len(answer.body)} bytes", f"at most {_DESCRIBE_BYTES} bytes")
    found = answer.as_model(Description, "GET /describe")
    if answer.seconds > FAST_SECONDS:
        raise Fault(f"GET /describe took {answer.seconds:.1f} s", f"an answer within {FAST_SECONDS:.0f} s")
    if found.protocol_version != PROTOCOL_VERSION:
        raise Fault(f"protocol_version is {found.protocol_version!r}", f"{PROTOCOL_VERSION!r}")
    probe.description = found


async def names_and_routes(probe: Probe) -> None:
    """What is said beyond the schemas."""
    try:
        check_offer(_without_schemas(probe.described()), {})
    except InvalidRequest as error:
        first = error.problems[0]
        raise Fault(
            f"{first.where}: {first.message}", first.hint or "names and routes as the protocol has them"
        ) from error


async def schemas(probe: Probe) -> None:
    """The schemas of specs and results."""
    for offer in probe.described().kinds:
        for part, schema in (("spec_schema", offer.spec_schema), ("result_schema", offer.result_schema)):
            problem = schema_problem(schema)
            if problem is not None:
                raise Fault(f"kind {offer.name}: {part}{problem[0]}: {problem[1]}", "JSON Schema of an object")


async def token_required(probe: Probe) -> None:
    """No token."""
    await _refused(probe, None)


async def token_garbage(probe: Probe) -> None:
    """A header that is no token."""
    probe.described()
    await _refused(probe, "not-a-token")
    unsigned = (
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4IiwicHJqIjoiZGVmYXVsdCIsInJvbCI6WyJwbGF0Zm9ybSJdLCJleHAiOjk5OTk5OTk5OTl9."
    )
    await _refused(probe, unsigned)


async def token_foreign(probe: Probe) -> None:
    """A token that another key signed."""
    foreign = CallerTokens(b"a key that nobody was told to believe in, ever")
    await _refused(probe, foreign.sign(CALLER, probe.component_type))


async def token_accepted(probe: Probe) -> None:
    """A good token."""
    answer = await _settled(probe, probe.token())
    if answer.status != 404:
        probe.tokens_are_refused = answer.status == 401
        raise Fault(f"an unknown job, with a good token: {answer.told()}", "status 404")


async def health_told(probe: Probe) -> None:
    """`GET /health` as the platform asks for it."""
    answer = await probe.called("GET", "/health", timeout=FAST_SECONDS * 2)
    _expect(answer, 200, "GET /health with a token")
    answer.as_model(Health, "GET /health with a token")


async def token_expired(probe: Probe) -> None:
    """A token of yesterday."""
    late = Principal("conformance-late", "default").acting()  # its own: tokens that are good still are re-used
    await _refused(probe, probe.token(late, ttl=-86400))


async def token_audience(probe: Probe) -> None:
    """A token that is meant for another component."""
    await _refused(probe, probe.token(audience=f"not_{probe.component_type}"))


async def token_instance(probe: Probe) -> None:
    """A token that another instance of its type was sent, and passes on."""
    await _refused(probe, probe.token(instance=f"another-{probe.new_id()}"))


async def unknown_job(probe: Probe) -> None:
    """An id that no job has."""
    job_id = probe.new_id()
    for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/pause"), ("POST", "/resume")):
        answer = await probe.called(method, f"/jobs/{job_id}{path}")
        _expect(answer, 404, f"{method} /jobs/{{unknown}}{path}")


async def errors(probe: Probe) -> None:
    """The form of an error."""
    answer = await probe.called("GET", f"/jobs/{probe.new_id()}")
    kind = answer.headers.get("content-type", "").partition(";")[0]
    document = answer.json()
    if (
        kind != "application/problem+json"
        or not isinstance(document, dict)
        or not {"code", "detail"} <= document.keys()
    ):
        raise Fault(answer.told(), "application/problem+json with `code` and `detail`")


async def trace(probe: Probe) -> None:
    """Trace context."""
    answer = await probe.called("GET", f"/jobs/{probe.new_id()}", headers={"traceparent": _TRACEPARENT})
    document = answer.json()
    seen = document.get("trace_id") if isinstance(document, dict) else None
    if seen != _TRACE:
        raise Fault(f"trace_id is {seen!r}", f"{_TRACE!r}, from the request's traceparent")


async def validate_accepts_nothing(probe: Probe) -> None:
    """A good spec."""
    example, job_id = await probe.example(), probe.new_id()
    answer = await probe.called("POST", "/jobs/validate", probe.job(example.kind, example.spec, job_id))
    found = answer.as_model(Validation, "POST /jobs/validate")
    if found.spec is None:
        raise Fault("`spec` is null for a spec without problems", "the spec with its defaults filled in")
    _expect(await probe.called("GET", f"/jobs/{job_id}"), 404, "GET /jobs/{id} of a job that was only validated")


async def validate_finds_problems(probe: Probe) -> None:
    """Unknown kinds and wrong fields."""
    probe.token()
    offers = probe.described().kinds
    unknown = await probe.called("POST", "/jobs/validate", probe.job("no_such_kind", {}))
    _problem_at(unknown, "kind", "an unknown kind")
    for offer in offers[:3]:
        if offer.spec_schema.get("additionalProperties") is False:
            spec = {"no_such_field_here": 1}
            answer = await probe.called("POST", "/jobs/validate", probe.job(offer.name, spec))
            _problem_at(answer, "spec.no_such_field_here", f"kind {offer.name} with an unknown field")


async def validate_partial(probe: Probe) -> None:
    """A spec whose fields come later."""
    probe.token()
    kinds = [(o.name, list(o.spec_schema.get("required", ()))) for o in probe.described().kinds]
    found = next(((name, required) for name, required in kinds if required), None)
    if found is None:
        raise NotApplicable("no kind has a required field")
    name, required = found
    body = probe.job(name, {}, partial=True, unresolved=required)
    answer = await probe.called("POST", "/jobs/validate", body)
    _expect(answer, 200, "POST /jobs/validate with unresolved fields")
    told = [p.where for p in answer.as_model(Validation, "POST /jobs/validate").problems]
    wrong = [where for where in told if where.removeprefix("spec.").split(".")[0] in required]
    if wrong:
        raise Fault(f"problems at {', '.join(wrong)}", "none at fields that are named in `unresolved`")


async def submit_refuses(probe: Probe) -> None:
    """A job that does not validate."""
    job_id = probe.new_id()
    answer = await probe.called("POST", "/jobs", probe.job("no_such_kind", {}, job_id))
    _expect(answer, 422, "POST /jobs with an unknown kind")
    _expect(await probe.called("GET", f"/jobs/{job_id}"), 404, "GET /jobs/{id} of a job that was refused")


async def submit_needs_an_id(probe: Probe) -> None:
    """A job without an id, or with an odd one."""
    example = await probe.example()
    for job_id in ("", "../x", "a b", "x" * 101):
        answer = await probe.called("POST", "/jobs", probe.job(example.kind, example.spec, job_id))
        _expect(answer, 422, f"POST /jobs with the id {job_id[:20]!r}")


async def own_project(probe: Probe) -> None:
    """Another project's jobs."""
    example = await probe.example()
    body = probe.job(example.kind, example.spec, probe.new_id(), project_id="conformance-other")
    _expect(await probe.called("POST", "/jobs", body), 403, "POST /jobs for a project that is not the caller's")
    job_id = (await probe.ran()).view.job_id
    for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel")):
        answer = await probe.ask(method, f"/jobs/{job_id}{path}", token=probe.token(STRANGER))
        _expect(answer, 404, f"{method} /jobs/{{id}}{path} by another project's caller")


async def same_job(probe: Probe) -> None:
    """The same id twice."""
    ran, example = await probe.ran(), await probe.example()
    again = await probe.submit(ran.view.job_id, example)
    if (again.state, again.result, again.created_at) != (ran.view.state, ran.view.result, ran.view.created_at):
        raise Fault(f"submitted again it is {again.state}, made at {again.created_at}", "the same job, as it ended")


async def conflict(probe: Probe) -> None:
    """Another spec under the same id."""
    ran, example = await probe.ran(), await probe.example()
    other = {**example.spec, "no_such_field_here": 1}
    answer = await probe.called("POST", "/jobs", probe.job(example.kind, other, ran.view.job_id))
    _expect(answer, 409, "POST /jobs with another spec under an id that is taken")


async def tombstone(probe: Probe) -> None:
    """A cancel that overtakes its job."""
    example, job_id = await probe.example(), probe.new_id()
    answer = await probe.called("POST", f"/jobs/{job_id}/cancel")
    _expect(answer, 200, "POST /jobs/{unknown}/cancel")
    if answer.as_model(JobView, "POST /jobs/{id}/cancel").state is not JobState.CANCELLED:
        raise Fault(answer.told(), "state cancelled")
    late = await probe.submit(job_id, example)
    await asyncio.sleep(0.1)
    view = await probe.view(job_id)
    if late.state is not JobState.CANCELLED or view.state is not JobState.CANCELLED:
        raise Fault(f"submitted after its cancel it is {view.state}", "cancelled: it never starts")


async def cancel(probe: Probe) -> None:
    """A cancel, and another."""
    example, job_id = await probe.example(), probe.new_id()
    await probe.submit(job_id, example)
    for _ in range(2):
        _expect(await probe.called("POST", f"/jobs/{job_id}/cancel"), 200, "POST /jobs/{id}/cancel")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (view := await probe.view(job_id)).state not in _ENDED:
        if time.monotonic() > deadline:
            raise Fault(f"{PATIENCE_SECONDS:.0f} s after its cancel the job is {view.state}", "an ended job")
        await asyncio.sleep(0.1)
    again = await probe.called("POST", f"/jobs/{job_id}/cancel")
    _expect(again, 200, "POST /jobs/{id}/cancel of a job that has ended")
    if again.as_model(JobView, "POST /jobs/{id}/cancel").state is not view.state:
        raise Fault(f"cancelled after its end it changed from {view.state}", "an end is final")


async def ends(probe: Probe) -> None:
    """How a job ends."""
    view = (await probe.ran()).view
    if view.state not in _ENDED:
        raise Fault(f"after its stream ended it is {view.state}", "succeeded, failed or cancelled")
    if view.state is JobState.SUCCEEDED:
        required = probe.offer(view.kind).result_schema.get("required", ())
        missing = [name for name in required if name not in (view.result or {})]
        if view.result is None or missing:
            raise Fault(
                f"its result lacks {', '.join(missing) or 'everything'}", "a result that fits its result_schema"
            )
    if view.state is JobState.FAILED and view.error is None:
        raise Fault("it failed without an error", "`error` with a code and a message")


async def events_stream(probe: Probe) -> None:
    """Events while the job runs."""
    ran = await probe.ran()
    if not ran.content_type.startswith("text/event-stream"):
        raise Fault(f"content-type {ran.content_type!r}", "text/event-stream")
    began, ended = ran.view.created_at, ran.view.finished_at
    took = None if began is None or ended is None else (ended - began).total_seconds()
    if ran.state_at_first.state in _ENDED and (took is None or took > _QUICK_JOB_SECONDS):
        raise Fault("the first event came after the job's end", "events as they happen")


async def events_end(probe: Probe) -> None:
    """The last event."""
    ran = await probe.ran()
    last = ran.events[-1]
    if last.type != "state" or last.data.get("state") != ran.view.state:
        raise Fault(f"the stream ends with {last.type} {last.data}", f"the job's last state, {ran.view.state}")
    began = time.monotonic()
    again = await _events(probe, ran.view.job_id, None)
    if [one.id for one in again] != [one.id for one in ran.events]:
        raise Fault(f"{len(again)} events when read again after the end, {len(ran.events)} before", "the same events")
    if time.monotonic() - began > FAST_SECONDS:
        raise Fault("the stream of an ended job stays open", "it ends with the last event")


async def events_resume(probe: Probe) -> None:
    """Going on behind an event."""
    ran = await probe.ran()
    if len(ran.events) < 2:
        raise NotApplicable("the job has a single event")
    middle = len(ran.events) // 2 - 1
    rest = await _events(probe, ran.view.job_id, ran.events[middle].id)
    wanted = [one.id for one in ran.events[middle + 1 :]]
    if [one.id for one in rest] != wanted:
        raise Fault(f"{len(rest)} events after the id {ran.events[middle].id}", f"the {len(wanted)} that follow it")


async def deadline(probe: Probe) -> None:
    """A request that nobody waits for."""
    example, job_id = await probe.example(), probe.new_id()
    body = probe.job(example.kind, example.spec, job_id)
    answer = await probe.expired("POST", "/jobs", body)
    _expect(answer, 504, "POST /jobs whose deadline has passed")
    _expect(await probe.called("GET", f"/jobs/{job_id}"), 404, "GET /jobs/{id} of a job whose deadline had passed")


async def unknown_fields(probe: Probe) -> None:
    """Fields of a later version."""
    example = await probe.example()
    body = probe.job(example.kind, example.spec, from_the_future={"a": [1]})
    answer = await probe.called("POST", "/jobs/validate", body)
    _expect(answer, 200, "POST /jobs/validate with a field that version 1 does not have")
    if answer.as_model(Validation, "POST /jobs/validate").problems:
        raise Fault(answer.told(), "unknown fields of a message are ignored")


async def malformed(probe: Probe) -> None:
    """Bodies that are no job."""
    for body in (b"{", b"[]", b"\xff\xfe", b'{"kind": 7}', b"null"):
        answer = await probe.called("POST", "/jobs", body)
        if answer.status not in (400, 422):
            raise Fault(f"POST /jobs with the body {body!r}: {answer.told()}", "status 400 or 422")


async def oversize(probe: Probe) -> None:
    """A body of 17 MiB."""
    body = probe.job("no_such_kind", {"text": "x" * _OVERSIZE_BYTES})
    try:
        answer = await probe.called("POST", "/jobs/validate", body, timeout=30)
    except Fault as fault:
        if "broke" in fault.seen:  # it closed the connection before it had read it all: refused, too
            return
        raise
    _expect(answer, 413, "POST /jobs/validate with a body of 17 MiB")


async def still_healthy(probe: Probe) -> None:
    """After all of that."""
    await health(probe)


def _without_schemas(description: Description) -> Description:
    plain: dict[str, Any] = {"spec_schema": {"type": "object"}, "result_schema": {"type": "object"}}
    return description.model_copy(update={"kinds": tuple(one.model_copy(update=plain) for one in description.kinds)})


def _expect(answer: Answer, status: int, what: str) -> None:
    if answer.status != status:
        raise Fault(f"{what}: {answer.told()}", f"status {status}")


def _problem_at(answer: Answer, place: str, what: str) -> None:
    _expect(answer, 200, f"POST /jobs/validate of {what}")
    found = [one.where for one in answer.as_model(Validation, "POST /jobs/validate").problems]
    if not any(where == place or where.startswith(f"{place}.") for where in found):
        raise Fault(f"{what}: problems at {found or 'no place'}", f"a problem at `{place}`")


async def _settled(probe: Probe, token: str | None) -> Answer:
    """Ask with a token; once more while it says that it does not know the keys yet (503)."""
    for _ in range(5):
        answer = await probe.ask("GET", f"/jobs/{probe.new_id()}", token=token)
        if answer.status != 503:
            break
        await asyncio.sleep(1)
    return answer


async def _refused(probe: Probe, token: str | None) -> None:
    probe.described()
    answer = await _settled(probe, token)
    if answer.status != 401:
        raise Fault(f"GET /jobs/{{id}}: {answer.told()}", "status 401")


async def _events(probe: Probe, job_id: str, after: str | None) -> list[Any]:
    headers = {CALLER_HEADER: probe.token(), **({} if after is None else {"last-event-id": after})}
    async with probe.opened("GET", f"/jobs/{job_id}/events", headers=headers, timeout=10) as response:
        if response.status != 200:
            raise Fault(f"GET /jobs/{{id}}/events: status {response.status}", "status 200")
        return [event async for event in events_in(response)]


POINTS: tuple[Point, ...] = (
    Point("health", "GET /health needs no token and answers a Health within 3 s", health),
    Point("describe", "GET /describe needs no token and answers a Description within 3 s, of at most 4 MiB", describe),
    Point("names-and-routes", "Names are names; routes are the component's own", names_and_routes),
    Point("schemas", "Each kind has JSON Schemas of its spec and result", schemas),
    Point("token-required", "Every path about jobs needs a caller token: else 401", token_required),
    Point("token-garbage", "What is no signed token is refused: 401", token_garbage),
    Point("token-foreign", "A token of another key is refused: 401", token_foreign),
    Point("token-accepted", "A token of the platform is believed", token_accepted),
    Point("health-told", "With a token GET /health answers a Health, too, within its bounds", health_told),
    Point("token-expired", "A token that has expired is refused: 401", token_expired),
    Point("token-audience", "A token that is meant for another component type is refused: 401", token_audience),
    Point("token-instance", "A token that was sent to another instance of its type is refused: 401", token_instance),
    Point("unknown-job", "An id that is not known is a 404", unknown_job),
    Point("errors", "Errors are application/problem+json with a stable code", errors),
    Point("trace", "An error carries the trace id of the request's traceparent", trace),
    Point("validate-finds-problems", "POST /jobs/validate answers 200 with each problem and its place", validate_finds_problems),
    Point("validate-accepts-nothing", "POST /jobs/validate never accepts a job; it fills in defaults", validate_accepts_nothing),
    Point("validate-partial", "Fields named in `unresolved` are not complained about", validate_partial),
    Point("unknown-fields", "Unknown fields of a message are ignored", unknown_fields),
    Point("submit-refuses", "POST /jobs refuses what does not validate: 422, and no job", submit_refuses),
    Point("submit-needs-an-id", "POST /jobs needs an id of 1 to 100 letters, digits and . _ : -", submit_needs_an_id),
    Point("ends", "A job ends as succeeded with its result, failed with an error, or cancelled", ends),
    Point("jobs-succeed", "A job of each kind succeeds", jobs_succeed),
    Point("same-job", "The same id twice is the same job", same_job),
    Point("conflict", "Another spec under the same id is a conflict: 409", conflict),
    Point("own-project", "A caller reaches its own project's jobs alone", own_project),
    Point("events-stream", "Events come as they happen, as text/event-stream", events_stream),
    Point("events-end", "A stream ends with the event that ends its job", events_end),
    Point("events-resume", "Last-Event-ID goes on behind that event", events_resume),
    Point("tombstone", "The cancel of an unknown id is kept: the job can never start", tombstone),
    Point("cancel", "A cancel ends the job; again, or after its end, it changes nothing", cancel),
    Point("deadline", "A request whose deadline has passed is a 504 and does nothing", deadline),
    Point("malformed", "A body that is no job is refused: 400 or 422", malformed),
    Point("oversize", "A body of more than 16 MiB is refused: 413", oversize),
    Point("still-healthy", "After all of this it is as healthy as before", still_healthy),
)  # fmt: skip
"""The contract, in the order in which it is looked at."""
