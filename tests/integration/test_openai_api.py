"""The official ``openai`` client against ``/v1``, unchanged, through gateway, integrator and component."""

import asyncio
import json
import re
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from burnish.components.model_serving.engines import ENGINES
from burnish.core.errors import InvalidRequest, NotFound
from burnish.core.specs.base import ArtifactRef
from burnish.infra import signals
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.database import Database
from burnish.ml.tiny import build
from burnish.platform.identity import LOCAL
from burnish.platform.openai_api import document
from tests.support.engines import make_gguf
from tests.support.serving import FakeServer, fake_model, fake_server


class Served:
    """A running server, the official client and a plain one."""

    def __init__(
        self,
        server: FakeServer,
        database: Database,
        store: FileArtifactStore,
        client: AsyncOpenAI,
        http: httpx.AsyncClient,
    ) -> None:
        self.server, self.database, self.store, self.client, self.http = server, database, store, client, http

    async def model(self, name: str, **fake: Any) -> ArtifactRef:
        """Publish a model, and have the project know it."""
        ref = fake_model(self.store, name, **fake)
        async with self.database.write() as session:
            await artifacts.record(session, "default", ref)
        return ref

    async def deploy(self, name: str = "dep", fake: dict[str, Any] | None = None, **spec: Any) -> None:
        ref = await self.model(name, **(fake or {}))
        body = {"deployment": name, "model": ref.model_dump(), **spec}
        answer = await self.http.post("/platform/deployments", json=body)
        assert answer.status_code == 200, answer.text
        await self.until(lambda view: view["state"] == "ready", name)

    async def until(self, wanted: Callable[[dict[str, Any]], object], name: str = "dep") -> dict[str, Any]:
        deadline = time.monotonic() + 30
        while True:
            view: dict[str, Any] = (await self.http.get(f"/platform/deployments/{name}")).json()
            if wanted(view):
                return view
            assert time.monotonic() < deadline, view
            await asyncio.sleep(0.02)


@pytest.fixture
async def served(sqlite_url: str, store: FileArtifactStore, home: Path) -> AsyncIterator[Served]:
    database = Database(sqlite_url)
    try:
        async with (
            fake_server(database, store, home) as server,
            AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
            httpx.AsyncClient(base_url=server.url, timeout=30) as http,
        ):
            yield Served(server, database, store, client, http)
    finally:
        await database.dispose()


HI: Any = [{"role": "user", "content": "hi there"}]


async def test_chat(served: Served) -> None:
    await served.deploy(model_version="m@1")
    raw = await served.client.chat.completions.with_raw_response.create(
        model="dep", messages=HI, max_tokens=4, n=2, logprobs=True, top_logprobs=1
    )
    assert raw.headers["x-burnish-model-version"] == "m@1"
    assert raw.headers["x-burnish-revision"] == "1"
    assert raw.headers["x-request-id"]
    answer = raw.parse()
    assert answer.object == "chat.completion"
    assert [choice.message.content for choice in answer.choices] == ["dep w1 w2 w3"] * 2
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * 2
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (2, 8, 10)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [token.token for token in logprobs.content] == ["dep", " w1", " w2", " w3"]
    assert logprobs.content[0].top_logprobs[0].token == "dep"
    by_version = await served.client.chat.completions.create(model="m@1", messages=HI, max_completion_tokens=1)
    assert by_version.model == "dep"
    assert by_version.choices[0].message.content == "dep"


