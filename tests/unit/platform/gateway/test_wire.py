"""How the parts of one answer are put together before they are written."""

import asyncio
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from burnish.platform.gateway.wire import _HeadAndBody, _send


class Socket:
    def __init__(self) -> None:
        self.written: list[tuple[bytes, ...]] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written.append((data,))

    def writelines(self, parts: Iterable[bytes]) -> None:
        self.written.append(tuple(parts))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


@pytest.fixture
async def socket() -> Socket:
    return Socket()


def answer(socket: Socket) -> _HeadAndBody:
    return _HeadAndBody(cast(asyncio.Transport, socket), asyncio.get_running_loop())


async def test_a_short_answer_is_one_write(socket: Socket) -> None:
    out = answer(socket)
    out.write(b"head")
    assert not socket.written
    out.write(b"body")
    await asyncio.sleep(0)
    assert socket.written == [(b"head", b"body")]


async def test_a_head_waits_for_no_body_and_no_part_for_another(socket: Socket) -> None:
    out = answer(socket)
    out.write(b"head")
    await asyncio.sleep(0)
    assert socket.written == [(b"head",)]
    out.write(b"one")
    out.write(b"two")
    assert socket.written[1:] == [(b"one",), (b"two",)]


async def test_a_head_is_written_before_the_end_and_never_after_it(socket: Socket) -> None:
    out = answer(socket)
    out.write(b"head")
    out.close()
    assert (socket.written, socket.closed, out.is_closing()) == ([(b"head",)], True, True)
    late = answer(socket)
    late.write(b"late")
    await asyncio.sleep(0)
    assert socket.written == [(b"head",)]


class Flow:
    write_paused = False


def cycle(socket: Socket, **more: Any) -> Any:
    """What uvicorn keeps of one request, as far as an answer's head needs it."""
    known = {
        "response_started": False, "disconnected": False, "waiting_for_100_continue": False, "chunked_encoding": None,
        "expected_content_length": 0, "keep_alive": True, "flow": Flow(), "transport": socket,
        "scope": {"method": "GET", "type": "http"},
    }  # fmt: skip
    return SimpleNamespace(**{**known, **more})


async def head_of(status: int, headers: list[tuple[bytes, bytes]], **more: Any) -> tuple[bytes, Any]:
    socket = Socket()
    found = cycle(socket, **more)
    await _send(found, {"type": "http.response.start", "status": status, "headers": headers})
    return b"".join(part for parts in socket.written for part in parts), found


async def test_the_head_of_an_answer_says_how_its_body_ends() -> None:
    head, known = await head_of(200, [(b"Content-Length", b"3"), (b"x-a", b"a\tb")])
    assert head == b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nx-a: a\tb\r\n\r\n"
    assert (known.expected_content_length, known.chunked_encoding, known.keep_alive) == (3, False, True)
    head, known = await head_of(200, [(b"content-type", b"text/plain")])
    assert head.endswith(b"transfer-encoding: chunked\r\n\r\n")
    assert known.chunked_encoding is True
    for status, method in ((204, "GET"), (304, "GET"), (200, "HEAD")):
        head, known = await head_of(status, [], scope={"method": method, "type": "http"})
        assert (b"transfer-encoding" in head, known.chunked_encoding) == (False, None)
    head, known = await head_of(200, [(b"content-length", b"0"), (b"connection", b"Keep-Alive, Close")])
    assert (known.keep_alive, head.count(b"onnection: ")) == (False, 1)
    head, known = await head_of(200, [(b"content-length", b"0")], keep_alive=False)
    assert head.endswith(b"connection: close\r\n\r\n")


@pytest.mark.parametrize(
    "header",
    [
        (b"x-a", b"a\r\nset-cookie: b"), (b"x-a", b"a\nb"), (b"x-a", b"a\rb"), (b"x-a", b"a\0b"), (b"x-a", b"a\x7f"),
        (b"x a", b"b"), (b"x-a:", b"b"), (b"x-a\r\nb", b"c"),
    ],
)  # fmt: skip
async def test_no_header_ends_the_head_or_another(header: tuple[bytes, bytes]) -> None:
    socket = Socket()
    found = cycle(socket)
    with pytest.raises(RuntimeError, match="header"):
        await _send(found, {"type": "http.response.start", "status": 200, "headers": [header]})
    assert (socket.written, found.response_started) == ([], False), "the server can still say that something failed"


async def test_to_whoever_left_nothing_is_written() -> None:
    head, known = await head_of(200, [(b"content-length", b"0")], disconnected=True)
    assert (head, known.response_started) == (b"", False)
