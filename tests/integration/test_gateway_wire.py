"""The gateway over raw sockets: smuggling, headers without end, hang-ups, bodies cut short, pipelines."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest

from burnish.platform.gateway import wire
from burnish.platform.identity import Principal
from tests.support.gateway import Stand, gateway_stand
from tests.support.waiting import until

KEYS = {"sk-one": Principal("user_1", "red", frozenset({"engineer"}), credential="key_1")}
HEAD = b"Host: x\r\nAuthorization: Bearer sk-one\r\n"
POST = b"POST /platform/datasets/a HTTP/1.1\r\n" + HEAD
GET = b"GET /platform/datasets/a/echo HTTP/1.1\r\n" + HEAD
CHUNKED = b"3\r\nabc\r\n0\r\n\r\n"


@pytest.fixture
async def stand() -> AsyncIterator[Stand]:
    async with gateway_stand(keys=KEYS) as found:
        found.configure(per_key={"requests_per_second": 0}, per_project={"requests_per_second": 0}, max_in_flight=5000)
        yield found


async def exchange(stand: Stand, data: bytes) -> tuple[bytes, bool]:
    """Send bytes; return what came back, and whether the connection was closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
    writer.write(data)
    got, closed = b"", False
    try:
        while True:
            async with asyncio.timeout(0.4 if got else 5):
                piece = await reader.read(65536)
            if not piece:
                closed = True
                break
            got += piece
    except TimeoutError:
        pass
    except OSError:
        closed = True
    writer.close()
    return got, closed


SMUGGLED = {
    "another protocol": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 5\r\n\r\nabcde",
    "the same length twice": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "a list of lengths": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "a signed length": POST + b"Content-Length: +3\r\n\r\nabc",
    "length and encoding": POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "encoding and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n" + CHUNKED,
    "an encoding nobody decodes": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKED,
    "almost chunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKED,
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "a space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKED,
    "chunked in 1.0": POST.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "a folded header": GET + b"X-A: a\r\n  X-B: c\r\n\r\n",
    "a folded encoding": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + CHUNKED,
    "bare line feeds": GET.replace(b"\r\n", b"\n") + b"\n",
    "a bare carriage return": GET + b"X-A: a\rBurnish-Caller: forged\r\n\r\n",
    "a NUL in a header": GET + b"X-A: a\0b\r\n\r\n",
    "a target for another host": GET.replace(b" /", b" http://evil.example/") + b"\r\n",
    "two hosts": GET + b"Host: y\r\n\r\n",
    "no host": b"GET /platform/health HTTP/1.1\r\n\r\n",
    "a proxy's method": b"CONNECT evil.example:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a chunk with bare line feeds": POST + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n",
    "a chunk without measure": POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc",
}


OTHER_VERSIONS = {
    "2.0": GET.replace(b"HTTP/1.1", b"HTTP/2.0") + b"\r\n",
    "0.9": GET.replace(b"HTTP/1.1", b"HTTP/0.9") + b"\r\n",
}


@pytest.mark.parametrize("name", OTHER_VERSIONS)
async def test_another_version_is_not_answered_as_if_it_were_ours(stand: Stand, name: str) -> None:
    """Breaks with: a message framed by other rules that is read by those of HTTP/1.1."""
    got, closed = await exchange(stand, OTHER_VERSIONS[name])
    assert got.startswith(b"HTTP/1.1 505 ")
    assert b"http_version_not_supported" in got
    assert closed
    assert stand.component.begun == 0


@pytest.mark.parametrize("name", SMUGGLED)
async def test_smuggling_is_refused_and_ends_the_connection(stand: Stand, name: str) -> None:
    """What follows on the connection is not answered: nobody knows where it begins."""
    got, closed = await exchange(stand, SMUGGLED[name] + GET + b"\r\n")
    assert got.startswith(b"HTTP/1.1 400 "), got[:100]
    assert got.count(b"HTTP/1.1 400 ") == 1
    assert b"HTTP/1.1 200 " not in got
    assert closed
    assert json.loads(got.partition(b"\r\n\r\n")[2])["code"] == "malformed_request"
    assert stand.component.stored == []
    assert not any("burnish-caller" in one for one in stand.component.got)


