"""The registry: immutable versions, movable aliases with history, lineage both ways, protection."""

import asyncio

import pytest

from burnish.core.errors import Conflict, InvalidRequest, NotFound
from burnish.core.specs import ArtifactRef, ModelCard
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.database import Database
from burnish.platform.model_registry import service
from burnish.platform.model_registry.schemas import BaseUse, DatasetUse, Lineage, NewVersion, VersionView


def ref(number: int, kind: str = "gguf") -> ArtifactRef:
    return ArtifactRef.model_validate({"digest": f"sha256:{number:064x}", "kind": kind, "size_bytes": number})


async def add(
    database: Database, number: int, name: str = "m", *, base: int | None = None, project: str = "default"
) -> VersionView:
    async with database.write() as session:
        for one in {number, base or number}:
            await artifacts.record(session, project, ref(one))
        lineage = (
            Lineage(execution="wf_1", seed=7)
            if base is None
            else Lineage(base=BaseUse(digest=ref(base).digest, licence="mit"))
        )
        view, _ = await service.register(session, project, name, NewVersion(model=ref(number), lineage=lineage), "me")
    return view


async def move(database: Database, version: int, alias: str = "production") -> None:
    async with database.write() as session:
        await service.move_alias(session, "default", "m", alias, version, by="me", reason="because")


async def at(database: Database, reference: str) -> int:
    async with database.read() as session:
        return (await service.resolve(session, "default", reference)).version


async def test_versions_count_up_and_the_same_artifacts_are_the_same_version(database: Database) -> None:
    assert [(await add(database, n)).version for n in (10, 11, 10, 12)] == [1, 2, 1, 3]
    assert await at(database, "m") == 3
    assert await at(database, "m@2") == 2
    async with database.read() as session:
        views = await service.list_versions(session, "default", "m", None, 2)
        assert [view.version for view in views] == [3, 2, 1]
        assert (await service.get_model(session, "default", "m")).versions == 3


async def test_registrations_at_once_get_numbers_of_their_own(database: Database) -> None:
    views = await asyncio.gather(*(add(database, n) for n in range(20, 30)))
    assert sorted(view.version for view in views) == list(range(1, 11))


async def test_only_what_was_published_is_registered(database: Database) -> None:
    async with database.write() as session:
        with pytest.raises(NotFound, match="no artifact"):
            await service.register(session, "default", "m", NewVersion(model=ref(99)), "me")
    await add(database, 1, project="other")
    with pytest.raises(NotFound):
        await at(database, "m")


async def test_aliases_move_remember_and_roll_back_step_by_step(database: Database) -> None:
    for number in (1, 2, 3):
        await add(database, number)
        await move(database, number)
    await move(database, 3)
    async with database.read() as session:
        history = await service.history(session, "default", "m", "production")
    assert [(one.old_version, one.new_version) for one in history] == [(None, 1), (1, 2), (2, 3)]

    async def back() -> int:
        async with database.write() as session:
            return (await service.roll_back(session, "default", "m", "production", by="me")).version

    assert [await back(), await back()] == [2, 1]
    with pytest.raises(Conflict, match="no version before"):
        await back()
    await move(database, 3)
    assert await back() == 1
    assert await at(database, "m@production") == 1


async def test_unknown_references_say_what_there_is(database: Database) -> None:
    await add(database, 1)
    await move(database, 1)
    for reference, words in (
        ("m@9", "has no version 9"),
        ("m@prod", "no alias"),
        ("n", "no model"),
        ("m@production", ""),
    ):
        if words:
            with pytest.raises(NotFound, match=words) as caught:
                await at(database, reference)
            assert caught.value.hint
    assert await at(database, "m@production") == 1
    for bad in ("", "a@b@c", "x" * 300):
        with pytest.raises(InvalidRequest):
            service.check_reference(bad)


async def test_lineage_goes_both_ways_and_carries_the_licence(database: Database) -> None:
    await add(database, 1)
    child = await add(database, 2, "child", base=1)
    assert child.licence == "mit"
    await move(database, 1)
    async with database.read() as session:
        found = await service.lineage(session, "default", "m", 1)
        made = await service.lineage(session, "default", "child", 1)
    assert found.upstream.execution == "wf_1"
    assert found.upstream.seed == 7
    assert [one.reference for one in found.derived] == ["child@1"]
    assert found.aliases == ("production",)
    assert found.promoted[0].reason == "because"
    assert made.upstream.base is not None
    assert made.upstream.base.digest == ref(1).digest


async def test_what_is_needed_cannot_be_deleted(database: Database) -> None:
    await add(database, 1)
    await add(database, 2, "child", base=1)
    await add(database, 3)
    await move(database, 2)

    async def delete(name: str, version: int) -> None:
        async with database.write() as session:
            await service.delete_version(session, "default", name, version)

    with pytest.raises(Conflict, match="was made from"):
        await delete("m", 1)
    with pytest.raises(Conflict, match="behind the alias production"):
        await delete("m", 2)
    await delete("child", 1)
    await delete("m", 1)
    async with database.write() as session:
        assert ref(1).digest not in await artifacts.live_digests(session)
        await service.remove_alias(session, "default", "m", "production", by="me")
        assert len(await service.history(session, "default", "m", "production")) == 2
    await delete("m", 2)
    assert (await add(database, 4)).version == 3, "a deleted version's number is not used again"


async def test_a_card_and_datasets_are_kept(database: Database) -> None:
    card = ModelCard(
        name="x",
        architecture="LlamaForCausalLM",
        parameters=1,
        dtype="q8_0",
        source="here",
        licence="apache-2.0",
        base=ref(5).digest,
    )
    lineage = Lineage(datasets=(DatasetUse(role="train", digest=ref(6).digest, rows=3, rows_hash="sha256:x"),))
    async with database.write() as session:
        await artifacts.record(session, "default", ref(1))
        view, created = await service.register(
            session, "default", "m", NewVersion(model=ref(1), card=card, lineage=lineage), "me"
        )
    assert created
    assert (view.licence, view.base) == ("apache-2.0", ref(5).digest)
    finder = service.ModelFinder(database)
    assert await finder("default", "nothing") is None
    found = await finder("default", "m@1")
    assert found is not None
    assert found["artifact"]["digest"] == ref(1).digest
    with pytest.raises(NotFound):
        await finder("default", "m@2")
