"""A plain TCP balancer before several gateways, in a process of its own, as an administrator puts one there.

Each new connection goes to the next backend that is up; one that refuses is passed over for the next. A backend is down
when ``/platform/health`` was not answered twice within a second (a process that is frozen accepts connections all the
same) nor any other byte came from it; its connections are then broken off. Every request is written down: its key, which backend, when.
"""

import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.passed import PassedOn, passed

_PROBE_SECONDS = 0.5
_ANSWER_SECONDS = 1.0
_FAILURES = 2


class Balancer:
    """The balancer, as the test sees it."""

    def __init__(self, backends: list[tuple[str, int]], log: Path) -> None:
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.balancer", str(log), *(f"{host}:{port}" for host, port in backends)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"

    def passed(self, backend: int) -> dict[str, float]:
        """Return the keys of the requests that were passed on to a backend, and when."""
        return passed([self._log], lambda to: to == str(backend))

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@dataclass
class _Backend:
    host: str
    port: int
    failures: int = 0
    heard_at: float = 0.0
    """When the last byte came from it, for a client."""
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def hear(self) -> None:
        """Something came from it: slow it may be, but not dead."""
        self.heard_at = time.monotonic()


class _Balancing:
    def __init__(self, backends: list[_Backend], log: Path) -> None:
        self.backends = backends
        self.log = PassedOn(log)
        self.turn = itertools.count()

    async def serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        first = next(self.turn)
        order = [self.backends[(first + n) % len(self.backends)] for n in range(len(self.backends))]
        for backend in sorted(order, key=lambda one: one.failures >= _FAILURES):  # those that are down come last
            with contextlib.suppress(OSError):
                upstream, target = await asyncio.open_connection(backend.host, backend.port)
                await self.passed_on(backend, reader, client, upstream, target)
                return
        client.transport.abort()

    async def passed_on(
        self, backend: _Backend, reader: asyncio.StreamReader, client: asyncio.StreamWriter,
        upstream: asyncio.StreamReader, target: asyncio.StreamWriter,
    ) -> None:  # fmt: skip
        to = str(self.backends.index(backend))
        both = {client, target}
        backend.writers |= both
        try:
            requests = pump(reader, target, lambda data: self.log.note(data, to))
            answers = pump(upstream, client, lambda _: backend.hear())
            pumps = {asyncio.create_task(requests), asyncio.create_task(answers)}
            _, rest = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for task in rest:
                task.cancel()
        finally:
            backend.writers -= both
            for writer in both:
                writer.close()

    async def probe(self, backend: _Backend) -> None:
        while True:
            began = time.monotonic()
            if await healthy(backend) or backend.heard_at > began:
                backend.failures = 0
            else:
                backend.failures += 1
                if backend.failures == _FAILURES:
                    for writer in list(backend.writers):
                        writer.transport.abort()
            await asyncio.sleep(_PROBE_SECONDS)


async def pump(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, note: Callable[[bytes], object] = lambda _: None
) -> None:
    """Pass on what comes, until one of the two ends has ended: HTTP needs no half of a connection."""
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            note(data)
            sink.write(data)
            await sink.drain()


async def healthy(backend: _Backend) -> bool:
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(backend.host, backend.port)
            try:
                writer.write(b"GET /platform/health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


async def _main(log: str, *addresses: str) -> None:
    backends = [_Backend(host, int(port)) for host, _, port in (one.rpartition(":") for one in addresses)]
    balancing = _Balancing(backends, Path(log))
    server = await asyncio.start_server(balancing.serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    probes = [asyncio.create_task(balancing.probe(backend)) for backend in backends]
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()  # ends with the test, however that ends
    del probes
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