HIDDEN = b"GET /platform/datasets/hidden/echo HTTP/1.1\r\nHost: x\r\nX-Burnish: hidden\r\n\r\n"
CHUNK = b"%x\r\n%s\r\n0\r\n" % (len(HIDDEN), HIDDEN)
FIT = {
    "a request in a body": POST + b"Content-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
    "a request in a chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK + b"\r\n",
    "a request in an extension": POST + b"Transfer-Encoding: chunked\r\n\r\n3;" + b"a" * 300 + b"\r\nabc\r\n0\r\n\r\n",
    "a trailer": POST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK + b"X-Burnish: hidden\r\n\r\n",
    "a length with an underscore": POST + b"Content_Length: 0\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
    "a length that is named for the hop": POST + b"Connection: keep-alive, content-length, x-burnish\r\n"
    b"Content-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
    "a body of a GET": GET + b"Content-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
}


async def test_two_gateways_agree_on_where_a_request_ends() -> None:
    """One behind the other: what the first refuses reaches nobody, what it passes on is one request to the second, too."""
    async with gateway_stand() as inner, gateway_stand(keys=KEYS, upstream=inner.url) as outer:
        for name, data in SMUGGLED.items():
            got, closed = await exchange(outer, data + GET + b"\r\n")
            assert (got[:12], closed, inner.component.begun) == (b"HTTP/1.1 400", True, 0), name
        for number, (name, data) in enumerate(FIT.items(), 1):
            got, _ = await exchange(outer, data + GET.replace(b"/a/echo", b"/last/echo") + b"Connection: close\r\n\r\n")
            assert got.count(b"HTTP/1.1 200") == 2, (name, got)
            assert inner.component.begun == 2 * number, name
            assert not any("x-burnish" in one or "content_length" in one for one in inner.component.got), name
            assert all(("content-length" in one) + ("transfer-encoding" in one) < 2 for one in inner.component.got), (
                name
            )


