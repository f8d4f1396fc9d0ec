"""A component written without Burnish, from the protocol's page alone; told to, it breaks exactly one promise."""

import asyncio
import json
import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import jwt
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

LIMIT = 16 << 20
SPEC: dict[str, Any] = {
    "type": "object", "additionalProperties": False, "required": ["text"],
    "properties": {"text": {"type": "string"}, "loud": {"type": "boolean", "default": False}},
}  # fmt: skip
RESULT = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}}
ENDED = {"succeeded", "failed", "cancelled"}


class Refusal(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass
class Job:
    id: str
    project: str
    spec: Any
    state: str = "queued"
    result: Any = None
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat())
    finished: str | None = None
    ignored: bool = False
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, kind: str, **data: Any) -> None:
        self.events.append((kind, data))
        self.changed.set()
        self.changed = asyncio.Event()

    def become(self, state: str) -> None:
        self.state = state
        if state in ENDED:
            self.finished = datetime.now(UTC).isoformat()
        self.tell("state", state=state)


class PlainComponent:
    """``fault`` names what it does wrong; empty: nothing."""

    component_id = "plain-1"
    slow_seconds = 3.5
    step_seconds = 0.03

    def __init__(self, jwks: dict[str, Any], fault: str = "") -> None:
        self.fault = fault
        self.jobs: dict[str, Job] = {}
        self._keys = {key["kid"]: jwt.PyJWK.from_dict(key) for key in jwks["keys"]}
        self._tasks: set[asyncio.Task[None]] = set()
        routes = [
            ("/health", self.health, "GET"), ("/describe", self.describe, "GET"), ("/jobs/validate", self.validate, "POST"),
            ("/jobs", self.submit, "POST"), ("/jobs/{id}", self.job, "GET"), ("/jobs/{id}/events", self.events, "GET"),
            ("/jobs/{id}/{verb}", self.steer, "POST"),
        ]  # fmt: skip
        self.app = Starlette(
            routes=[Route(path, handler, methods=[method]) for path, handler, method in routes],
            exception_handlers={Refusal: self.problem},
        )

    def is_(self, fault: str) -> bool:
        return self.fault == fault

    async def problem(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        trace = request.headers.get("traceparent", "--").split("-")[1]
        body = {"code": error.code, "detail": error.message, "trace_id": "" if self.is_("trace") else trace}
        if self.is_("errors"):
            return JSONResponse({"error": error.message, "trace_id": trace}, error.status)
        return JSONResponse(body, error.status, media_type="application/problem+json")

    async def health(self, request: Request) -> Response:
        if self.is_("health slow"):
            await asyncio.sleep(self.slow_seconds)
        if self.is_("health late garbage") and self.jobs:
            return Response(b"fine, thanks")
        if self.is_("health names") and "burnish-caller" in request.headers:
            return JSONResponse({"warm": [f"model-{n}" for n in range(1001)]})
        return JSONResponse({"status": "very ok" if self.is_("health status") else "ok"})

    async def describe(self, request: Request) -> Response:
        kind: dict[str, Any] = {"name": "shout", "spec_schema": SPEC, "result_schema": RESULT}
        found: dict[str, Any] = {"component_type": "plain", "version": "1", "protocol_version": "1", "kinds": [kind]}
        if self.is_("describe garbage"):
            return Response(b"<html>hello</html>", media_type="text/html")
        if self.is_("describe version"):
            found["protocol_version"] = "2"
        if self.is_("describe endless"):

            async def endless() -> Any:
                while True:
                    yield b" "
                    await asyncio.sleep(0.05)

            return StreamingResponse(endless())
        if self.is_("describe huge"):
            found["more"] = "x" * (5 << 20)
        if self.is_("schema"):
            found["kinds"] = [{**kind, "spec_schema": {**SPEC, "properties": {"text": {"type": "strnig"}}}}]
        if self.is_("schema of nothing"):
            found["kinds"] = [{**kind, "result_schema": {"text": "string"}}]
        if self.is_("schema deep"):
            deep: Any = 1
            for _ in range(150):
                deep = [deep]
            text = {"type": "string", "default": deep}
            found["kinds"] = [{**kind, "spec_schema": {**SPEC, "properties": {"text": text}}}]
        if self.is_("permission"):
            found["kinds"] = [{**kind, "permission": "p" * 5000}]
        if self.is_("name"):
            found["kinds"] = [{**kind, "summary": "loud\x1b[31m"}]
        if self.is_("route"):
            found["routes"] = ["/platform/workflows"]
        return JSONResponse(found)

    def caller(self, request: Request) -> str:
        """Return the caller's project."""
        deadline = request.headers.get("burnish-deadline")
        token = request.headers.get("burnish-caller", "")
        if not token and self.is_("no token"):
            return "default"
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            if kid is None and self.is_("unsigned token"):
                return "default"
            if kid is not None and kid not in self._keys and self.is_("foreign token"):
                return "default"
            options: Any = {"verify_exp": not self.is_("expired token"), "verify_aud": not self.is_("other audience")}
            audience = "somebody_else" if self.is_("refuses all tokens") else "plain"
            claims = jwt.decode(token, self._keys[kid], algorithms=["EdDSA"], audience=audience, options=options)
            if claims.get("ins", self.component_id) != self.component_id and not self.is_("other instance"):
                raise Refusal(401, "unauthenticated", "it was sent to another instance")
        except (jwt.PyJWTError, KeyError) as error:
            raise Refusal(401, "unauthenticated", str(error)) from error
        if deadline is not None and float(deadline) < time.time() and not self.is_("deadline"):
            raise Refusal(504, "deadline_exceeded", "too late")
        return str(claims["prj"])

    async def body(self, request: Request) -> dict[str, Any]:
        content = await request.body()
        if len(content) > LIMIT and not self.is_("oversize"):
            raise Refusal(413, "too_large", "too large")
        try:
            found = json.loads(content)
        except ValueError as error:
            raise Refusal(400, "malformed_request", "no JSON") from error
        if not isinstance(found, dict) or not isinstance(found.get("kind"), str):
            if self.is_("malformed"):
                found = {"kind": "shout", "spec": {"text": "x"}, "job_id": "odd", "project_id": "default"}
            else:
                raise Refusal(422, "invalid_request", "no job")
        if self.is_("unknown fields") and "from_the_future" in found:
            raise Refusal(422, "invalid_request", "what is from_the_future?")
        return found

    def problems(self, body: dict[str, Any]) -> list[dict[str, str]]:
        later = () if self.is_("partial") else body.get("unresolved", ())
        if body["kind"] != "shout":
            return [{"where": "kind", "message": "unknown"}]
        spec = body.get("spec", {})
        odd = [{"where": f"spec.{name}", "message": "no such field"} for name in spec if name not in SPEC["properties"]]
        if self.is_("unplaced problems"):
            odd = [{"where": "somewhere", "message": "something"} for _ in odd]
        lacks = "text" not in spec and "text" not in later
        return odd + ([{"where": "spec.text", "message": "missing"}] if lacks else [])

    async def validate(self, request: Request) -> Response:
        project, body = self.caller(request), await self.body(request)
        found = [] if self.is_("unknown kind passes") and body["kind"] != "shout" else self.problems(body)
        if self.is_("validation accepts") and body.get("job_id"):
            self.start(body, project)
        spec = None if found or self.is_("no defaults") else {"loud": False, **body["spec"]}
        return JSONResponse({"problems": found, "spec": spec})

    async def submit(self, request: Request) -> Response:
        project, body = self.caller(request), await self.body(request)
        job_id = body.get("job_id", "")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}", job_id) and not self.is_("odd ids"):
            raise Refusal(422, "invalid_request", "no id")
        if body["project_id"] != project and not self.is_("any project"):
            raise Refusal(403, "forbidden", "another project")
        known = self.jobs.get(job_id)
        if known is not None and known.spec is None and not self.is_("no tombstone"):
            return JSONResponse(self.view(known))
        if known is not None and known.spec is not None:
            if known.spec != body["spec"] and not self.is_("no conflict"):
                raise Refusal(409, "conflict", "another job's id")
            return JSONResponse(self.view(self.start(body, project) if self.is_("starts again") else known))
        if found := self.problems(body):
            if self.is_("refused but kept"):
                self.start(body, project)
            if not self.is_("accepts anything"):
                raise Refusal(422, "invalid_request", found[0]["message"])
        return JSONResponse(self.view(self.start(body, project)))

    def start(self, body: dict[str, Any], project: str) -> Job:
        job = self.jobs[body["job_id"]] = Job(body["job_id"], project, body["spec"])
        job.tell("state", state="queued")
        task = asyncio.create_task(self.run(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return job

    async def run(self, job: Job) -> None:
        job.become("running")
        for done in range(1, 4):
            await asyncio.sleep(self.step_seconds * (25 if self.is_("buffered events") else 1))
            if job.state == "cancelled":
                return
            job.tell("progress", done=done, total=3)
        while job.ignored:
            await asyncio.sleep(1)
        if self.is_("jobs fail"):
            job.become("failed")
            return
        if not self.is_("no result"):
            job.result = {"text": str(job.spec.get("text", "")).upper()}
        job.become("succeeded")

    def view(self, job: Job) -> dict[str, Any]:
        return {
            "job_id": job.id, "kind": "shout", "state": job.state, "project_id": job.project, "result": job.result,
            "created_at": job.created, "finished_at": job.finished,
            "error": {"code": "hoarse", "message": "no voice left"} if job.state == "failed" else None,
        }  # fmt: skip

    def find(self, request: Request) -> Job:
        project, job = self.caller(request), self.jobs.get(request.path_params["id"])
        if job is None and self.is_("unknown is empty") and request.url.path.endswith("/events"):
            job = Job("?", project, {}, "failed")
        if job is None or (job.project != project and not self.is_("any caller")):
            raise Refusal(404, "not_found", "no such job")
        return job

    async def job(self, request: Request) -> Response:
        return JSONResponse(self.view(self.find(request)))

    async def steer(self, request: Request) -> Response:
        verb, job_id = request.path_params["verb"], request.path_params["id"]
        if verb == "cancel" and job_id not in self.jobs:
            stone = Job(job_id, self.caller(request), None)
            stone.become("cancelled")
            self.jobs[job_id] = stone
            return JSONResponse(self.view(stone))
        job = self.find(request)
        ended = job.state in ENDED
        if verb != "cancel":
            raise Refusal(409, "conflict", "it cannot pause")
        if ended and self.is_("no second cancel"):
            raise Refusal(409, "conflict", "it has ended")
        job.ignored = self.is_("ignores cancel")
        if not ended and not job.ignored:
            job.become("cancelled")
        return JSONResponse(self.view(job))

    async def events(self, request: Request) -> Response:
        job, after = self.find(request), int(request.headers.get("last-event-id", 0))
        if self.is_("no resume"):
            after = 0
        kind = "application/json" if self.is_("events type") else "text/event-stream"
        return StreamingResponse(self.stream(job, after), media_type=kind)

    async def stream(self, job: Job, position: int) -> Any:
        while self.is_("buffered events") and job.state not in ENDED:
            await asyncio.sleep(0.05)
        last_held = self.is_("stream ends early")
        while True:
            changed = job.changed
            while position < len(job.events):
                kind, data = job.events[position]
                if last_held and data.get("state") in ENDED:
                    return
                position += 1
                event: dict[str, Any] = {
                    "id": str(position),
                    "subject": job.id,
                    "type": kind,
                    "at": job.created,
                    "data": data,
                }
                if self.is_("odd events"):
                    event["type"] = "surprise"
                yield f"id: {position}\nevent: {kind}\ndata: {json.dumps(event)}\n\n"
            if job.state in ENDED:
                return
            await changed.wait()
