"""What is sent to one instance is no key to another: over HTTP, with what the integrator really sends."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from burnish.core.errors import Unauthenticated
from burnish.core.protocol import CALLER_HEADER
from burnish.platform.identity import CallerTokens
from tests.support.integrating import TYPE, wait_for, world

TOKENS = CallerTokens(b"k" * 32)


@dataclass
class Listener:
    """A component that keeps what it is sent."""

    url: str = ""
    shown: dict[str, list[str]] = field(default_factory=dict)
    """Callers' tokens by path."""


@asynccontextmanager
async def listener() -> AsyncIterator[Listener]:
    found = Listener()

    async def answer(request: web.Request) -> web.Response:
        found.shown.setdefault(request.path, []).append(request.headers.get(CALLER_HEADER, ""))
        if request.path == "/describe":
            return web.json_response({"component_type": TYPE, "version": "1", "protocol_version": "1"})
        return web.json_response({"status": "ok"})

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        found.url = f"http://{host}:{port}"
        yield found
    finally:
        await runner.cleanup()


def believed(token: str, component_id: str) -> bool:
    try:
        TOKENS.verify(token, TYPE, {component_id})
    except Unauthenticated:
        return False
    return True


async def test_what_a_registered_instance_is_sent_is_believed_by_it_alone(database_url: str, tmp_path: Path) -> None:
    """Breaks with: one token for all instances of a type, of whoever calls or of the platform's own health checks."""
    async with listener() as one, listener() as two, world(database_url, tmp_path / "home") as here:
        await here.register("one", one.url)
        await here.register("two", two.url)

        def both() -> bool:
            known = here.integrator.instances
            return {name for name, it in known.items() if it.status == "healthy" and it.description} == {"one", "two"}

        await wait_for(both)
        while not ("/work" in one.shown and "/work" in two.shown):
            await here.call()
        for mine, other, shown in (("one", "two", one.shown), ("two", "one", two.shown)):
            for path in ("/work", "/health"):
                for token in shown[path]:
                    assert believed(token, mine), path
                    assert not believed(token, other), path
            assert shown["/describe"][0] == "", "before it has said what it is, it is sent nobody's token"
        assert len(set(one.shown["/work"])) == 1, "signed once, and used again"


async def test_one_that_was_found_by_its_address_is_sent_what_its_type_believes(
    database_url: str, tmp_path: Path
) -> None:
    """It never hears of the id that its address gave it."""
    async with listener() as one:
        async with world(database_url, tmp_path / "home", static=(one.url,)) as here:
            await wait_for(lambda: any(it.status == "healthy" for it in here.integrator.instances.values()))
            await here.call()
        assert believed(one.shown["/work"][-1], "whatever it calls itself")
        assert believed(one.shown["/health"][-1], "whatever it calls itself")