async def test_an_answer_is_taken_back_as_the_next_question(served: Served) -> None:
    """The client's usual idiom: the answer's message is appended as it came, and asked on."""
    await served.deploy()
    create: Any = served.client.chat.completions.create
    messages: list[Any] = [*HI]
    for turn in ("whole", "dumped"):
        message = (await create(model="dep", messages=messages, max_tokens=2)).choices[0].message
        messages.append(message if turn == "whole" else message.model_dump())
        messages.append({"role": "user", "content": "and then"})
    messages.append({"role": "assistant", "content": None, "refusal": "I cannot", "annotations": []})
    answer = await create(model="dep", messages=messages, max_tokens=2)
    assert answer.choices[0].message.content == "dep w1"
    asked_last = (await asked(await served.until(lambda v: True), served))["messages"]
    said, more = {"role": "assistant", "content": "dep w1"}, {"role": "user", "content": "and then"}
    assert asked_last == [*HI, said, more, said, more, {"role": "assistant", "content": "I cannot"}]


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        (
            {"role": "assistant", "content": "a", "tool_calls": [{"id": "1", "type": "function"}]},
            "unsupported_parameter",
            "messages[0].tool_calls",
        ),
        ({"role": "assistant", "content": "a", "audio": {"id": "1"}}, "unsupported_parameter", "messages[0].audio"),
        ({"role": "user", "content": "a", "refusal": "no"}, "invalid_value", "messages[0]"),
        ({"role": "assistant", "content": None}, "invalid_value", "messages[0]"),
        ({"role": "assistant", "refusal": None}, "missing_required_parameter", "messages[0].content"),
    ],
)
async def test_messages_that_are_refused(served: Served, message: dict[str, Any], code: str, param: str) -> None:
    create: Any = served.client.chat.completions.create
    with pytest.raises(openai.BadRequestError) as wrong:
        await create(model="dep", messages=[message])
    assert (wrong.value.code, wrong.value.param) == (code, param), wrong.value.message


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("n", [1, 2])
async def test_streamed_chat(served: Served, n: int, usage: bool) -> None:
    await served.deploy(fake={"token_seconds": 0.02})
    options: Any = {"stream_options": {"include_usage": True}} if usage else {}
    stream = await served.client.chat.completions.create(
        model="dep", messages=HI, max_tokens=20, n=n, stream=True, **options
    )
    texts = ["" for _ in range(n)]
    times, used = [], []
    async for chunk in stream:
        times.append(time.monotonic())
        used.append(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [" ".join(["dep", *(f"w{i}" for i in range(1, 20))])] * n
    assert times[-1] - times[0] > 0.2, "it came as it was generated"
    assert [u.completion_tokens for u in used if u is not None] == ([20 * n] if usage else [])
    assert (used[-1] is not None) is usage


@pytest.mark.parametrize("top", [None, 0, 2])
@pytest.mark.parametrize("n", [1, 2])
async def test_logprobs_of_chats_are_what_was_asked_for(served: Served, n: int, top: int | None) -> None:
    """The engine takes no number for 20 alternatives, and 0 for no log-probabilities; neither is what OpenAI does."""
    await served.deploy()
    asked_for: dict[str, Any] = {"model": "dep", "messages": HI, "max_tokens": 3, "n": n, "logprobs": True}
    if top is not None:
        asked_for["top_logprobs"] = top
    whole, streamed = await logprobs_of(served.client, n, asked_for)
    for told in (*whole, *streamed):
        assert [token["token"] for token in told] == ["dep", " w1", " w2"]
        assert [[other["token"] for other in token["top_logprobs"]] for token in told] == [
            [word, "other1"][: top or 0] for word in ("dep", " w1", " w2")
        ]
        for token in told:
            assert set(token) == {"token", "bytes", "logprob", "top_logprobs"}, "nothing of the engine's own"
            assert all(set(other) == {"token", "bytes", "logprob"} for other in token["top_logprobs"])


async def logprobs_of(
    client: AsyncOpenAI, n: int, asked_for: dict[str, Any]
) -> tuple[list[list[dict[str, Any]]], list[list[dict[str, Any]]]]:
    """Return the log-probabilities of each choice, of an answer as a whole and of a streamed one."""
    answer = await client.chat.completions.create(**asked_for)
    whole = [[token.model_dump() for token in choice.logprobs.content] for choice in answer.choices]
    streamed: list[list[dict[str, Any]]] = [[] for _ in range(n)]
    async for chunk in await client.chat.completions.create(**asked_for, stream=True):
        assert chunk.usage is None
        for choice in chunk.choices:
            if choice.logprobs is not None:
                streamed[choice.index] += [token.model_dump() for token in choice.logprobs.content]
    return whole, streamed


@pytest.fixture
async def real(sqlite_url: str, store: FileArtifactStore, home: Path) -> AsyncIterator[Served]:
    """A server whose replicas are the engine itself."""
    database = Database(sqlite_url)
    try:
        async with (
            fake_server(database, store, home, dict(ENGINES)) as server,
            AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
            httpx.AsyncClient(base_url=server.url, timeout=30) as http,
        ):
            yield Served(server, database, store, client, http)
    finally:
        await database.dispose()


async def test_logprobs_of_the_real_engine(real: Served, tmp_path: Path) -> None:
    """What the fake engine is made to do is what llama.cpp does."""
    gguf = await asyncio.to_thread(lambda: make_gguf(build("llama", tmp_path / "model"), tmp_path / "gguf"))
    staged = real.store.stage("tiny")
    shutil.copytree(gguf, staged, dirs_exist_ok=True)
    ref = real.store.publish(staged, "gguf")
    async with real.database.write() as session:
        await artifacts.record(session, "default", ref)
    body = {"deployment": "dep", "model": ref.model_dump(), "context_length": 256, "parallel": 2}
    answer = await real.http.post("/platform/deployments", json=body)
    assert answer.status_code == 200, answer.text
    await real.until(lambda view: view["state"] == "ready")
    for top in (None, 0, 1, 3):
        asked_for: dict[str, Any] = {"model": "dep", "messages": HI, "max_tokens": 4, "temperature": 0}
        asked_for |= {"logprobs": True, "logit_bias": {"65": 100}}
        if top is not None:
            asked_for["top_logprobs"] = top
        (whole,), (streamed,) = await logprobs_of(real.client, 1, asked_for)
        assert len(whole) == 4, top
        assert [len(token["top_logprobs"]) for token in (*whole, *streamed)] == [top or 0] * 8
        assert [token["token"] for token in whole] == [token["token"] for token in streamed]
        for token in (*whole, *streamed):
            assert token["logprob"] < 0
            assert "id" not in token
            assert not any("id" in other for other in token["top_logprobs"])


async def test_completions(served: Served) -> None:
    await served.deploy()
    answer = await served.client.completions.create(model="dep", prompt=["a b", "c d e"], max_tokens=2, logprobs=1)
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "dep w1"), (1, "dep w1")]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 4)
    logprobs = answer.choices[1].logprobs
    assert logprobs is not None
    assert (logprobs.tokens, logprobs.text_offset) == (["dep", " w1"], [0, 3])
    assert logprobs.top_logprobs == [{"dep": -0.5}, {" w1": -0.5}]
    stream = await served.client.completions.create(
        model="dep", prompt="a", max_tokens=3, stream=True, logprobs=0, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "dep w1 w2"
    offsets = [c.logprobs.text_offset for chunk in chunks for c in chunk.choices if c.logprobs]
    assert offsets == [[0], [3], [6]]
    assert chunks[-1].usage is not None
    assert chunks[-1].choices == []


async def test_models(served: Served) -> None:
    assert [model.id async for model in served.client.models.list()] == []
    await served.deploy("one", model_version="m@7")
    await served.deploy("two")
    listed = [(model.id, model.owned_by) async for model in served.client.models.list()]
    assert listed == [("one", "burnish"), ("two", "burnish")]
    assert (await served.client.models.retrieve("two")).id == "two"
    assert (await served.client.models.retrieve("m@7")).id == "one"
    with pytest.raises(openai.NotFoundError) as missing:
        await served.client.models.retrieve("three")
    assert missing.value.code == "model_not_found"


async def test_errors_are_openais(served: Served) -> None:
    await served.deploy(context_length=64)
    create: Any = served.client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as missing:
        await create(model="nothing", messages=HI)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    long = [{"role": "user", "content": "word " * 100}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            await create(model="dep", messages=long, stream=stream)
        assert refused.value.code == "context_length_exceeded"
    for more, code, param in (
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"extra_body": {"nonsense": 1}}, "unknown_parameter", "nonsense"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "unsupported_parameter", "tools"),
        ({"response_format": {"type": "json_schema"}}, "invalid_value", "response_format"),
        ({"logit_bias": {"word": 1}}, "invalid_value", "logit_bias"),
        ({"top_logprobs": 2}, "invalid_value", None),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "invalid_value",
            None,
        ),
    ):
        with pytest.raises(openai.BadRequestError) as wrong:
            await create(**{"model": "dep", "messages": HI, **more})
        assert (wrong.value.code, wrong.value.param if param else None) == (code, param), wrong.value.message
    broken = await served.http.post("/v1/chat/completions", content=b"{")
    assert (broken.status_code, broken.json()["error"]["type"]) == (400, "invalid_request_error")
    assert (await served.http.post("/v1/chat/completions", json={"messages": HI})).json()["error"]["param"] == "model"
    assert (await served.http.get("/v1/chat/completions")).status_code == 405
    nowhere = [await served.http.get(path) for path in ("/v1/nothing", "/v1/models/a%0Ab", "/v1/%0D%0A", "/v1/")]
    assert {(one.status_code, one.json()["error"]["type"]) for one in nowhere} == {(404, "invalid_request_error")}


