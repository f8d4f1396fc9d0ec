"""Datasets over HTTP: a real server, reading processes and artifact store, on both databases."""

import asyncio
import gzip
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import func, select

from burnish.components.data_management.component import build
from burnish.components.data_management.tables import DatasetRow, DatasetVersionRow
from burnish.core.protocol import CALLER_HEADER, JobRequest
from burnish.core.settings import Settings
from burnish.core.specs.data import SplitSpec
from burnish.core.states import JobState
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.database import Database
from burnish.platform.identity import LOCAL, CallerTokens, Principal
from burnish.platform.jobs.component_app import submit
from burnish.platform.jobs.runtime import JobRuntime
from tests.support.asgi_server import served
from tests.support.uploads import descriptors_of_uploads, readers
from tests.support.waiting import until

URL = "/platform/datasets"
TOKENS = CallerTokens(b"k" * 32)


@dataclass
class Bench:
    """A served data_management component."""

    client: httpx.AsyncClient
    home: Path
    database: Database
    store: FileArtifactStore
    runtime: JobRuntime

    async def upload(self, content: bytes | str, status: int = 201, **query: str) -> dict[str, Any]:
        data = content.encode() if isinstance(content, str) else content
        headers = {"content-type": "application/octet-stream"}
        answer = await self.client.post(URL, params={"filename": "a.jsonl", **query}, content=data, headers=headers)
        assert answer.status_code == status, answer.text
        return dict(answer.json())

    async def get(self, path: str, status: int = 200, **query: Any) -> Any:
        answer = await self.client.get(URL + path, params=query)
        assert answer.status_code == status, answer.text
        return answer.json()

    def remains(self) -> list[str]:
        """What uploads left: files in the folder of uploads, and staged folders."""
        found = [path.name for path in (self.home / "uploads").glob("*")]
        staging = self.home / "artifacts" / "staging"
        assert staging.is_dir()
        return found + [path.name for path in staging.iterdir()]

    async def counts(self) -> tuple[int, int]:
        async with self.database.read() as session:
            datasets = await session.scalar(select(func.count()).select_from(DatasetRow))
            versions = await session.scalar(select(func.count()).select_from(DatasetVersionRow))
        return int(datasets or 0), int(versions or 0)


def headers(principal: Principal = LOCAL) -> dict[str, str]:
    return {CALLER_HEADER: TOKENS.sign(principal, "data_management", ttl=3600)}


@pytest.fixture
def settings(home: Path, database_url: str) -> Settings:
    return settings_of(home, database_url)


def settings_of(home: Path, database_url: str) -> Settings:
    return Settings(
        home=home, database_url=SecretStr(database_url), node="here", cpus=2, memory_bytes=4 << 30,
        disk_reserve_bytes=0, upload_max_bytes=50 << 20,
    )  # fmt: skip


@pytest.fixture
async def bench(settings: Settings, database: Database, store: FileArtifactStore) -> AsyncIterator[Bench]:
    async with serving(settings, database, store) as bench:
        yield bench


@pytest.fixture
async def small(home: Path, sqlite_url: str, store: FileArtifactStore) -> AsyncIterator[Bench]:
    """On SQLite alone, for what does not depend on the database."""
    database = Database(sqlite_url)
    async with serving(settings_of(home, sqlite_url), database, store) as bench:
        yield bench
    await database.dispose()


@asynccontextmanager
async def serving(settings: Settings, database: Database, store: FileArtifactStore) -> AsyncIterator[Bench]:
    runtime = JobRuntime(database, store, settings, TOKENS)
    async with (
        served(build(runtime).app) as url,
        httpx.AsyncClient(base_url=url, headers=headers(), timeout=60) as client,
    ):
        yield Bench(client, settings.home, database, store, runtime)


def lines(count: int, start: int = 0) -> str:
    rows = ({"text": f"row {n} says w{n} x{n} y{n} z{n}", "label": "ab"[n % 2]} for n in range(start, start + count))
    return "".join(json.dumps(row) + "\n" for row in rows)


