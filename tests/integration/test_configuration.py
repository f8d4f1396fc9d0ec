"""Versions of the configuration: who may change what, what is checked before, and what a process makes of it."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import bindparam, text

from burnish.core.configuration import Configuration
from burnish.core.errors import BurnishError, InvalidRequest, Unavailable
from burnish.infra.database import Database, JsonB
from tests.support.configured import (
    ADMINISTRATOR,
    BASE,
    ENGINEER,
    PROJECT_ADMINISTRATOR,
    VIEWER,
    Configured,
    configured,
)
from tests.support.waiting import until

BURST = "gateway.per_key.burst"


@pytest.fixture
async def one(database: Database, home: Path) -> AsyncIterator[Configured]:
    async with configured(database, home) as found:
        yield found


async def rows(database: Database, statement: str) -> list[Any]:
    async with database.read() as session:
        return [tuple(row) for row in await session.execute(text(statement))]


async def test_a_change_is_a_version_that_can_be_read_compared_and_taken_back(one: Configured) -> None:
    first = await one.change({BURST: 7, "logging.level": "debug"}, reason="try")
    assert (first["previous"], first["version"], first["restart_needed"]) == (0, 1, [])
    assert one.live.current().gateway.per_key.burst == 7
    second = await one.change({"gateway": {"per_key": {"burst": 9}}}, unset=("logging",), reason="again")
    assert [(c["key"], c["old"], c["new"], c["new_given"]) for c in second["changed"]] == [
        (BURST, 7, 9, True), ("logging.level", "debug", None, False),
    ]  # fmt: skip
    assert one.live.current().logging.level == "info"
    page = await one.get("/versions", limit=1)
    assert (page["has_more"], page["next"], page["data"][0]["reason"], page["data"][0]["author"]) == (
        True,
        "2",
        "again",
        "alice",
    )
    assert [v["number"] for v in (await one.get("/versions", after=2))["data"]] == [1]
    assert (await one.get("/versions/1"))["overrides"][0] == {"key": BURST, "value": 7, "hidden": False, "since": 1}
    assert [c["key"] for c in (await one.get("/diff", older=0, newer=2))["changed"]] == [BURST]
    back = (await one.client.post(BASE + "/rollback", json={"to": 1, "reason": "no"})).json()
    assert (back["version"], one.live.current().gateway.per_key.burst, one.live.current().logging.level) == (
        3,
        7,
        "debug",
    )
    assert (await one.get("/diff", older=1, newer=3))["changed"] == []
    assert (await one.client.post(BASE + "/rollback", json={"to": 9})).status_code == 404
    assert (await one.client.post(BASE + "/rollback", json={"to": 0})).json()["version"] == 4
    assert one.live.current() == Configuration()


async def test_what_changes_nothing_makes_no_version(one: Configured) -> None:
    await one.change({BURST: 7})
    assert (await one.change({BURST: 7}))["version"] == 1
    assert (await one.change({"gateway.per_key": {"burst": 7}}))["changed"] == []
    assert (await one.change(unset=("gateway.per_project", "logging")))["version"] == 1
    assert (await one.client.post(BASE + "/rollback", json={"to": 1})).json()["version"] == 1


async def test_a_dry_run_says_everything_and_changes_nothing(one: Configured) -> None:
    def check(wanted: Configuration) -> None:
        if wanted.gateway.max_in_flight > 100:
            raise Unavailable("there is no room", hint="buy some")

    one.live.subscribe("pool", lambda _: None, check)
    would = await one.change({"gateway.max_in_flight": 500, "jobs.cancel_grace_seconds": 3}, dry_run=True)
    assert (would["version"], would["dry_run"], would["restart_needed"]) == (0, True, ["jobs.cancel_grace_seconds"])
    assert would["refusals"] == [{"where": "pool", "message": "there is no room", "hint": "buy some"}]
    refused = await one.patch({"gateway.max_in_flight": 500})
    assert (refused.status_code, refused.json()["problems"]) == (422, would["refusals"])
    assert (await one.get("/versions"))["data"] == []
    assert one.live.current() == Configuration()
    assert (await one.patch({BURST: "x"}, dry_run=True)).status_code == 422


async def test_two_writers_at_once_one_is_told_what_the_other_changed(one: Configured) -> None:
    answers = await asyncio.gather(*(one.patch({BURST: n}, expected_version=0, reason=str(n)) for n in (5, 6)))
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    won = next(n for n, answer in zip((5, 6), answers, strict=True) if answer.status_code == 200)
    lost = next(answer for answer in answers if answer.status_code == 409).json()
    assert lost["problems"] == [{"where": BURST, "message": f"was not set, is {won}", "hint": None}]
    assert "by alice" in lost["detail"]
    assert (await one.patch({BURST: 5}, expected_version=7)).status_code == 409
    assert (await one.change({BURST: 8}, expected_version=1))["version"] == 2


async def test_writers_that_expect_nothing_lose_nothing(one: Configured) -> None:
    """Breaks with: a version that is read before the lock, so that one writer's key goes under."""
    keys = ["gateway.max_in_flight", "gateway.per_key.burst", "gateway.per_project.burst", "integrator.ejection_seconds",
            "integrator.probe_seconds", "identity.key_days", "gateway.idle_timeout_seconds", "gateway.max_body_bytes"]  # fmt: skip
    values = [11, 12, 13, 14, 15, 16, 17, 18_000]
    done = await asyncio.gather(*(one.change({key: value}) for key, value in zip(keys, values, strict=True)))
    assert sorted(answer["version"] for answer in done) == list(range(1, 9))
    assert {o["key"]: o["value"] for o in (await one.get("/versions/8"))["overrides"]} == dict(
        zip(keys, values, strict=True)
    )


