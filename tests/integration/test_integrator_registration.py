"""Registering, beating and deregistering, by HTTP, as administrators and with the credential of an instance."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import event

from burnish.core.configuration import Configuration, IntegratorConfiguration
from burnish.core.pages import Page
from burnish.infra import event_log
from burnish.infra.database import Database
from burnish.platform.identity import LOCAL, Principal
from burnish.platform.identity.principal import SCOPE_KEY
from burnish.platform.integrator import api, service, store
from burnish.platform.integrator.schemas import ComponentView
from burnish.platform.jobs.component_app import install_problems
from tests.support.integrating import wait_for, world
from tests.support.tiny_component import component_processes

BODY: dict[str, Any] = {
    "component_id": "gpu-1", "component_type": "echo_metric", "name": "echo", "version": "1",
    "health_endpoint": "http://127.0.0.1:9/health", "api_endpoint": "http://127.0.0.1:9", "metadata": {"gpus": 2},
}  # fmt: skip
ALL = "http://test/platform/components"
OWN = Principal(
    "service:gpu-1", everywhere=frozenset({"component"}), credential="key_1", component=("gpu-1", "echo_metric")
)


class Api:
    """The routes, asked as one principal or another."""

    def __init__(self, database: Database, **rules: Any) -> None:
        self.rules = rules
        self.principal = LOCAL
        app = FastAPI()
        install_problems(app)
        app.include_router(
            api.router(database, lambda: Configuration(integrator=IntegratorConfiguration(**self.rules)))
        )

        async def with_principal(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, SCOPE_KEY: self.principal}, receive, send)

        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(with_principal), base_url=ALL)

    async def register(self, **changed: Any) -> httpx.Response:
        return await self.client.post("/register", json=BODY | changed)

    async def get(self, component_id: str = "gpu-1") -> httpx.Response:
        return await self.client.get(f"/{component_id}")


@pytest.fixture
async def routes(database: Database) -> AsyncIterator[Api]:
    found = Api(database)
    yield found
    await found.client.aclose()


async def test_it_is_registered_as_the_mission_says(routes: Api) -> None:
    answer = await routes.register()
    assert (answer.status_code, answer.json()) == (200, {"status": "success", "component_id": "gpu-1"})
    assert answer.headers["burnish-generation"] == "1"
    found = (await routes.get()).json()
    assert (found["status"], found["source"], found["generation"]) == ("starting", "registered", 1)
    listed = (await routes.client.get(ALL, params={"component_type": "echo_metric"})).json()
    assert [one["component_id"] for one in listed["data"]] == ["gpu-1"]


def nested(levels: int) -> Any:
    found: Any = "x"
    for _ in range(levels):
        found = [found]
    return found


TOO_MUCH: list[tuple[dict[str, Any], str, str]] = [
    ({"metadata": {"a": "ü" * 32_764}}, "body.metadata", "it has 65537 bytes as JSON; at most 65536 are kept"),
    ({"metadata": {"a": nested(20)}}, "body.metadata", "it is nested deeper than 20 levels"),
    ({"metadata": {"a": nested(240)}}, "body.metadata", "it is nested deeper than 20 levels"),
    ({"metadata": {"a": float("nan")}}, "body.metadata", "it holds a number that JSON has no form for"),
    ({"health": {"warm": ["a"] * 1001}}, "body.health.warm", "at most 1000 items after validation, not 1001"),
    ({"health": {"warm": ["a", "b" * 256]}}, "body.health.warm.1", "at most 255 characters"),
    ({"health": {"warm": [1] * 100_000}}, "body.health.warm.0", "valid string"),
    ({"health": {"waiting_for": "a" * 1001}}, "body.health.waiting_for", "at most 1000 characters"),
    ({"health": {"waiting_for": "a\0"}}, "body.health.waiting_for", "match pattern"),
    ({"health": {"running_jobs": 10**30}}, "body.health.running_jobs", "less than or equal to 2147483647"),
    ({"health": {"queued_jobs": -1}}, "body.health.queued_jobs", "greater than or equal to 0"),
    ({"health": {"load": float("inf")}}, "body.health.load", "finite number"),
]
"""Of a registration or a heartbeat, with the place and what is told of it."""


async def test_what_would_burden_every_list_is_refused_with_how_much_it_is(routes: Api) -> None:
    assert (await routes.register()).status_code == 200
    for said, where, message in TOO_MUCH:
        path, body = ("/register", BODY | said) if "metadata" in said else ("/gpu-1/heartbeat", said)
        json_type = {"content-type": "application/json"}  # httpx itself writes no NaN
        answer = await routes.client.post(path, content=json.dumps(body), headers=json_type)
        assert answer.status_code == 422, said
        problems = answer.json()["problems"]
        assert [(one["where"], message in one["message"]) for one in problems] == [(where, True)], problems
    assert (await routes.get()).json()["health"] is None
    for fits in ({"metadata": {"a": "ü" * 32_763}}, {"metadata": {"a": nested(19)}}):
        assert (await routes.register(**fits)).status_code == 200
    most = {"load": 7.5, "warm": ["ü" * 255] * 1000, "waiting_for": "ü" * 1000, "running_jobs": 2**31 - 1}
    answer = await routes.client.post("/gpu-1/heartbeat", json={"health": most})
    assert answer.status_code == 200
    assert answer.json()["health"] == most | {"status": "ok", "queued_jobs": 0}


async def test_of_a_request_that_is_wrong_everywhere_a_part_is_told(routes: Api) -> None:
    answer = await routes.client.post("/register", json={f"odd-{n}": n for n in range(5000)})
    assert (answer.status_code, len(answer.json()["problems"])) == (422, 100)
    assert "100 of 5006 problems are told" in answer.json()["detail"]


async def test_registering_the_same_again_writes_nothing(routes: Api, database: Database) -> None:
    await routes.register()
    written: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE")):
            written.append(statement)

    event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    try:
        answers = await asyncio.gather(*(routes.register() for _ in range(100)))
        assert {answer.status_code for answer in answers} == {200}
        assert not written
        assert (await routes.register(version="2")).headers["burnish-generation"] == "2"
        assert written
    finally:
        event.remove(database.engine.sync_engine, "before_cursor_execute", note)
    assert (await routes.get()).json()["status"] == "starting"


async def test_a_list_is_written_anew_only_where_something_changed(
    routes: Api, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: a row that is made and written for each list; one that is shown as it was; a list of its own format."""
    for n in range(7):
        await routes.register(component_id=f"gpu-{n}", metadata={"odd": ["\u2028", 1.5, None, {"x": n}]})
    async with database.write() as session:
        for component_id, more in (
            ("gpu-2", {"weight": 0.25, "kinds": ["a", "b"]}),
            ("gpu-3", {"problem": 'it said "no"'}),
        ):
            row = await store.find(session, component_id)
            assert row is not None
            for name, value in more.items():
                setattr(row, name, value)
    written, statements = list[str](), list[str]()
    json_of = service._json_of

    def counted(row: store.Listed, *, names: bool) -> bytes:
        written.append(row.component_id)
        return json_of(row, names=names)

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "platform_components" in statement:
            statements.append(statement)

    monkeypatch.setattr(service, "_json_of", counted)
    async with database.read() as session:
        engine = session.get_bind()
    event.listen(engine, "before_cursor_execute", note)
    try:
        first = await routes.client.get(ALL, params={"limit": 5})
        assert (await routes.client.get(ALL, params={"limit": 5})).content == first.content
        assert sorted(written) == [f"gpu-{n}" for n in range(5)]
        assert len(statements) == 3, "what is shown is read once, the states of the rows each time"
        for statement in statements:
            assert "description," not in statement.replace("\n", " ")
    finally:
        event.remove(engine, "before_cursor_execute", note)
    page = Page[ComponentView].model_validate_json(first.content)
    assert page.model_dump_json().encode() == first.content, "as its model writes it"
    assert (page.has_more, page.next) == (True, "gpu-4")
    for n in (2, 3):
        alone = ComponentView.model_validate((await routes.get(f"gpu-{n}")).json())
        assert page.data[n] == alone.model_copy(update={"actions": None})
    written.clear()
    assert (await routes.client.post("/gpu-1/heartbeat", json={"health": {"load": 0.75}})).status_code == 200
    written.clear()
    again = (await routes.client.get(ALL, params={"limit": 5})).json()["data"]
    assert written == ["gpu-1"]
    assert again[1]["health"]["load"] == 0.75
    last = (await routes.client.get(ALL, params={"limit": 5, "after": "gpu-4"})).json()
    assert ([one["component_id"] for one in last["data"]], last["has_more"], last["next"]) == (
        ["gpu-5", "gpu-6"],
        False,
        None,
    )


