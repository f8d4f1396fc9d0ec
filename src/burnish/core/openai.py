"""OpenAI's request bodies as Burnish accepts them, and its error envelope.

A parameter that no engine of ours can honour is refused with a message that names it; it is never dropped silently.
Parameters that only describe the caller (``user``, ``metadata``, ``store`` ...) are accepted and have no effect.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from burnish.core.errors import BurnishError

MAX_CHOICES = 16
_MAX_INT = 2**31 - 1
"""Engines count in 32 bits."""


class OpenAIModel(BaseModel):
    """Base of the bodies: frozen; a field that is not known is an error, as it is at OpenAI."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TextPart(OpenAIModel):
    """A part of a message's content; only text is understood."""

    type: Literal["text"]
    text: str


# What validators of messages ask for, in the words of a JSON Schema.
_REFUSALS_ARE_ANSWERS: JsonValue = {
    "if": {"properties": {"refusal": {"type": "string"}}, "required": ["refusal"]},
    "then": {"properties": {"role": {"const": "assistant"}}},
}
_NO_CONTENT_IS_A_REFUSAL: JsonValue = {
    "if": {"properties": {"content": {"type": "null"}}},
    "then": {"properties": {"refusal": {"type": "string"}}, "required": ["refusal"]},
}


class RequestMessage(OpenAIModel):
    """One message of a conversation.

    An answer's message is taken as clients give it back: with every field that it came with, null where it had none.
    """

    model_config = ConfigDict(json_schema_extra={"allOf": [_REFUSALS_ARE_ANSWERS, _NO_CONTENT_IS_A_REFUSAL]})

    role: Literal["system", "developer", "user", "assistant"]
    content: str | tuple[TextPart, ...] | None
    name: str | None = None
    refusal: str | None = Field(default=None, description="An assistant's words when it did not do what was asked")
    annotations: Annotated[tuple[JsonValue, ...], Field(max_length=0)] | None = None
    audio: None = Field(default=None, description="Only text is understood")
    tool_calls: None = Field(default=None, description="Calling tools is not supported")
    function_call: None = Field(default=None, description="Calling functions is not supported")

    @model_validator(mode="after")
    def _only_answers_refuse(self) -> "RequestMessage":
        if self.refusal is not None and self.role != "assistant":
            raise ValueError("`refusal` is only allowed in messages of the `assistant`")
        if self.content is None and self.refusal is None:
            raise ValueError("`content` is null, which it may only be beside a `refusal`")
        return self


class JsonSchemaFormat(OpenAIModel):
    """The schema that the answer must follow."""

    name: str = Field(default="answer", max_length=64)
    description: str | None = None
    schema_: dict[str, JsonValue] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class ResponseFormat(OpenAIModel):
    """Restricts the answer."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"type": {"const": "json_schema"}}},
            "then": {"required": ["json_schema"], "properties": {"json_schema": {"type": "object"}}},
        }
    )

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _schema_is_given(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("`json_schema` is required when `type` is `json_schema`")
        return self


class StreamOptions(OpenAIModel):
    """Options of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


# What validators below ask for, in the words of a JSON Schema.
_STREAM_OPTIONS_NEED_STREAM: JsonValue = {
    "if": {"properties": {"stream_options": {"type": "object"}}, "required": ["stream_options"]},
    "then": {"properties": {"stream": {"const": True}}, "required": ["stream"]},
}
_TOP_LOGPROBS_NEED_LOGPROBS: JsonValue = {
    "if": {"properties": {"top_logprobs": {"type": "integer"}}, "required": ["top_logprobs"]},
    "then": {"properties": {"logprobs": {"const": True}}, "required": ["logprobs"]},
}
Stop = str | Annotated[tuple[str, ...], Field(max_length=16)]


class SamplingParameters(OpenAIModel):
    """What chat and plain completions have in common."""

    model_config = ConfigDict(json_schema_extra={"allOf": [_STREAM_OPTIONS_NEED_STREAM]})

    model: str = Field(min_length=1, max_length=255, description="A deployment, an alias or `name@version`")
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=_MAX_INT, description="Ours: 0 is all tokens")
    min_p: float | None = Field(default=None, ge=0, le=1, description="Ours")
    repeat_penalty: float | None = Field(default=None, gt=0, le=4, description="Ours: 1 is none")
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    max_tokens: int | None = Field(default=None, ge=1, le=_MAX_INT)
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Stop | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        default=None, description="By token id", json_schema_extra={"propertyNames": {"pattern": "^[0-9]+$"}}
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, description="Accepted, no effect")

    @field_validator("logit_bias")
    @classmethod
    def _keys_are_token_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or {}:
            if not key.isdecimal():
                raise ValueError(f"{key!r} is not a token id")
        return value

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> "SamplingParameters":
        if self.stream_options is not None and not self.stream:
            raise ValueError("`stream_options` is only allowed when `stream` is true")
        return self