async def test_everything_that_is_wrong_is_told_and_nothing_is_changed(one: Configured) -> None:
    answer = await one.patch(
        {"gateway.per_key.burts": 3, "logging.level": 3, "gateway.max_in_flight": True, BURST: 5,
         "identity.oidc.client_secret": "secret://nowhere"},
        unset=("loging", BURST),
    )  # fmt: skip
    assert answer.status_code == 422
    problems = {problem["where"]: problem for problem in answer.json()["problems"]}
    assert set(problems) == {
        "set.gateway.per_key.burts", "set.logging.level", "set.gateway.max_in_flight", "unset.loging", f"unset.{BURST}",
        "set.identity.oidc.client_secret",
    }  # fmt: skip
    assert problems["unset.loging"]["hint"] == "did you mean logging?"
    crossed = await one.patch({"integrator.lease_seconds": 4})
    assert [p["where"] for p in crossed.json()["problems"]] == ["integrator.probe_seconds"]
    assert (await one.get("/versions"))["data"] == []
    bodies: list[dict[str, Any]] = [{"set": {"a\0b": 1}}, {"set": {"gateway.requests_per_day": {"a\0": 1}}}, {"reason": "\0", "set": {BURST: 3}},
                 {"set": []}, {"sett": {}}, {"unset": ["x" * 300]}, {"expected_version": -1}]  # fmt: skip
    for body in bodies:
        assert (await one.client.patch(BASE, json=body)).status_code == 422, body
    for path in (
        "/explain/gateway.max_inflight",
        "/explain/process.hom",
        "/versions/1",
        "/export?environment=prodution",
    ):
        found = await one.client.get(BASE + path)
        assert (found.status_code, bool(found.json()["hint"])) == (404, True), path
    assert (await one.patch({BURST: 3}, environment="prodution")).json()["hint"] == "did you mean production?"


