"""Running ``burnish.app`` under uvicorn, and how it ends."""

import asyncio
import contextlib
import gc
import ipaddress
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from pydantic import ValidationError

from burnish.cli.first_key import FIRST_KEY, FIRST_KEY_FILE, write_key_file
from burnish.cli.processes import running_server
from burnish.client.address import RUN_FILE, ProcessFile, RunFile, living_processes, process_file, started_ticks
from burnish.core.errors import BurnishError, FieldProblem, HomeLocked, InvalidRequest, Unavailable
from burnish.core.settings import ALL_ROLES, Settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Message, Receive, Send], Awaitable[None]]

STREAMS_GRACE = 3
"""Seconds that open answers get to end after a request to stop; event streams never would."""
_YOUNG = 5000
"""Objects made and not freed until the garbage collector looks at them: those of some requests at once."""


class PortBusy(Unavailable):
    """Another program listens on the address that was asked for."""

    code = "port_busy"


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Return the settings from flags, then ``BURNISH_*`` variables, then defaults.

    Raises:
        InvalidRequest: a value cannot be used; ``problems`` names each.
    """
    values = dict(given)
    if "log_format" not in values and "BURNISH_LOG_FORMAT" not in os.environ and sys.stderr.isatty():
        values["log_format"] = "text"
    try:
        settings = Settings(**values)
        settings.component_set()
        _possible(settings)
    except ValidationError as error:
        problems = [
            FieldProblem(
                where="--" + ".".join(str(part) for part in found["loc"]).replace("_", "-"), message=found["msg"]
            )
            for found in error.errors()
            if found["type"] != "default_factory_not_called"  # a default that only follows from what is wrong
        ]
        raise InvalidRequest(
            "the settings cannot be used", problems=problems, hint="see `burnish serve --help`"
        ) from error
    except ValueError as error:
        raise InvalidRequest(str(error), where="--components") from error
    return settings


def _possible(settings: Settings) -> None:
    """Refuse what would do nothing, or less than it says.

    Raises:
        InvalidRequest: with the flag.
    """
    missing = ALL_ROLES - settings.component_set()
    if settings.embedded_database and missing:
        raise InvalidRequest(
            f"on SQLite there is one process, which has to do everything; it would lack {', '.join(sorted(missing))}",
            where="--components",
            hint="leave --components out, or give all processes one PostgreSQL database (--database-url)",
        )


def run(settings: Settings) -> None:
    """Serve until a signal ends it.

    Raises:
        HomeLocked: another server holds this home.
        PortBusy: the port is taken.
        BurnishError: the start failed for a reason that the error names.
    """
    if settings.embedded_database:  # servers of one node may share a home on PostgreSQL (decision 3)
        refuse_second(settings.home)
    listener = bind(settings.host, settings.port)
    settings = advertised(settings, listener)
    gc.disable()  # what a start loads stays: looking through it again and again costs a quarter of a second
    from burnish.app import HttpProtocol, create_app  # only now: a refusal needs no server code

    app = create_app(settings)
    edge = _Lifespan(app)
    config = uvicorn.Config(
        edge, loop="uvloop", http=HttpProtocol, lifespan="on", proxy_headers=False, log_config=None, log_level="warning", access_log=False, server_header=False,
        timeout_graceful_shutdown=STREAMS_GRACE, timeout_keep_alive=75, backlog=2048,
    )  # fmt: skip
    # The error itself is printed at the end, and says more.
    logging.getLogger("uvicorn.error").addFilter(lambda _: edge.failure is None)
    server = _Server(
        config,
        settings,
        listener,
        drain=lambda: _process(app).drain(),
        end_streams=lambda: _process(app).events.finish(),
        first_key=lambda: app.state.first_key,
        finish=lambda: app.finish(),
    )
    try:
        server.run(sockets=[listener])
    except SystemExit:
        if edge.failure is None:
            raise
    finally:
        server.remove_run_files()
        listener.close()
    if edge.failure is not None:
        raise edge.failure
    if server.failure is not None:
        raise server.failure


def refuse_second(home: Path) -> None:
    """Raise :class:`HomeLocked` when a server of this home is alive.

    Only for a good message: the lock that the server itself takes decides.
    """
    if (other := running_server(home)) is not None:
        raise HomeLocked(
            f"a server already runs on {home}: {other.url} (pid {other.pid})",
            where=str(home),
            hint="use that one, end it with `burnish stop`, or choose another home with --home",
        )


def bind(host: str, port: int) -> socket.socket:
    """Return a bound socket.

    Raises:
        PortBusy: something listens there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)  # so that a second program sees at once that the port is taken
    except OSError as error:
        listener.close()
        raise PortBusy(
            f"cannot listen on {host}:{port}: {error.strerror}", where=f"{host}:{port}",
            hint="choose another with --port (0 takes a free one)",
        ) from error  # fmt: skip
    listener.set_inheritable(False)
    return listener


