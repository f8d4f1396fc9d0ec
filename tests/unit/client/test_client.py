import inspect
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

import burnish
from burnish.client import AsyncClient, Client, NotReachable, lifecycle
from burnish.client.address import find_url
from burnish.client.errors import UnknownError
from burnish.core.errors import Busy, InvalidRequest, NotFound, UpstreamFailed
from burnish.core.states import ExecutionState
from tests.support.scripted_server import Answer, Asked, serving

WORKFLOW = "wf_1"


def event_lines(identifier: str, type_: str, subject: str = WORKFLOW, **data: Any) -> list[str]:
    event = {"id": identifier, "subject": subject, "type": type_, "at": "2026-01-01T00:00:00Z", "data": data}
    return [f"id: {identifier}", f"event: {type_}", f"data: {json.dumps(event)}", ""]


def execution(status: str, **more: Any) -> dict[str, Any]:
    return {"workflow_id": WORKFLOW, "workflow_type": "t", "status": status, "parameters": {}, "steps": [], **more}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_submit_sends_the_definition_the_parameters_and_a_key() -> None:
    with (
        serving(lambda _: Answer(body={"workflow_id": WORKFLOW, "status": "pending"})) as server,
        Client(server.url, api_key="secret") as client,
    ):
        accepted = client.workflows.submit("train", {"rank": 8})
    assert accepted.status == ExecutionState.PENDING
    asked = server.asked[0]
    assert (asked.method, asked.path) == ("POST", "/platform/workflows/run")
    assert asked.json() == {"workflow_type": "train", "parameters": {"rank": 8}}
    assert asked.headers["idempotency-key"]
    assert asked.headers["authorization"] == "Bearer secret"


def test_paths_from_here_are_sent_as_absolute_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has another working folder. Breaks with: parameters that are sent as they were given."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    (tmp_path / "small.gguf").touch()
    given = {
        "model": "./model.gguf",
        "b": "small.gguf",
        "c": "saved/",
        "d": Path("saved"),
        "hub": "org/x.gguf",
        "e": "a/b",
        "n": 3,
    }
    sent = {"model": f"{tmp_path}/model.gguf", "b": f"{tmp_path}/small.gguf", "c": f"{tmp_path}/saved",
            "d": f"{tmp_path}/saved", "hub": "org/x.gguf", "e": "a/b", "n": 3}  # fmt: skip
    with (
        serving(lambda _: Answer(body={"workflow_id": WORKFLOW, "status": "pending"})) as server,
        Client(server.url) as client,
    ):
        client.workflows.submit("train", given)
        client.workflows.fork(WORKFLOW, "train", given)
    assert [asked.json()["parameters"] for asked in server.asked] == [sent, sent]


def test_a_problem_becomes_the_servers_own_error() -> None:
    problem = {
        "title": "Invalid request", "status": 422, "detail": "one field is wrong", "code": "invalid_request",
        "where": "body", "hint": "look there",
        "problems": [{"where": "steps.train.with.rank", "message": "is text", "hint": None}],
    }  # fmt: skip
    with (
        serving(lambda _: Answer(422, problem)) as server,
        Client(server.url) as client,
        pytest.raises(InvalidRequest) as caught,
    ):
        client.workflows.submit("train")
    assert caught.value.message == "one field is wrong"
    assert caught.value.hint == "look there"
    assert caught.value.problems[0].where == "steps.train.with.rank"


def test_an_openai_error_and_retry_after_are_read() -> None:
    body = {"error": {"message": "the queue is full", "type": "server_error", "param": None, "code": "busy"}}
    with (
        serving(lambda _: Answer(429, body, {"retry-after": "2"})) as server,
        Client(server.url) as client,
        pytest.raises(Busy) as caught,
    ):
        client.chat("production", "hello")
    assert caught.value.retry_after == 2
    assert caught.value.message == "the queue is full"


@pytest.mark.parametrize(("status", "kind"), [(404, NotFound), (422, InvalidRequest), (418, UnknownError)])
def test_a_code_that_is_not_known_is_read_by_the_status(status: int, kind: type[Exception]) -> None:
    body = {"error": {"message": "there is no model x", "code": "of_a_newer_server"}}
    with (
        serving(lambda _: Answer(status, body)) as server,
        Client(server.url) as client,
        pytest.raises(kind, match="no model x"),
    ):
        client.chat("x", "hello")


