"""Steady load on a server, from a process of its own: a mix of requests, each answer checked, each outcome kept.

Open loop: requests are sent when they are due, whether or not those before have been answered, as clients that do not
know each other do. Nothing is sent again: each request counts once, with what came of it:

``ok``       answered, and rightly
``refused``  503 with ``Retry-After``: the server said that it cannot now
``failed``   any other error, a connection that broke, no answer in time
``wrong``    answered 2xx with something else than was asked for
"""

import asyncio
import contextlib
import json
import random
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

_ROWS = b'{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n{"text": "c", "label": "x"}\n'
MIX = {"chat": 380, "stream": 330, "list": 249, "submit": 40, "upload": 1}
"""Kinds of requests and their shares. An upload is a process of its own, which reads the file: few of those."""
WORKFLOW = {"name": "load", "steps": {"first": {"kind": "noop", "with": {"value": 1}},
                                      "second": {"kind": "noop", "needs": ["first"], "with": {"value": 2}}}}  # fmt: skip
_POOL = 4
"""A client uses again what it used last: one of so many connections, so that those which hang are few."""
_LISTS = (
    "/platform/deployments",
    "/platform/workflows?limit=5",
    "/platform/jobs?limit=5",
    "/platform/components",
    "/v1/models",
)


@dataclass(frozen=True)
class Sent:
    """One request and what came of it."""

    kind: str
    began: float
    ended: float
    """``time.monotonic``, which all processes of a machine share."""
    outcome: str
    status: int
    key: str
    """Its ``X-Request-Id``; idempotency key of a workflow, name of a dataset."""
    id: str
    """What was accepted."""
    why: str

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Load:
    """The load, as the test sees it. Close it to get what was sent."""

    def __init__(
        self, url: str, folder: Path, *, rate: float, model: str = "chat", says: str = "chat", seed: int = 0,
        api_key: str = "", mix: dict[str, int] | None = None, timeout: float = 30,
    ) -> None:  # fmt: skip
        self._file = folder / f"load-{uuid.uuid4().hex[:8]}.jsonl"
        given = {
            "url": url,
            "rate": rate,
            "model": model,
            "says": says,
            "seed": seed,
            "key": api_key,
            "mix": mix or MIX,
            "timeout": timeout,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.load", str(self._file), json.dumps(given)], stdin=subprocess.PIPE, text=True
        )  # fmt: skip
        self._timeout = timeout
        self._sent: list[Sent] = []
        self._read = 0

    def sent(self) -> list[Sent]:
        """Return what has been answered so far."""
        if self._file.exists():
            with self._file.open("rb") as file:
                file.seek(self._read)
                whole = file.read().rpartition(b"\n")[0]  # the last line may be being written
            self._read += len(whole) + 1 if whole else 0
            self._sent += [Sent(**json.loads(line)) for line in whole.splitlines()]
        return list(self._sent)

    def stop(self) -> list[Sent]:
        """Send no more, wait for the answers, return everything."""
        self._process.communicate(timeout=self._timeout + 15)
        return self.sent()

    def kill(self) -> None:
        """End it however it stands."""
        self._process.kill()
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        self._process.wait()


def tally(sent: Iterable[Sent]) -> Counter[str]:
    """Count outcomes."""
    return Counter(one.outcome for one in sent)


def failures(sent: Iterable[Sent], limit: int = 5) -> str:
    """Show the first that did not go well."""
    bad = [one for one in sent if one.outcome != "ok"]
    return "; ".join(
        f"{one.kind} {one.outcome} after {one.seconds:.2f} s: {one.status} {one.why}" for one in bad[:limit]
    )


class Wrong(Exception):
    """An answer that says it went well, and is not what was asked for."""