async def test_what_the_engine_is_asked_is_explicit(served: Served) -> None:
    await served.deploy()
    parts = [{"type": "text", "text": "be "}, {"type": "text", "text": "kind"}]
    create: Any = served.client.chat.completions.create
    await create(
        model="dep",
        max_tokens=1,
        seed=5,
        stop=["x"],
        logit_bias={"7": 100},
        messages=[{"role": "developer", "content": parts}],
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}},
    )
    view = await served.until(lambda v: True)
    body = await asked(view, served)
    assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"], body["repeat_penalty"]) == (1, 1, 0, 0, 1)
    assert body["messages"] == [{"role": "system", "content": "be kind"}]
    assert (body["seed"], body["stop"], body["logit_bias"]) == (5, ["x"], {"7": 100})
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert body["stream"] is True


async def stats(view: dict[str, Any], served: Served) -> dict[str, Any]:
    """Ask the replica itself."""
    home = served.server.home
    replica = view["replicas"][0]["id"]
    config = (home / "run" / "replicas" / replica / "config.json").read_text()
    socket = json.loads(config)["socket"]
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=socket), base_url="http://engine") as client:
        answer: dict[str, Any] = (await client.get("/stats")).json()
        return answer


async def asked(view: dict[str, Any], served: Served) -> dict[str, Any]:
    body: dict[str, Any] = (await stats(view, served))["bodies"][-1]
    return body