async def test_a_dataset_from_upload_to_deletion(bench: Bench) -> None:
    made = await bench.upload(lines(30), name="reviews", licence="MIT")
    assert (made["name"], made["version"], made["created"]) == ("reviews", 1, True)
    assert made["card"]["labels"] == {"a": 15, "b": 15}
    assert made["card"]["licence"] == "MIT"
    assert made["id"].startswith("ds_")

    second = await bench.upload(lines(31), name="reviews")
    assert second["version"] == 2
    await bench.upload(lines(3), name="other")

    listed = await bench.get("", limit=1)
    assert ([item["name"] for item in listed["data"]], listed["has_more"]) == (["other"], True)
    listed = await bench.get("", limit=1, after=listed["next"])
    assert [(item["name"], item["version"]) for item in listed["data"]] == [("reviews", 2)]
    assert (listed["has_more"], listed["next"]) == (False, None)

    shown = await bench.get("/reviews")
    assert shown["version"] == 2
    assert [one["version"] for one in shown["versions"]] == [2, 1]
    assert (await bench.get("/reviews@1"))["card"]["rows"] == 30
    assert (await bench.get(f"/{made['id']}/versions/1"))["artifact"] == made["artifact"]
    assert [one["version"] for one in (await bench.get("/reviews/versions", limit=1))["data"]] == [2]
    assert [one["version"] for one in (await bench.get("/reviews/versions", after=2))["data"]] == [1]

    deleted = await bench.client.delete(f"{URL}/reviews")
    assert deleted.status_code == 204
    await bench.get("/reviews", status=404)
    async with bench.database.read() as session:
        live = await artifacts.live_digests(session)
    assert made["artifact"]["digest"] not in live
    assert await bench.counts() == (1, 1)
    assert bench.remains() == []


async def test_the_same_rows_are_the_same_version_whatever_the_file(bench: Bench) -> None:
    first = await bench.upload(lines(10), name="reviews")
    again = await bench.upload(gzip.compress(lines(10).encode()), 200, name="reviews", filename="b.jsonl.gz")
    assert (again["version"], again["created"]) == (1, False)
    assert again["artifact"] == first["artifact"]
    assert await bench.counts() == (1, 1)
    other = await bench.upload(lines(10), name="copy")
    assert (other["version"], other["artifact"]) == (1, first["artifact"])


async def test_concurrent_uploads_each_get_one_version(bench: Bench) -> None:
    contents = [lines(5), lines(6), lines(5), lines(7)]
    posts = [
        bench.client.post(URL, params={"name": "reviews", "filename": "a.jsonl"}, content=content.encode())
        for content in contents
    ]
    answers = await asyncio.gather(*posts)
    assert sorted(answer.status_code for answer in answers) == [200, 201, 201, 201]
    versions = [answer.json()["version"] for answer in answers]
    assert versions[0] == versions[2]
    assert set(versions) == {1, 2, 3}


async def test_a_form_with_fields(small: Bench) -> None:
    data = {
        "name": "reviews",
        "columns": '{"text": "review", "label": "stars"}',
        "licence": "MIT",
        "duplicates": "drop",
    }
    files = {"file": ("../../etc/cron.d/reviews.csv", b"review;stars\ngood;5\nbad;1\nbad;1\n")}
    answer = await small.client.post(URL, data=data, files=files)
    assert answer.status_code == 201, answer.text
    card = answer.json()["card"]
    assert (card["rows"], card["labels"], card["dropped"], card["source"]) == (2, {"1": 1, "5": 1}, 1, "reviews.csv")


async def test_bad_rows_can_be_left_out_and_are_named(small: Bench) -> None:
    made = await small.upload(lines(3) + "{broken\n", name="reviews", bad_rows="drop")
    assert (made["card"]["rows"], made["card"]["dropped"]) == (3, 1)
    assert made["dropped_rows"][0]["where"] == "line 4"


async def test_preview_download_and_difference(bench: Bench) -> None:
    await bench.upload(lines(30), name="reviews")
    await bench.upload(lines(30, start=5), name="reviews")
    page = await bench.get("/reviews/versions/latest/preview", offset=28, limit=5)
    assert (len(page["rows"]), page["total"], page["next"]) == (2, 30, None)
    assert (await bench.get("/reviews/versions/1/preview", limit=5))["next"] == 5
    assert (await bench.get("/reviews/versions/1/preview", offset=99))["rows"] == []

    answer = await bench.client.get(f"{URL}/reviews/versions/1/download")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert 'filename="reviews-1.jsonl"' in answer.headers["content-disposition"]
    assert [json.loads(line) for line in answer.text.splitlines()] == [
        json.loads(line) for line in lines(30).splitlines()
    ]
    assert (await bench.upload(answer.text, 200, name="reviews"))["version"] == 1

    compared = await bench.get("/reviews/versions/1/diff/2")
    assert (compared["added"], compared["removed"], compared["kept"]) == (5, 5, 25)
    assert compared["added_rows"] == [json.loads(line) for line in lines(5, start=30).splitlines()]


