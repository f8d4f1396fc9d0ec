"""The component protocol for whoever supplies kinds: an ASGI app with validation, jobs, events, and a caller check.

A component is about twenty lines::

    kinds = {"shout": Kind(ShoutSpec, ShoutResult, "Make text loud", run="my_package.shouting:shout")}
    app = component_app("shouting", kinds, runtime)
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from burnish.core.errors import (
    BurnishError,
    FieldProblem,
    Forbidden,
    InvalidRequest,
    MalformedRequest,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from burnish.core.protocol import (
    CALLER_HEADER,
    MAX_NAME,
    MAX_WAITING_FOR,
    MAX_WARM,
    TRACE_HEADER,
    Description,
    Health,
    JobRequest,
    JobView,
    KindOffer,
    Validation,
)
from burnish.core.version import __version__
from burnish.infra import event_log
from burnish.infra.asgi import ASGIApp, Receive, Send
from burnish.infra.event_log import SSE_HEADERS, stream
from burnish.infra.fresh import Fresh
from burnish.infra.home import require_disk
from burnish.infra.logging import bound, trace_id_of, tracing
from burnish.infra.problems import problem_body, problems
from burnish.infra.storable import storable
from burnish.platform.identity import ANONYMOUS, Principal, audit
from burnish.platform.identity.permission import anyone, document_permissions, requires_unlogged
from burnish.platform.identity.principal import SCOPE_KEY
from burnish.platform.jobs import service
from burnish.platform.jobs.limits import check_request, is_protocol, limited
from burnish.platform.jobs.runtime import JobRuntime
from burnish.platform.jobs.schemas import Check, Kind, LightJob, Wait
from burnish.platform.jobs.validation import validate

__all__ = ["Check", "Kind", "LightJob", "Wait", "component_app", "install_problems"]

_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:-]*$"
MAX_PROBLEMS = 100
"""So many are told of one request."""
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_OPEN_PATHS = frozenset({"/health", "/describe"})
_PING_SECONDS = 2.0
_PING_EVERY_SECONDS = 1.0
"""Whoever is asked without a token, however often, asks the database no more often."""

Warm = Callable[[], Awaitable[tuple[str, ...]]]
Caller = Annotated[Principal, Depends(requires_unlogged("component:work"))]
"""Burnish's own processes: what they ask for was noted where somebody asked it of the platform."""
_OPEN = Depends(anyone())
JobId = Annotated[
    str, Path(min_length=1, max_length=100, pattern=_ID_PATTERN, description="The id that the caller gave")
]  # fmt: skip