def test_an_answer_that_is_no_answer_is_an_error() -> None:
    with (
        serving(lambda _: Answer(body={"unexpected": True})) as server,
        Client(server.url) as client,
        pytest.raises(UpstreamFailed, match="cannot be read"),
    ):
        client.workflows.get(WORKFLOW)


def test_no_server_is_not_reachable_and_says_where() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url) as client, pytest.raises(NotReachable) as caught:
        client.workflows.get(WORKFLOW)
    assert url in caught.value.message
    assert "burnish serve" in (caught.value.hint or "")


def test_the_run_file_names_the_server_and_a_url_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BURNISH_URL", raising=False)
    assert find_url(None, tmp_path) == "http://127.0.0.1:8000"
    for port, url in (("8123", "http://127.0.0.1:8123"), ("0", "http://127.0.0.1:8000")):
        monkeypatch.setenv("BURNISH_PORT", port)
        assert find_url(None, tmp_path) == url
    monkeypatch.delenv("BURNISH_PORT")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "server.json").write_text('{"pid": 1, "url": "http://127.0.0.1:4321"}')
    assert find_url(None, tmp_path) == "http://127.0.0.1:4321"
    assert find_url("http://other:1/", tmp_path) == "http://other:1"
    monkeypatch.setenv("BURNISH_URL", "http://from-env:2")
    assert find_url(None, tmp_path) == "http://from-env:2"
    (tmp_path / "run" / "server.json").write_text("half a fi")
    monkeypatch.delenv("BURNISH_URL")
    assert find_url(None, tmp_path) == "http://127.0.0.1:8000"


def broken_stream(asked: Asked) -> Answer:
    """Two events, then the connection breaks; with ``Last-Event-ID: 2`` the rest, and the execution has ended."""
    if asked.path.endswith("/status"):
        return Answer(body=execution(broken_stream.status))  # type: ignore[attr-defined]
    if asked.headers.get("last-event-id") is None:
        lines = [
            *event_lines("1", "state", state="running"),
            ": keep-alive",
            "",
            *event_lines("2", "log", "job_1", message="hi"),
        ]
        return Answer(lines=[*lines, "id: 3", "data: {half an ev"], cut=True)
    assert asked.headers["last-event-id"] == "2"
    broken_stream.status = "succeeded"  # type: ignore[attr-defined]
    return Answer(
        lines=[*event_lines("3", "log", "job_1", message="again"), *event_lines("4", "state", state="succeeded")]
    )


@pytest.fixture
def broken() -> Iterator[str]:
    broken_stream.status = "running"  # type: ignore[attr-defined]
    with serving(broken_stream) as server:
        yield server.url


def test_follow_goes_on_where_the_connection_broke(broken: str) -> None:
    with Client(broken) as client:
        seen = [event.id for event in client.workflows.follow(WORKFLOW) if event is not None]
    assert seen == ["1", "2", "3", "4"]


async def test_follow_goes_on_where_the_connection_broke_async(broken: str) -> None:
    async with AsyncClient(broken) as client:
        seen = [event.id async for event in client.workflows.follow(WORKFLOW) if event is not None]
    assert seen == ["1", "2", "3", "4"]


def test_follow_does_not_stop_at_the_end_of_an_earlier_try() -> None:
    def script(asked: Asked) -> Answer:
        if asked.path.endswith("/status"):
            return Answer(body=execution("succeeded", completed_at="2026-01-01T00:01:00Z"))
        late = {
            "id": "2",
            "subject": WORKFLOW,
            "type": "state",
            "at": "2026-01-01T00:01:00Z",
            "data": {"state": "succeeded"},
        }
        return Answer(lines=[*event_lines("1", "state", state="failed"), f"data: {json.dumps(late)}", ""])

    with serving(script) as server, Client(server.url) as client:
        seen = [event.data["state"] for event in client.workflows.follow(WORKFLOW) if event is not None]
    assert seen == ["failed", "succeeded"]


