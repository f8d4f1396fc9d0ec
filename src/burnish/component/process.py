"""What one component's process is made of: a home, a small database, the runtime of jobs, and its place at the platform."""

import asyncio
import contextlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from fastapi import APIRouter
from fastapi.middleware import Middleware
from pydantic import ValidationError

import burnish.infra.idempotency.tables  # noqa: F401 - the schema knows every table that a job's rows need
from burnish.component.artifacts import Adopting
from burnish.component.options import Options
from burnish.component.platform_client import PlatformClient, Registrar
from burnish.component.trust import Trust, from_file
from burnish.core.errors import BurnishError, HomeLocked, InvalidRequest, Unavailable
from burnish.core.offers import check_offer
from burnish.core.protocol import Registration
from burnish.core.settings import NODE_FILE, Settings
from burnish.infra import belonging
from burnish.infra.artifact_store import open_store
from burnish.infra.asgi import ASGIApp, Receive, Send
from burnish.infra.database import Base, Database
from burnish.infra.home import HomeLock, write_once
from burnish.infra.migrations import upgrade
from burnish.platform.identity import CallerTokens
from burnish.platform.jobs.component_app import component_app, describe, problem_response
from burnish.platform.jobs.runtime import JobRuntime
from burnish.platform.jobs.schemas import Kind
from burnish.platform.monitoring.housekeeping import Housekeeping

_OWNER_FILE = "component.json"