async def test_a_full_queue_is_a_rate_limit(served: Served) -> None:
    await served.deploy(fake={"token_seconds": 0.05}, parallel=1, queue=1)
    create = served.client.chat.completions.create
    asks = [asyncio.create_task(create(model="dep", messages=HI, max_tokens=10)) for _ in range(2)]
    await served.until(lambda v: v["replicas"][0]["in_flight"] == 2)
    with pytest.raises(openai.RateLimitError) as full:
        await create(model="dep", messages=HI)
    assert full.value.response.headers["retry-after"] == "1"
    await asyncio.gather(*asks)


@pytest.mark.parametrize("stream", [True, False])
async def test_hanging_up_stops_the_generation(served: Served, stream: bool) -> None:
    await served.deploy(fake={"token_seconds": 0.05})
    if stream:
        answer = await served.client.chat.completions.create(model="dep", messages=HI, max_tokens=5000, stream=True)
        await anext(aiter(answer))
        await answer.close()
    else:
        ask = asyncio.create_task(served.client.chat.completions.create(model="dep", messages=HI, max_tokens=5000))
        await served.until(lambda v: v["replicas"][0]["in_flight"] == 1)
        ask.cancel()
    view = await served.until(lambda v: v["replicas"][0]["in_flight"] == 0)
    deadline = time.monotonic() + 5
    while (counted := await stats(view, served))["running"]:
        assert time.monotonic() < deadline
    assert counted["cancelled"] == 1


async def test_the_deploy_job(served: Served) -> None:
    """The kind `deploy`, as the workflow engine submits it."""
    integrator = served.server.integrator

    async def run(job_id: str, ref: Any, **spec: Any) -> dict[str, Any]:
        body = {"job_id": job_id, "kind": "deploy", "spec": {"deployment": "dep", "model": ref.model_dump(), **spec}}
        view: dict[str, Any] = await integrator.call("model_serving", "POST", "/jobs", body, principal=LOCAL.acting())
        deadline = time.monotonic() + 30
        while view["state"] in {"queued", "starting", "running"}:
            assert time.monotonic() < deadline, view
            await asyncio.sleep(0.05)
            view = await integrator.call("model_serving", "GET", f"/jobs/{job_id}", principal=LOCAL.acting())
        return view

    one, two = await served.model("one"), await served.model("two")
    first = await run("job_1", one, model_version="m@1")
    assert first["state"] == "succeeded", first
    assert (first["result"]["revision"], first["result"]["switched"], first["result"]["replaced"]) == (1, True, None)
    assert first["result"]["ready_seconds"] > 0
    again = await run("job_1", one, model_version="m@1")
    assert again["result"] == first["result"]
    same = await run("job_2", one, model_version="m@1")
    assert (same["result"]["revision"], same["result"]["switched"]) == (1, False)
    second = await run("job_3", two)
    assert (second["result"]["revision"], second["result"]["replaced"]) == (2, 1)
    path = served.store.open(bad := await served.model("bad")) / "fake.json"
    path.chmod(0o644)
    path.write_text(path.read_text().replace("bad", "BAD"))
    failed = await run("job_4", bad)
    assert (failed["state"], failed["error"]["code"]) == ("failed", "artifact_corrupt")
    assert (await served.client.chat.completions.create(model="dep", messages=HI, max_tokens=1)).choices[
        0
    ].message.content == "two"
    with pytest.raises(InvalidRequest) as refused:
        await run("job_5", one.model_copy(update={"digest": "sha256:" + "0" * 64, "kind": "model"}))
    assert {problem.where for problem in refused.value.problems} == {"spec.model"}


