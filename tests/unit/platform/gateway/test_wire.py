"""How the parts of one answer are put together before they are written."""

import asyncio
from collections.abc import Iterable
from typing import cast

import pytest

from burnish.platform.gateway.wire import _HeadAndBody


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
