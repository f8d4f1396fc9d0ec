import json

import pytest

from burnish.core.errors import (
    Busy,
    FieldProblem,
    InvalidRequest,
    NotFound,
    Unauthenticated,
    UpstreamFailed,
    all_errors,
)
from burnish.infra.problems import error_from_problem, problem_body, problems


def test_a_problem_says_what_where_and_what_next() -> None:
    error = InvalidRequest(
        "2 fields",
        hint="see problems",
        where="body",
        problems=[FieldProblem(where="body.rank", message="must be positive")],
    )
    status, headers, body = problem_body(error, "abc")
    assert status == body["status"] == 422
    assert headers["content-type"] == "application/problem+json"
    assert (body["type"], body["code"], body["detail"]) == (
        "urn:burnish:error:invalid_request",
        "invalid_request",
        "2 fields",
    )
    assert (body["hint"], body["where"], body["trace_id"]) == ("see problems", "body", "abc")
    assert body["problems"] == [{"where": "body.rank", "message": "must be positive", "hint": None}]
    json.dumps(body)


@pytest.mark.parametrize(("wait", "sent"), [(None, "1"), (0.2, "1"), (2.1, "3"), (60, "60")])
def test_busy_says_when_to_come_back(wait: float | None, sent: str) -> None:
    assert problem_body(Busy("full", retry_after=wait))[1]["retry-after"] == sent
    assert "retry-after" not in problem_body(NotFound("x"))[1]
    assert problem_body(Unauthenticated("x"))[1]["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "cls", [one for one in all_errors() if one.__module__ == "burnish.core.errors"], ids=lambda cls: cls.__name__
)
def test_every_error_survives_the_wire(cls: type[InvalidRequest]) -> None:
    sent = cls("what", hint="next", where="there", problems=[FieldProblem(where="a", message="b")])
    status, _, body = problem_body(sent)
    back = error_from_problem(json.loads(json.dumps(body)), status)
    assert back.code == sent.code
    assert back.body() == sent.body()


def test_a_document_that_explains_nothing_keeps_its_status() -> None:
    assert isinstance(error_from_problem({}, 502), UpstreamFailed)
    assert error_from_problem({"detail": "x", "code": "of the future"}, 404).code == "not_found"
    assert error_from_problem({"code": 7, "detail": ["x"]}, 599).status == 500


def test_openapi_responses_name_their_codes() -> None:
    responses = problems(404, 422, 429)
    assert list(responses) == [404, 422, 429]
    assert "`invalid_request`" in responses[422]["description"]
    assert "`idempotency_mismatch`" in responses[422]["description"]
    assert responses[429]["headers"]["Retry-After"]
    example = responses[404]["content"]["application/problem+json"]["example"]
    schema = responses[404]["content"]["application/problem+json"]["schema"]
    assert set(schema["required"]) <= set(example)
    assert set(example) == set(schema["properties"])