async def test_a_cancelled_deploy_leaves_what_serves(served: Served) -> None:
    await served.deploy("dep")
    slow = await served.model("slow", start_seconds=30)
    integrator = served.server.integrator
    body = {"job_id": "job_1", "kind": "deploy", "spec": {"deployment": "dep", "model": slow.model_dump()}}
    await integrator.call("model_serving", "POST", "/jobs", body, principal=LOCAL.acting())
    await served.until(lambda v: any(r["revision"] == 2 and r["pid"] for r in v["replicas"]))
    await integrator.call("model_serving", "POST", "/jobs/job_1/cancel", principal=LOCAL.acting())
    view = await served.until(lambda v: v["revisions"][0]["state"] == "retired" and len(v["replicas"]) == 1)
    assert (view["state"], view["wanted"], view["serving"]) == ("ready", 1, 1)
    deadline = time.monotonic() + 10
    while (job := await integrator.call("model_serving", "GET", "/jobs/job_1", principal=LOCAL.acting()))[
        "state"
    ] != "cancelled":
        assert time.monotonic() < deadline, job
        await asyncio.sleep(0.05)


async def test_the_routes_of_deployments(served: Served) -> None:
    await served.deploy("one", model_version="m@1")
    await served.deploy("two")
    http = served.http
    first = (await http.get("/platform/deployments?limit=1")).json()
    assert ([d["name"] for d in first["data"]], first["has_more"], first["next"]) == (["one"], True, "one")
    rest = (await http.get("/platform/deployments?limit=1&after=one")).json()
    assert ([d["name"] for d in rest["data"]], rest["has_more"]) == (["two"], False)
    assert (await http.post("/platform/deployments/one/rollback")).json()["code"] == "conflict"
    assert (await http.post("/platform/deployments/one/rollback", json={"revision": 9})).status_code == 404
    assert (await http.get("/platform/deployments/nothing")).json()["code"] == "not_found"
    integrator = served.server.integrator  # as the workflow's step `current` asks
    asked_inside = await integrator.call("model_serving", "GET", "/platform/deployments/one", principal=LOCAL)
    assert (asked_inside["serving"], asked_inside["model_version"]) == (1, "m@1")
    with pytest.raises(NotFound):
        await integrator.call("model_serving", "GET", "/platform/deployments/nothing", principal=LOCAL)
    again = {"deployment": "one", "model": (await served.model("again")).model_dump()}
    for _ in range(2):
        keyed = await http.post("/platform/deployments", json=again, headers={"idempotency-key": "k-1"})
        assert (keyed.status_code, keyed.json()["wanted"]) == (200, 2)
    other = await http.post("/platform/deployments", json={**again, "queue": 1}, headers={"idempotency-key": "k-1"})
    assert other.json()["code"] == "idempotency_mismatch"
    absent = {"deployment": "x", "model": {"digest": "sha256:" + "0" * 64, "kind": "gguf"}}
    assert (await http.post("/platform/deployments", json=absent)).json()["problems"][0]["where"] == "model"
    assert (await http.post("/platform/deployments/two/stop")).json()["wanted"] is None
    await served.until(lambda v: v["state"] == "stopped", "two")
    assert (await http.post("/platform/deployments/two/start")).status_code == 200
    assert (await http.delete("/platform/deployments/one")).status_code == 204
    assert (await http.get("/platform/deployments/one")).status_code == 404


async def test_the_document_of_v1_is_whole() -> None:
    whole = document()
    for path, operations in whole["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert operation["description"]
            assert {"200", "503"} <= set(operation["responses"])
            for status, response in operation["responses"].items():
                assert response["description"], (path, status)
                assert any("example" in content for content in response["content"].values()), (path, status)
    text = json.dumps(whole)
    for reference in set(re.findall(r"#/components/schemas/(\w+)", text)):
        assert reference in whole["components"]["schemas"]


async def test_generations_are_measured(served: Served) -> None:
    await served.deploy("measured")
    create: Any = served.client.chat.completions.create
    await create(model="measured", messages=HI, max_tokens=4)
    async for _ in await create(model="measured", messages=HI, max_tokens=4, stream=True):
        pass
    with pytest.raises(openai.BadRequestError):
        await create(model="measured", messages=[{"role": "user", "content": "word " * 2000}])
    text = signals.render().decode()
    for line in (
        'platform_generations_total{deployment="measured",outcome="ok"} 2.0',
        'platform_generations_total{deployment="measured",outcome="refused"} 1.0',
        'platform_tokens_total{deployment="measured",direction="written"} 8.0',
        'platform_first_token_seconds_count{deployment="measured"} 2.0',
        'platform_generations_in_progress{deployment="measured"} 0.0',
    ):
        assert line in text, [line for line in text.splitlines() if "measured" in line]