async def test_references_resolve_or_say_what_is_near(bench: Bench) -> None:
    made = await bench.upload(lines(3), name="reviews")
    await bench.upload(lines(4), name="reviews")
    for reference, version in (
        ("reviews", 2),
        ("reviews@1", 1),
        ("reviews@latest", 2),
        (made["id"], 2),
        (f"{made['id']}@1", 1),
    ):
        found = await bench.get("/resolve", ref=reference)
        assert (found["name"], found["version"]) == ("reviews", version)
        assert found["artifact"]["kind"] == "dataset"
    wrong = await bench.get("/resolve", 404, ref="revews")
    assert (wrong["code"], wrong["hint"]) == ("not_found", "did you mean 'reviews'?")
    assert "newest version is 2" in (await bench.get("/resolve", 404, ref="reviews@7"))["hint"]
    for nonsense in ("", "@", "reviews@", "reviews@x", "reviews@-1", "a/../b", "x" * 200, "reviews@" + "9" * 60):
        assert (await bench.client.get(f"{URL}/resolve", params={"ref": nonsense})).status_code in (200, 404)


async def test_another_project_sees_nothing(bench: Bench) -> None:
    made = await bench.upload(lines(3), name="reviews")
    other = headers(Principal("eve", "other", frozenset({"engineer"})))
    for path in ("/reviews", f"/{made['id']}", "/reviews/versions/1/download", "/resolve?ref=reviews"):
        assert (await bench.client.get(URL + path, headers=other)).status_code == 404
    assert (await bench.client.get(URL, headers=other)).json()["data"] == []
    assert (await bench.client.delete(f"{URL}/reviews", headers=other)).status_code == 404
    assert (await bench.client.get(URL, headers={CALLER_HEADER: "nonsense"})).status_code == 401


async def test_an_idempotency_key(bench: Bench) -> None:
    async def post(content: str) -> httpx.Response:
        params = {"name": "reviews", "filename": "a.jsonl"}
        return await bench.client.post(URL, params=params, content=content.encode(), headers={"idempotency-key": "k1"})

    first, second, third = await post(lines(3)), await post(lines(3)), await post(lines(4))
    assert (first.status_code, second.status_code, third.status_code) == (201, 201, 422)
    assert first.json() == second.json()
    assert third.json()["code"] == "idempotency_mismatch"


BROKEN = lines(2) + '{"text": "cut\n'


@pytest.mark.parametrize(
    ("content", "query", "status", "code", "where"),
    [
        (BROKEN, {}, 422, "invalid_request", "line 3"),
        (lines(1) + '{"text": "", "label": "x"}\n', {}, 422, "invalid_request", "line 2, text"),
        ('{"sentence": "a", "sentiment": "b"}\n', {}, 422, "invalid_request", "columns"),
        (lines(1), {"columns": "text=nope"}, 422, "invalid_request", "columns.text"),
        (lines(1), {"columns": "nope"}, 422, "invalid_request", "columns"),
        (lines(1), {"columns": '{"text": 1}'}, 422, "invalid_request", "columns"),
        (lines(1), {"format": "chat"}, 422, "invalid_request", "columns"),
        (lines(1), {"format": "poem"}, 422, "invalid_request", "format"),
        (lines(1), {"bogus": "1"}, 422, "invalid_request", "bogus"),
        (lines(1), {"name": "a/../b"}, 422, "invalid_request", "name"),
        (lines(1), {"name": "resolve"}, 422, "invalid_request", "name"),
        (lines(1), {"filename": "../..", "name": "x" * 64}, 422, "invalid_request", "name"),
        (b'{"text": "caf\xe9", "label": "x"}\n', {}, 422, "invalid_request", "line 1, byte 13"),
        (b"", {}, 422, "invalid_request", "a.jsonl"),
        (b"PK\x03\x04", {}, 415, "unsupported_media", "a.jsonl"),
        (gzip.compress(lines(99).encode())[:-20], {"filename": "a.jsonl.gz"}, 422, "invalid_request", None),
        (gzip.compress(b'{"text": "' + b"a" * (70 << 20)), {"filename": "a.jsonl.gz"}, 413, "too_large", "line 1"),
        (gzip.compress((b'{"text": "' + b"a" * 1000 + b'"}\n') * 70_000), {}, 413, "too_large", None),
        (b"x" * (51 << 20), {}, 413, "too_large", "body"),
        ('"text,label\n', {"filename": "a.csv"}, 422, "invalid_request", "line 1"),
        (lines(1) + '{"text": "a", "label": "b", "n": 1e999}\n', {}, 422, "invalid_request", "line 2"),
        (lines(1) + '{"text": "a", "n": ' + "[" * 990 + "]" * 990 + "}\n", {}, 422, "invalid_request", "line 2"),
        ('{"messages": "[\\"\\\\ud800\\"]"}\n', {}, 422, "invalid_request", "line 1, messages"),
        (lines(1), {"columns": '{"text": "\\ud800"}'}, 422, "invalid_request", "columns.text"),
    ],
)
async def test_bad_uploads_are_refused_with_their_place_and_leave_nothing(
    small: Bench, content: bytes | str, query: dict[str, str], status: int, code: str, where: str | None
) -> None:
    problem = await small.upload(content, status, **{"name": "reviews", **query})
    assert problem["code"] == code
    if where is not None:
        assert problem["where"] == where
    assert problem["detail"]
    assert await small.counts() == (0, 0)
    assert small.remains() == []
    assert (await small.get(""))["data"] == []  # and it keeps serving


