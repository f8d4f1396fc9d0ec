"""A tiny component in a process of its own, to be slowed, frozen and killed.

``GET /work`` answers with the process's name after its delay; ``/control?delay=0.1&health_delay=0&status=200&...``
changes how it behaves from then on: ``torn``, its bodies break off; ``endless``, they have no end.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


class ComponentProcess:
    """The process, as tests hold it."""

    def __init__(self, name: str, component_type: str = "echo_metric", port: int = 0) -> None:
        self.name = name
        self.component_type = component_type
        self.url = ""
        self._port = port
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> "ComponentProcess":
        """Start it; the same port again after a kill."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.tiny_component", self.name, self.component_type, str(self._port)],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self._port = int(self._process.stdout.readline())
        self.url = f"http://127.0.0.1:{self._port}"
        return self

    def control(self, **how: float | str) -> None:
        """Change how it behaves."""
        query = "&".join(f"{name}={value}" for name, value in how.items())
        with urllib.request.urlopen(f"{self.url}/control?{query}", timeout=10):
            pass

    def signal(self, number: int) -> None:
        """Send a signal to this process alone."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL."""
        self.signal(signal.SIGKILL)
        self.wait()

    def wait(self) -> None:
        """Wait for its end."""
        assert self._process is not None
        self._process.wait(10)
        if self._process.stdout is not None:
            self._process.stdout.close()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None


@contextmanager
def component_processes(*names: str) -> Iterator[tuple[ComponentProcess, ...]]:
    """Run some of them; whatever happened to them, they are gone afterwards."""
    found = tuple(ComponentProcess(name) for name in names)
    try:
        for one in found:
            one.start()
        yield found
    finally:
        for one in found:
            if one.running:
                one.signal(signal.SIGCONT)
                one.kill()


def main() -> None:
    """Serve until killed."""
    import asyncio

    from aiohttp import web

    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("component_type")
    parser.add_argument("port", type=int)
    options = parser.parse_args()
    how = {
        "delay": 0.0,
        "health_delay": 0.0,
        "status": 200.0,
        "version": 1.0,
        "degraded": 0.0,
        "torn": 0.0,
        "endless": 0.0,
    }

    async def control(request: web.Request) -> web.Response:
        how.update({name: float(value) for name, value in request.query.items()})
        return web.json_response(how)

    async def health(request: web.Request) -> web.Response:
        await asyncio.sleep(how["health_delay"])
        return web.json_response({"status": "degraded" if how["degraded"] else "ok", "load": 0.0})

    async def describe(request: web.Request) -> web.Response:
        await asyncio.sleep(how["health_delay"])
        said = {"component_type": options.component_type, "version": "1", "protocol_version": f"{how['version']:.0f}"}
        return web.json_response(said)

    async def work(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        await asyncio.sleep(how["delay"])
        if how["torn"] or how["endless"]:
            answer = web.StreamResponse(headers={"Content-Type": "application/json"})
            await answer.prepare(request)
            await answer.write(b" ")
            while how["endless"]:
                await answer.write(b" " * 65536)
            assert request.transport is not None
            request.transport.abort()
            return answer
        said = {"name": options.name, "pid": os.getpid(), "bytes": len(body), "at": time.time()}
        return web.json_response(said, status=int(how["status"]))

    app = web.Application(client_max_size=64 << 20)
    app.router.add_get("/control", control)
    app.router.add_get("/health", health)
    app.router.add_get("/describe", describe)
    app.router.add_route("*", "/work", work)

    async def serve() -> None:
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", options.port, reuse_address=True)
        await site.start()
        assert site._server is not None
        sys.stdout.write(f"{site._server.sockets[0].getsockname()[1]}\n")  # type: ignore[attr-defined]
        sys.stdout.flush()
        await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