def component_app(
    component_type: str,
    kinds: Mapping[str, Kind],
    runtime: JobRuntime,
    *,
    routers: Sequence[APIRouter] = (),
    routes: Sequence[str] = (),
    extra_asgi: Mapping[str, ASGIApp] | None = None,
    version: str = __version__,
    warm: Warm | None = None,
) -> FastAPI:
    """Make a component: the protocol's routes, and ``routers`` of its own.

    Args:
        component_type: what it is; also the audience of caller tokens.
        kinds: the jobs that it offers, by name.
        runtime: runs them. Make the app before the runtime starts.
        routers: routes of its own, each handler behind the same caller check.
        routes: path prefixes that the gateway passes to this component.
        extra_asgi: raw ASGI apps by path prefix, for data paths (behind the caller check, too).
        version: its own.
        warm: returns the names of what it has loaded, for which calls are cheap here.
    """
    runtime.offer(component_type, kinds)
    app = FastAPI(
        title=f"Burnish component {component_type}",
        version=version,
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    install_problems(app)
    app.include_router(_protocol(describe(component_type, kinds, routes, version), kinds, runtime, warm))
    for router in routers:
        app.include_router(router)
    document_permissions(app)
    app.add_middleware(_DataPaths, apps=extra_asgi or {})
    app.add_middleware(_CallerCheck, component_type=component_type, runtime=runtime)
    return app


def describe(
    component_type: str, kinds: Mapping[str, Kind], routes: Sequence[str] = (), version: str = __version__
) -> Description:
    """Return what a component says of itself."""
    offers = tuple(
        KindOffer(
            name=name, summary=kind.summary, spec_schema=kind.spec.model_json_schema(),
            result_schema=kind.result.model_json_schema(), heavy=kind.run is not None, pausable=kind.pausable,
            permission=kind.permission,
        )
        for name, kind in sorted(kinds.items())
    )  # fmt: skip
    return Description(component_type=component_type, version=version, kinds=offers, routes=tuple(routes))


class _DataPaths:
    """Sends what lies under a prefix to a raw ASGI app. A mounted one would not get paths with a line feed in them."""

    def __init__(self, app: ASGIApp, apps: Mapping[str, ASGIApp]) -> None:
        self._app = app
        self._apps = apps

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        found = (raw for prefix, raw in self._apps.items() if path == prefix or path.startswith(f"{prefix}/"))
        await next(found, self._app)(scope, receive, send)


class _CallerCheck:
    """Verifies the caller token and puts the principal into the scope; a header alone is never believed."""

    def __init__(self, app: ASGIApp, component_type: str, runtime: JobRuntime) -> None:
        self._app = app
        self._component_type = component_type
        self._runtime = runtime

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000, "reason": "there are no websockets here"})
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        token = headers.get(CALLER_HEADER.encode(), b"").decode("latin-1")
        traceparent, tracestate = (
            headers.get(name, b"").decode("latin-1") for name in (TRACE_HEADER.encode(), b"tracestate")
        )
        trace = trace_id_of(traceparent)
        if scope["path"] in _OPEN_PATHS:
            await self._app({**scope, SCOPE_KEY: self._caller_if_known(token)}, receive, send)
            return
        try:
            if not token:
                raise Unauthenticated("the request carries no caller token", hint="call through the gateway")
            principal = scope[SCOPE_KEY] = self._verified(token)
            if is_protocol(scope["path"]):
                check_request(headers)
                receive = limited(receive)
        except BurnishError as error:
            await problem_response(error, trace)(scope, receive, send)
            return
        request_id = headers.get(b"x-request-id", b"").decode("latin-1")[:100] or None
        with tracing(traceparent, tracestate), bound(project_id=principal.project_id, request_id=request_id):
            await self._app(scope, receive, send)

    def _caller_if_known(self, token: str) -> Principal:
        """Return who asks an open route: somebody whose token is not believed is nobody, and answered all the same."""
        try:
            return self._verify(token) if token else ANONYMOUS
        except BurnishError:
            return ANONYMOUS

    def _verified(self, token: str) -> Principal:
        try:
            return self._verify(token)
        except Unauthenticated as error:
            audit.failed_login(
                "a caller token", {"component_type": self._component_type, "reason": error.message[:200]}
            )
            raise

    def _verify(self, token: str) -> Principal:
        instances = self._runtime.instances
        return self._runtime.tokens.verify(token, self._component_type, None if instances is None else instances())


def _protocol(description: Description, kinds: Mapping[str, Kind], runtime: JobRuntime, warm: Warm | None) -> APIRouter:
    router = APIRouter(tags=["component protocol"])
    component_type = description.component_type
    _about(router, description, runtime, warm)
    _submitting(router, component_type, kinds, runtime)
    _following(router, component_type, runtime)
    _asking(router, component_type, runtime)
    return router


def _about(router: APIRouter, description: Description, runtime: JobRuntime, warm: Warm | None) -> None:
    lives = Fresh(lambda: _lives(runtime), _PING_EVERY_SECONDS, f"{description.component_type}-ping")

    @router.get("/health", summary="Liveness and load", responses=problems(503))
    async def health(caller: Annotated[Principal, _OPEN]) -> Health:
        """Say that the component lives, how much it has to do, what its queue waits for, and what it has loaded.

        Whoever shows no caller token learns its status alone, up to a second old: the rest names other people's models
        and jobs, and costs something. Without its database it lives all the same, degraded: what is loaded goes on
        serving.
        """
        if caller == ANONYMOUS:
            return Health(status="ok" if await lives.get() else "degraded")
        loaded: tuple[str, ...] = ()
        try:
            loaded = loaded if warm is None else await warm()
            async with runtime.database.read() as session:
                found = await service.health(session, description.component_type, runtime.settings.node)
        except Unavailable as error:
            found = Health(status="degraded", waiting_for=error.message[:MAX_WAITING_FOR])
        return _within_bounds(found, loaded)

    @router.get("/describe", summary="What the component is and offers", dependencies=[_OPEN])
    async def describe_component() -> Description:
        """Give type, version, protocol version, and each job kind with the JSON Schemas of its spec and result."""
        return description


def _within_bounds(found: Health, loaded: Sequence[str]) -> Health:
    """Return a health that the protocol allows; names that are left out are not preferred here, no more than that."""
    waiting_for = None if found.waiting_for is None else found.waiting_for[:MAX_WAITING_FOR]
    names = tuple(name for name in loaded if len(name) <= MAX_NAME)[:MAX_WARM]
    return found.model_copy(update={"waiting_for": waiting_for, "warm": names})


