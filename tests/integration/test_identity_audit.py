"""The audit log: append-only, one chain whatever happens at once, and what was done to it is found."""

import asyncio
import logging
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Request
from sqlalchemy import select, text, update
from sqlalchemy.exc import DBAPIError

from burnish.core.errors import Unavailable
from burnish.infra.database import Database
from burnish.platform.identity import LOCAL, Principal, audit, store
from burnish.platform.identity.guard import Guard
from burnish.platform.identity.permission import requires, requires_unlogged
from burnish.platform.identity.refusals import Refusals
from burnish.platform.identity.relayed import Relayed
from burnish.platform.identity.seal import seal_with
from burnish.platform.identity.tables import AuditHeadRow, AuditRow

KEY = b"d" * 32
CHANGES = {
    "sqlite": ["DROP TRIGGER audit_log_no_update", "DROP TRIGGER audit_log_no_delete"],
    "postgresql": ["DROP TRIGGER audit_log_append_only ON audit_log"],
}


async def write(database: Database, number: int, actor: str = "ada") -> None:
    async with database.write() as session:
        await audit.note(
            session,
            Principal(actor, "ml"),
            "model:deploy",
            f"dep_{number}",
            {"n": number, "p": 0.25, "deep": {"b": [1, None], "a": "é"}},
        )


async def verdict(database: Database) -> audit.Verdict:
    async with database.read() as session:
        return await audit.verify(session)


async def tamper(database: Database, *statements: str) -> None:
    """Do what somebody does who owns the database."""
    async with database.write() as session:
        for statement in (*CHANGES[database.dialect], *statements):
            await session.execute(text(statement))


async def test_entries_of_many_writers_are_one_chain(database: Database) -> None:
    others = [Database(database.url) for _ in range(2)] if database.dialect == "postgresql" else []
    for one in (database, *others):
        seal_with(one, KEY)
    try:
        await asyncio.gather(*(write(one, n, f"w{w}") for w, one in enumerate([database, *others]) for n in range(40)))
    finally:
        for one in others:
            await one.dispose()
    found = await verdict(database)
    assert (found.entries, found.problems) == (40 * (1 + len(others)), ())
    assert len(found.head) == 64


async def test_a_refused_permission_is_named_whole_and_a_change_stands_in_its_project(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: `secret:***`, where the permission's own name is taken for a secret with its value."""
    monkeypatch.setattr(audit, "REFUSALS", Refusals())
    caller = Principal("ada", "default")
    audit.refused(caller, "secret:read")
    audit.refused(caller, "secret:hunter2-is-one")
    writer = audit.RefusalWriter(database)
    await writer.write()
    async with database.write() as session:
        await audit.note(session, caller, "role:give", "bnd_1", {"role": "viewer"}, project_id="ml")
    async with database.read() as session:
        rows = (await session.execute(select(AuditRow).order_by(AuditRow.number))).scalars().all()
    assert [(row.object_id, row.project_id) for row in rows] == [
        ("secret:read", "default"), ("secret:***", "default"), ("bnd_1", "ml")
    ]  # fmt: skip


async def test_an_entry_is_as_durable_as_its_change(database: Database) -> None:
    class Broken(Exception):
        pass

    await write(database, 1)

    async def broken() -> None:
        async with database.write() as session:
            await audit.note(session, LOCAL, "model:deploy", "dep_2")
            raise Broken

    with pytest.raises(Broken):
        await broken()
    assert (await verdict(database)).entries == 1


@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit_log SET actor = 'eve'", "DELETE FROM audit_log", "DELETE FROM audit_log WHERE number = 2"],
)
async def test_the_database_refuses_to_change_it(database: Database, statement: str) -> None:
    for n in range(3):
        await write(database, n)
    with pytest.raises(DBAPIError, match="append-only"):
        async with database.write() as session:
            await session.execute(text(statement))
    assert (await verdict(database)).problems == ()


INSERTED = (
    "INSERT INTO audit_log (number, at, actor, project_id, action, object_id, route, details, previous, hash) "
    "SELECT {number}, at, 'eve', project_id, action, object_id, route, details, previous, hash FROM audit_log WHERE number = 3"
)


