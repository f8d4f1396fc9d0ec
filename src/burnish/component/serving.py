"""Running a component in a process of its own, from its start to its end."""

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import APIRouter

from burnish.component.options import Options, read_options
from burnish.component.process import ComponentProcess
from burnish.core.errors import BurnishError, Unavailable
from burnish.infra import logging as own_logging
from burnish.platform.jobs.schemas import Kind

log = logging.getLogger(__name__)

_STREAMS_GRACE = 3


def serve(
    component_type: str,
    kinds: Mapping[str, Kind],
    *,
    version: str = "0",
    name: str | None = None,
    routers: Sequence[APIRouter] = (),
    routes: Sequence[str] = (),
    arguments: Sequence[str] | None = None,
) -> None:
    """Run a component until a signal ends it. Call it at the end of a script, under ``if __name__ == "__main__"``.

    It registers itself at ``BURNISH_URL`` (with ``BURNISH_API_KEY``), stays registered, and deregisters on SIGTERM or
    Ctrl-C: then it takes no new job, pauses what can pause, and lets the rest end for a while. What still runs is found
    again by the next start, as after a crash.

    Args:
        component_type: what it is; small letters, digits and ``_``.
        kinds: the jobs that it offers, by name.
        version: its own, not Burnish's (``0``: it says none); a step with ``cache: true`` runs again when it changes.
        name: for people; the type by default.
        routers: routes of its own. Each handler gets the caller by ``burnish.platform.identity.current_principal``.
        routes: path prefixes of these routes, which the platform's gateway passes on.
        arguments: flags instead of the script's own (``--help`` lists them).

    Raises:
        SystemExit: the options are wrong (2), another process has its home, or its port is taken (1).
    """
    name_script(kinds)
    try:
        options = read_options(component_type, sys.argv[1:] if arguments is None else arguments)
        own_logging.configure(options.log_level, "text" if sys.stderr.isatty() else "json")  # type: ignore[arg-type]
        process = ComponentProcess(
            component_type, kinds, options, version=version, name=name, routers=routers, routes=routes
        )
        _run(process, options)
    except BurnishError as error:
        hint = f"\n  {error.hint}" if error.hint else ""
        print(f"{component_type}: {error.message}{hint}", file=sys.stderr)  # noqa: T201 - it is a program's last word
        raise SystemExit(2 if error.status == 422 else 1) from error


def name_script(kinds: Mapping[str, Kind]) -> None:
    """Give the classes of a script the name by which a host finds them: a host runs no ``__main__`` of ours."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    models = [model for kind in kinds.values() for model in (kind.spec, kind.result) if model.__module__ == "__main__"]
    if not models or file is None:
        return
    spec = getattr(main, "__spec__", None)
    script = spec.name.removesuffix(".__main__") if spec is not None else Path(file).stem
    for model in models:
        model.__module__ = script
    folder = str(Path(file).resolve().parent) if spec is None else os.getcwd()
    paths = [folder, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))


def check_functions(kinds: Mapping[str, Kind]) -> None:
    """Fail at the start where a kind names a function that is not there.

    Only the script's own functions are looked for inside: another module may be heavy, and hosts alone import it.

    Raises:
        Unavailable: names the kind and the function.
    """
    main = sys.modules["__main__"]
    script = Path(str(getattr(main, "__file__", ""))).stem
    for name, kind in kinds.items():
        if not isinstance(kind.run, str):
            continue
        module, _, attribute = kind.run.partition(":")
        try:
            found = importlib.util.find_spec(module) is not None
        except (ImportError, ValueError):
            found = False
        if not found or not attribute or (module == script and not hasattr(main, attribute.partition(".")[0])):
            raise Unavailable(
                f"kind {name}: its function {kind.run!r} cannot be found", where=f"kinds.{name}.run",
                hint="write `module:function`; the module must be importable where the component runs",
            )  # fmt: skip


def bind(options: Options) -> socket.socket:
    """Return a listening socket.

    Raises:
        Unavailable: the port is taken.
    """
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
        listener.listen(512)
    except OSError as error:
        listener.close()
        raise Unavailable(
            f"cannot listen on {options.host}:{options.port}: {error.strerror}", where="--port",
            hint="choose another with --port, or leave it out for a free one",
        ) from error  # fmt: skip
    listener.set_inheritable(False)
    return listener


def _run(process: ComponentProcess, options: Options) -> None:
    check_functions(process.kinds)
    with process.held():
        listener = bind(options)
        host, port = listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        try:
            asyncio.run(_life(process, listener, url))
        finally:
            listener.close()


async def _life(process: ComponentProcess, listener: socket.socket, url: str) -> None:
    await process.start()
    try:
        config = uvicorn.Config(
            process.app, lifespan="off", log_config=None, log_level="warning", access_log=False, server_header=False,
            timeout_graceful_shutdown=_STREAMS_GRACE, timeout_keep_alive=75, ws="none",
        )  # fmt: skip
        await _Server(config, process, url).serve(sockets=[listener])
    finally:
        await process.stop()


class _Server(uvicorn.Server):
    """Registers the component once it listens, and drains it before it closes. A second signal ends it at once."""

    def __init__(self, config: uvicorn.Config, process: ComponentProcess, url: str) -> None:
        super().__init__(config)
        self._process = process
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            await self._process.announce(self._url)

    @contextlib.contextmanager
    def capture_signals(self) -> Any:  # not uvicorn's: that raises the signal again, and the process would not exit 0
        previous = {one: signal.signal(one, self.handle_exit) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in previous.items():
                signal.signal(one, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        drain = asyncio.ensure_future(self._process.drain())
        while not drain.done() and not self.force_exit:
            await asyncio.wait([drain], timeout=0.1)
        drain.cancel()
        await asyncio.gather(drain, return_exceptions=True)
        await super().shutdown(sockets)