async def test_the_first_registrations_at_once_are_one(routes: Api) -> None:
    answers = await asyncio.gather(*(routes.register() for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    listed = (await routes.client.get(ALL)).json()
    assert len(listed["data"]) == 1


async def test_a_flood_is_refused_by_credential(database: Database) -> None:
    routes = Api(database, registrations_per_minute=50)
    answers = await asyncio.gather(*(routes.register() for _ in range(60)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) >= 9
    assert int(refused[0].headers["retry-after"]) >= 1
    assert refused[0].json()["code"] == "busy"
    routes.principal = OWN
    assert (await routes.register()).status_code == 200, "another credential is not held to it"
    await routes.client.aclose()


async def test_whoever_is_refused_waits_for_it(database: Database) -> None:
    """Breaks with: a flood that is refused as fast as it comes, which leaves a process no time for others."""
    routes = Api(database, registrations_per_minute=1)
    assert (await routes.register()).status_code == 200
    began = time.monotonic()
    answers = await asyncio.gather(*(routes.register() for _ in range(20)))
    assert {answer.status_code for answer in answers} == {429}
    assert 0.24 < time.monotonic() - began < 4, "all at the same time"
    await routes.client.aclose()


async def test_a_credential_is_for_one_instance(routes: Api) -> None:
    routes.principal = OWN
    assert (await routes.register()).status_code == 200
    for changed, says in (
        ({"component_id": "gpu-2"}, "of the instance gpu-1"),
        ({"component_type": "other"}, "for the type echo_metric"),
    ):
        answer = await routes.register(**changed)
        assert answer.status_code == 403
        assert says in answer.json()["detail"]
    routes.principal = LOCAL
    assert (await routes.register(component_id="gpu-2")).status_code == 200
    routes.principal = OWN
    assert (await routes.client.post("/gpu-2/heartbeat")).status_code == 403
    assert (await routes.client.delete("/gpu-2")).status_code == 403
    assert (await routes.client.post("/gpu-1/heartbeat")).status_code == 200
    assert (await routes.client.delete("/gpu-1")).status_code == 204
    for stranger in (
        Principal("eve", roles=frozenset({"engineer"})), Principal("viewer", roles=frozenset({"viewer"})),
        Principal("loose", everywhere=frozenset({"component"})),
    ):  # fmt: skip
        routes.principal = stranger
        assert (await routes.register()).status_code == 403


async def test_where_nothing_may_be_sent_cannot_be_registered(routes: Api) -> None:
    for host in ("169.254.169.254", "[::ffff:169.254.169.254]", "8.8.8.8", "0xa9fea9fe", "2852039166"):
        for field in ("api_endpoint", "health_endpoint"):
            answer = await routes.register(**{field: f"http://{host}/x"})
            assert answer.status_code == 403, (host, answer.text)
    assert (await routes.get()).status_code == 404


@pytest.mark.parametrize(
    "path",
    ["/?x=", "/in?x=", "/#", "/a#b", "/a/../b", "/..", "/./b", "/a/%2e%2E/b", "/a/.%2e", "/a%2f..%2fb", "/a\\..\\b"],
)
async def test_an_endpoint_that_swallows_the_path_or_climbs_cannot_be_registered(routes: Api, path: str) -> None:
    """Breaks with: an address on an allowed host whose path is the caller's choice."""
    answer = await routes.register(api_endpoint=f"http://127.0.0.1:9{path}")
    assert (answer.status_code, answer.json()["problems"][0]["where"]) == (422, "body.api_endpoint")
    if "?" not in path:
        assert (await routes.register(health_endpoint=f"http://127.0.0.1:9{path}")).status_code == 422
    assert (await routes.get()).status_code == 404


@pytest.mark.parametrize("host", ["127.0.0.2", "localhost", "[::1]"])
async def test_health_is_not_asked_at_another_host(routes: Api, host: str) -> None:
    """Breaks with: a path, a query and a host of the caller's choice, asked by the platform again and again."""
    answer = await routes.register(health_endpoint=f"http://{host}:9/health")
    assert (answer.status_code, answer.json()["where"]) == (422, "health_endpoint")
    assert (await routes.get()).status_code == 404
    same = {"api_endpoint": "http://LocalHost:9", "health_endpoint": "http://localhost:10/up"}
    assert (await routes.register(**same)).status_code == 200


async def test_an_endpoint_may_lie_below_a_path(routes: Api) -> None:
    endpoint = {"api_endpoint": "http://127.0.0.1:9/a/b..c/", "health_endpoint": "http://127.0.0.1:9/up?deep=1"}
    assert (await routes.register(**endpoint)).status_code == 200


async def test_anothers_id_is_not_given_away(routes: Api, database: Database) -> None:
    await routes.register()
    answer = await routes.register(component_type="other")
    assert answer.status_code == 409
    assert "already the id of a echo_metric" in answer.json()["detail"]


async def test_an_older_incarnations_heartbeat_revives_nothing(routes: Api, database: Database) -> None:
    await routes.register()
    await routes.register(version="2")
    answer = await routes.client.post("/gpu-1/heartbeat", json={"generation": 1})
    assert answer.status_code == 409
    beaten = await routes.client.post("/gpu-1/heartbeat", json={"generation": 2, "health": {"load": 0.5}})
    assert beaten.status_code == 200
    assert beaten.json()["health"]["load"] == 0.5
    assert (await routes.client.post("/gpu-1/heartbeat")).status_code == 200
    assert (await routes.client.post("/nobody/heartbeat")).status_code == 404
    wrongs: tuple[Any, ...] = ({"generation": -1}, {"generation": "x"}, {"health": {"load": -1}}, [])
    for wrong in wrongs:
        assert (await routes.client.post("/gpu-1/heartbeat", json=wrong)).status_code == 422


async def test_deregistering_drains_first(database_url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "DRAIN_SECONDS", 1.5)
    with component_processes("a", "b") as (a, b):
        async with world(database_url, home) as found:
            routes = Api(found.database)
            for one in (a, b):
                await found.register(one.name, one.url)
            await found.until_known("a", "b")
            b.control(delay=1)
            slow = [asyncio.create_task(found.call("POST", timeout=20)) for _ in range(6)]
            await asyncio.sleep(0.2)
            assert (await routes.client.delete("/b")).status_code == 204
            assert (await routes.get("b")).json()["status"] == "draining"
            assert (await routes.client.delete("/b")).status_code == 204, "twice is once"
            assert (await routes.client.post("/b/heartbeat")).json()["status"] == "draining"
            await found.until_known("b", status="draining")
            assert {(await found.call())["name"] for _ in range(20)} == {"a"}
            assert "b" in {(await one)["name"] for one in slow}, "what was under way ends well"
            await wait_for(lambda: "b" not in found.integrator.instances)
            assert (await routes.get("b")).status_code == 404
            assert (await routes.client.delete("/b")).status_code == 404
            await found.register("b", b.url)
            await found.until_known("b")
            await routes.client.aclose()


async def test_an_unknown_protocol_version_is_listed_with_the_reason_and_gets_no_work(
    database_url: str, home: Path
) -> None:
    with component_processes("a", "b") as (a, b):
        async with world(database_url, home) as found:
            b.control(version=2)
            for one in (a, b):
                await found.register(one.name, one.url)
            await found.until_known("a")
            odd = await found.until("b", lambda one: one.status == "unhealthy")
            assert odd.protocol_version == "2"
            assert odd.problem == "it speaks protocol version 2; known here: 1"
            assert {(await found.call())["name"] for _ in range(20)} == {"a"}
            b.control(version=1)
            await found.until_known("b")
            b.control(version=2)
            await found.register("b", b.url, metadata={"upgraded": True})
            await found.until("b", lambda one: one.status == "unhealthy" and one.kinds == ())


async def test_every_action_is_an_event_with_its_cause(database_url: str, home: Path) -> None:
    with component_processes("a") as (a,):
        async with world(database_url, home) as found:
            await found.register("a", a.url)
            await found.until_known("a")
            a.kill()
            await found.until("a", lambda one: one.status == "lost")
            a.start()
            back = await found.until("a", lambda one: one.status == "healthy")
            async with found.database.read() as session:
                events = await event_log.read(session, subject="a")
    actions = [one.data for one in events if one.type == "action"]
    assert [one["action"] for one in actions] == ["alert", "route_around", "alert_ended", "take_back"]
    assert (actions[0]["name"], actions[0]["failures"]) == ("component_health_check_failed", 4)
    assert "cannot be reached" in str(actions[1]["cause"])
    assert [one.action for one in back.actions or ()] == [one["action"] for one in actions]


async def test_only_so_many_instances(routes: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MOST_INSTANCES", 3)
    answers = [await routes.register(component_id=f"i{n}") for n in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