def test_follow_of_an_unknown_execution_is_refused() -> None:
    problem = {"detail": "there is no execution wf_1", "code": "not_found"}
    with serving(lambda _: Answer(404, problem)) as server, Client(server.url) as client, pytest.raises(NotFound):
        next(client.workflows.follow(WORKFLOW))


def test_chat_streams_pieces_and_reports_an_error_in_the_stream() -> None:
    def script(asked: Asked) -> Answer:
        if asked.json()["model"] == "broken":
            return Answer(lines=['data: {"error": {"message": "the engine has died"}}', ""])
        pieces = [{"choices": [{"delta": {"content": text}, "finish_reason": None}]} for text in ("posi", "tive")]
        end = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
        return Answer(
            lines=[line for piece in [*pieces, end] for line in (f"data: {json.dumps(piece)}", "")] + ["data: [DONE]"]
        )

    with serving(script) as server, Client(server.url) as client:
        chunks = list(client.chat_stream("production", "good?"))
        assert "".join(chunk.text for chunk in chunks) == "positive"
        assert chunks[-1].finish_reason == "stop"
        with pytest.raises(UpstreamFailed, match="the engine has died"):
            list(client.chat_stream("broken", "good?"))


async def test_the_async_client_reads_and_refuses_the_same(tmp_path: Path) -> None:
    def script(asked: Asked) -> Answer:
        if asked.path.startswith("/platform/jobs"):
            return Answer(404, {"detail": "there is no job job_1", "code": "not_found"})
        return Answer(body={"workflow_id": WORKFLOW, "status": "pending"})

    with serving(script) as server:
        async with AsyncClient(server.url) as client:
            accepted = await client.workflows.submit({"name": "d", "steps": {}}, {})
            assert accepted.workflow_id == WORKFLOW
            with pytest.raises(NotFound):
                await client.jobs.get("job_1")
        assert server.asked[0].json()["definition"] == {"name": "d", "steps": {}}
    async with AsyncClient(f"http://127.0.0.1:{free_port()}") as client:
        with pytest.raises(NotReachable):
            await client.workflows.get(WORKFLOW)


@pytest.mark.parametrize(
    ("waiting", "for_asyncio"),
    [
        (Client, AsyncClient), (lifecycle.Workflows, lifecycle.AsyncWorkflows), (lifecycle.Jobs, lifecycle.AsyncJobs),
    ],
)  # fmt: skip
def test_what_is_written_for_each_client_is_the_same(waiting: type, for_asyncio: type) -> None:
    def surface(cls: type) -> dict[str, list[str]]:
        return {
            method: list(inspect.signature(function).parameters)
            for method, function in inspect.getmembers(cls, inspect.isfunction)
            if not method.startswith("_")
        }

    assert surface(waiting) == surface(for_asyncio)
    assert "follow" in surface(waiting)


def test_the_package_offers_the_clients_lazily() -> None:
    assert burnish.Client is Client
    assert burnish.AsyncClient is AsyncClient
    with pytest.raises(AttributeError, match="Nothing"):
        _ = burnish.Nothing


def _of_pages(asked: Asked) -> Answer:
    """1,001 instances in pages of at most what is asked for."""
    query = parse_qs(urlsplit(asked.path).query)
    first = int(query.get("after", ["-1"])[0].removeprefix("i")) + 1
    last = min(first + int(query["limit"][0]), 1001)
    data = [{"id": str(n), "component_id": f"i{n}", "component_type": "x", "name": "x", "version": "1", "status": "healthy",
             "health_endpoint": "", "api_endpoint": ""} for n in range(first, last)]  # fmt: skip
    more = last < 1001
    return Answer(body={"data": data, "has_more": more, "next": f"i{last - 1}" if more else None})


async def test_all_instances_are_listed_however_many_pages_they_fill() -> None:
    """Breaks with: the first page alone."""
    with serving(_of_pages) as server:
        with Client(server.url) as client:
            waiting = client.components()
        async with AsyncClient(server.url) as asyncio_client:
            assert await asyncio_client.components() == waiting
    assert [one.component_id for one in waiting] == [f"i{n}" for n in range(1001)]
    assert len(server.asked) == 2 * 3