def advertised(settings: Settings, listener: socket.socket) -> Settings:
    """Return the settings with the URL under which other processes reach this one.

    Raises:
        InvalidRequest: it binds to every address, and what others call this machine cannot be found out.
    """
    if settings.advertise_url is not None:
        return settings
    port = listener.getsockname()[1]
    host = settings.host if settings.host not in ("0.0.0.0", "::", "") else own_address()  # noqa: S104 - what was asked for
    if host is None:
        raise InvalidRequest(
            f"what other processes are to call this one cannot be told: it binds to {settings.host}, and neither the "
            f"host name {socket.gethostname()} nor a route leads to an address of this machine",
            where="BURNISH_ADVERTISE_URL",
            hint=f"say it: BURNISH_ADVERTISE_URL=http://<address>:{port}",
        )
    return settings.model_copy(update={"advertise_url": f"http://{f'[{host}]' if ':' in host else host}:{port}"})


def own_address() -> str | None:
    """Return the address by which other machines reach this one, by its name or its default route; None if unknown."""
    with contextlib.suppress(OSError):
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
        usable = [str(one[4][0]) for one in found if not _is_local(str(one[4][0]))]
        if usable:
            return usable[0]
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))  # nothing is sent: the kernel only chooses the address that it would send from
            address = str(probe.getsockname()[0])
            if not _is_local(address):
                return address
    return None


