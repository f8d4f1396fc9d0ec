"""A TCP proxy in a process of its own, between any two programs, that disturbs what it passes on.

    with Proxy(("127.0.0.1", 5432)) as proxy:
        connect_to("127.0.0.1", proxy.port)
        proxy.set("stall")

=============  ===========================================================================================================
``pass``       everything is passed on
``stall``      connections are accepted, and every byte and every end is swallowed, as by a network that drops packets
``half-open``  so for the connections that there are now; new ones pass
``cut``        the connections that there are now are reset; new ones pass
``refuse``     nobody listens, and what was open is reset
``delay S``    each piece is passed on S seconds late
``trickle``    answers come a byte at a time, 20 bytes a second
``half-close`` the server's side of each connection is ended towards the client; what the client sends still passes
``garbage``    random bytes come instead of answers
``answer HEX`` these bytes come instead of each answer
``endless``    after each answer more comes, without end
``unending``   in place of each answer comes the head of one, and a body in chunks that never ends
=============  ===========================================================================================================
"""

import asyncio
import contextlib
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType

_PIECE = 1 << 16
_OVER_SECONDS = 0.1
"""An answer of which nothing more came for so long is over."""
_MODES = ("stall", "delay", "trickle", "garbage", "answer", "endless", "unending")
_ENDLESS = b"x" * 1000
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"


class Proxy:
    """The proxy, as the test that steers it sees it."""

    def __init__(
        self, target: tuple[str, int], port: int = 0, *, host: str = "127.0.0.1", within: Sequence[str] = ()
    ) -> None:
        """``host`` is the address to listen on, ``within`` the command of a namespace to run in."""
        self._process = subprocess.Popen(
            [*within, sys.executable, "-m", "tests.support.proxy", target[0], str(target[1]), str(port), host],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.port = int(self._answer())

    def set(self, mode: str) -> None:
        """Change what it does; done on return."""
        assert self._process.stdin is not None
        self._process.stdin.write(mode + "\n")
        self._process.stdin.flush()
        if (answer := self._answer()) != "ok":
            raise ValueError(answer)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the proxy has ended")
        return line.strip()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Connection:
    """One client's connection and the one to the target."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.writers = [client]
        self.swallowed = self.answered = False

    def reset(self) -> None:
        for writer in self.writers:
            if (sock := writer.get_extra_info("socket")) is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class _Relay:
    """The proxy's own process."""

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.mode, self.seconds, self.answer = "pass", 0.0, b""
        self.connections: set[_Connection] = set()
        self.server: asyncio.Server | None = None
        self.port = 0
        self.own_host = "127.0.0.1"

    async def listen(self) -> None:
        self.server = await asyncio.start_server(self.serve, self.own_host, self.port, reuse_address=True)
        self.port = self.server.sockets[0].getsockname()[1]

    async def serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        connection = _Connection(client)
        self.connections.add(connection)
        try:
            upstream, target = await asyncio.open_connection(*self.target)
            connection.writers.append(target)
            await asyncio.gather(
                self.pump(connection, reader, target), self.pump(connection, upstream, client, answers=True)
            )
        except OSError:
            connection.reset()
        finally:
            self.connections.discard(connection)
            for writer in connection.writers:
                writer.close()

    async def pump(
        self, connection: _Connection, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool = False
    ) -> None:  # fmt: skip
        while True:
            reading = asyncio.ensure_future(source.read(_PIECE))
            if answers and connection.answered:
                await self.go_on(reading, sink)
            data = await reading
            connection.answered |= answers and bool(data)
            while self.mode == "stall" and not data and not connection.swallowed:
                await asyncio.sleep(0.05)  # an end that nobody hears of until the network is whole again
            if connection.swallowed and not data:
                await asyncio.Event().wait()
            if self.mode == "stall" or connection.swallowed:
                connection.swallowed = True  # bytes are lost in the middle of it: it is of no use any more
                continue
            if not data:
                with contextlib.suppress(OSError):
                    sink.write_eof()
                return
            await self.passed_on(data, sink, answers)

    async def passed_on(self, data: bytes, sink: asyncio.StreamWriter, answers: bool) -> None:
        if self.mode == "delay":
            await asyncio.sleep(self.seconds)
        if answers and self.mode == "garbage":
            data = os.urandom(len(data))
        if answers and self.mode == "answer":
            data = self.answer
        if answers and self.mode == "trickle":
            for byte in data:
                sink.write(bytes([byte]))
                await sink.drain()
                await asyncio.sleep(0.05)
            return
        if answers and self.mode == "unending":
            sink.write(_HEAD)
            await self.write_on(sink, b"%x\r\n%b\r\n" % (len(_ENDLESS), _ENDLESS), "unending")
            return
        sink.write(data)
        await sink.drain()

    async def go_on(self, reading: asyncio.Future[bytes], sink: asyncio.StreamWriter) -> None:
        """Wait for more of an answer; write on where there is none, if that is the mode."""
        while not reading.done():
            await asyncio.wait({reading}, timeout=_OVER_SECONDS)
            if not reading.done():
                await self.write_on(sink, _ENDLESS, "endless")

    async def write_on(self, sink: asyncio.StreamWriter, piece: bytes, mode: str) -> None:
        """Write for as long as the mode lasts."""
        while self.mode == mode:
            sink.write(piece)
            await sink.drain()
            await asyncio.sleep(0.02)

    async def change(self, line: str) -> str:
        mode, _, operand = line.strip().partition(" ")
        if mode == "answer":
            self.answer = bytes.fromhex(operand)
        elif mode == "delay":
            self.seconds = float(operand)
        if mode == "half-open":
            for connection in self.connections:
                connection.swallowed = True
        elif mode in ("cut", "refuse"):
            if mode == "refuse" and self.server is not None:
                self.server.close()
                self.server = None
            for connection in list(self.connections):
                connection.reset()
        elif mode == "half-close":
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.writers[0].write_eof()
        elif mode not in ("pass", *_MODES):
            return f"there is no mode {mode}"
        self.mode = mode if mode in _MODES else "pass"
        if self.server is None and mode != "refuse":
            await self.listen()
        return "ok"


async def _main(host: str, port: str, own: str, own_host: str) -> None:
    relay = _Relay(host, int(port))
    relay.port, relay.own_host = int(own), own_host
    await relay.listen()
    print(relay.port, flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        print(await relay.change(line.decode()), flush=True)
    os._exit(0)  # the test has ended, however


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
