"""What the connections to services make of servers that do not behave; the contract itself is tested in integration."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from burnish.infra import http_client
from burnish.infra.http import Request, Unreachable
from burnish.infra.http_client import HttpTransport

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]
_OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Service:
    """A server that says, connection by connection and request by request, what a test gives it to say."""

    def __init__(self, *answers: Sequence[bytes | Talk]) -> None:
        self.asked: list[list[bytes]] = []
        """The heads of the requests, by connection."""
        self.closed = asyncio.Event()
        """Set when a client closed a connection that was to be used on."""
        self.url = ""
        self._answers = answers

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked: list[bytes] = []
        answers = self._answers[min(len(self.asked), len(self._answers) - 1)]
        self.asked.append(asked)
        try:
            for answer in answers:
                asked.append(await reader.readuntil(b"\r\n\r\n"))
                if asked[-1].startswith(b"POST") and b"content-length: 100000" in asked[-1]:
                    await reader.readexactly(100_000)
                if isinstance(answer, bytes):
                    writer.write(answer)
                    await writer.drain()
                else:
                    await answer(reader, writer)
            if answers[-1:] == [_OK]:
                await reader.read()
                self.closed.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed.set()
        finally:
            writer.close()


@asynccontextmanager
async def serving(*answers: Sequence[bytes | Talk]) -> AsyncIterator[tuple[Service, HttpTransport]]:
    service = Service(*answers)
    server = await asyncio.start_server(service.talk, "127.0.0.1", 0)
    transport = HttpTransport(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/base")
    try:
        yield service, transport
    finally:
        await transport.close()
        server.close()
        await server.wait_closed()


async def asked(transport: HttpTransport, method: str = "GET", **more: Any) -> tuple[int, bytes]:
    async with asyncio.timeout(10), transport.send(Request(method, "/x?y", **more)) as response:
        return response.status, await response.read()


async def broken(transport: HttpTransport, method: str = "POST", **more: Any) -> Unreachable:
    with pytest.raises(Unreachable) as caught:
        await asked(transport, method, **more)
    assert caught.value.sent
    return caught.value


async def test_a_connection_serves_one_request_after_the_other() -> None:
    async with serving([_OK, _OK, _OK]) as (service, transport):
        for body in (b"", b"abc"):
            assert await asked(transport, "POST", body=body, headers={"X-One": "\xe9", "Host": "else"}) == (200, b"ok")
        assert await asked(transport) == (200, b"ok")
    [heads] = service.asked
    host = transport.host.encode()
    assert heads[0] == b"POST /base/x?y HTTP/1.1\r\nhost: %b\r\nx-one: \xe9\r\ncontent-length: 0\r\n\r\n" % host
    assert b"content-length: 3\r\n" in heads[1]
    assert b"content-length" not in heads[2]


def test_the_loop_that_serves_takes_it_too() -> None:
    async def both() -> None:
        async with serving([_OK, _OK]) as (service, transport):
            assert await asked(transport, "POST", body=b"x" * 100_000) == (200, b"ok")
            assert await asked(transport) == (200, b"ok")
        assert len(service.asked) == 1

    uvloop.run(both())


async def test_requests_at_the_same_time_have_connections_of_their_own() -> None:
    async with serving([_OK]) as (service, transport):
        assert await asyncio.gather(*(asked(transport) for _ in range(5))) == [(200, b"ok")] * 5
    assert len(service.asked) == 5


@pytest.mark.parametrize(
    ("answer", "whole"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nto the end", b"to the end"),
        (b"HTTP/1.0 200 OK\r\n\r\nto the end", b"to the end"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nxyz", b"xyz"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nx-trailer: 1\r\n\r\n", b"ab"),
        (b"HTTP/1.1 100 Continue\r\nx: y\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: z\r\n\r\n" + _OK, b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", b""),
    ],
)
async def test_every_way_in_which_an_answer_ends(answer: bytes, whole: bytes) -> None:
    async with serving([answer]) as (_, transport), transport.send(Request("GET", "/")) as response:
        assert await response.read() == whole
        assert not {"x", "link", "x-trailer", "transfer-encoding"} & response.headers.keys()


async def test_an_answer_to_head_has_no_body() -> None:
    async with serving([b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n"]) as (_, transport):
        assert await asked(transport, "HEAD") == (200, b"")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nno number\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
    ],
)
async def test_what_is_no_whole_answer_is_an_error(answer: bytes) -> None:
    async with serving([answer], [_OK]) as (_, transport):
        await broken(transport)
        assert await asked(transport) == (200, b"ok")


async def test_a_connection_that_was_closed_while_it_was_idle_costs_nothing_that_can_be_repeated() -> None:
    async def ends(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with serving([_OK, ends], [_OK, ends], [_OK]) as (service, transport):
        assert await asked(transport) == (200, b"ok")
        assert await asked(transport, "PUT", body=b"again") == (200, b"ok")
        await broken(transport, "POST", body=b"once")
    assert [len(heads) for heads in service.asked] == [2, 2]


async def test_nothing_is_repeated_on_a_new_connection_or_once_an_answer_began() -> None:
    half = b"HTTP/1.1 200"
    async with serving([b""], [_OK, half], [_OK]) as (service, transport):
        await broken(transport, "GET")
        assert await asked(transport) == (200, b"ok")
        await broken(transport, "GET")
    assert [len(heads) for heads in service.asked] == [1, 2]


async def test_what_was_not_read_to_its_end_is_not_used_again() -> None:
    long = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nfirst"

    async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(long)
        await reader.readuntil(b"\r\n\r\n")

    async with serving([waits], [_OK]) as (service, transport):
        async with transport.send(Request("GET", "/")) as response:
            assert await anext(response.chunks()) == b"first"
        await asyncio.wait_for(service.closed.wait(), 10)
        assert await asked(transport) == (200, b"ok")
    assert len(service.asked) == 2


@pytest.mark.parametrize("more", [b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", b"garbage"])
async def test_an_answer_that_nobody_asked_for_is_nobodys_answer(more: bytes) -> None:
    async with serving([_OK + more], [_OK]) as (service, transport):
        assert await asked(transport) == (200, b"ok")
        assert await asked(transport) == (200, b"ok")
    assert len(service.asked) == 2


async def test_an_idle_connection_is_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "_KEPT_SECONDS", 0.05)
    async with serving([_OK]) as (service, transport):
        assert await asked(transport) == (200, b"ok")
        await asyncio.wait_for(service.closed.wait(), 10)


@pytest.mark.parametrize(
    "request_", [Request("GET", "/a b"), Request("GET", "/", {"x": "a\r\ny: b"}), Request("GET", "/", {"x\n": "a"})]
)
async def test_nothing_is_smuggled_into_a_request(request_: Request) -> None:
    async with serving([_OK]) as (service, transport):
        with pytest.raises(ValueError, match="cannot be sent"):
            async with transport.send(request_):
                pass
    assert not service.asked


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_a_streamed_body_is_as_long_as_it_says() -> None:
    async def whole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(6) == b"abcdef"
        writer.write(_OK)

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving([whole, never], [never]) as (_, transport):
        length = {"content-length": "6"}
        assert await asked(transport, "POST", headers=length, body=chunks(b"abc", b"", b"def")) == (200, b"ok")
        for parts in ((b"abc",), (b"abcdefg",)):
            error = await broken(transport, headers=length, body=chunks(*parts))
            assert "not as long as its content-length" in error.message


async def test_of_a_body_that_is_refused_at_once_nobody_hears() -> None:
    async def refused() -> AsyncIterator[bytes]:
        await asyncio.sleep(0)
        raise RuntimeError("too large")
        yield b""

    async with serving([_OK], [_OK]) as (service, transport):
        assert "too large" in (await broken(transport, body=refused())).message
        assert await asked(transport) == (200, b"ok")
    assert [len(heads) for heads in service.asked] == [0, 1]


async def test_an_answer_before_the_end_of_the_body_ends_the_body() -> None:
    ended = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x"
                await asyncio.sleep(0)
        finally:
            ended.set()

    async with serving([b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno"], [_OK]) as (service, transport):
        assert await asked(transport, "POST", body=endless()) == (413, b"no")
        await asyncio.wait_for(ended.wait(), 10)
        assert await asked(transport) == (200, b"ok")
    assert len(service.asked) == 2


async def test_closing_breaks_what_is_under_way() -> None:
    begun = asyncio.Event()

    async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nfirst")
        begun.set()
        await reader.read()

    async with serving([waits]) as (_, transport):
        task = asyncio.create_task(broken(transport))
        await asyncio.wait_for(begun.wait(), 10)
        await transport.close()
        await task


async def test_a_name_is_looked_up_and_the_next_address_tried() -> None:
    class Names:
        asked = 0

        async def resolve(self, host: str, port: int) -> list[str]:
            self.asked += 1
            return ["127.0.0.2", "127.0.0.1"]

    async with serving([b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"]) as (_, plain):
        names = Names()
        transport = HttpTransport(f"http://name.test:{plain.host.rpartition(':')[2]}", resolver=names)
        for _ in range(2):
            assert await asked(transport) == (200, b"ok")
        await transport.close()
    assert names.asked == 1
