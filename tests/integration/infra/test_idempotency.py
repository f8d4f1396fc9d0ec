import asyncio

import pytest

from burnish.core.errors import IdempotencyMismatch, MalformedRequest
from burnish.infra import idempotency
from burnish.infra.database import Database
from burnish.infra.idempotency import StoredResponse

ROUTE = "POST /platform/workflows/run"


async def create(
    database: Database, key: str, body: object, made: list[int], *, fails: asyncio.Event | None = None
) -> StoredResponse:
    """What a creating handler does."""
    digest = idempotency.body_digest(body)  # type: ignore[arg-type]
    async with database.write() as session:
        if (stored := await idempotency.remembered(session, "p", key, ROUTE, digest)) is not None:
            return stored
        await asyncio.sleep(0.02)
        if fails is not None:
            fails.set()
            raise RuntimeError("the work failed")
        made.append(len(made))
        answer = StoredResponse(200, {"workflow_id": f"wf_{len(made)}"})
        await idempotency.remember(session, "p", key, ROUTE, digest, answer.status, answer.body)
        return answer


async def test_the_same_request_gets_the_same_answer(database: Database) -> None:
    made: list[int] = []
    first = await create(database, "k", {"a": 1, "b": 2}, made)
    assert await create(database, "k", {"b": 2, "a": 1}, made) == first
    assert await create(database, "k2", {"a": 1, "b": 2}, made) != first
    assert len(made) == 2


async def test_another_body_is_a_mismatch(database: Database) -> None:
    made: list[int] = []
    await create(database, "k", {"a": 1}, made)
    with pytest.raises(IdempotencyMismatch, match="another body"):
        await create(database, "k", {"a": 2}, made)
    assert len(made) == 1


async def test_projects_and_routes_do_not_share_keys(database: Database) -> None:
    async with database.write() as session:
        for project, route in (("p", "a"), ("p", "b"), ("q", "a")):
            assert await idempotency.remembered(session, project, "k", route, "d") is None
            await idempotency.remember(session, project, "k", route, "d", 200, f"{project}{route}")
    async with database.write() as session:
        assert await idempotency.remembered(session, "q", "k", "a", "d") == StoredResponse(200, "qa")


async def test_concurrent_duplicates_do_the_work_once(database: Database) -> None:
    made: list[int] = []
    answers = await asyncio.gather(*(create(database, "k", {"a": 1}, made) for _ in range(8)))
    assert len(made) == 1
    assert len({str(answer.body) for answer in answers}) == 1


async def test_a_failed_request_leaves_the_key_free(database: Database) -> None:
    made: list[int] = []
    claimed = asyncio.Event()
    first = asyncio.create_task(create(database, "k", 1, made, fails=claimed))
    await claimed.wait()
    assert (await create(database, "k", 1, made)).status == 200
    with pytest.raises(RuntimeError):
        await first
    assert len(made) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\t", "ümlaut"])
def test_a_key_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(MalformedRequest):
        idempotency.check_key(key)


def test_bodies_are_told_apart() -> None:
    assert idempotency.body_digest({"a": 1, "b": 2}) == idempotency.body_digest({"b": 2, "a": 1})
    assert len({idempotency.body_digest(body) for body in (b"1", b"2", "1", None)}) == 4


async def test_old_keys_are_forgotten(database: Database) -> None:
    made: list[int] = []
    await create(database, "k", 1, made)
    async with database.write() as session:
        assert await idempotency.prune(session, 3600) == 0
        assert await idempotency.prune(session, -1) == 1
    await create(database, "k", 2, made)
    assert len(made) == 2
