"""Lists of instances: as the model of the API writes them, however odd, and never as they were before."""

import json
import math
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.pages import Page
from burnish.core.protocol import Health, Registration
from burnish.core.states import InstanceState
from burnish.infra.database import Database
from burnish.platform.identity import LOCAL, Principal
from burnish.platform.identity.principal import SCOPE_KEY
from burnish.platform.integrator import api, service, store
from burnish.platform.integrator.schemas import ActionView, ComponentView
from burnish.platform.integrator.tables import ComponentTable
from burnish.platform.jobs.component_app import install_problems

ALL = "/platform/components"
ODD: dict[str, dict[str, Any]] = {
    "plain": {},
    "never-looked-at": {"status": None, "health": None, "kinds": None, "registered_at": None, "state_since": None,
                        "metadata_": None, "health_endpoint": None, "api_endpoint": None},
    "refused": {"status": InstanceState.UNHEALTHY, "protocol_version": "99", "problem_kind": "unfit", "failures": 4,
                "problem": 'it speaks "99",\n\tnot \\1 \u2028 \x7f \x1f'},
    "described": {"description": {"kinds": ["x" * 20_000]}, "kinds": ["sft", "größer"], "actions": [
        {"at": "2026-11-29T12:00:00+00:00", "action": "alert", "cause": "four in a row"}]},
    "unicode": {"name": "名前 🔥 \u202e", "version": "é", "metadata_": {"ключ": ["ä", None, True, {"": "\ud7ff\ue000"}]}},
    "numbers": {"metadata_": {"big": 2**70, "small": -(2**63), "tiny": 5e-324, "wide": 1e22, "third": 1 / 3, "minus": -0.0}},
    "floats": {"weight": 1 / 3, "state_since": 1764418614.1469839, "generation": 2**31 - 1},
    "whole-second": {"last_heartbeat": datetime(2026, 11, 29, 12, tzinfo=UTC), "state_since": 1764418614.0, "weight": 0.0},
    "loaded": {"health": Health(load=0.1 + 0.2, running_jobs=3, waiting_for="memory", warm=("a", "b")).model_dump(mode="json")},
    "told-little": {"health": {"load": 0.5}},
    "told-more": {"health": {"warm": None, "mood": "good", "status": "degraded"}},
    "inside": {"embedded": True, "source": "embedded", "node": "laptop", "restarts": 2,
               "restart_requested_at": datetime(2026, 1, 2, 3, 4, 5, 600, tzinfo=UTC)},
}  # fmt: skip
"""What is odd about rows, by their ids."""


CALLERS = {
    "local": LOCAL,
    "of red": Principal("ada", "red", roles=frozenset({"administrator"})),
    "of all": Principal("eva", "red", everywhere=frozenset({"viewer"})),
    "no viewer of all": Principal("ivo", "red", roles=frozenset({"viewer"}), everywhere=frozenset({"component"})),
}


