"""What both clients share about HTTP: headers, which requests may be repeated, and how an answer is read.

The key is the argument's, else that of ``BURNISH_API_KEY``, else the one that ``burnish login`` keeps for this very
server, or for another process of the same home; it is sent nowhere else.
"""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx

from burnish.client import credentials
from burnish.client.address import find_url
from burnish.client.calls import Call
from burnish.client.errors import NotReachable, error_from_response
from burnish.client.views import Chunk
from burnish.core.errors import BurnishError, Forbidden, Unauthenticated, UpstreamFailed
from burnish.core.version import __version__

Answer = TypeVar("Answer")

TRIES = 3
"""How often a request that may be repeated is sent before its failure is the caller's."""
PROJECT_HEADER = "Burnish-Project"
BLOCK = 1 << 20
"""Bytes of an upload that are in memory at once."""


class Address:
    """The server's URL and the headers for it. Without a fixed URL the run file is read again after a failure."""

    def __init__(self, url: str | None, api_key: str | None, home: Path | None, project: str | None = None) -> None:
        self._fixed, self._home = url, home
        self._given = os.environ.get("BURNISH_API_KEY") or None if api_key is None else api_key
        self._project = project or os.environ.get("BURNISH_PROJECT")
        self.url = find_url(url, home)
        self._stored = self._find()

    def refresh(self) -> str:
        """Look again where the server is, after it did not answer: restarted, or another one of the same home."""
        before, self.url = self.url, find_url(self._fixed, self._home, passing=self.url)
        if self.url != before:
            self._stored = self._find()
        return self.url

    def _find(self) -> credentials.Credential | None:
        return credentials.find(self.url, self._home) if self._given is None else None

    @property
    def api_key(self) -> str | None:
        """The key that is sent."""
        return self._stored.key if self._given is None and self._stored else self._given

    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        headers = {"user-agent": f"burnish-python/{__version__}"}
        if key := self.api_key:
            headers["authorization"] = f"Bearer {key}"
        if self._project:
            headers[PROJECT_HEADER] = self._project
        return headers

    def mended(self, error: BurnishError) -> BurnishError:
        """Return the error with what the caller can do about it here."""
        if isinstance(error, Unauthenticated):
            error.hint = self._how_to_log_in()
        elif isinstance(error, Forbidden) and error.hint is None:
            error.hint = "see what you may do with `burnish whoami`; an administrator gives roles: `burnish role grant`"
        return error

    def _how_to_log_in(self) -> str:
        if self._given:
            return f"the key in use (api_key, or BURNISH_API_KEY) is not one of {self.url}: use another, or unset it and run `burnish login`"
        if self._stored:
            return f"the key kept for {self.url} has ended or was revoked: run `burnish login` again"
        return f"run `burnish login` for {self.url}, or set BURNISH_API_KEY"

    def unreachable(self, error: Exception) -> NotReachable:
        """Return the error for a server that cannot be reached."""
        reason = str(error) or type(error).__name__
        return NotReachable(
            f"no Burnish server answers at {self.url} ({reason})",
            where=self.url,
            hint="start one with `burnish serve`, or say where it is with --url or BURNISH_URL",
        )


def repeatable(call: Call[Any]) -> bool:
    """Tell whether sending it twice does no more than sending it once."""
    return call.upload is None and (call.method in {"GET", "PUT", "DELETE"} or "idempotency-key" in call.headers)


def new_key() -> str:
    """Return a fresh idempotency key."""
    return uuid.uuid4().hex


def answer_of(call: Call[Answer], response: httpx.Response, address: Address) -> Answer:
    """Read a complete response.

    Raises:
        BurnishError: the server refused, or its answer is not what this client understands.
    """
    if response.status_code >= 400:
        raise refusal(response, call.where, address)
    try:
        return call.read(response.json() if response.content else None)
    except ValueError as error:  # not JSON, or a field is missing (pydantic's error is a ValueError)
        raise UpstreamFailed(
            f"the answer to {call.where} cannot be read: {error}", hint="client and server may be of different versions"
        ) from error


def refusal(response: httpx.Response, where: str, address: Address) -> BurnishError:
    """Return the typed error of a response that has been read whole."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    return address.mended(error_from_response(response.status_code, headers, response.content, where))


def chat_body(model: str, messages: Any, stream: bool, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a chat request; a bare string is the user's one message."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return {"model": model, "messages": list(messages), "stream": stream, **options}


def chat_chunk(body: Any) -> Chunk:
    """Read one streamed chunk, or a whole answer.

    Raises:
        BurnishError: the stream carries an error in place of a chunk.
    """
    if "error" in body:
        raise UpstreamFailed(str(body["error"].get("message", body["error"])), where="POST /v1/chat/completions")
    choice = (body.get("choices") or [{}])[0]
    message = choice.get("delta") or choice.get("message") or {}
    return Chunk(text=message.get("content") or "", finish_reason=choice.get("finish_reason"))


def give_up_if(error: Exception, late: bool, address: Address) -> None:
    """Raise what a follower cannot wait out: a refusal that will stay one, or a server that stays away."""
    if isinstance(error, BurnishError) and not error.retryable:
        raise error
    if late:
        raise error if isinstance(error, BurnishError) else address.unreachable(error) from error
