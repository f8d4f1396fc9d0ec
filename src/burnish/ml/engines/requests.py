"""Reading a request body in OpenAI's form for the engine ``transformers``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from burnish.ml.engines.decoding import Sampling

_MAX_CHOICES = 16
_MAX_TOP = 20


class RequestRejected(Exception):  # not a BurnishError: it is told in OpenAI's envelope by the engine itself
    """A request that this engine does not answer."""

    def __init__(self, message: str, *, status: int = 400, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind


@dataclass(frozen=True)
class Asked:
    """A request, read."""

    sampling: Sampling
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool


def read_request(body: Mapping[str, Any], room: int, tokenizer: Any) -> Asked:
    """Return what a body asks for.

    Args:
        body: In OpenAI's form, and ``top_k``, ``min_p``, ``repeat_penalty``, ``ignore_eos``.
        room: Tokens that the context has left; more are never generated.
        tokenizer: Tells the size of the vocabulary.

    Raises:
        RequestRejected: a value out of its range, or something that this engine does not do.
    """
    if body.get("response_format") not in (None, {"type": "text"}):
        raise RequestRejected("the engine transformers has no response_format; use llama_cpp, or logit_bias")
    if body.get("tools"):
        raise RequestRejected("the engine transformers calls no tools")
    wanted = body.get("max_completion_tokens") or body.get("max_tokens")
    stops = body.get("stop") or ()
    sampling = Sampling(
        max_tokens=min(room, int(wanted)) if wanted is not None else room,
        temperature=_within(body, "temperature", 1.0, 0, 100),
        top_p=_within(body, "top_p", 1.0, 0, 1),
        top_k=int(_within(body, "top_k", 0, 0, 1 << 31)),
        min_p=_within(body, "min_p", 0.0, 0, 1),
        frequency_penalty=_within(body, "frequency_penalty", 0.0, -2, 2),
        presence_penalty=_within(body, "presence_penalty", 0.0, -2, 2),
        repeat_penalty=_within(body, "repeat_penalty", 1.0, 0.01, 100),
        seed=int(body["seed"]) if body.get("seed") is not None else None,
        choices=int(_within(body, "n", 1, 1, _MAX_CHOICES)),
        logit_bias=_biases(body.get("logit_bias") or {}, len(tokenizer)),
        top_logprobs=_top(body),
        ignore_eos=bool(body.get("ignore_eos", False)),
    )
    if sampling.max_tokens < 1:
        raise RequestRejected("max_tokens must be at least 1")
    return Asked(
        sampling, (stops,) if isinstance(stops, str) else tuple(str(stop) for stop in stops if stop),
        bool(body.get("stream", False)), bool((body.get("stream_options") or {}).get("include_usage", False)),
    )  # fmt: skip


def _within(body: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise RequestRejected(f"{name} must be a number from {low} to {high}, not {value!r}")
    return value


def _biases(biases: Mapping[str, Any], size: int) -> dict[int, float]:
    found = {}
    for key, value in biases.items():
        token = int(key) if str(key).isdecimal() else -1
        if not 0 <= token < size:
            raise RequestRejected(f"logit_bias: {key!r} is not a token id of this model")
        found[token] = float(value)
    return found


def _top(body: Mapping[str, Any]) -> int | None:
    """Return how many alternatives to tell: chat has ``logprobs`` and ``top_logprobs``, plain completions a number."""
    asked = body.get("logprobs")
    if asked is None or asked is False:
        return None
    count = int(body.get("top_logprobs") or 0) if asked is True else int(asked)
    if not 0 <= count <= _MAX_TOP:
        raise RequestRejected(f"top_logprobs must be from 0 to {_MAX_TOP}, not {count}")
    return count