@pytest.fixture
async def client(database: Database) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the routes; the header `as` says who asks."""
    app = FastAPI()
    install_problems(app)
    app.include_router(api.router(database))

    async def asked(scope: Any, receive: Any, send: Any) -> None:
        caller = CALLERS[dict(scope["headers"]).get(b"as", b"local").decode()]
        await app({**scope, SCOPE_KEY: caller}, receive, send)

    transport = httpx.ASGITransport(asked)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as opened:
        yield opened


async def register(database: Database, rows: dict[str, dict[str, Any]]) -> None:
    async with database.write() as session:
        for component_id, odd in rows.items():
            endpoint = "http://127.0.0.1:9"
            registration = Registration(
                component_id=component_id, component_type="echo", name=component_id, version="1",
                health_endpoint=f"{endpoint}/health", api_endpoint=endpoint, metadata={"gpus": 2},
            )  # fmt: skip
            row = await service.register(session, registration)
            for name, value in odd.items():
                setattr(row, name, value)


async def change(database: Database, component_id: str, **values: Any) -> None:
    async with database.write() as session:
        row = await service.get(session, component_id, lock=True)
        for name, value in values.items():
            setattr(row, name, value)


async def listed(client: httpx.AsyncClient, **params: Any) -> dict[str, Any]:
    answer = await client.get(ALL, params=params)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return {one["component_id"]: one for one in answer.json()["data"]}


def expected(row: ComponentTable) -> ComponentView:
    """Return how a row is shown, made by the model with all of its checks."""
    return ComponentView(
        id=row.id, component_id=row.component_id, component_type=row.component_type, name=row.name, version=row.version,
        status=InstanceState(row.status or "starting"), health_endpoint=row.health_endpoint or "",
        api_endpoint=row.api_endpoint or "", metadata=row.metadata_ or {}, registered_at=row.registered_at,
        last_heartbeat=row.last_heartbeat, embedded=row.embedded, source=row.source, node=row.node,
        generation=row.generation, protocol_version=row.protocol_version,
        since=None if row.state_since is None else datetime.fromtimestamp(row.state_since, UTC),
        weight=1.0 if row.weight is None else row.weight, kinds=tuple(row.kinds or ()),
        health=row.health and Health.model_validate({k: v for k, v in row.health.items() if v is not None}),
        failures=row.failures, problem=row.problem, problem_kind=row.problem_kind, restarts=row.restarts,
        restart_requested_at=row.restart_requested_at,
    )  # fmt: skip


async def test_odd_instances_are_listed_as_the_model_writes_them(client: httpx.AsyncClient, database: Database) -> None:
    """Breaks with: a field that is missing, misplaced or of another form; a value that the quick writer cannot write."""
    await register(database, ODD)
    async with database.read() as session:
        views = [expected(await service.get(session, component_id)) for component_id in ODD]
    content = (await client.get(ALL)).content
    found = Page[ComponentView].model_validate_json(content)
    assert {one.component_id: one for one in found.data} == {one.component_id: one for one in views}
    assert content == found.model_dump_json().encode(), "to the byte"
    assert content == (await client.get(ALL)).content, "and so again, as it was kept"
    for component_id, odd in ODD.items():
        alone = ComponentView.model_validate((await client.get(f"{ALL}/{component_id}")).json())
        actions = tuple(ActionView.model_validate(one) for one in odd.get("actions", ()))
        assert alone.actions == actions
        assert alone.model_copy(update={"actions": None}) in found.data


CHANGES: dict[str, tuple[Any, ...]] = {
    "state_since": (1764418614.146983, math.nextafter(1764418614.146984, math.inf), None),
    "weight": (0.1, math.nextafter(0.1, 1), None),
    "problem": ("it is away", "it is away ", "", None),
    "health": ({"load": 0.3}, {"load": 0.30000000000000004}, {"load": 1}, None),
    "metadata_": ({"a": "1"}, {"a": 1}, {"a": None}, {}),
    "kinds": (["a", "b"], ["a,b"], ['a","b'], []),
    "last_heartbeat": (datetime(2026, 1, 1, 0, 0, 0, 1, UTC), datetime(2026, 1, 1, 0, 0, 0, 2, UTC), None),
    "status": (InstanceState.LOST, InstanceState.DRAINING, None),
    "node": ("NULL", None, ""),
}
"""Values that are easily taken for each other, one after the other, by their columns."""


async def test_a_list_shows_what_has_just_changed(client: httpx.AsyncClient, database: Database) -> None:
    """Breaks with: a state of a row that does not tell two values apart."""
    await register(database, {"one": {}, "other": {}})
    before = await listed(client)
    for column, values in CHANGES.items():
        for value in values:
            await change(database, "one", **{column: value})
            async with database.read() as session:
                wanted = json.loads(expected(await service.get(session, "one")).model_dump_json())
            assert await listed(client) == {"one": wanted, "other": before["other"]}, (column, value)


async def test_what_others_have_is_named_to_who_sees_every_project(
    client: httpx.AsyncClient, database: Database
) -> None:
    """Breaks with: names of another project's models and jobs in a list, of one instance, or in what was kept for others."""
    await register(database, ODD)
    whole = await listed(client)
    assert (whole["loaded"]["health"]["warm"], whole["loaded"]["health"]["waiting_for"]) == (["a", "b"], "memory")
    nameless = {
        name: one | {"health": one["health"] and one["health"] | {"warm": [], "waiting_for": None}}
        for name, one in whole.items()
    }
    assert nameless["loaded"]["health"]["running_jobs"] == 3
    for who, seen in (("of red", nameless), ("of all", whole), ("no viewer of all", nameless), ("local", whole)) * 2:
        client.headers["as"] = who
        assert await listed(client) == seen, who
        for component_id, one in seen.items():
            alone = (await client.get(f"{ALL}/{component_id}")).json()
            assert alone | {"actions": None} == one, who