async def test_who_may_see_and_change_what(one: Configured) -> None:
    networks = ["10.0.0.0/8"]
    await one.change({"integrator.allowed_networks": networks, BURST: 5})
    sensitive = "integrator.allowed_networks"
    for caller in (VIEWER, ENGINEER, PROJECT_ADMINISTRATOR):
        one.caller = caller
        refused = await one.patch({BURST: 6})
        assert (refused.status_code, refused.json()["where"]) == (403, "configuration:write"), caller
    one.caller = VIEWER
    assert (await one.client.get(BASE)).status_code == 403
    one.caller = ENGINEER
    seen = [
        await one.get(), await one.get(f"/explain/{sensitive}"), await one.get("/versions"), await one.get("/versions/1"),
        await one.get("/diff", older=0, newer=1), (await one.client.get(BASE + "/export")).text,
    ]  # fmt: skip
    assert "10.0.0.0/8" not in json.dumps([*seen[:1], *seen[1:]]).replace('"10.0.0.0/8", "172.16.0.0/12"', "")
    assert seen[1]["hidden"] is True
    assert f"{sensitive} is left out" in seen[5]
    assert {s["key"]: s["value"] for s in seen[0]["settings"]}[BURST] == 5
    one.caller = ADMINISTRATOR
    assert await one.value(sensitive) == networks


async def test_a_change_leaves_an_entry_without_what_is_sensitive(one: Configured) -> None:
    await one.change({"integrator.allowed_networks": ["10.9.0.0/16"], BURST: 5}, reason="smaller")
    entries = await rows(one.database, "SELECT action, actor, details FROM audit_log")
    assert [entry[0] for entry in entries] == ["configuration:change"]
    events = await rows(one.database, "SELECT subject, data FROM events")
    assert [event[0] for event in events] == ["configuration/development"]
    written = str(entries) + str(events)
    assert "10.9.0.0" not in written
    assert BURST in written
    assert "smaller" in written


async def test_explain_tells_every_layer_and_which_won(database: Database, home: Path, tmp_path: Path) -> None:
    file = tmp_path / "burnish.yaml"
    file.write_text(
        "gateway: {max_in_flight: 2}\n\nenvironments:\n  production:\n    gateway:\n      max_in_flight: 3\n"
        "  eu:\n    inherits: production\n    gateway:\n      max_in_flight: 4\n"
    )
    variables = {"BURNISH_CONFIGURATION__gateway__max_in_flight": "7"}
    async with configured(database, home, variables=variables, config=file, environment="eu") as one:
        await one.change({"gateway.max_in_flight": 5}, environment="production", reason="for all")
        changed = await one.change({"gateway.max_in_flight": 6}, reason="for eu")
        assert changed["overridden"] == ["gateway.max_in_flight"]
        found = await one.get("/explain/gateway.max_in_flight")
        assert [(x["layer"], x["value"], x["origin"], x["author"], x["reason"], x["won"]) for x in found["layers"]] == [
            ("defaults", 1000, "Burnish itself", None, None, False), ("file", 2, f"{file}:1", None, None, False),
            ("environment", 3, f"{file}:6", None, None, False), ("environment", 4, f"{file}:10", None, None, False),
            ("database", 5, "version 1 of production", "alice", "for all", False),
            ("database", 6, "version 1 of eu", "alice", "for eu", False),
            ("process", 7, "BURNISH_CONFIGURATION__gateway__max_in_flight", None, None, True),
        ]  # fmt: skip
        assert (found["value"], one.live.current().gateway.max_in_flight) == (7, 7)
        elsewhere = await one.get("/explain/gateway.max_in_flight", environment="production")
        assert (elsewhere["value"], [x["layer"] for x in elsewhere["layers"] if not x["given"]]) == (5, ["process"])
        production = {s["key"]: s for s in (await one.get(environment="production"))["settings"]}
        assert production["gateway.max_in_flight"]["origin"] == "version 1 of production"
        process = await one.get("/explain/process.home")
        assert (process["value"], process["change"], process["layers"][1]["origin"]) == (
            str(home),
            "restart",
            "BURNISH_HOME or --home",
        )
        await one.change(unset=("gateway.max_in_flight",), environment="eu")
        again = await one.get("/explain/gateway.max_in_flight")
        assert [x["value"] for x in again["layers"] if x["layer"] == "database"] == [5]


