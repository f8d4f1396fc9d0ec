"""What a component refuses before it reads a request of the protocol: bodies too large, and what nobody waits for."""

import time
from collections.abc import Mapping

from starlette.exceptions import HTTPException

from burnish.core.errors import BurnishError, DeadlineExceeded, TooLarge
from burnish.core.protocol import DEADLINE_HEADER
from burnish.infra.asgi import Message, Receive

MAX_BODY_BYTES = 16 << 20
"""Of a job or its validation; data travels as artifacts."""


def is_protocol(path: str) -> bool:
    """Tell whether a path is one of the protocol's about jobs."""
    return path == "/jobs" or path.startswith("/jobs/")


def check_request(headers: Mapping[bytes, bytes]) -> None:
    """Refuse a request by its headers alone.

    Raises:
        TooLarge: it announces a body that is too large.
        DeadlineExceeded: its deadline has passed. One that cannot be read is none.
    """
    length = headers.get(b"content-length", b"").decode("latin-1")
    if length.isdecimal() and int(length) > MAX_BODY_BYTES:
        raise _too_large()
    try:
        deadline = float(headers.get(DEADLINE_HEADER.encode(), b"inf"))
    except ValueError:
        return
    if deadline <= time.time():
        raise DeadlineExceeded("the request's deadline passed before it arrived", where=DEADLINE_HEADER)


def limited(receive: Receive) -> Receive:
    """Return ``receive`` that ends with status 413 when the body grows too large."""
    left = MAX_BODY_BYTES

    async def next_message() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise HTTPException(413, _too_large().message)
        return message

    return next_message


def _too_large() -> BurnishError:
    return TooLarge(
        f"a body of the component protocol has at most {MAX_BODY_BYTES >> 20} MiB",
        where="body", hint="publish data as an artifact and send its reference",
    )  # fmt: skip
