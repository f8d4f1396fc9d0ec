"""The OpenAPI document of ``/v1``. Its routes are raw ASGI, so it is written here rather than found by FastAPI."""

from typing import Any

from pydantic import BaseModel

from burnish.core.openai import ChatRequest, CompletionRequest, error_type

_CHAT_EXAMPLE = {
    "model": "sentiment",
    "messages": [
        {"role": "user", "content": "Classify the text. Answer with one of: negative, positive.\n\nA fine film."}
    ],
    "temperature": 0,
    "max_tokens": 8,
}
_USAGE = {
    "prompt_tokens": 31,
    "completion_tokens": 2,
    "total_tokens": 33,
    "prompt_tokens_details": {"cached_tokens": 0},
}
_CHAT_ANSWER = {
    "id": "chatcmpl-5f0c1e9b2a7d4c3f8e6b1a2d", "object": "chat.completion", "created": 1795563280, "model": "sentiment",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "positive", "refusal": None},
                 "finish_reason": "stop", "logprobs": None}],
    "usage": _USAGE,
}  # fmt: skip
_COMPLETION_ANSWER = {
    "id": "cmpl-5f0c1e9b2a7d4c3f8e6b1a2d", "object": "text_completion", "created": 1795563280, "model": "sentiment",
    "choices": [{"index": 0, "text": " Ada.", "finish_reason": "stop", "logprobs": None}], "usage": _USAGE,
}  # fmt: skip
_MODEL = {
    "id": "sentiment", "object": "model", "created": 1795563280, "owned_by": "burnish",
    "model_version": "sentiment@1", "revision": 1, "context_length": 1024,
}  # fmt: skip
_ERRORS = {
    400: (
        "A parameter is wrong or not supported (`code` says which way), the prompt is too long "
        "(`context_length_exceeded`), or `model` is an alias of several models (`model_ambiguous`)"
    ),
    401: "No valid credential came with the request",
    403: "The caller may not do this, or the page that asks belongs to another site",
    404: "No deployment goes by this name (`model_not_found`)",
    413: "The body is too large",
    421: "The request names a host that this server is not",
    429: "A limit is reached, or the deployment's queue is full; `Retry-After` says when to come back",
    500: "A fault of ours; the server's log has more under `x-request-id`",
    502: "The engine failed",
    503: "No replica is ready",
}
_ANY = (401, 403, 421, 429, 500, 503)
_HEADERS = {
    "x-burnish-revision": {"schema": {"type": "integer"}, "description": "The revision that answered"},
    "x-burnish-model-version": {"schema": {"type": "string"}, "description": "The registry version that answered"},
}


def document() -> dict[str, Any]:
    """Return the document: paths under ``/v1`` and the schemas that they use."""
    schemas: dict[str, Any] = {"OpenAIError": _error_schema()}
    for model in (ChatRequest, CompletionRequest):
        schemas.update(_schemas(model))
    return {"openapi": "3.1.0", "info": {"title": "Burnish /v1", "version": "1"}, "paths": _paths(),
            "components": {"schemas": schemas}}  # fmt: skip


def _paths() -> dict[str, Any]:
    return {
        "/v1/models": {"get": _operation(
            "List what is served", "Every deployment of the project that gets requests, in OpenAI's form.",
            "list_openai_models", {"object": "list", "data": [_MODEL]}, _ANY,
        )},
        "/v1/models/{model}": {"get": _operation(
            "Show what is served under a name", "By deployment, `name@version` or alias.", "get_openai_model", _MODEL, (*_ANY, 400, 404),
        ) | {"parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}, "example": "sentiment"}]}},
        "/v1/chat/completions": {"post": _generating(
            "Answer a conversation", "create_chat_completion", "ChatRequest", _CHAT_EXAMPLE, _CHAT_ANSWER
        )},
        "/v1/completions": {"post": _generating(
            "Continue a text", "create_completion", "CompletionRequest",
            {"model": "sentiment", "prompt": "My name is", "max_tokens": 8}, _COMPLETION_ANSWER,
        )},
    }  # fmt: skip


def _operation(summary: str, description: str, operation: str, example: Any, errors: tuple[int, ...]) -> dict[str, Any]:
    answer = {"application/json": {"schema": {"type": "object"}, "example": example}}
    responses: dict[str, Any] = {"200": {"description": "The answer", "content": answer}}
    responses |= {str(status): _error(status) for status in errors}
    return {"tags": ["openai"], "summary": summary, "description": description, "operationId": operation,
            "responses": responses, "x-permission": "deployment:read"}  # fmt: skip


def _generating(summary: str, operation: str, schema: str, example: Any, answer: Any) -> dict[str, Any]:
    made = _operation(
        summary,
        "As at OpenAI: the official client works unchanged. With `stream` the answer is a stream of server-sent events "
        "that ends with `[DONE]`. Hanging up stops the generation.",
        operation, answer, tuple(_ERRORS),
    )  # fmt: skip
    made["x-permission"] = "inference:run"
    made["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}, "example": example}},
    }
    made["responses"]["200"]["headers"] = _HEADERS
    made["responses"]["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return made


def _error(status: int) -> dict[str, Any]:
    example = {"error": {"message": _ERRORS[status], "type": error_type(status), "param": None, "code": None}}
    answer: dict[str, Any] = {
        "description": _ERRORS[status],
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/OpenAIError"}, "example": example}},
    }
    if status in (429, 503):
        answer["headers"] = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds"}}
    return answer


def _error_schema() -> dict[str, Any]:
    text = {"type": ["string", "null"]}
    properties = {"message": {"type": "string"}, "type": {"type": "string"}, "param": text, "code": text}
    inner = {"type": "object", "required": ["message", "type", "param", "code"], "properties": properties}
    return {"type": "object", "required": ["error"], "properties": {"error": inner}}


def _schemas(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    inner: dict[str, Any] = schema.pop("$defs", {})
    return {**inner, model.__name__: schema}