class ComponentProcess:
    """One component: :meth:`start` (inside :meth:`held`), :meth:`announce` once it listens, :meth:`drain`, :meth:`stop`."""

    def __init__(
        self, component_type: str, kinds: Mapping[str, Kind], options: Options, *, version: str, name: str | None,
        routers: Sequence[APIRouter] = (), routes: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.kinds = kinds
        self._type = component_type
        self._options = options
        self._version = version
        self._name = name or component_type.replace("_", " ")
        self._description = describe(component_type, kinds, routes, version)
        self._checked()
        self._routers = routers
        self._platform = PlatformClient(options.platform_url, options.api_key)
        self._trust = Trust(self._platform.jwks if options.jwks is None else from_file(options.jwks))
        self._registrar: Registrar | None = None
        self._database: Database | None = None
        self._runtime: JobRuntime | None = None
        self._housekeeping: Housekeeping | None = None
        self._draining = False
        self.app: ASGIApp = _not_started

    def _checked(self) -> None:
        """Fail where the platform would: what it offers, and the form of its registration."""
        try:
            check_offer(self._description, {})
            self._registration("http://127.0.0.1:1")
        except ValidationError as error:
            raise InvalidRequest(f"it cannot be registered: {str(error).splitlines()[2].strip()}") from error
        except BurnishError as error:
            raise InvalidRequest(f"it cannot be registered: {error.message}", hint=error.hint) from error

    def _registration(self, endpoint: str) -> Registration:
        return Registration(
            component_id=self._options.component_id, component_type=self._type, name=self._name,
            version=self._version, api_endpoint=endpoint, health_endpoint=f"{endpoint}/health", metadata={"pid": os.getpid()},
        )  # fmt: skip

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the home: no second process of this component works on it meanwhile.

        Raises:
            HomeLocked: another process does.
            InvalidRequest: the home is another component's.
        """
        home = self._options.home
        try:
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = HomeLock(home)
            lock.acquire()
        except HomeLocked as error:
            raise HomeLocked(
                error.message.replace("server", "process"), where=str(home),
                hint="it runs already; to run a second one beside it give that an id of its own (--id)",
            ) from error  # fmt: skip
        except OSError as error:
            raise Unavailable(f"the home cannot be used: {error}", where=str(home)) from error
        try:
            me = {"component_id": self._options.component_id, "component_type": self._type}
            owner = json.loads(write_once(home / _OWNER_FILE, json.dumps(me).encode()))
            if owner != me:
                raise InvalidRequest(
                    f"{home} is the home of {owner['component_id']} ({owner['component_type']})", where="--home",
                    hint="give this one a home of its own",
                )  # fmt: skip
            yield
        finally:
            lock.release()

    async def start(self) -> None:
        """Migrate, find what runs already, and make the app.

        Raises:
            BurnishError: the start failed for a reason that the error names.
        """
        settings = self._settings()
        write_once(settings.home / NODE_FILE, f"{settings.node}\n".encode())
        database = self._database = Database(settings.resolved_database_url)
        store = open_store(settings.resolved_artifact_url)
        await upgrade(database, Base.metadata)
        if self._options.artifact_url is None:
            await belonging.claim(database, store, settings.home, settings.resolved_artifact_url)
        await database.start()
        owner = f"{settings.node}-{os.getpid()}-{secrets.token_hex(3)}"
        tokens = cast(CallerTokens, self._trust)  # it only verifies, which is all that a component asks of it
        runtime = self._runtime = JobRuntime(database, store, settings, tokens, owner=owner)
        me = frozenset({self._options.component_id})
        runtime.instances = lambda: me
        app = component_app(
            self._type,
            self.kinds,
            runtime,
            routers=self._routers,
            routes=self._description.routes,
            version=self._version,
        )
        if self._options.artifact_url is not None:
            app.user_middleware.append(Middleware(Adopting, database=database, store=store))  # behind the caller check
        self.app = self._guarded(app)
        await self._trust.start()
        await runtime.start()
        if self._options.artifact_url is None:  # what is in the platform's store is the platform's to sweep
            self._housekeeping = Housekeeping(database, store)
            await self._housekeeping.start()

    def _settings(self) -> Settings:
        options = self._options
        return Settings(
            home=options.home, host=options.host, port=options.port, database_url=None, redis_url=None,
            artifact_url=options.artifact_url, advertise_url=options.advertise_url, secret_key_file=None, config=None,
            components="", component_id=options.component_id, auth="off",
        )  # fmt: skip

    def _guarded(self, app: ASGIApp) -> ASGIApp:
        """Take no new job while it drains; what is known is answered for."""

        async def guarded(scope: Any, receive: Receive, send: Send) -> None:
            new = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] == "/jobs"
            if self._draining and new:
                error = Unavailable(f"{self._options.component_id} is being stopped", retry_after=5)
                await problem_response(error, None)(scope, receive, send)
                return
            await app(scope, receive, send)

        return guarded

    async def announce(self, url: str) -> None:
        """Say where it listens, and register it there."""
        endpoint = (self._options.advertise_url or url).rstrip("/")
        _say(f"{self._options.component_id} is ready at {url} (home {self._options.home}, pid {os.getpid()})")
        if self._options.jwks is not None:  # the platform's calls would be refused
            _say(f"Not registered anywhere: it believes the keys in {self._options.jwks}, not a platform's.")
            return
        self._registrar = Registrar(self._platform, self._registration(endpoint), tell=_say)
        await self._registrar.start()

    async def drain(self) -> None:
        """Take no new job, pause what can pause, let the rest end for a while; then deregister."""
        self._draining = True
        if self._runtime is not None:
            until = time.monotonic() + self._options.drain_seconds
            left = await self._runtime.pause_running(self._options.drain_seconds)
            while left and time.monotonic() < until:
                await asyncio.sleep(0.2)
                left = await self._runtime.pause_running(0)
            for job_id in left:
                _say(f"{job_id} runs on; the next start of this component finds it.")
            self._runtime.event_log.finish()  # open streams would outlive it
        if self._registrar is not None:
            await self._registrar.stop()
            self._registrar = None

    async def stop(self) -> None:
        """Stop every loop. Hosts live on, and are found again by the next start."""
        if self._registrar is not None:
            await self._registrar.stop()
        await self._trust.stop()
        if self._housekeeping is not None:
            await self._housekeeping.stop()
        if self._runtime is not None:
            await self._runtime.stop()
            await self._runtime.event_log.close()
        if self._database is not None:
            await self._database.dispose()
        await self._platform.close()


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - for whoever started it


async def _not_started(scope: Any, receive: Receive, send: Send) -> None:
    await problem_response(Unavailable("it has not started yet"), None)(scope, receive, send)