async def test_all_of_many_are_one_page(client: httpx.AsyncClient, database: Database) -> None:
    await register(database, {f"i-{n}": {} for n in range(60)})
    assert len(await listed(client)) == 50
    assert len(await listed(client, limit=1000)) == 60
    assert (await client.get(ALL, params={"limit": 1001})).status_code == 422


async def test_what_is_filtered_is_kept_too_and_what_is_gone_is_not_shown(
    client: httpx.AsyncClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: a row that was removed, or no longer is what was asked for, between the two looks of one list."""
    await register(database, {"a": {}, "b": {"status": "healthy"}, "c": {"status": "healthy"}, "d": {"status": "lost"}})
    assert list(await listed(client, status=["healthy", "lost"])) == ["b", "c", "d"]
    states = store.states

    async def and_then(session: AsyncSession, wanted: store.Wanted, limit: int) -> list[tuple[str, str]]:
        found = await states(session, wanted, limit)
        return [*found, ("zz-gone", "seen")] if wanted.after is None else found

    monkeypatch.setattr(store, "states", and_then)
    assert list(await listed(client, status="healthy")) == ["b", "c"]
    assert list(await listed(client, status="healthy", after="b")) == ["c"]
    await change(database, "c", status="unhealthy")
    assert list(await listed(client, status="healthy")) == ["b"]
    async with database.write() as session:
        await store.remove(session, "b")
    assert await listed(client, status="healthy") == {}


async def test_the_same_id_registered_anew_is_another(client: httpx.AsyncClient, database: Database) -> None:
    await register(database, {"one": {}})
    first = (await listed(client))["one"]
    async with database.write() as session:
        await store.remove(session, "one")
    await register(database, {"one": {}})
    assert (await listed(client))["one"]["id"] != first["id"]


def _nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


async def test_an_instance_that_cannot_be_shown_whole_hides_no_other(
    client: httpx.AsyncClient, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Breaks with: writing what was stored before there was a bound; one row's fault that ends the whole list."""
    await register(database, {
        "broken": {"kinds": ["sft", _nested(300)]}, "deep": {"metadata_": {"x": _nested(253)}}, "well": {},
    })  # fmt: skip
    answer = await client.get(ALL)
    assert answer.status_code == 200, answer.text
    shown = {one["component_id"]: one for one in answer.json()["data"]}
    assert (shown["deep"]["metadata"], shown["deep"]["status"]) == ({}, "starting")
    assert (shown["broken"]["kinds"], shown["broken"]["name"]) == ([], "broken")
    assert shown["well"]["metadata"] == {"gpus": 2}
    assert [record.args for record in caplog.records if "cannot be shown" in record.message] == [("broken",)]
    one = await client.get(f"{ALL}/deep")
    assert (one.status_code, one.json()["metadata"]) == (200, {})
