from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from burnish.platform.documentation import api
from burnish.platform.documentation.openapi import completed, merge


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    (folder / "guide").mkdir(parents=True)
    (folder / "index.html").write_text("home")
    (folder / "guide" / "index.html").write_text("guide")
    (folder / "404.html").write_text("lost")
    (folder / "style.css").write_text("body {}")
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    return folder


async def get(site: Path, path: str) -> httpx.Response:
    app = FastAPI(docs_url=None)
    app.include_router(api.router(site))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.get(path)


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/docs/", 200, "home"), ("/docs/guide/", 200, "guide"), ("/docs/style.css", 200, "body {}"),
        ("/docs/nothing/", 404, "lost"), ("/docs/link", 404, "lost"), ("/docs/%2e%2e/secret", 404, "lost"),
        ("/docs/..%2fsecret", 404, "lost"), ("/docs//etc/passwd", 404, "lost"), ("/docs/%00", 404, "lost"),
    ],
)  # fmt: skip
async def test_pages_and_nothing_outside_of_them(site: Path, path: str, status: int, text: str) -> None:
    answer = await get(site, path)
    assert (answer.status_code, answer.text) == (status, text)


@pytest.mark.parametrize("path", ["/docs", "/docs/guide"])
async def test_a_folder_is_reached_with_its_slash(site: Path, path: str) -> None:
    answer = await get(site, path)
    assert (answer.status_code, answer.headers["location"]) == (307, f"{path}/")


async def test_without_a_build_it_says_how_to_make_one(tmp_path: Path) -> None:
    answer = await get(tmp_path, "/docs/")
    assert answer.status_code == 404
    assert "make docs" in answer.text


@pytest.mark.parametrize("path", ["/api", "/api/assets/reference.js", "/api/assets/reference.css"])
async def test_the_reference_loads_nothing_from_elsewhere(site: Path, path: str) -> None:
    answer = await get(site, path)
    assert answer.status_code == 200
    assert "http://" not in answer.text
    assert "https://" not in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    assert (await get(site, "/api/assets/..%2fapi.py")).status_code == 404


def operation(reference: str) -> dict[str, Any]:
    return {"get": {"responses": {"200": {"content": {"application/json": {"schema": {"$ref": reference}}}}}}}


def test_merge_takes_a_components_routes_and_renames_schemas_that_differ() -> None:
    page = "#/components/schemas/Page"
    own = {"paths": {"/platform/jobs": operation(page)}, "components": {"schemas": {"Page": {"title": "jobs"}}}}
    part = {
        "paths": {"/platform/datasets": operation(page), "/platform/datasets-old": operation(page), "/jobs": operation(page)},
        "components": {"schemas": {"Page": {"items": {"$ref": "#/components/schemas/Row"}}, "Row": {}, "Unused": {}}},
    }  # fmt: skip
    merged = merge(own, [("data", ("/platform/datasets",), part)])
    assert list(merged["paths"]) == ["/platform/datasets", "/platform/jobs"]
    assert set(merged["components"]["schemas"]) == {"Page", "Row", "data_Page"}
    assert merged["paths"]["/platform/datasets"] == operation("#/components/schemas/data_Page")
    assert merged["paths"]["/platform/jobs"] == operation(page)


def test_text_in_a_url_is_said_to_hold_no_nul() -> None:
    """Breaks with: a request that its schema allows, and that the gateway refuses for its %00."""
    text, chosen = {"type": "string"}, {"type": "string", "enum": ["a"]}
    schemas = {
        "name": text, "after": {"anyOf": [text, {"type": "null"}]}, "state": {"type": "array", "items": text},
        "chosen": chosen, "limit": {"type": "integer"},
    }  # fmt: skip
    parameters = [{"in": "query", "name": name, "schema": schema} for name, schema in schemas.items()]
    parameters.append({"in": "header", "name": "key", "schema": text})
    for path in ("/platform/jobs", "/v1/models"):
        made = completed({"paths": {path: {"get": {"parameters": parameters, "responses": {}}}}})
        found = {one["name"]: one["schema"] for one in made["paths"][path]["get"]["parameters"]}
        bound = {**text, "pattern": r"^[^\x00]*$"}
        assert found == {
            "name": bound, "after": {"anyOf": [bound, {"type": "null"}]}, "state": {"type": "array", "items": bound},
            "chosen": chosen, "limit": {"type": "integer"}, "key": text,
        }  # fmt: skip
    assert parameters[0]["schema"] == {"type": "string"}, "what it was given stays as it was"
