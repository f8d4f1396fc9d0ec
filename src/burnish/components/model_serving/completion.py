"""Reads what engines stream and makes of it what OpenAI answers.

Engines differ in small things (usage on the last choice, logprobs of plain completions in chat form, timings): here they
end. Pure: events in, events or one answer out.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from burnish.core.errors import BurnishError, UpstreamFailed
from burnish.core.openai import RequestRefused

DONE = b"data: [DONE]\n\n"
_MAX_EVENT_BYTES = 8 << 20

Chunk = dict[str, Any]


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[Chunk]:
    """Yield the JSON events of a server-sent stream until ``[DONE]``.

    Raises:
        UpstreamFailed: the stream ends early, carries an error, or is no such stream.
    """
    buffer = b""
    async for chunk in chunks:
        buffer += chunk
        if len(buffer) > _MAX_EVENT_BYTES:
            raise UpstreamFailed("the engine sent an event that is too long")
        *whole, buffer = buffer.split(b"\n\n")
        for block in whole:
            data = _data(block)
            if data == b"[DONE]":
                return
            if data is None or data == b"null":
                continue
            event = _parsed(data)
            if "error" in event:
                raise upstream_error(500, data)
            yield event
    raise UpstreamFailed("the engine's answer ended early")


def _data(block: bytes) -> bytes | None:
    if block.startswith(b"data: ") and b"\n" not in block:
        return block[6:]
    for line in block.splitlines():
        if line.startswith(b"data:"):
            return line[5:].strip()
        if line.startswith(b"error:"):
            raise upstream_error(500, line[6:].strip())
    return None


def _parsed(data: bytes) -> Chunk:
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise UpstreamFailed(f"the engine sent something that is not JSON: {data[:200]!r}") from error
    if not isinstance(event, dict):
        raise UpstreamFailed(f"the engine sent something that is no event: {data[:200]!r}")
    return event


def upstream_error(status: int, body: bytes) -> BurnishError:
    """Return the error that an engine's answer means to a client."""
    try:
        error = orjson.loads(body)
        error = error.get("error", error)
        message, kind = str(error.get("message", "")), str(error.get("type", ""))
    except (orjson.JSONDecodeError, AttributeError):
        message, kind = body[:300].decode(errors="replace"), ""
    if kind == "exceed_context_size_error" or "context_length_exceeded" in (kind, str(_field(body, "code"))):
        return RequestRefused(
            f"This model's maximum context length is exceeded: {message}",
            where="messages",
            openai_code="context_length_exceeded",
            hint="send a shorter prompt, or deploy with a larger `context_length`",
        )
    if 400 <= status < 500:
        return RequestRefused(message or f"the engine refused the request ({status})", openai_code="invalid_value")
    return UpstreamFailed(f"the engine failed: {message or status}", hint="see the replica's log")


def _field(body: bytes, name: str) -> object:
    try:
        return orjson.loads(body)["error"][name]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None


@dataclass
class Usage:
    """Tokens of one answer; engines report them once, or once for each choice."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0

    def add(self, usage: Chunk) -> None:
        """Count one report of a prompt's."""
        self.prompt = max(self.prompt, int(usage.get("prompt_tokens") or 0))
        self.completion += int(usage.get("completion_tokens") or 0)
        self.cached = max(self.cached, int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0))

    def merge(self, other: "Usage") -> None:
        """Add another prompt's tokens."""
        self.prompt += other.prompt
        self.completion += other.completion
        self.cached += other.cached

    def body(self) -> Chunk:
        """Return OpenAI's form."""
        return {
            "prompt_tokens": self.prompt, "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion, "prompt_tokens_details": {"cached_tokens": self.cached},
        }  # fmt: skip


@dataclass
class _Choice:
    text: list[str] = field(default_factory=list)
    logprobs: list[Chunk] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass
