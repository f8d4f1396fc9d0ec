"""The request that an engine gets for a request in OpenAI's form: one place for the gateway and for evaluation.

What is scored must be what is served. Engines have sampling defaults of their own (llama.cpp: temperature 0.8,
top_k 40, top_p 0.95, min_p 0.05), so both sides send every default explicitly, as OpenAI documents them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from burnish.core.specs.serving import EngineName

SAMPLING_DEFAULTS: Mapping[str, float | int] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "n": 1,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    # Not OpenAI's, but engines apply them unless told otherwise.
    "top_k": 0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_penalty": 1.0,
}
"""Sent whenever the request does not say otherwise."""

TEMPLATE_DEFAULTS: Mapping[str, bool] = {"enable_thinking": False}
"""What chat templates are told unless the request says otherwise: training teaches answers, not the thinking before them.

Templates of models that think write an empty thinking part into the prompt then; other templates do not look at it.
"""

_COMMON = frozenset({
    "model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "stop", "seed", "stream",
    "stream_options", "logprobs", "top_logprobs", "logit_bias", "top_k", "min_p",
    "frequency_penalty", "presence_penalty", "repeat_penalty",
})  # fmt: skip

SUPPORTED: Mapping[EngineName, frozenset[str]] = {
    "llama_cpp": _COMMON | {"messages", "prompt", "response_format", "chat_template_kwargs"},
    "transformers": _COMMON | {"messages", "prompt", "chat_template_kwargs"},
    "vllm": _COMMON | {"messages", "prompt", "response_format", "chat_template_kwargs"},
}
"""What each engine honours. Anything else that changes the answer is to be refused, never dropped."""

NO_EFFECT = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "modalities", "tools",
    "best_of", "echo", "suffix",
})  # fmt: skip
"""Accepted by the API (at the values that it allows) and not passed on: they describe the caller or ask for nothing."""


def upstream_body(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body that an engine is sent for an accepted request body in OpenAI's form.

    Keys that are null or have no effect are left out; ``max_completion_tokens`` becomes ``max_tokens``; role
    ``developer`` becomes ``system``; message parts, and a refusal, become one string; every sampling default, and
    what chat templates are told, is filled in.
    ``stream``, ``stream_options`` and everything else pass unchanged, so the caller may set them before or after.
    """
    body: dict[str, Any] = dict(SAMPLING_DEFAULTS)
    for key, value in request.items():
        if value is None or key in NO_EFFECT:
            continue
        body["max_tokens" if key == "max_completion_tokens" else key] = value
    if "messages" in body:
        body["messages"] = [_message(message) for message in body["messages"]]
        body["chat_template_kwargs"] = {**TEMPLATE_DEFAULTS, **body.get("chat_template_kwargs", {})}
    return body


def _message(message: Mapping[str, Any]) -> dict[str, str]:
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        parts: Sequence[Mapping[str, Any]] = content
        content = "".join(str(part["text"]) for part in parts)
    role = "system" if message["role"] == "developer" else str(message["role"])
    # An answer that came back to us may have refused, instead of or after its content: the model said both.
    said = [str(words) for words in (content, message.get("refusal")) if words]
    return {"role": role, "content": "\n".join(said)}


def unsupported(request: Mapping[str, Any], engine: EngineName) -> tuple[str, ...]:
    """Return the keys of a request that this engine cannot honour, sorted; null values ask for nothing."""
    known = SUPPORTED[engine] | NO_EFFECT
    return tuple(sorted(key for key, value in request.items() if value is not None and key not in known))