async def _lives(runtime: JobRuntime) -> bool:
    """Tell whether the database answers."""
    try:
        async with asyncio.timeout(_PING_SECONDS), runtime.database.read() as session:
            await service.ping(session)
    except (BurnishError, TimeoutError):
        return False
    return True


def _submitting(router: APIRouter, component_type: str, kinds: Mapping[str, Kind], runtime: JobRuntime) -> None:
    @router.post(
        "/jobs/validate", summary="Check a job before it is accepted", responses=problems(400, 401, 403, 422, 503)
    )
    async def validate_job(request: JobRequest, caller: Caller) -> Validation:
        """Answer each problem with its place (`spec.rank`), or the spec with its defaults and what it would need."""
        _own_project(request, caller)
        return (await validate(request, kinds, runtime.database, runtime.store, component_type))[0]

    @router.post("/jobs", summary="Accept a job", responses=problems(400, 401, 403, 409, 422, 503, 507))
    async def submit_job(request: JobRequest, caller: Caller) -> JobView:
        """Accept a job under the caller's id; committed before the answer. The same id twice is the same job."""
        _own_project(request, caller)
        return await submit(request, component_type, kinds, runtime)


async def submit(request: JobRequest, component_type: str, kinds: Mapping[str, Kind], runtime: JobRuntime) -> JobView:
    """Validate and accept a job.

    Raises:
        InvalidRequest: the job is wrong; ``problems`` says where.
        Conflict: the id is another job's.
        OutOfDisk: the home's disk is below its reserve.
    """
    if not re.fullmatch(_ID_PATTERN, request.job_id) or len(request.job_id) > 100:
        raise InvalidRequest(
            f"{request.job_id!r} is no job id", where="job_id",
            hint="give 1 to 100 letters, digits, and . _ : -; the same id twice is the same job",
        )  # fmt: skip
    if request.origin is not None and (len(request.origin) > 255 or not storable(request.origin)):
        raise InvalidRequest("the origin is no id", where="origin")
    if request.partial:
        raise InvalidRequest("a partial job can only be validated", where="partial")
    async with runtime.database.write() as session:
        known = await service.resubmitted(session, request, component_type)
    if known is not None:
        return known
    reserve = runtime.configuration().jobs.disk_reserve_bytes
    await asyncio.to_thread(require_disk, runtime.settings.home, reserve)
    answer, parsed = await validate(request, kinds, runtime.database, runtime.store, component_type)
    if answer.problems or answer.spec is None or answer.resources is None:
        first = answer.problems[0].message if answer.problems else "the job is wrong"
        raise InvalidRequest(f"the job cannot be accepted: {first}", problems=answer.problems)
    async with runtime.database.write() as session:
        return await service.accept(
            session, request, kinds[request.kind], component_type, dict(answer.spec), parsed, answer.resources
        )


def _own_project(request: JobRequest, caller: Principal) -> None:
    if request.project_id != caller.project_id:
        raise Forbidden(
            f"the caller acts for project {caller.project_id}, not {request.project_id}",
            where="project_id", hint="use the caller's own project",
        )  # fmt: skip


def _following(router: APIRouter, component_type: str, runtime: JobRuntime) -> None:
    @router.get("/jobs/{job_id}", summary="A job", responses=problems(401, 404, 422, 503))
    async def get_job(job_id: JobId, caller: Caller) -> JobView:
        """Give a job's state, progress, and result or error."""
        async with runtime.database.read() as session:
            return service.view_of(await service.get(session, job_id, caller.project_id, component_type))

    @router.get(
        "/jobs/{job_id}/events",
        summary="Follow a job",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}, "description": "Events"}, **problems(400, 401, 404, 422, 503)},
    )  # fmt: skip
    async def follow_job(
        job_id: JobId,
        caller: Caller,
        last_event_id: Annotated[str | None, Header(description="The last id seen")] = None,
    ) -> StreamingResponse:
        """Stream states, progress, metrics and log lines; ends when the job does."""
        async with runtime.database.read() as session:
            await service.get(session, job_id, caller.project_id, component_type)
        return follow(runtime, job_id, last_event_id)


