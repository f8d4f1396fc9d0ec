"""Deployments with real replica processes of the fake engine."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from burnish.components.model_serving import replicas
from burnish.core.errors import NotFound
from burnish.core.specs.serving import EngineConfig
from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.database import Database
from burnish.infra.http import Response
from tests.support.serving import FAKE, end_replicas, fake_model, replica_pids
from tests.support.serving_component import Server, running


@pytest.fixture
async def server(database: Database, store: FileArtifactStore, home: Path) -> AsyncIterator[Server]:
    made = Server(database, store, home)
    try:
        async with running(made):
            yield made
    finally:
        await end_replicas(home)


async def test_a_deployed_model_answers(server: Server, store: FileArtifactStore, home: Path) -> None:
    revision = await server.deploy(fake_model(store, "first"), model_version="m@1")
    await server.serves(revision)
    status, headers, body = await server.chat()
    assert status == 200, body
    assert (status, body["choices"][0]["message"]["content"]) == (200, "first w1 w2")
    assert body["usage"]["completion_tokens"] == 3
    assert (headers["x-burnish-revision"], headers["x-burnish-model-version"]) == ("1", "m@1")
    assert len(replica_pids(home)) == 1


async def text_of(response: Response) -> str:
    """Read a chat stream to its end."""
    raw = b"".join([chunk async for chunk in response.chunks()])
    blocks = [block[6:] for block in raw.split(b"\n\n") if block]
    assert blocks[-1] == b"[DONE]", raw[-300:]
    parts = [orjson.loads(block)["choices"] for block in blocks[:-1]]
    return "".join(choice["delta"].get("content", "") for choices in parts for choice in choices)


async def test_a_switch_drops_no_request_and_cuts_no_stream(
    server: Server, store: FileArtifactStore, home: Path
) -> None:
    await server.serves(await server.deploy(fake_model(store, "old", token_seconds=0.05)))
    answers: list[list[str]] = [[], [], []]
    done = asyncio.Event()

    async def ask_on(own: list[str]) -> None:
        while not done.is_set():
            own.append((await server.says()).split()[0])

    askers = [asyncio.create_task(ask_on(own)) for own in answers]
    async with server.streaming(max_tokens=60) as response:
        chunks = response.chunks()
        first = await anext(chunks)
        revision = await server.deploy(fake_model(store, "new", token_seconds=0.01))
        view = await server.until(lambda v: v.serving == revision and v.revisions[1].state == "draining")
        assert view.revisions[0].state == "serving"
        view = await server.until(lambda v: any(r.state == "draining" for r in v.replicas))
        assert {r.state for r in view.replicas} == {"ready", "draining"}
        raw = first + b"".join([chunk async for chunk in chunks])
    assert raw.count(b'"old"') == 1
    assert raw.endswith(b"[DONE]\n\n")
    assert raw.count(b"data: ") == 60 + 2
    await server.until(lambda v: [r.state for r in v.replicas] == ["ready"])
    done.set()
    await asyncio.gather(*askers)
    for own in answers:
        assert own[-1] == "new"
        assert own == sorted(own, reverse=True), "whoever had an answer of the new one had none of the old one after it"
    assert len(replica_pids(home)) == 1


async def test_a_corrupted_model_fails_and_the_old_one_serves_on(server: Server, store: FileArtifactStore) -> None:
    await server.serves(await server.deploy(fake_model(store, "old")))
    bad = fake_model(store, "bad")
    path = store.open(bad) / "fake.json"
    times = path.stat()
    path.chmod(0o644)
    path.write_text(path.read_text().replace("bad", "BAD"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    revision = await server.deploy(bad)
    view = await server.until(lambda v: v.error)
    assert view.error is not None
    assert (view.error.code, view.state, view.serving, view.wanted) == ("artifact_corrupt", "ready", 1, 1)
    assert view.revisions[0].number == revision
    assert view.revisions[0].state == "failed"
    assert await server.says() == "old w1 w2"


@pytest.mark.parametrize(
    ("fake", "said"),
    [({"fail": "no such tensor"}, "no such tensor"), ({"serves": "another"}, "it serves 'another', not 'dep'")],
)
async def test_a_model_that_does_not_serve_fails_with_its_words(
    server: Server, store: FileArtifactStore, fake: dict[str, str], said: str
) -> None:
    await server.serves(await server.deploy(fake_model(store, "old")))
    await server.deploy(fake_model(store, "bad", **fake))
    view = await server.until(lambda v: v.error)
    assert view.error is not None
    assert view.error.code == "bad_model"
    assert said in view.error.message
    assert view.revisions[0].failures == 3
    await server.until(lambda v: len(v.replicas) == 1)
    assert await server.says() == "old w1 w2"


async def test_a_first_deployment_that_fails_is_failed(server: Server, store: FileArtifactStore) -> None:
    await server.deploy(fake_model(store, "bad", fail="cannot"))
    view = await server.until(lambda v: v.state == "failed")
    assert (view.wanted, view.serving, view.replicas) == (None, None, ())
    status, _, body = await server.chat()
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    await server.serves(await server.deploy(fake_model(store, "good")))


async def test_a_dead_replica_is_replaced_and_requests_wait_for_it(server: Server, store: FileArtifactStore) -> None:
    view = await server.serves(await server.deploy(fake_model(store, "m")))
    pid = view.replicas[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert await server.says() == "m w1 w2"
    view = await server.serves(1)
    assert view.replicas[0].pid != pid
    assert view.revisions[0].failures == 1


async def test_a_request_in_flight_survives_its_replica(server: Server, store: FileArtifactStore) -> None:
    view = await server.serves(await server.deploy(fake_model(store, "m", token_seconds=0.1)))
    asked = asyncio.create_task(server.chat(max_tokens=10))
    await server.until(lambda v: v.replicas[0].in_flight == 1)
    os.kill(view.replicas[0].pid or 0, signal.SIGKILL)
    status, _, body = await asked
    assert (status, body["usage"]["completion_tokens"]) == (200, 10)


async def test_a_stream_whose_replica_dies_ends_with_an_error(server: Server, store: FileArtifactStore) -> None:
    view = await server.serves(await server.deploy(fake_model(store, "m", token_seconds=0.1)))
    async with server.streaming(max_tokens=50) as response:
        chunks = response.chunks()
        raw = await anext(chunks)
        os.kill(view.replicas[0].pid or 0, signal.SIGKILL)
        raw += b"".join([chunk async for chunk in chunks])
    assert b'data: {"error"' in raw
    assert b"[DONE]" not in raw


async def test_replicas_outlive_their_server(database: Database, store: FileArtifactStore, home: Path) -> None:
    try:
        async with running(Server(database, store, home)) as first:
            before = await first.serves(await first.deploy(fake_model(store, "m", token_seconds=0.01)))
        assert replica_pids(home) == [before.replicas[0].pid]
        async with running(Server(database, store, home, "two")) as second:
            assert await second.says() == "m w1 w2"
            after = await second.serves(1)
            assert [r.pid for r in after.replicas] == [r.pid for r in before.replicas]
            os.kill(after.replicas[0].pid or 0, signal.SIGKILL)  # not its child, yet it is seen to die
            await second.until(lambda v: v.state == "ready" and v.replicas[0].id != before.replicas[0].id)
            await second.change("stop")
            await second.until(lambda v: v.state == "stopped")
            assert replica_pids(home) == []
    finally:
        await end_replicas(home)


async def test_roll_back_stop_start_delete(server: Server, store: FileArtifactStore, home: Path) -> None:
    await server.serves(await server.deploy(fake_model(store, "one")))
    await server.serves(await server.deploy(fake_model(store, "two")))
    await server.change("rollback", "dep", None)
    view = await server.serves(1)
    assert await server.says() == "one w1 w2"
    assert view.revisions[0].number == 2
    await server.until(lambda v: v.revisions[0].state == "retired")
    await server.change("rollback", "dep", 2)
    await server.serves(2)
    await server.change("stop")
    await server.until(lambda v: v.state == "stopped" and not v.replicas)
    assert (await server.chat())[0] == 404
    await server.change("start")
    await server.serves(2)
    assert await server.says() == "two w1 w2"
    await server.change("delete")
    deadline = time.monotonic() + 20
    while replica_pids(home):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    with pytest.raises(NotFound):
        await server.view()
    await server.deploy(fake_model(store, "three"), "other")
    await server.serves(1, "other")


async def test_several_deployments_and_the_same_twice(server: Server, store: FileArtifactStore) -> None:
    one, two = fake_model(store, "one"), fake_model(store, "two")
    await asyncio.gather(*(server.deploy(ref, name) for ref, name in ((one, "a"), (two, "b"), (one, "c"))))
    for name in "abc":
        await server.serves(1, name)
    assert [await server.says(name) for name in "abc"] == ["one w1 w2", "two w1 w2", "one w1 w2"]
    assert await server.deploy(one, "a") == 1
    assert await server.deploy(two, "a", job_id="job_1") == await server.deploy(two, "a", job_id="job_1") == 2
    await server.serves(2, "a")


async def test_a_superseded_revision_never_serves(server: Server, store: FileArtifactStore, home: Path) -> None:
    await server.serves(await server.deploy(fake_model(store, "one")))
    await server.deploy(fake_model(store, "slow", start_seconds=20))
    await server.until(lambda v: any(r.revision == 2 and r.pid for r in v.replicas))
    await server.deploy(fake_model(store, "three"))
    view = await server.serves(3)
    await server.until(lambda v: len(v.replicas) == 1)
    assert [r.state for r in view.revisions if r.number == 2] == ["retired"]
    assert len(replica_pids(home)) == 1


async def test_replicas_share_the_requests(server: Server, store: FileArtifactStore) -> None:
    await server.serves(
        await server.deploy(fake_model(store, "m", token_seconds=0.05), replicas=2, parallel=1, queue=0)
    )
    answers = await asyncio.gather(*(server.chat() for _ in range(3)))
    assert sorted(status for status, _, _ in answers) == [200, 200, 429]
    refused = next(answer for answer in answers if answer[0] == 429)
    assert refused[1]["retry-after"] == "1"
    assert refused[2]["error"]["type"] == "rate_limit_error"


async def test_a_client_that_hangs_up_stops_the_generation(server: Server, store: FileArtifactStore) -> None:
    await server.serves(await server.deploy(fake_model(store, "m", token_seconds=0.05), parallel=1))
    async with server.streaming(max_tokens=1000) as response:
        await anext(response.chunks())
        waiting = asyncio.create_task(server.chat())
        await server.until(lambda v: v.replicas[0].in_flight == 2)
    assert (await waiting)[0] == 200, "the place was given to who waited"
    asked = asyncio.create_task(server.chat(max_tokens=1000))
    await server.until(lambda v: v.replicas[0].in_flight == 1)
    asked.cancel()
    await server.until(lambda v: v.replicas[0].in_flight == 0)
    stats = await server.stats()
    while stats["running"]:
        stats = await server.stats()
    assert stats["cancelled"] == 2


async def test_an_orphan_is_ended(server: Server, store: FileArtifactStore, home: Path) -> None:
    """A server that died between starting a process and anything else leaves it to the next one's sweep."""
    folder = store.open(fake_model(store, "m"))
    processes = replicas.ReplicaProcesses(home / "run" / "replicas")
    config = EngineConfig(
        engine="llama_cpp", model_dir=str(folder), served_name="x", socket=str(processes.socket_path("rep_x"))
    )
    started = processes.start("rep_x", FAKE, config)
    assert processes.start("rep_x", FAKE, config) == started, "one replica is never two processes"
    assert await server.parts.reconciler.sweep() == ["rep_x"]
    assert replica_pids(home) == []
    with pytest.raises(replicas.ReplicaEnded):
        processes.start("rep_x", FAKE, config)