def _is_local(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified


def _process(app: Any) -> Any:
    return app.state.process


class _Lifespan:
    """Keeps the typed error of a start that failed, so that it is printed as one and not as a traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.failure: BurnishError | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        failed = False

        async def quiet(message: Message) -> None:
            nonlocal failed
            if message["type"] == "lifespan.startup.failed":
                failed = True  # sent below, without the traceback when the error is an expected one
                return
            await send(message)

        try:
            await self._app(scope, receive, quiet)
        except BurnishError as error:
            self.failure = error
            failed = True
        if failed:
            await send({"type": "lifespan.startup.failed", "message": ""})


def _leave_to_itself() -> None:
    """Have the garbage collector look no more at what a start leaves for good, and seldom at the rest.

    A full collection walks through everything that is loaded: for a third of a second and more nothing is answered.
    """
    gc.freeze()
    gc.enable()
    gc.set_threshold(_YOUNG, 20, 20)


class _Server(uvicorn.Server):
    """Says where it listens once it is ready, and tells Ctrl-C (drain) from SIGTERM (leave running)."""

    def __init__(
        self, config: uvicorn.Config, settings: Settings, listener: socket.socket, drain: Callable[[], Any],
        end_streams: Callable[[], None], first_key: Callable[[], str | None], finish: Callable[[], Any],
    ) -> None:  # fmt: skip
        super().__init__(config)
        self._finish = finish
        self._home = settings.home
        self._components = (
            "all" if settings.component_set() == ALL_ROLES else ",".join(sorted(settings.component_set()))
        )
        self._with_platform = settings.with_platform
        self._drain = drain
        self._end_streams = end_streams
        self._first_key = first_key
        self._interrupted = False
        self.failure: BurnishError | None = None
        host, port = listener.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            _leave_to_itself()
            self._write_run_files()
            print(f"Burnish is ready at {self.url} (home {self._home}, pid {os.getpid()})", flush=True)
            if (key := self._first_key()) is not None:
                print(self._shown(key), flush=True)

    def _shown(self, key: str) -> str:
        """What is said of the first key: a supervisor keeps what is printed, so the key itself is not."""
        if "BURNISH_SUPERVISED_BY" not in os.environ:
            return FIRST_KEY.format(key=key)
        try:
            return FIRST_KEY_FILE.format(path=write_key_file(self._home, key))
        except OSError as error:
            return (
                f"the administrator's first key could not be written into {self._home}, and ends in 24 hours: {error}"
            )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGINT and not self._interrupted:
            self._interrupted = True
            self.should_exit = True
            return
        # Not uvicorn's own: it would raise the signal again after the shutdown, and nothing behind that would run.
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._interrupted:
            print(
                "Draining: jobs are checkpointed and paused, replicas finish their requests. Ctrl-C again ends it at once.",
                flush=True,
            )
            self._let_nobody_in(sockets or [])
            await self._drained()
        else:
            self._let_nobody_in(sockets or [])  # before the rest: a balancer then tries the next one
        self._end_streams()
        await self._finished()
        if self.force_exit:
            self._end_now()
        await super().shutdown(sockets)

    def _end_now(self) -> None:
        """End as a kill would, at once: told twice. Only that this process can be found here is taken back."""
        self.remove_run_files()
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)

    def _let_nobody_in(self, sockets: list[socket.socket]) -> None:
        """Close the listeners and idle connections; those that are being answered end with their answer."""
        for server in self.servers:
            server.close()
        for one in sockets:
            one.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()

    async def _finished(self) -> None:
        """Wait until what is in flight is answered, within the bound that the configuration sets, or until told again."""
        finish = asyncio.ensure_future(self._finish())
        while not finish.done() and not self.force_exit:
            await asyncio.wait([finish], timeout=0.1)
        finish.cancel()
        await asyncio.wait([finish])

    async def _drained(self) -> None:
        drain = asyncio.ensure_future(self._drain())
        while not drain.done() and not self.force_exit:  # a second Ctrl-C sets it
            await asyncio.wait([drain], timeout=0.1)
        if not drain.done():
            drain.cancel()
            await asyncio.wait([drain], timeout=5)
            print(
                "Not drained: jobs and replicas run on; the next `burnish serve` on this home finds them.", flush=True
            )
            return
        try:
            for line in drain.result() or ():
                print(f"  {line}", flush=True)
        except BurnishError as error:
            self.failure = error
        print("Drained. The next `burnish serve` on this home goes on from here.", flush=True)

    def _write_run_files(self) -> None:
        """Say who this process is; that clients of this home come here, only if they can be answered here."""
        pid = os.getpid()
        one = ProcessFile(pid=pid, url=self.url, components=self._components, started_ticks=started_ticks(pid) or 0)
        _write_whole(process_file(self._home, pid), one.model_dump_json())
        if self._with_platform:
            _write_whole(self._home / "run" / RUN_FILE, RunFile(pid=pid, url=self.url).model_dump_json())

    def remove_run_files(self) -> None:
        """Take back what this process said; clients of this home are sent to another one, if there is one."""
        process_file(self._home, os.getpid()).unlink(missing_ok=True)
        path = self._home / "run" / RUN_FILE
        with contextlib.suppress(OSError, ValueError):
            if json.loads(path.read_text()).get("pid") != os.getpid():
                return
            heir = next((one for one in living_processes(self._home) if one.with_platform), None)
            if heir is None:
                path.unlink()
            else:
                _write_whole(path, RunFile(pid=heir.pid, url=heir.url).model_dump_json())


def _write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.rename(path)