def follow(runtime: JobRuntime, job_id: str, after: str | None) -> StreamingResponse:
    """Return the stream of a job's events; it ends with the event that ends the job."""
    event_log.check_cursor(after)
    events = runtime.event_log.follow(subject=job_id, after=after)
    return StreamingResponse(
        stream(events, until=service.ends_job), media_type="text/event-stream", headers=SSE_HEADERS
    )


def _asking(router: APIRouter, component_type: str, runtime: JobRuntime) -> None:
    @router.post("/jobs/{job_id}/cancel", summary="Cancel a job", responses=problems(401, 404, 422, 503))
    async def cancel_job(job_id: JobId, caller: Caller) -> JobView:
        """Ask for a job's end. An id that is not known leaves a tombstone, so that it can never start."""
        async with runtime.database.write() as session:
            return await service.cancel(session, job_id, caller.project_id, component_type)

    @router.post("/jobs/{job_id}/pause", summary="Pause a job", responses=problems(401, 404, 409, 422, 503))
    async def pause_job(job_id: JobId, caller: Caller) -> JobView:
        """Ask a job to checkpoint and stop."""
        async with runtime.database.write() as session:
            return await service.pause(session, job_id, caller.project_id)

    @router.post("/jobs/{job_id}/resume", summary="Resume a job", responses=problems(401, 404, 409, 422, 503))
    async def resume_job(job_id: JobId, caller: Caller) -> JobView:
        """Let a paused job go on from its last checkpoint."""
        async with runtime.database.write() as session:
            return await service.resume(session, job_id, caller.project_id)


def install_problems(app: FastAPI) -> None:
    """Answer every error of an app as problem+json."""

    @app.exception_handler(BurnishError)
    async def expected(request: Request, error: BurnishError) -> JSONResponse:
        return problem_response(error, trace_id_of(request.headers.get(TRACE_HEADER)))

    @app.exception_handler(RequestValidationError)
    async def unreadable(request: Request, error: RequestValidationError) -> JSONResponse:
        return problem_response(_invalid(error), trace_id_of(request.headers.get(TRACE_HEADER)))

    @app.exception_handler(HTTPException)
    async def by_status(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 405:
            error.headers = {**(error.headers or {}), "Allow": ", ".join(_allowed(app, request))}
        typed = _by_status(error, request)
        return problem_response(typed, trace_id_of(request.headers.get(TRACE_HEADER)), error.status_code, error.headers)


def _allowed(app: FastAPI, request: Request) -> list[str]:
    """Return every method of the path: the framework names those of the first route that has the path alone."""
    literal = app.openapi()["paths"].get(request.url.path)  # before templates, which would match it as well
    if literal is not None:
        return [method for method in _METHODS if method.lower() in literal]
    scopes = {method: {**request.scope, "method": method} for method in _METHODS}
    return [method for method in _METHODS if any(r.matches(scopes[method])[0] is Match.FULL for r in app.routes)]


def problem_response(
    error: BurnishError, trace_id: str | None, status: int | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Return the response to a request that failed."""
    own_status, own_headers, body = problem_body(error, trace_id)
    return JSONResponse(body, status or own_status, headers={**(headers or {}), **own_headers})


def _invalid(error: RequestValidationError) -> BurnishError:
    errors = error.errors()
    if any(detail["type"] == "json_invalid" for detail in errors):
        return MalformedRequest("the body is not JSON", problems=_problems(errors), hint="send a JSON object")
    more = f"; {MAX_PROBLEMS} of {len(errors)} problems are told" if len(errors) > MAX_PROBLEMS else ""
    return InvalidRequest(
        f"the request is wrong{more}", problems=_problems(errors), hint="each problem names the place"
    )


def _problems(errors: Sequence[Any]) -> list[FieldProblem]:
    return [
        FieldProblem(
            where=".".join(str(part) for part in detail["loc"])[:500],
            message=str(detail["msg"]).removeprefix("Value error, "),
        )
        for detail in errors[:MAX_PROBLEMS]
    ]


def _by_status(error: HTTPException, request: Request) -> BurnishError:
    what = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return NotFound(f"there is nothing at {what}", where=request.url.path)
    if error.status_code == 405:
        return _MethodNotAllowed(f"{what} is not possible", hint=f"allowed: {(error.headers or {}).get('Allow', '')}")
    if error.status_code == 413:
        return TooLarge(str(error.detail), where=what)
    if error.status_code < 500:
        return MalformedRequest(str(error.detail), where=what)
    return BurnishError(str(error.detail), where=what)


class _MethodNotAllowed(MalformedRequest):
    """The path is known, but not with this method."""

    code = "method_not_allowed"
    status = 405
