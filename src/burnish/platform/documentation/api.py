"""``/docs``, ``/api`` and ``/api/kinds``."""

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from fastapi import APIRouter, Depends
from fastapi.responses import FileResponse, RedirectResponse, Response

from burnish.platform.documentation.kinds_page import page_of_kinds
from burnish.platform.identity.permission import anyone, requires
from burnish.platform.workflow.schemas import KindView

HERE = Path(__file__).parent
SITE = HERE / "site"
"""Where ``make docs`` builds to; not there in a fresh clone."""
ASSETS = HERE / "assets"

# The built pages carry small inline scripts and styles of their theme; the reference has none.
SITE_POLICY = "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'"  # fmt: skip
REFERENCE_POLICY = "default-src 'self'; frame-ancestors 'none'"


def router(site: Path = SITE) -> APIRouter:
    """Return the routes; ``site`` is the folder of the built pages."""
    routes = APIRouter(include_in_schema=False, dependencies=[Depends(anyone())])

    @routes.get("/docs")
    async def docs_root() -> Response:
        return RedirectResponse("/docs/", status_code=307)

    @routes.get("/docs/{path:path}")
    def docs(path: str) -> Response:
        return page(site, path)

    @routes.get("/api")
    def reference() -> Response:
        return _file(ASSETS / "reference.html", REFERENCE_POLICY)

    @routes.get("/api/assets/{name}")
    def asset(name: str) -> Response:
        found = inside(ASSETS, name)
        return _file(found, REFERENCE_POLICY) if found else _missing("no such file", status=404)

    return routes


def kinds_router(kinds: Callable[[], Sequence[KindView]]) -> APIRouter:
    """Return the route of the page of kinds, which is drawn anew from what is known each time."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/api/kinds", dependencies=[Depends(requires("workflow:read"))])
    def kinds_page() -> Response:
        headers = {"content-security-policy": REFERENCE_POLICY, "x-content-type-options": "nosniff"}
        return Response(
            page_of_kinds(kinds()), media_type="text/html", headers={**headers, "cache-control": "no-cache"}
        )

    return routes


def page(site: Path, path: str) -> Response:
    """Return a built page or one of its files; a folder stands for its ``index.html``."""
    if not (site / "index.html").is_file():
        return _missing(
            "The documentation has not been built here: run <code>make docs</code>. "
            'The API reference is at <a href="/api">/api</a>.',
            status=404,
        )  # fmt: skip
    if (found := inside(site, path)) is not None:
        return _file(found, SITE_POLICY)
    if not path.endswith("/") and inside(site, f"{path}/index.html"):
        return RedirectResponse(f"/docs/{path}/", status_code=307)
    if (index := inside(site, f"{path}index.html")) is not None:
        return _file(index, SITE_POLICY)
    lost = inside(site, "404.html")
    return _file(lost, SITE_POLICY, status=404) if lost else _missing("There is no such page.", status=404)


def inside(folder: Path, path: str) -> Path | None:
    """Return the file at ``path`` below ``folder``; None when there is none, or when ``path`` leads out of it."""
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or path.startswith("/") or "\0" in path:
        return None
    found = (folder / path).resolve()
    return found if found.is_file() and found.is_relative_to(folder.resolve()) else None


def _file(path: Path, policy: str, status: int = 200) -> Response:
    headers = {"content-security-policy": policy, "x-content-type-options": "nosniff", "cache-control": "no-cache"}
    return FileResponse(path, status_code=status, headers=headers)


def _missing(text: str, status: int) -> Response:
    body = f'<!doctype html><meta charset="utf-8"><title>Burnish</title><p>{text}</p>'
    return Response(
        body, status_code=status, media_type="text/html", headers={"content-security-policy": REFERENCE_POLICY}
    )