@pytest.mark.parametrize(
    ("statements", "found"),
    [
        (("UPDATE audit_log SET actor = 'eve' WHERE number = 3",), [(3, "changed")]),
        (("UPDATE audit_log SET details = '{}' WHERE number = 3",), [(3, "changed")]),
        (("UPDATE audit_log SET project_id = 'other' WHERE number = 1",), [(1, "changed")]),
        (("DELETE FROM audit_log WHERE number = 3",), [(3, "removed")]),
        (("DELETE FROM audit_log WHERE number IN (2, 3)",), [(2, "removed")]),
        (("DELETE FROM audit_log WHERE number = 1",), [(1, "removed")]),
        (("DELETE FROM audit_log WHERE number >= 5",), [(5, "cut")]),
        (("DELETE FROM audit_log",), [(1, "cut")]),
        ((INSERTED.format(number=6),), [(6, "changed"), (6, "inserted")]),
        ((INSERTED.format(number=0),), [(0, "inserted")]),
        (("DELETE FROM audit_log WHERE number = 4", INSERTED.format(number=4)), [(4, "changed")]),
    ],
)  # fmt: skip
async def test_what_was_changed_removed_or_inserted_is_named(
    database: Database, statements: tuple[str, ...], found: list[tuple[int, str]]
) -> None:
    for n in range(5):
        await write(database, n)
    assert (await verdict(database)).problems == ()
    await tamper(database, *statements)
    problems = (await verdict(database)).problems
    assert [(one.number, one.what) for one in problems][: len(found)] == found
    assert all(str(one.number) in one.message or one.what in {"removed", "inserted"} for one in problems)


CUT = "DELETE FROM audit_log WHERE number > 2"
MOVED = "UPDATE audit_head SET number = 2, hash = (SELECT hash FROM audit_log WHERE number = 2)"


@pytest.mark.parametrize(
    ("statements", "end"),
    [
        ((CUT, MOVED), 2),
        ((CUT, f"{MOVED}, seal = NULL"), 2),
        ((CUT, f"{MOVED}, seal = '{'0' * 64}'"), 2),
        (("UPDATE audit_head SET seal = NULL",), 5),
        (("DELETE FROM audit_log", "DELETE FROM audit_head"), 0),
    ],
)
async def test_with_the_database_alone_nobody_cuts_the_log_unseen(
    database: Database, statements: tuple[str, ...], end: int
) -> None:
    """Breaks with: an end that anybody can move; and with one that the next entry covers up."""
    seal_with(database, KEY)
    for n in range(5):
        await write(database, n)
    assert (await verdict(database)).problems == ()
    await tamper(database, *statements)
    assert [(one.number, one.what) for one in (await verdict(database)).problems] == [(end, "unsealed")]
    for n in (5, 6):
        await write(database, n)
    found = await verdict(database)
    assert [(one.number, one.what) for one in found.problems] == [(end, "unsealed")], "it is told for good, and once"
    assert f"found when entry {end + 1} was written" in found.problems[0].message
    assert found.entries == end + 3


async def test_with_the_database_alone_nobody_writes_the_log_anew(database: Database) -> None:
    """Breaks with: hashes alone, which need no key."""
    seal_with(database, KEY)
    for n in range(4):
        await write(database, n)
    async with database.read() as session:
        rows = [
            {c.key: getattr(row, c.key) for c in AuditRow.__table__.columns} async for row in store.audit_rows(session)
        ]
    await tamper(database)
    async with database.write() as session:
        previous = audit.BEGINNING
        for row in rows:
            row |= {"actor": "eve", "previous": previous}
            previous = row["hash"] = audit.digest(row)
            await session.execute(update(AuditRow).where(AuditRow.number == row["number"]).values(**row))
        await session.execute(update(AuditHeadRow).values(hash=previous))
    assert [(one.number, one.what) for one in (await verdict(database)).problems] == [(4, "unsealed")]


async def test_a_running_process_knows_how_far_the_log_had_come(database: Database) -> None:
    """Breaks with: an old end, put back with its own seal. What was rolled back had not come into the log."""
    seal_with(database, KEY)
    await write(database, 1)
    async with database.read() as session:
        old = await store.head(session)
    assert old is not None

    async def rolled_back() -> None:
        async with database.write() as session:
            await audit.append(session, [audit.Entry("ada", "model:deploy", "ml")])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await rolled_back()
    assert (await verdict(database)).problems == ()
    await write(database, 2)
    await tamper(
        database, "DELETE FROM audit_log WHERE number = 2",
        f"UPDATE audit_head SET number = 1, hash = '{old.hash}', seal = '{old.seal}'",
    )  # fmt: skip
    assert [(one.number, one.what) for one in (await verdict(database)).problems] == [(1, "unsealed")]
    for n in (3, 4):
        await write(database, n)
    found = await verdict(database)
    assert ([(one.number, one.what) for one in found.problems], found.entries) == ([(1, "unsealed")], 4)