@pytest.mark.parametrize(
    ("content_type", "body", "status", "message"),
    [
        ("multipart/form-data", b"x", 400, "no boundary"),
        ("multipart/form-data; boundary=b", b"nonsense", 400, "cannot be read"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\ncontent-disposition: form-data; name="file"\r\n\r\nabc',
            400,
            "cut",
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\ncontent-disposition: form-data; name="name"\r\n\r\nx\r\n--b--\r\n',
            422,
            "no file",
        ),
        (
            "multipart/form-data; boundary=b",
            b"--b\r\ncontent-disposition: form-data\r\n\r\nx\r\n--b--\r\n",
            422,
            "has no name",
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n' * 2 + b"--b--\r\n",
            422,
            "more than one file",
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\ncontent-disposition: form-data; name="name"\r\n\r\n' + b"x" * 70_000 + b"\r\n--b--\r\n",
            422,
            "longer than 65536",
        ),
    ],
)
async def test_bad_forms(small: Bench, content_type: str, body: bytes, status: int, message: str) -> None:
    answer = await small.client.post(URL, content=body, headers={"content-type": content_type})
    assert answer.status_code == status, answer.text
    assert message in answer.json()["detail"]
    assert small.remains() == []


async def test_a_client_that_hangs_up_leaves_nothing(small: Bench) -> None:
    host, port = small.client.base_url.host, small.client.base_url.port
    head = (
        f"POST {URL}?name=reviews&filename=a.jsonl HTTP/1.1\r\nhost: x\r\ncontent-length: 5000000\r\n"
        f"{CALLER_HEADER}: {headers()[CALLER_HEADER]}\r\n\r\n"
    )
    with socket.create_connection((host, port)) as connection:
        connection.sendall(head.encode() + lines(20_000).encode()[:2_000_000])
        await until(lambda: len(descriptors_of_uploads()) == 1)
    await until(lambda: not descriptors_of_uploads())
    assert small.remains() == []
    assert await small.counts() == (0, 0)


async def test_one_project_does_not_take_the_places_of_all_uploads(small: Bench) -> None:
    """Breaks with: 32 uploads of one that hardly come, and nobody else's is accepted."""
    host, port = small.client.base_url.host, small.client.base_url.port
    head = (
        f"POST {URL}?name=slow&filename=a.jsonl HTTP/1.1\r\nhost: x\r\ncontent-length: 5000000\r\n"
        f"{CALLER_HEADER}: {headers()[CALLER_HEADER]}\r\n\r\n"
    )
    with ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(socket.create_connection((host, port))).sendall(head.encode() + b"{")
        await until(lambda: len(descriptors_of_uploads()) == 16)
        own = await small.upload(lines(3), status=429, name="reviews")
        assert own["detail"] == "16 uploads of this project are under way"
        other = headers(Principal("eve", "other", frozenset({"engineer"})))
        content = {"content-type": "application/octet-stream"}
        answer = await small.client.post(
            URL, params={"name": "reviews", "filename": "a.jsonl"}, content=lines(3).encode(), headers=other | content
        )
        assert answer.status_code == 201, answer.text
    await until(lambda: not descriptors_of_uploads())
    await small.upload(lines(3), name="reviews")