class TemplateOptions(OpenAIModel):
    """What a model's chat template is told (vLLM's and llama.cpp's extension)."""

    enable_thinking: bool = Field(
        default=False, description="Let a model that can think do so before it answers; tuned models are not taught to"
    )


class ChatRequest(SamplingParameters):
    """Body of ``POST /v1/chat/completions``."""

    model_config = ConfigDict(json_schema_extra={"allOf": [_STREAM_OPTIONS_NEED_STREAM, _TOP_LOGPROBS_NEED_LOGPROBS]})

    messages: tuple[RequestMessage, ...] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=_MAX_INT)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    chat_template_kwargs: TemplateOptions | None = Field(default=None, description="Ours: no thinking by default")
    modalities: tuple[Literal["text"], ...] | None = None
    metadata: dict[str, str] | None = Field(default=None, description="Accepted, no effect")
    store: Literal[False] | None = Field(default=None, description="Answers are not kept")
    service_tier: str | None = Field(default=None, description="Accepted, no effect")
    safety_identifier: str | None = Field(default=None, description="Accepted, no effect")
    prompt_cache_key: str | None = Field(default=None, description="Accepted, no effect")
    tools: Annotated[tuple[JsonValue, ...], Field(max_length=0)] | None = Field(
        default=None, description="Calling tools is not supported"
    )

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("`top_logprobs` is only allowed when `logprobs` is true")
        return self


class CompletionRequest(SamplingParameters):
    """Body of ``POST /v1/completions``."""

    prompt: str | Annotated[tuple[str, ...], Field(min_length=1, max_length=64)]
    logprobs: int | None = Field(default=None, ge=0, le=20)
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = Field(default=None, description="Not supported")
    suffix: Literal[""] | None = Field(default=None, description="Not supported")

    def prompts(self) -> tuple[str, ...]:
        """Return the prompts as a tuple."""
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt


class RequestRefused(BurnishError):
    """A body that is not accepted, with the parameter and code that OpenAI's envelope names."""

    code = "request_refused"
    status = 400
    openai_code: str | None = None

    def __init__(self, message: str, *, openai_code: str | None = None, **context: Any) -> None:
        super().__init__(message, **context)
        if openai_code is not None:
            self.openai_code = openai_code

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.openai_code, self.where, self.hint))


def _rebuild(
    cls: type[RequestRefused], message: str, openai_code: str | None, where: str | None, hint: str | None
) -> RequestRefused:
    return cls(message, openai_code=openai_code, where=where, hint=hint)


_UNSUPPORTED = frozenset({"tools", "echo", "suffix", "store", "best_of"})
_UNSUPPORTED_IN_MESSAGES = frozenset({"tool_calls", "function_call", "audio", "annotations"})


def refused(error: ValidationError) -> RequestRefused:
    """Turn pydantic's first problem into the error that OpenAI would answer."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = _place(problem["loc"])
    name = param or "body"
    if problem["type"] == "extra_forbidden":
        return RequestRefused(
            f"Unrecognized request argument supplied: {name}", where=param, openai_code="unknown_parameter"
        )
    if problem["type"] == "missing":
        return RequestRefused(
            f"Missing required parameter: '{name}'.", where=param, openai_code="missing_required_parameter"
        )
    if name in _UNSUPPORTED or (name.startswith("messages[") and name.rpartition(".")[2] in _UNSUPPORTED_IN_MESSAGES):
        return RequestRefused(
            f"Unsupported parameter: '{name}' cannot be used with this server.",
            where=param,
            openai_code="unsupported_parameter",
        )
    message = problem["msg"].removeprefix("Value error, ")
    return RequestRefused(f"Invalid value for '{name}': {message}", where=param, openai_code="invalid_value")


def _place(location: Sequence[int | str]) -> str | None:
    """Return pydantic's location as a reader writes it; names of union branches are left out."""
    place = ""
    for part in location:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part.isidentifier() and part not in {"str", "float", "tuple"}:
            place += f".{part}" if place else part
    return place or None


_TYPES: Mapping[int, str] = {
    401: "authentication_error", 403: "permission_error", 404: "invalid_request_error", 429: "rate_limit_error",
}  # fmt: skip


def error_type(status: int) -> str:
    """Return the ``type`` that OpenAI's envelope carries for a status."""
    return _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")


def envelope(error: BurnishError) -> dict[str, JsonValue]:
    """Return the body ``{"error": {...}}`` for an error. The hint is part of the message: clients show only that."""
    message = f"{error.message}. {error.hint}" if error.hint else error.message
    code: str | None = error.code
    if isinstance(error, RequestRefused):
        code = error.openai_code
    return {"error": {"message": message, "type": error_type(error.status), "param": error.where, "code": code}}