async def test_two_at_once_make_one_deployment(server: Server, store: FileArtifactStore) -> None:
    refs = [fake_model(store, str(number)) for number in range(4)]
    numbers = await asyncio.gather(*(server.deploy(ref) for ref in refs))
    assert sorted(numbers) == [1, 2, 3, 4]
    view = await server.serves(4)
    assert view.wanted == 4


async def test_draining_ends_the_replicas_and_the_next_start_serves_again(
    database: Database, store: FileArtifactStore, home: Path
) -> None:
    try:
        async with running(Server(database, store, home)) as first:
            await first.serves(await first.deploy(fake_model(store, "m", token_seconds=0.02)))
            asked = asyncio.create_task(first.chat(max_tokens=20))
            await first.until(lambda v: v.replicas[0].in_flight == 1)
            said = await first.parts.drain()
            assert len(said) == 1
            assert (await asked)[2]["usage"]["completion_tokens"] == 20, "it was finished first"
            assert replica_pids(home) == []
        async with running(Server(database, store, home, "two")) as second:
            await second.serves(1)
            assert await second.says() == "m w1 w2"
    finally:
        await end_replicas(home)


@pytest.mark.postgres
async def test_two_servers_of_one_home_start_each_replica_once(
    postgres_url: str, store: FileArtifactStore, home: Path
) -> None:
    databases = [Database(postgres_url), Database(postgres_url)]
    for database in databases:
        await database.start()
    try:
        async with (
            running(Server(databases[0], store, home, "one")) as one,
            running(Server(databases[1], store, home, "two")) as two,
        ):
            for number in range(1, 4):
                await one.deploy(fake_model(store, f"m{number}"), replicas=2)
                await two.serves(number)
                assert await two.says() == f"m{number} w1 w2"
                assert await one.says() == f"m{number} w1 w2"
            await one.until(lambda v: len(v.replicas) == 2)
            assert len(replica_pids(home)) == 2
    finally:
        await end_replicas(home)
        for database in databases:
            await database.dispose()