@pytest.mark.parametrize(
    "headers",
    [
        b"X-A: " + b"a" * 100_000 + b"\r\n",
        b"X-A: " + b"a" * 100_000,
        b"".join(b"X-%d: a\r\n" % number for number in range(300)),
        b"".join(b"X-%d: %s\r\n" % (number, b"a" * 1000) for number in range(100)),
        b"A" * 100_000,
    ],
    ids=["one", "one without end", "many", "large together", "a name"],
)
async def test_headers_have_a_limit(stand: Stand, headers: bytes) -> None:
    got, closed = await exchange(stand, GET + headers + b"\r\n")
    assert (
        got.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))
        if headers.startswith(b"A")
        else got.startswith(b"HTTP/1.1 431 ")
    )
    assert closed
    assert stand.component.begun == 0
    long, _ = await exchange(stand, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert long.startswith(b"HTTP/1.1 431 ")
    fits, _ = await exchange(stand, GET + b"X-A: " + b"a" * 60_000 + b"\r\n\r\n")
    assert fits.startswith(b"HTTP/1.1 200 "), "llama.cpp and others take as much"


async def test_headers_that_hardly_come(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("burnish.platform.gateway.wire.HEADER_SECONDS", 0.3)
    began = time.monotonic()
    got, closed = await exchange(stand, GET + b"X-A: begun")
    assert (got[:12], closed) == (b"HTTP/1.1 408", True)
    nothing, closed = await exchange(stand, b"")
    assert (nothing, closed) == (b"", True)
    kept, closed = await exchange(stand, GET + b"\r\n" + GET)
    assert kept.count(b"HTTP/1.1 200 ") == 1
    assert kept.count(b"HTTP/1.1 408 ") == 1
    assert closed
    assert time.monotonic() - began < 5


async def test_what_is_fit_passes(stand: Stand) -> None:
    """Pipelines, chunks with extensions, trailers (dropped), upgrades (not taken up), absolute targets of this host."""
    trailers = POST + b"Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nBurnish-Caller: forged\r\nX-T: 1\r\n\r\n"
    got, closed = await exchange(stand, trailers + GET + b"\r\n" + GET.replace(b" /", b" http://x/") + b"\r\n")
    assert got.count(b"HTTP/1.1 200 ") == 3
    assert not closed
    assert stand.component.stored == [3]
    assert not any({"burnish-caller", "x-t"} & one.keys() for one in stand.component.got)
    upgraded, closed = await exchange(stand, GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n")
    assert (upgraded[:12], closed) == (b"HTTP/1.1 200", True)
    socket, _ = await exchange(
        stand, GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\n\r\n"
    )
    assert socket.startswith(b"HTTP/1.1 200")
    waits, _ = await exchange(stand, POST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert waits.startswith(b"HTTP/1.1 100 Continue")


@pytest.mark.parametrize("size", [65_000, 66_000, 300_000])
async def test_a_body_is_no_header(stand: Stand, size: int) -> None:
    """However much of it comes with the headers, and whatever follows. Breaks with: all bytes counted alike."""
    post = POST + b"Content-Length: %d\r\n\r\n" % size + b"x" * size
    got, closed = await exchange(stand, post + post + GET + b"\r\n")
    assert got.count(b"HTTP/1.1 200 ") == 3
    assert not closed
    assert stand.component.stored == [size, size]


async def test_garbage_behind_a_stream_does_not_spoil_it(stand: Stand) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
    writer.write(GET.replace(b"echo", b"stream") + b"\r\n")
    await reader.readuntil(b"data: 0\n\n")
    writer.write(b"garbage\r\n\r\n" * 5)
    rest = await asyncio.wait_for(reader.read(), 5)
    assert b"HTTP/1.1" not in rest
    await until(lambda: stand.component.running == 0)
    writer.close()


async def test_a_body_cut_short_is_none(stand: Stand) -> None:
    """Upstream is cancelled, and nothing is stored. Breaks with: an end of input that passes for an end of body."""
    for head in (
        b"Content-Length: 2000000\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"Content-Length: 100\r\n\r\n",
    ):
        _, writer = await asyncio.open_connection("127.0.0.1", stand.port)
        begun = stand.component.begun
        writer.write(POST + head + (b"" if b"chunked" not in head else b"1000\r\n") + b"x" * 90)
        await writer.drain()
        if b"100\r" not in head:  # a short one is read whole before it goes anywhere
            await until(lambda begun=begun: stand.component.begun > begun)  # type: ignore[misc]
        writer.close()
        await until(lambda: stand.component.running == 0 and stand.gateway._admission.in_flight == 0)
    assert stand.component.stored == []
    whole, _ = await exchange(stand, POST + b"Content-Length: 3\r\n\r\nabc")
    assert whole.startswith(b"HTTP/1.1 200")
    assert stand.component.stored == [3]


async def test_requests_that_are_not_waited_for_have_a_limit(stand: Stand) -> None:
    """Breaks with: one read of a connection becomes thousands of requests, each some kilobytes, before one is answered."""
    some, closed = await exchange(stand, (GET + b"\r\n") * wire.PIPELINED)
    assert (some.count(b"HTTP/1.1 200 "), closed) == (wire.PIPELINED, False)
    begun = stand.component.begun
    got, closed = await exchange(stand, (GET + b"\r\n") * 5000)
    assert closed
    assert b"HTTP/1.1 400 " not in got, "it would be taken for the answer to an earlier request"
    assert stand.component.begun - begun <= 1 + wire.PIPELINED


async def test_who_hangs_up_is_noticed_though_requests_wait(stand: Stand) -> None:
    """Breaks with: the stream before them goes on for nobody."""
    writers = []
    for _ in range(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
        writer.write(GET.replace(b"/echo", b"/stall") + b"\r\n" + GET + b"\r\n")
        assert (await reader.readuntil(b"data: 0\n\n")).startswith(b"HTTP/1.1 200 ")
        writers.append(writer)
    assert stand.component.running == 10
    for writer in writers:
        writer.close()
    async with asyncio.timeout(5):
        while stand.component.running:
            await asyncio.sleep(0.01)


async def test_a_thousand_hang_ups_leak_nothing(stand: Stand) -> None:
    """Each leaves in its own moment: before the answer, within the stream, at once."""
    side_by_side = asyncio.Semaphore(50)

    async def hang_up(number: int) -> None:
        async with side_by_side:
            reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
            what = b"silent" if number % 4 == 0 else b"stream"
            writer.write(GET.replace(b"echo", what) + b"\r\n")
            if number % 4 == 1:
                await reader.readuntil(b"data: 0\n\n")
            elif number % 4 == 2:
                await asyncio.sleep(number % 50 / 1000)
            if number % 8 < 4:
                writer.transport.abort()
            else:
                writer.close()

    await asyncio.gather(*(hang_up(number) for number in range(1000)))
    await until(lambda: stand.component.running == 0 and stand.gateway._admission.in_flight == 0, 15)
    assert stand.component.begun >= 500
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "relay-watch"]
    transport = stand.way.transport
    await until(lambda: transport.in_use == 0)
    assert (await stand.client.get("/platform/health")).status_code == 200


async def test_a_stream_is_not_held_back(stand: Stand) -> None:
    """Each event is there before the next one is made."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
    writer.write(GET.replace(b"echo", b"stall") + b"\r\n")
    assert await asyncio.wait_for(reader.readuntil(b"data: 0\n\n"), 5)
    writer.close()