async def test_what_needs_a_restart_waits_for_it(database: Database, home: Path) -> None:
    async with configured(database, home) as one:
        changed = await one.change({"jobs.cancel_grace_seconds": 3, BURST: 5})
        assert changed["restart_needed"] == ["jobs.cancel_grace_seconds"]
        assert (one.live.current().jobs.cancel_grace_seconds, one.live.current().gateway.per_key.burst) == (10.0, 5)
        shown = await one.get()
        assert shown["restart_needed"] == ["jobs.cancel_grace_seconds"]
        assert one.live.status().restart_needed == ("jobs.cancel_grace_seconds",)
        back = await one.change({"jobs.cancel_grace_seconds": 10})
        assert (back["restart_needed"], (await one.get())["restart_needed"]) == ([], [])
        await one.change({"jobs.cancel_grace_seconds": 3})
    async with configured(database, home) as one:
        assert one.live.current().jobs.cancel_grace_seconds == 3
        assert (await one.get())["restart_needed"] == []


async def test_export_and_import_are_each_others_reverse(one: Configured) -> None:
    await one.change({
        BURST: 5, "gateway.per_route": {"/v1/models": {"requests_per_second": 1e-7, "burst": 3}},
        "gateway.requests_per_day": {"1e3": 5, "yes": 6, "a: b #": 0}, "identity.oidc.client_id": "1e5",
        "integrator.allowed_networks": [], "identity.oidc.roles_claim": None,
    })  # fmt: skip
    document = (await one.client.get(BASE + "/export")).text
    same = (await one.client.post(BASE + "/import", json={"document": document})).json()
    assert (same["changed"], same["version"]) == ([], 1)
    there = (await one.client.post(BASE + "/import", json={"document": document, "environment": "staging"})).json()
    assert there["version"] == 1
    exported = (await one.client.get(BASE + "/export", params={"environment": "staging"})).text
    assert exported.partition("\n")[2] == document.partition("\n")[2]
    emptied = (await one.client.post(BASE + "/import", json={"document": "", "reason": "nothing"})).json()
    assert (emptied["version"], len(emptied["changed"])) == (2, 6)
    assert (await one.get("/versions/2"))["overrides"] == []
    assert (await one.client.get(BASE + "/export", params={"version": 1})).text == document


@pytest.mark.parametrize(
    ("document", "where"),
    [("gateway:\n  per_key: {burst: x}", "document:2"), ("a: [", "document:1"), ("environments: {eu: {}}", "document"), ("x: 1", "document:1")],
)  # fmt: skip
async def test_an_import_that_is_wrong_says_in_which_line(one: Configured, document: str, where: str) -> None:
    answer = await one.client.post(BASE + "/import", json={"document": document})
    assert (answer.status_code, answer.json()["problems"][0]["where"]) == (422, where)


async def test_a_part_that_refuses_keeps_the_whole_process_on_what_it_had(database: Database, home: Path) -> None:
    """Breaks with: parts that are left on different versions, or a refusal that nobody can see."""
    seen: list[int] = []

    def refuse(now: Configuration) -> None:
        if now.gateway.per_key.burst == 13:
            raise ValueError("an unlucky number")

    async with configured(database, home) as one, configured(database, home, process="second") as other:
        one.live.subscribe("first", lambda now: seen.append(now.gateway.per_key.burst))
        one.live.subscribe("superstitious", refuse)
        await other.change({BURST: 12, "logging.level": "warning"})
        await until(lambda: one.live.version == 1)
        await other.change({BURST: 13, "logging.level": "error"})
        await until(lambda: one.live.status().refused == {"development": 2})
        assert other.live.version == 2
        assert (one.live.version, one.live.current().logging.level, one.live.current().gateway.per_key.burst) == (
            1,
            "warning",
            12,
        )
        assert seen == [400, 12, 13, 12]
        await until(lambda: one.live._told is not None and one.live._told.refused is not None)
        states = {p["process"]: p for p in (await other.get("/status"))["data"]}
        assert (states["first"]["state"], states["second"]["state"]) == ("refuses", "obeys")
        assert states["first"]["problems"] == [{"where": "superstitious", "message": "an unlucky number", "hint": None}]
        assert (states["first"]["versions"], states["first"]["newest"]) == ({"development": 1}, {"development": 2})
        refused = [data for _, data in await rows(database, "SELECT id, data FROM events WHERE type = 'state'")]
        assert "an unlucky number" in str(refused[-1])
        await other.change({BURST: 14})
        await until(lambda: one.live.version == 3)
        assert (one.live.current().logging.level, one.live.status().problems) == ("error", ())


