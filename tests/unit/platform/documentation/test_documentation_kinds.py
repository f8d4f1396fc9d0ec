"""What components bring into the API's schema and the page of kinds, honest ones and others."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any, cast

import httpx
import jsonschema_rs
import pytest
from fastapi import FastAPI

from burnish.core.errors import DeadlineExceeded, Unavailable
from burnish.core.protocol import Description, KindOffer
from burnish.platform.documentation import api
from burnish.platform.documentation.offered import kind_schemas, third_party
from burnish.platform.documentation.openapi import ComponentRoutes, merged
from burnish.platform.identity import LOCAL
from burnish.platform.identity.principal import SCOPE_KEY
from burnish.platform.integrator import Integrator
from burnish.platform.workflow.schemas import KindView

OWN: dict[str, Any] = {"openapi": "3.1.0", "paths": {"/platform/jobs": {"get": {"responses": {"200": {"description": "x"}}}}},
                       "components": {"schemas": {"Greeting": {"type": "string"}}}}  # fmt: skip
GREET: dict[str, Any] = {
    "paths": {"/platform/greetings": {"get": {
        "tags": ["default"], "operationId": "list jobs", "responses": {"200": {"description": "hi", "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/Greeting"}}}}}}}},
    "components": {"schemas": {"Greeting": {"type": "object", "properties": {"to": {"$ref": "#/components/schemas/To"}}},
                               "To": {"type": "string"}}},
}  # fmt: skip


class Asked:
    """An integrator whose components answer /openapi.json with what a test gives."""

    def __init__(self, documents: dict[str, Any]) -> None:
        self.documents = documents

    def types(self) -> frozenset[str]:
        return frozenset(self.documents)

    async def describe(self, component_type: str) -> Description:
        return Description(component_type=component_type, version="1", routes=("/platform/greetings",))

    async def call(self, component_type: str, method: str, path: str, **more: Any) -> Any:
        assert more["timeout"] <= 3
        await asyncio.sleep(0)
        document = self.documents[component_type]
        if isinstance(document, Exception):
            raise document
        return document


async def whole(**documents: Any) -> dict[str, Any]:
    return await shown(ComponentRoutes(cast(Integrator, Asked(documents))))


async def shown(routes: ComponentRoutes) -> dict[str, Any]:
    return await merged(OWN, {"paths": {}}, routes)


async def test_a_third_partys_routes_stand_under_its_own_tag_and_name() -> None:
    document = await whole(theirs=GREET)
    operation = document["paths"]["/platform/greetings"]["get"]
    assert operation["tags"] == ["theirs"]
    assert operation["operationId"] == "theirs_list_jobs"
    reference = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    assert reference == "#/components/schemas/theirs_Greeting", "ours of that name stays what it is"
    assert document["components"]["schemas"]["Greeting"] == {"type": "string"}
    assert {"502", "503", "504"} <= operation["responses"].keys()
    assert "/platform/jobs" in document["paths"]


SOUND = GREET["paths"]["/platform/greetings"]
HUGE = {
    "parameters": [{"name": "a", "in": "query", "schema": {"maximum": 10**400}}],
    "responses": {"200": {"description": "x"}},
}


@pytest.mark.parametrize(
    "document",
    [
        None, [], "no", 7, {}, {"paths": {"/platform/greetings": {"get": HUGE}}}, {"paths": []}, {"paths": {"/platform/greetings": []}}, {"paths": {"/platform/greetings": {"get": 1}}},
        {"paths": {"/platform/greetings": {"get": {"responses": []}}}}, {"paths": {"/platform/greetings": {"get": {}}}},
        {"paths": {"/platform/greetings": {"get": {"responses": {"abc": {}}}}}},
        {"paths": {"/platform/greetings": {"get": {"responses": {"200": "x"}}}}},
        {"paths": {"/platform/greetings": {"get": {"responses": {"200": {"$ref": "#/nowhere"}}}}}},
        {"paths": {"/platform/greetings": {"get": {"parameters": 3, "responses": {"200": {}}}}}},
        {"paths": {"/platform/workflows": SOUND, "/platform/jobs": SOUND}}, {"paths": {"/platform/greetings/\n": SOUND}},
        {"paths": SOUND, "components": {"schemas": 3}}, {"paths": {"/platform/greetings": SOUND}, "components": {"schemas": {"Greeting": 7}}},
        {"paths": {"/platform/greetings": SOUND}, "tags": "x"}, Unavailable("away"),
    ],
)  # fmt: skip
async def test_what_is_no_document_is_left_out_and_the_rest_is_shown(document: Any) -> None:
    found = await whole(theirs=document)
    assert set(found["paths"]) == {"/platform/jobs"}
    assert "get" in found["paths"]["/platform/jobs"]


async def test_a_third_party_says_nothing_of_where_requests_go() -> None:
    """Breaks with: an operation of its own server, to which generated clients send their key."""
    evil = {"servers": [{"url": "https://evil.example"}], "callbacks": {"x": {"https://evil.example": {}}},
            "externalDocs": {"url": "https://evil.example"}, "security": [], "x-server": "https://evil.example"}  # fmt: skip
    links = {"more": {"operationId": "x", "server": {"url": "https://evil.example"}}}
    told = {
        "summary": "Greets", "description": "And says whom.", "deprecated": True, "tags": ["platform"],
        "parameters": [{"name": "times", "in": "query", "schema": {"type": "integer"}}],
        "requestBody": {"content": {"application/json": {"schema": {"type": "string"}}}},
    }  # fmt: skip
    operation = {**told, **evil, "responses": {"200": {"description": "hi", "links": links}}}
    paths = {"/platform/greetings": {"post": operation, **evil}}
    document = await whole(theirs={"paths": paths, **evil})
    assert "evil" not in json.dumps(document)
    shown = document["paths"]["/platform/greetings"]["post"]
    assert {word: shown[word] for word in told} == {**told, "tags": ["theirs"]}
    assert shown["responses"]["200"]["description"] == "hi"


async def test_one_that_does_not_answer_in_time_is_shown_as_it_was_last_read() -> None:
    """Breaks with: routes that vanish from the reference while their component is busy."""
    asked = Asked({"theirs": DeadlineExceeded("no answer within 3 s")})
    routes = ComponentRoutes(cast(Integrator, asked))
    assert set((await shown(routes))["paths"]) == {"/platform/jobs"}, "nothing is known of it yet"
    asked.documents["theirs"] = GREET
    read = await shown(routes)
    assert "/platform/greetings" in read["paths"]
    for silence in (DeadlineExceeded("no answer within 3 s"), Unavailable("away")):
        asked.documents["theirs"] = silence
        assert await shown(routes) == read
    asked.documents["theirs"] = {"paths": {"/platform/greetings/{name}": SOUND}, "components": GREET["components"]}
    assert set((await shown(routes))["paths"]) == {"/platform/jobs", "/platform/greetings/{name}"}, "as it says now"
    del asked.documents["theirs"]
    assert set((await shown(routes))["paths"]) == {"/platform/jobs"}, "it has gone"


def test_kinds_bring_their_definitions_along() -> None:
    schema = {
        "type": "object", "properties": {"next": {"$ref": "#"}, "of": {"$ref": "#/$defs/A B"}, "odd": {"$ref": "#/properties/of"}},
        "$defs": {"A B": {"type": "array", "items": {"$ref": "#/$defs/C"}}, "C": {"type": "integer"}},
    }  # fmt: skip
    offer = KindOffer(name="work", spec_schema=schema, result_schema={"type": "object"})
    found = kind_schemas({("theirs", "work"): offer})
    base = "#/components/schemas/theirs.work.spec"
    assert found["theirs.work.spec"]["properties"] == {"next": {"$ref": base}, "of": {"$ref": f"{base}.A_B"}, "odd": {}}
    assert found["theirs.work.spec.A_B"]["items"] == {"$ref": f"{base}.C"}
    assert found["theirs.work.result"] == {"type": "object"}
    document = {"$ref": base, "components": {"schemas": found}}
    assert jsonschema_rs.is_valid(document, {"of": [1], "next": {"of": []}})
    assert not jsonschema_rs.is_valid(document, {"of": ["x"]})


def test_a_thousand_paths_are_not_shown() -> None:
    paths = {f"/platform/greetings/{n}": SOUND for n in range(1000)}
    assert len(third_party({"paths": paths, "components": GREET["components"]}, "theirs")["paths"]) == 500


async def page(*kinds: KindView) -> httpx.Response:
    app = FastAPI()
    app.include_router(api.kinds_router(lambda: kinds))

    async def known(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, SCOPE_KEY: LOCAL}, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(known), base_url="http://test") as client:
        return await client.get("/api/kinds")


async def test_the_page_shows_kinds_as_text_and_says_who_is_away() -> None:
    evil = '"><script>alert(1)</script>'
    schema = {
        "type": "object",
        "required": ["a"],
        "properties": {"a": {"type": "string", "description": evil, "default": evil}},
    }
    away = datetime(2026, 11, 29, 12, 3, 4, tzinfo=UTC)
    kind = KindView(
        component_type="theirs", name="work", summary=evil, spec_schema=schema, result_schema={}, away_since=away
    )
    answer = await page(kind)
    assert answer.status_code == 200
    assert "<script" not in answer.text
    assert "&lt;script&gt;" in answer.text
    assert "Away since 2026-11-29 12:03:04 UTC" in answer.text
    assert "default-src 'self'" in answer.headers["content-security-policy"]


async def test_the_page_takes_whatever_a_schema_has() -> None:
    fields = {
        "a": True,
        "b": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/X"}]},
        "c": {"enum": [1, "x"]},
        "d": {"const": 3},
        "e": {},
    }
    shown = KindView(
        component_type="theirs", name="work", spec_schema={"properties": fields}, result_schema={"properties": []}
    )
    text = (await page(shown)).text
    assert "null or X" in text
    assert "no fields that are known" in text