async def test_a_cancelled_request_ends_the_reading_process(small: Bench) -> None:
    from burnish.components.data_management.adding import Adding

    async def body() -> AsyncIterator[bytes]:
        for start in range(0, 400_000, 10_000):
            yield lines(10_000, start).encode()

    adding = Adding(small.database, small.store, small.runtime.settings)
    given = {"name": "reviews", "filename": "a.jsonl"}
    task = asyncio.create_task(adding.add("default", body(), "application/octet-stream", given, None))
    await until(lambda: bool(readers()), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert readers() == []
    assert small.remains() == []
    assert descriptors_of_uploads() == []


async def test_below_the_reserve_nothing_is_accepted(
    database: Database, store: FileArtifactStore, settings: Settings
) -> None:
    full = settings.model_copy(update={"disk_reserve_bytes": 1 << 60})
    runtime = JobRuntime(database, store, full, TOKENS)
    async with served(build(runtime).app) as url, httpx.AsyncClient(base_url=url, headers=headers()) as client:
        answer = await client.post(URL, params={"filename": "a.jsonl"}, content=lines(3).encode())
        assert answer.status_code == 507
        assert answer.json()["code"] == "out_of_disk"
        assert (await client.get(URL)).status_code == 200


async def test_the_server_answers_while_a_large_file_is_read(small: Bench) -> None:
    upload = asyncio.create_task(small.upload(lines(60_000), name="large"))
    await until(lambda: bool(readers()), 30)
    slowest = 0.0
    while not upload.done():
        start = time.monotonic()
        await small.get("")
        slowest = max(slowest, time.monotonic() - start)
    assert (await upload)["card"]["near_checked"] == 60_000
    assert slowest < 2


async def test_a_split_runs_as_a_job_of_the_component(bench: Bench) -> None:
    made = await bench.upload(lines(100), name="reviews")
    spec = SplitSpec(dataset=made["artifact"]).model_dump(mode="json")
    checked = await bench.client.post(
        "/jobs/validate", json={"kind": "split", "spec": spec}, headers=headers(LOCAL.acting())
    )
    assert checked.json()["problems"] == []
    for change, where in (
        ({"dataset": {**made["artifact"], "digest": "sha256:" + "0" * 64}}, "spec.dataset"),
        ({"test": 0}, "spec.test"),
        ({"tset": 0}, "spec.tset"),
    ):
        body = {"kind": "split", "spec": {**spec, **change}}
        wrong = (await bench.client.post("/jobs/validate", json=body, headers=headers(LOCAL.acting()))).json()[
            "problems"
        ]
        assert [problem["where"] for problem in wrong] == [where]

    from burnish.components.data_management.kinds import KINDS

    await bench.runtime.start()
    try:
        await submit(JobRequest(job_id="job_s", kind="split", spec=spec), "data_management", KINDS, bench.runtime)
        deadline = time.monotonic() + 60
        while not (job := (await bench.client.get("/jobs/job_s", headers=headers(LOCAL.acting()))).json())[
            "finished_at"
        ]:
            assert time.monotonic() < deadline, job
            await asyncio.sleep(0.05)
    finally:
        await bench.runtime.stop()
    assert job["state"] == JobState.SUCCEEDED, job
    assert (job["result"]["train_rows"], job["result"]["validation_rows"], job["result"]["test_rows"]) == (76, 4, 20)
    assert bench.store.exists(job["result"]["train"]["digest"])


async def test_a_method_that_a_path_has_not_is_answered_with_those_it_has(small: Bench) -> None:
    answer = await small.client.patch(f"{URL}/reviews")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, DELETE"
    assert answer.json()["hint"] == "allowed: GET, DELETE"


async def test_the_name_in_a_form_goes_before_the_files_own(small: Bench) -> None:
    files = {"file": ("data.bin", lines(2).encode())}
    answer = await small.client.post(URL, data={"filename": "reviews.jsonl"}, files=files)
    assert (answer.status_code, answer.json()["name"]) == (201, "reviews")
    answer = await small.client.post(URL, params={"filename": "films.jsonl"}, files={"file": lines(2).encode()})
    assert answer.status_code in (200, 201), answer.text


async def test_the_schema_documents_every_route_and_error(small: Bench) -> None:
    schema = (await small.client.get("/openapi.json")).json()
    operations = {
        (path, method): operation
        for path, methods in schema["paths"].items()
        if path.startswith(URL)
        for method, operation in methods.items()
    }
    assert len(operations) == 10
    for key, operation in operations.items():
        assert operation["summary"], key
        assert operation["description"], key
        assert "422" in operation["responses"], key
        assert any(status.startswith("4") and status != "422" for status in operation["responses"]), key
    post = operations[URL, "post"]
    assert {"200", "201", "413", "415", "507"} <= set(post["responses"])
    assert "multipart/form-data" in post["requestBody"]["content"]