async def test_a_start_with_a_version_that_cannot_be_obeyed_takes_the_newest_that_can(
    database: Database, home: Path
) -> None:
    async with configured(database, home) as one:
        for lease in (50, 40, 7):
            await one.change({"integrator.lease_seconds": lease})
    slow = {"BURNISH_CONFIGURATION__integrator__probe_seconds": "45"}
    async with configured(database, home, variables=slow) as one:
        assert (one.live.version, one.live.current().integrator.lease_seconds) == (1, 50)
        assert one.live.status().refused == {"development": 3}
        assert (await one.patch({BURST: 5})).status_code == 422  # it would still be wrong here
        assert (await one.change({"integrator.lease_seconds": 60}))["version"] == 4
        assert (one.live.version, one.live.status().problems) == (4, ())
    async with database.write() as session:
        await session.execute(text('UPDATE configuration_versions SET overrides = \'{"logging.level": "loud"}\''))
    async with configured(database, home) as one:  # as after a downgrade: no version is right
        assert (one.live.version, one.live.current()) == (0, Configuration())
        assert "logging.level" in str(one.live.status().problems)
        assert (await one.change({"logging.level": "debug"}))["version"] == 5
        assert (one.live.version, one.live.status().problems) == (5, ())


async def test_a_key_that_there_is_no_more_is_left_out_and_goes_with_the_next_version(
    database: Database, home: Path
) -> None:
    """Breaks with: an upgrade that drops a key and so makes every process forget what the database says."""
    async with configured(database, home) as one:
        await one.change({BURST: 5})
    async with database.write() as session:
        await session.execute(
            text("UPDATE configuration_versions SET overrides = :values").bindparams(bindparam("values", type_=JsonB)),
            {"values": {BURST: 5, "gone.x": 1}},
        )
    async with configured(database, home) as one:
        assert (one.live.version, one.live.current().gateway.per_key.burst, one.live.status().problems) == (1, 5, ())
        assert "gone" in (await one.client.get(BASE + "/export")).text
        changed = (await one.change({"logging.level": "debug"}))["changed"]
        assert [c["key"] for c in changed] == ["logging.level", "gone.x"]
        assert [o["key"] for o in (await one.get("/versions/2"))["overrides"]] == [BURST, "logging.level"]


@pytest.mark.parametrize(
    ("content", "environment", "where"),
    [("gateway: {max_in_flight: x}", "development", "{file}:1"), ("logging: {}", "prodution", "BURNISH_ENVIRONMENT"),
     ("integrator: {probe_seconds: 99}", "development", "{file}:1")],
)  # fmt: skip
async def test_a_process_whose_own_layers_are_wrong_does_not_start(
    sqlite_url: str, home: Path, tmp_path: Path, content: str, environment: str, where: str
) -> None:
    file = tmp_path / "burnish.yaml"
    file.write_text(content)
    database = Database(sqlite_url)
    with pytest.raises(InvalidRequest) as caught:
        async with configured(database, home, config=file, environment=environment):
            raise AssertionError("it started")
    assert [problem.where for problem in caught.value.problems] == [where.format(file=file)]
    await database.dispose()