class _Sender:
    def __init__(self, file: Path, given: dict[str, Any]) -> None:
        self.given = given
        self.log = file.open("a", buffering=1)
        self.draw = random.Random(given["seed"])
        self.idle: list[aiohttp.ClientSession] = []
        self.clients: list[aiohttp.ClientSession] = []
        self.headers = {"Authorization": f"Bearer {given['key']}"} if given["key"] else {}
        self.running: set[asyncio.Task[None]] = set()
        self.count = 0

    async def run(self, stopping: asyncio.Event) -> None:
        kinds, weights = list(self.given["mix"]), list(self.given["mix"].values())
        due = time.monotonic()
        while not stopping.is_set():
            due += 1 / self.given["rate"]
            if (ahead := due - time.monotonic()) > 0:
                await asyncio.sleep(ahead)
            kind = self.draw.choices(kinds, weights)[0]
            task = asyncio.create_task(self.one(kind))
            self.running.add(task)
            task.add_done_callback(self.running.discard)
        if self.running:
            await asyncio.wait(self.running)
        for client in self.clients:
            await client.close()

    async def one(self, kind: str) -> None:
        self.count += 1
        key = f"load-{uuid.UUID(int=self.draw.getrandbits(128)).hex[:16]}"
        number = self.draw.randint(2, 9)
        client = self.idle.pop(-self.draw.randint(1, min(_POOL, len(self.idle)))) if self.idle else self.new_client()
        began = time.monotonic()
        status, outcome, made, why = 0, "failed", "", ""
        try:
            async with self.request(client, kind, key, number) as answer:
                status = answer.status
                body = await answer.read()
                if status < 300:
                    made = self.check(kind, body, number, key)
                    outcome = "ok"
                else:
                    outcome = "refused" if status == 503 and "Retry-After" in answer.headers else "failed"
                    why = body[:300].decode(errors="replace")
        except Wrong as error:
            outcome, why = "wrong", str(error)
        except TimeoutError:
            why = f"no answer within {self.given['timeout']:.0f} s"
        except (aiohttp.ClientError, OSError) as error:
            why = f"{type(error).__name__}: {error}"
        sent = Sent(kind, began, time.monotonic(), outcome, status, key, made, why)
        self.log.write(json.dumps(vars(sent)) + "\n")
        self.idle.append(client)

    def new_client(self) -> aiohttp.ClientSession:
        """Make a client with one connection at a time."""
        connector = aiohttp.TCPConnector(limit=1, keepalive_timeout=30)
        limit = aiohttp.ClientTimeout(total=self.given["timeout"])
        self.clients.append(aiohttp.ClientSession(connector=connector, timeout=limit, headers=self.headers))
        return self.clients[-1]

    def request(self, client: aiohttp.ClientSession, kind: str, key: str, number: int) -> Any:
        url, told = self.given["url"], {"X-Request-Id": key}
        if kind in ("chat", "stream"):
            body = {"model": self.given["model"], "max_tokens": number, "stream": kind == "stream",
                    "messages": [{"role": "user", "content": key}]}  # fmt: skip
            return client.post(f"{url}/v1/chat/completions", json=body, headers=told)
        if kind == "submit":
            headers = {"Idempotency-Key": key, **told}
            return client.post(f"{url}/platform/workflows/run", json={"definition": WORKFLOW}, headers=headers)
        if kind == "upload":
            headers = {"Content-Type": "application/octet-stream", "Idempotency-Key": key, **told}
            return client.post(f"{url}/platform/datasets?name={key}&filename=rows.jsonl", data=_ROWS, headers=headers)
        return client.get(url + _LISTS[number % len(_LISTS)], headers=told)

    def check(self, kind: str, body: bytes, number: int, key: str) -> str:
        """Return the id of what was accepted.

        Raises:
            Wrong: the answer is not what was asked for.
        """
        try:
            if kind == "stream":
                said = streamed(body)
            else:
                answer = json.loads(body)
                said = answer["choices"][0]["message"]["content"] if kind == "chat" else ""
            if kind in ("chat", "stream"):
                expected = self.given["says"] + "".join(f" w{n}" for n in range(1, number))
                if said != expected:
                    raise Wrong(f"{said!r} instead of {expected!r}")
                return ""
            if kind == "list":
                if not isinstance(answer["data"], list):
                    raise Wrong("no list")
                if number % len(_LISTS) in (0, 4) and self.given["model"] not in json.dumps(answer["data"]):
                    raise Wrong(f"{_LISTS[number % len(_LISTS)]} lacks {self.given['model']}: {body[:200]!r}")
                return ""
            if kind == "upload" and answer["name"] != key:
                raise Wrong(f"a dataset {answer['name']!r} instead of {key!r}")
            return str(answer["workflow_id"] if kind == "submit" else answer["id"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise Wrong(f"{type(error).__name__}: {error} in {body[:200]!r}") from error


def streamed(body: bytes) -> str:
    """Return what a stream said.

    Raises:
        Wrong: it did not end as one does.
    """
    events = [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]
    if not events or events[-1] != "[DONE]":
        raise Broken(f"a stream that ends with {events[-1:]}")
    parts = [json.loads(event) for event in events[:-1]]
    if any("error" in part for part in parts):
        raise Broken(f"a stream that broke off: {events[-2]}")
    return "".join(part["choices"][0]["delta"].get("content") or "" for part in parts if part["choices"])


class Broken(aiohttp.ClientError):
    """A stream that was broken off, and says so by having no end: a failure, and not a wrong answer."""


async def _main(file: str, given: str) -> None:
    stopping = asyncio.Event()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    sending = asyncio.create_task(_Sender(Path(file), json.loads(given)).run(stopping))
    await reader.read()
    stopping.set()
    await sending


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
