"""Clients that ask by alias: what they get while deployments switch and roll back, and aliases move."""

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest

from burnish.components.model_serving.component import serving
from burnish.components.model_serving.naming import Route, Target
from burnish.core.settings import Settings
from burnish.core.specs.serving import DeploySpec
from burnish.infra.artifact_store.files import FileArtifactStore
from burnish.infra.database import Database
from burnish.platform.identity import CallerTokens, Principal
from burnish.platform.model_registry import service as model_registry
from tests.support.scripted_server import Answer
from tests.support.scripted_server import serving as served_by_script
from tests.support.serving import end_replicas, fake_model
from tests.support.serving_component import PROJECT, Server, running


@pytest.fixture
async def server(database: Database, store: FileArtifactStore, home: Path) -> AsyncIterator[Server]:
    made = Server(database, store, home)
    try:
        async with running(made):
            yield made
    finally:
        await end_replicas(home)


async def test_connections_to_what_has_gone_are_closed(
    database: Database, store: FileArtifactStore, home: Path
) -> None:
    """Replicas that another process ended, processes of nodes that serve no more: not while something is in flight.

    Breaks with: a transport for each that was ever asked.
    """
    parts = serving(database, store, Settings(home=home, node="node"), owner="one", tokens=CallerTokens(b"k" * 32))
    traffic, peers, principal = parts.traffic, parts.peers, Principal("user", PROJECT)
    spec = DeploySpec(deployment="dep", model=fake_model(store, "one"))

    async def reread() -> None:
        parts.routes.distrust()
        assert await parts.routes.of_project(PROJECT) == []

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            await reread()
            assert set(peers._transports) == {peer.url}

    with served_by_script(lambda _: Answer(body={"said": "it"})) as peer:
        targets = (Target("gone", home / "socket"),)
        async with traffic.admit(Route(PROJECT, "d", "dep", 1, spec, 0, targets, (peer.url,))):
            await reread()
            assert set(traffic.in_flight()) == {"gone"}
        await peers.forward([peer.url], "/v1/x", b"{}", principal, send, None)
        await reread()
    assert not traffic.in_flight()
    assert not peers._transports


async def test_a_client_that_asks_by_alias_notices_neither_switch_nor_roll_back(
    server: Server, store: FileArtifactStore
) -> None:
    """The alias names a version that runs nowhere from the switch to the promotion, and for good after a roll back."""
    answers: dict[str, list[str]] = {"m@production": [], "production": []}
    done = asyncio.Event()

    async def ask_on(name: str) -> None:
        while not done.is_set():
            answers[name].append((await server.says(name)).split()[0])

    async def said_by_all(word: str) -> None:
        """Wait until every asker's answers have been this word three times in a row."""
        for name, own in answers.items():
            asked = len(own)
            async with asyncio.timeout(20):
                while len(own) < asked + 3 or own[-3:] != [word] * 3:
                    assert not any(asker.done() for asker in askers), await asyncio.gather(*askers)
                    await asyncio.sleep(0.01)
            assert (await server.chat(name))[1]["x-burnish-model-version"] == {"one": "m@1", "two": "m@2"}[word]

    one, first = await server.register(store, "m", "one")
    await server.serves(await server.deploy(one, model_version=first))
    await server.promote(first)
    askers = [asyncio.create_task(ask_on(name)) for name in answers]
    await said_by_all("one")
    two, second = await server.register(store, "m", "two")
    await server.serves(await server.deploy(two, model_version=second))
    await said_by_all("two")
    assert (await server.chat(first))[0] == 404, "who asks for a version gets that version or nothing"
    await server.promote(second)
    await said_by_all("two")
    await server.change("rollback", "dep", None)
    await server.serves(1)
    await said_by_all("one")
    done.set()
    await asyncio.gather(*askers)
    for own in answers.values():
        assert [word for i, word in enumerate(own) if word != own[i - 1] or i == 0] == ["one", "two", "one"]


async def test_a_roll_back_leaves_alias_and_clients_with_their_deployment(
    server: Server, store: FileArtifactStore
) -> None:
    """Another deployment of the model, older and newer in version, gets none of the requests."""
    (one, first), (two, second), (three, third) = [
        await server.register(store, "m", x) for x in ("one", "two", "three")
    ]
    for ref, version in ((two, second), (three, third)):
        await server.serves(await server.deploy(ref, "canary", model_version=version), "canary")
        if version == second:
            await server.serves(await server.deploy(one, "live", model_version=first), "live")
            await server.serves(await server.deploy(two, "live", model_version=second), "live")
    await server.promote(second)
    await server.change("rollback", "live", None)
    await server.serves(1, "live")
    assert await server.says("m@production") == await server.says("production") == "one w1 w2"


async def test_a_moved_alias_is_followed_at_once(server: Server, store: FileArtifactStore) -> None:
    versions = []
    for name in ("one", "two"):
        ref, version = await server.register(store, "m", name)
        await server.serves(await server.deploy(ref, name, model_version=version), name)
        versions.append(version)
    for version in (*versions, *versions):
        await server.promote(version)
        said = "one w1 w2" if version == versions[0] else "two w1 w2"
        assert (await server.says("m@production"), await server.says("production")) == (said, said)
    async with server.database.write() as session:
        await model_registry.remove_alias(session, PROJECT, "m", "production", by="test")
    assert (await server.chat("m@production"))[0] == (await server.chat("production"))[0] == 404


async def test_an_alias_of_two_models_is_refused_alone(server: Server, store: FileArtifactStore) -> None:
    for model in ("m", "n"):
        ref, version = await server.register(store, model, model)
        await server.serves(await server.deploy(ref, f"dep-{model}", model_version=version), f"dep-{model}")
        await server.promote(version)
    status, _, body = await server.chat("production")
    assert (status, body["error"]["code"], body["error"]["param"]) == (400, "model_ambiguous", "model")
    assert "m@production, n@production" in body["error"]["message"]
    assert [await server.says(f"{model}@production") for model in ("m", "n")] == ["m w1 w2", "n w1 w2"]