async def test_a_file_is_obeyed_when_it_changes_and_kept_when_it_is_wrong(
    database: Database, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "burnish.yaml"
    file.write_text("gateway: {max_in_flight: 2}\nenvironments: {eu: {}}\n")

    async with configured(database, home, config=file, environment="eu") as one:

        def burst() -> int:
            return one.live.current().gateway.per_key.burst

        await until(lambda: one.live.current().gateway.max_in_flight == 2)
        file.write_text("gateway: {per_key: {burst: 5}}\nenvironments: {eu: {}}\n")
        await until(lambda: burst() == 5, 1)
        assert one.live.current().gateway.max_in_flight == 1000
        for wrong in (
            "gateway: {per_key: {burst: x}}\nenvironments: {eu: {}}",
            "gateway: [",
            "logging: {level: debug}",
        ):
            file.write_text(wrong)
            await until(lambda: bool(one.live.status().problems), 2)
            assert (burst(), one.live.current().logging.level) == (5, "info")
            file.write_text("gateway: {per_key: {burst: 5}}\nenvironments: {eu: {}}\n")
            await until(lambda: not one.live.status().problems, 2)
        (tmp_path / "next").write_text("gateway: {per_key: {burst: 6}}\nenvironments: {eu: {}}\n")
        (tmp_path / "next").replace(file)
        await until(lambda: burst() == 6, 1)
        file.unlink()
        await until(lambda: bool(one.live.status().problems), 2)
        assert burst() == 6

        def away() -> Any:
            raise Unavailable("the database is away")

        monkeypatch.setattr(database, "read", away)  # the file is obeyed all the same
        file.write_text("gateway: {per_key: {burst: 7}}\nenvironments: {eu: {}}\n")
        await until(lambda: burst() == 7, 2)
        monkeypatch.undo()
        await one.change({BURST: 8})
        assert burst() == 8


async def test_a_mounted_file_that_is_swapped_by_its_link_is_obeyed(
    sqlite_url: str, home: Path, tmp_path: Path
) -> None:
    """As Kubernetes mounts a ConfigMap: the file is a link through ``..data``, which is swapped."""
    for number in (1, 2):
        (tmp_path / f"..{number}").mkdir()
        (tmp_path / f"..{number}" / "burnish.yaml").write_text(f"gateway: {{per_key: {{burst: {number}}}}}\n")
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "burnish.yaml").symlink_to("..data/burnish.yaml")
    database = Database(sqlite_url)
    async with configured(database, home, config=tmp_path / "burnish.yaml") as one:
        assert one.live.current().gateway.per_key.burst == 1
        (tmp_path / "..new").symlink_to("..2")
        (tmp_path / "..new").replace(tmp_path / "..data")
        await until(lambda: one.live.current().gateway.per_key.burst == 2, 1)
    await database.dispose()


async def test_without_notices_a_change_is_found_by_polling(database_url: str, home: Path) -> None:
    """Two processes that never hear of each other: neither database was started, so nothing listens."""
    first, second = Database(database_url), Database(database_url)
    try:
        async with configured(first, home) as one, configured(second, home, process="second") as other:
            for burst in (5, 6, 7):
                await one.change({BURST: burst})
                await until(lambda burst=burst: other.live.current().gateway.per_key.burst == burst, 1)  # type: ignore[misc]
    finally:
        await first.dispose()
        await second.dispose()


async def test_a_database_that_goes_away_leaves_what_was_obeyed(
    database: Database, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with configured(database, home) as one:
        await one.change({BURST: 5})

        def away() -> Any:
            raise Unavailable("the database is away")

        monkeypatch.setattr(database, "read", away)
        await until(lambda: "configuration: the database is away" in caplog.text)
        assert one.live.current().gateway.per_key.burst == 5
        with pytest.raises(BurnishError):
            await one.live.refresh()
        monkeypatch.undo()
        await one.change({BURST: 6})
        assert one.live.current().gateway.per_key.burst == 6


async def test_a_process_that_ended_is_forgotten(database: Database, home: Path) -> None:
    async with configured(database, home) as one:
        async with configured(database, home, process="second"):
            assert {p["process"] for p in (await one.get("/status"))["data"]} == {"first", "second"}
        assert {p["process"] for p in (await one.get("/status"))["data"]} == {"first"}
        async with database.write() as session:  # killed: its lease runs out
            await session.execute(text("UPDATE configuration_processes SET lease_until = lease_until - 60"))
            one.live._told = None
        await until(lambda: one.live._told is not None)
        assert {p["process"] for p in (await one.get("/status"))["data"]} == {"first"}