async def test_one_entry_in_anothers_place_is_found(database: Database) -> None:
    """An entry whose own hash was made to fit breaks the link of the next one; the last one breaks the head."""
    for n in range(4):
        await write(database, n)
    async with database.read() as session:
        rows = [row async for row in store.audit_rows(session)]
    for victim, expected in ((rows[1], 3), (rows[3], 4)):
        columns: dict[str, Any] = {c.key: getattr(victim, c.key) for c in victim.__table__.columns}
        forged = audit.digest({**columns, "actor": "eve"})
        async with database.write() as session:
            if victim is rows[1]:
                for statement in CHANGES[database.dialect]:
                    await session.execute(text(statement))
            await session.execute(
                text("UPDATE audit_log SET actor = 'eve', hash = :hash WHERE number = :n"),
                {"hash": forged, "n": victim.number},
            )
        assert expected in [one.number for one in (await verdict(database)).problems]


def app_over(database: Database) -> FastAPI:
    app = FastAPI()

    @app.post("/things/{name}")
    async def change(name: str, _: Principal = Depends(requires("model:write"))) -> int:  # noqa: B008
        async with database.write() as session:
            await store.ensure_project(session, name)
        async with database.write() as session:
            await store.ensure_project(session, name + "2")
        return 1

    @app.post("/named/{name}")
    async def named(name: str, caller: Principal = Depends(requires("model:write"))) -> int:  # noqa: B008
        async with database.write() as session:
            await audit.note(
                session, caller, "thing:rename", name, {"password": "hunter22", "note": "bk_abcdefgh1234_" + "s" * 40}
            )
        return 1

    @app.post("/checked")
    async def checked(_: Principal = Depends(requires_unlogged("model:write"))) -> int:  # noqa: B008
        async with database.write() as session:
            await store.ensure_project(session, "x")
        return 1

    @app.get("/read")
    async def read(request: Request, _: Principal = Depends(requires("model:read"))) -> int:  # noqa: B008
        async with database.write() as session:
            await store.ensure_project(session, "y")
        return 1

    @app.post("/failed")
    async def failed(_: Principal = Depends(requires("model:write"))) -> int:  # noqa: B008
        async with database.write():
            raise Unavailable("no")

    app.add_middleware(Guard, authenticator=None)
    return app


async def test_each_changing_request_leaves_one_entry_in_the_transaction_of_its_change(database: Database) -> None:
    transport = httpx.ASGITransport(app=app_over(database), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for method, path in (
            ("POST", "/things/one"),
            ("POST", "/named/two"),
            ("POST", "/checked"),
            ("GET", "/read"),
            ("POST", "/failed"),
        ):
            await client.request(method, path, headers={"x-request-id": f"req{path.replace('/', '-')}"})
    async with database.read() as session:
        rows = [row async for row in store.audit_rows(session)]
    told = [(row.actor, row.action, row.object_id, row.route, row.request_id) for row in rows]
    assert told == [
        ("local", "model:write", "one", "POST /things/{name}", "req-things-one"),
        ("local", "thing:rename", "two", "POST /named/{name}", "req-named-two"),
    ]
    assert "hunter22" not in str(rows[1].details)
    assert "ssss" not in str(rows[1].details)
    assert (await verdict(database)).problems == ()


async def test_refusals_are_written_down_and_kept_while_the_database_is_away(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(audit, "REFUSALS", Refusals())
    audit.refused(Principal("eve", "ml", credential="key_1"), "model:deploy")
    audit.failed_login("abcdefgh1234")
    audit.failed_login("abcdefgh1234")
    nowhere = Database("postgresql+asyncpg://nobody@127.0.0.1:9/nothing")
    with caplog.at_level(logging.WARNING):
        await audit.RefusalWriter(nowhere).write()
    await nowhere.dispose()
    assert "not in the audit log yet" in caplog.text
    await audit.RefusalWriter(database).write()
    async with database.read() as session:
        rows = [row async for row in store.audit_rows(session)]
    assert [(row.actor, row.action, row.object_id, row.details) for row in rows] == [
        ("eve", "request:refused", "model:deploy", {}), ("abcdefgh1234", "login:failed", "", {"times": 2}),
    ]  # fmt: skip


async def test_what_is_relayed_leaves_an_entry_in_the_chain(database: Database) -> None:
    notes = Relayed(database)
    await notes.note(replace(LOCAL, credential="key_1"), "echo", "POST /platform/echo/{path}", "/platform/echo/x")
    async with database.read() as session:
        row = (await session.execute(select(AuditRow))).scalar_one()
    assert (row.actor, row.credential, row.action, row.object_id) == ("local", "key_1", "request:relayed", "echo")
    assert (row.route, row.details) == ("POST /platform/echo/{path}", {"path": "/platform/echo/x"})
    assert (await verdict(database)).problems == ()
