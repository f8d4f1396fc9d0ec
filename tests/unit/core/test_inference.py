"""The body that an engine gets."""

from burnish.core.inference import NO_EFFECT, SAMPLING_DEFAULTS, SUPPORTED, unsupported, upstream_body
from burnish.core.openai import ChatRequest, CompletionRequest


def test_every_sampling_default_is_sent() -> None:
    body = upstream_body({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
    assert {key: body[key] for key in SAMPLING_DEFAULTS} == dict(SAMPLING_DEFAULTS)
    assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (1.0, 1.0, 0, 0.0)


def test_what_the_request_says_wins_and_null_says_nothing() -> None:
    body = upstream_body({"temperature": 0, "top_p": None, "max_completion_tokens": 7, "prompt": "x", "user": "u"})
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0, 1.0, 7)
    assert "user" not in body
    assert "max_completion_tokens" not in body


def test_messages_become_plain() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = upstream_body(
        {"messages": [{"role": "developer", "content": "be brief", "name": "x"}, {"role": "user", "content": parts}]}
    )
    assert body["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "ab"}]


def test_chat_templates_are_told_not_to_think_unless_the_client_says_so() -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert upstream_body({"messages": messages})["chat_template_kwargs"] == {"enable_thinking": False}
    asked = ChatRequest.model_validate(
        {"model": "m", "messages": messages, "chat_template_kwargs": {"enable_thinking": True}}
    )
    body = upstream_body(asked.model_dump(mode="json", exclude_none=True))
    assert body["chat_template_kwargs"] == {"enable_thinking": True}
    assert "chat_template_kwargs" not in upstream_body({"prompt": "x"})


def test_the_request_itself_is_not_changed() -> None:
    request = {"messages": [{"role": "developer", "content": "x"}]}
    upstream_body(request)
    assert request == {"messages": [{"role": "developer", "content": "x"}]}


def test_what_an_engine_cannot_do_is_named() -> None:
    request: dict[str, object] = {
        "messages": [],
        "response_format": {"type": "json_object"},
        "seed": None,
        "user": "me",
    }
    assert unsupported(request, "llama_cpp") == ()
    assert unsupported(request, "transformers") == ("response_format",)
    assert unsupported({"grammar": "root ::= x"}, "llama_cpp") == ("grammar",)


def test_every_field_that_the_api_accepts_is_honoured_or_has_no_effect() -> None:
    fields = set(ChatRequest.model_fields) | set(CompletionRequest.model_fields)
    assert fields <= SUPPORTED["llama_cpp"] | NO_EFFECT
