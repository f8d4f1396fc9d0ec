"""What an engine is asked for: OpenAI's parameters with every sampling default written out.

Engines bring defaults of their own (llama.cpp: temperature 0.8, top-k 40, top-p 0.95, min-p 0.05); a request that leaves
them open would mean something else on each. What evaluation asks and what users ask goes through here, so it is the same.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from burnish.core.openai import ChatRequest, CompletionRequest

SAMPLING_DEFAULTS: Mapping[str, float | int] = MappingProxyType(
    {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
    }
)
"""OpenAI's own defaults; what it does not have is off."""

_NO_EFFECT = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "modalities", "tools",
     "best_of", "echo", "suffix", "max_completion_tokens", "messages", "response_format", "stream_options"}
)  # fmt: skip


def upstream_body(request: ChatRequest | CompletionRequest) -> dict[str, Any]:
    """Return the body to send to an engine.

    Temperature 0 is greedy: the engine takes the most likely token, whatever else is set.
    """
    given = request.model_dump(mode="json", exclude_none=True, by_alias=True, exclude=set(_NO_EFFECT))
    body: dict[str, Any] = {**SAMPLING_DEFAULTS, **given}
    if isinstance(request, ChatRequest):
        body["messages"] = request.upstream_messages()
        if request.max_completion_tokens is not None:
            body["max_tokens"] = request.max_completion_tokens
        if request.response_format is not None and request.response_format.type != "text":
            body["response_format"] = request.response_format.model_dump(mode="json", exclude_none=True, by_alias=True)
    return body
