"""Asks a replica itself: does it generate, as the model that it was started with, and is it busy?"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson

from burnish.core.errors import BadModel, BurnishError, ErrorBody, Unavailable
from burnish.infra.http import Request, Response
from burnish.infra.http_client import HttpTransport

_GENERATION_SECONDS = 120.0
_PROBE = {"prompt": "Hello, my name is", "max_tokens": 4, "temperature": 0, "seed": 1, "stream": False}


async def answers(socket: Path) -> bool:
    """Tell whether the replica says that it can generate. False while it loads."""
    try:
        async with _asked(socket, Request("GET", "/health", deadline=time.time() + 5)) as response:
            await response.read()
            return response.status == 200
    except BurnishError:
        return False


async def generate(socket: Path, served_name: str) -> ErrorBody | None:
    """Let the replica generate for real; return what is wrong with the answer, None if it is right."""
    body = orjson.dumps({**_PROBE, "model": served_name})
    request = Request(
        "POST",
        "/v1/completions",
        {"content-type": "application/json"},
        body,
        deadline=time.time() + _GENERATION_SECONDS,
    )
    try:
        async with _asked(socket, request) as response:
            answer = await response.read()
            status = response.status
    except Unavailable as error:
        return error.body()
    except BurnishError as error:
        return BadModel(f"the replica did not generate: {error.message}", hint="look at its log").body()
    problem = _problem(status, answer, served_name)
    if problem is None:
        return None
    return BadModel(f"the replica does not generate as it should: {problem}", hint="check the model's files").body()


def _problem(status: int, answer: bytes, served_name: str) -> str | None:
    shown = answer[:300].decode(errors="replace")
    if status != 200:
        return f"it answered {status}: {shown}"
    try:
        data = orjson.loads(answer)
        choice, model = data["choices"][0], data["model"]
        generated = data.get("usage", {}).get("completion_tokens")
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError):
        return f"its answer is not a completion: {shown}"
    if model != served_name:
        return f"it serves {model!r}, not {served_name!r}"
    if not isinstance(choice.get("text"), str) or choice.get("finish_reason") not in {"stop", "length"}:
        return f"its answer is not a finished completion: {shown}"
    if generated is not None and generated < 1:
        return "it generated no token"
    return None


async def busy(socket: Path) -> bool:
    """Tell whether the replica generates for anybody, other servers included; False if it does not say."""
    try:
        async with _asked(socket, Request("GET", "/slots", deadline=time.time() + 2)) as response:
            answer = await response.read()
            if response.status != 200:
                return False
        return any(slot.get("is_processing") for slot in orjson.loads(answer))
    except (BurnishError, orjson.JSONDecodeError, TypeError, AttributeError):
        return False


@asynccontextmanager
async def _asked(socket: Path, request: Request) -> AsyncIterator[Response]:
    transport = HttpTransport(unix_socket=socket)
    try:
        async with transport.send(request) as response:
            yield response
    finally:
        await transport.close()