class Answer:
    """Collects a stream into the answer to a request that did not ask for one."""

    id: str
    model: str
    chat: bool
    created: int
    logprobs: int | None
    """Alternatives to show for each token; None: no log-probabilities at all."""
    usage: Usage = field(default_factory=Usage)
    choices: dict[int, _Choice] = field(default_factory=dict)

    def add(self, event: Chunk, first_choice: int, usage: Usage) -> None:
        """Take one event; its choices are numbered from ``first_choice``."""
        if event.get("usage"):
            usage.add(event["usage"])
        for part in event.get("choices", ()):
            choice = self.choices.setdefault(first_choice + part.get("index", 0), _Choice())
            text = part.get("delta", {}).get("content") if self.chat else part.get("text")
            if text:
                choice.text.append(text)
            if part.get("logprobs"):
                choice.logprobs += part["logprobs"].get("content") or ()
            choice.finish_reason = part.get("finish_reason") or choice.finish_reason

    def body(self) -> Chunk:
        """Return the answer."""
        return {
            "id": self.id, "object": "chat.completion" if self.chat else "text_completion", "created": self.created,
            "model": self.model, "choices": [self._choice(i, choice) for i, choice in sorted(self.choices.items())],
            "usage": self.usage.body(),
        }  # fmt: skip

    def _choice(self, index: int, choice: _Choice) -> Chunk:
        text = "".join(choice.text)
        done: Chunk = {"index": index, "finish_reason": choice.finish_reason or "stop", "logprobs": None}
        if self.chat:
            done["message"] = {"role": "assistant", "content": text, "refusal": None}
            if self.logprobs is not None:
                done["logprobs"] = {
                    "content": [chat_logprob(token, self.logprobs) for token in choice.logprobs],
                    "refusal": None,
                }
        else:
            done["text"] = text
            if self.logprobs is not None:
                done["logprobs"] = completion_logprobs(choice.logprobs, self.logprobs, 0)[0]
        return done


@dataclass
class CompletionStream:
    """Rewrites the events of plain completions, and of answers with several choices, into OpenAI's."""

    id: str
    model: str
    chat: bool
    created: int
    logprobs: int | None
    """Alternatives to show for each token; None: no log-probabilities at all."""
    include_usage: bool
    offsets: dict[int, int] = field(default_factory=dict)

    def rewrite(self, event: Chunk, first_choice: int, usage: Usage) -> list[bytes]:
        """Return the events to send for one that came; usage is kept back for the end."""
        if event.get("usage"):
            usage.add(event["usage"])
        choices = []
        for part in event.get("choices", ()):
            index = first_choice + part.get("index", 0)
            choices.append({**part, "index": index, "logprobs": self._logprobs(index, part.get("logprobs"))})
        return [self._event(choices)] if choices else []

    def end(self, usage: Usage) -> list[bytes]:
        """Return what closes the stream."""
        return [*([self._event([], usage.body())] if self.include_usage else []), DONE]

    def _logprobs(self, index: int, given: Chunk | None) -> Chunk | None:
        if self.logprobs is None or not given:
            return None
        tokens = given.get("content") or []
        if self.chat:
            return {"content": [chat_logprob(token, self.logprobs) for token in tokens], "refusal": None}
        body, self.offsets[index] = completion_logprobs(tokens, self.logprobs, self.offsets.get(index, 0))
        return body

    def _event(self, choices: list[Chunk], usage: Chunk | None = None) -> bytes:
        event: Chunk = {
            "id": self.id, "object": "chat.completion.chunk" if self.chat else "text_completion",
            "created": self.created, "model": self.model, "choices": choices,
        }  # fmt: skip
        if self.include_usage:
            event["usage"] = usage
        return b"data: " + orjson.dumps(event) + b"\n\n"


def chat_logprob(token: Chunk, top: int) -> Chunk:
    """Return a token's log-probability in the form of chat completions."""
    names = ("token", "bytes", "logprob")
    return {
        **{name: token.get(name) for name in names},
        "top_logprobs": [{name: other.get(name) for name in names} for other in token.get("top_logprobs", ())[:top]],
    }


def completion_logprobs(tokens: list[Chunk], top: int, offset: int) -> tuple[Chunk, int]:
    """Return log-probabilities in the older form of plain completions, and where the next token starts."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token["token"])
    body = {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [
            {other["token"]: other["logprob"] for other in token.get("top_logprobs", ())[:top]} for token in tokens
        ],
        "text_offset": offsets,
    }
    return body, offset
