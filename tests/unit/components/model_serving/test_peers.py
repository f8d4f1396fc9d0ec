"""Requests that are passed on to the node that serves them."""

import time
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from burnish.components.model_serving.data_path import DataPath
from burnish.components.model_serving.peers import Peers, deadline_of
from burnish.components.model_serving.routing import Routes, Traffic
from burnish.core.protocol import CALLER_HEADER, DEADLINE_HEADER
from burnish.infra.http import AsgiTransport, Request
from burnish.platform.identity import LOCAL, CallerTokens
from burnish.platform.identity.principal import SCOPE_KEY
from tests.support.serving import listening

TOKENS = CallerTokens(b"k" * 32)


@pytest.mark.parametrize("seconds", [30.0, None])
async def test_the_next_hop_is_told_until_when_somebody_waits(seconds: float | None) -> None:
    """Breaks with: a peer that goes on generating for a client who has given up."""
    got: list[dict[str, str]] = []

    async def peer(scope: Any, receive: Any, send: Any) -> None:
        got.append({name.decode(): value.decode() for name, value in scope["headers"]})
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async with listening(peer) as url:

        async def find(project: str, model: str) -> Any:
            return SimpleNamespace(elsewhere=(url,), targets=())

        peers = Peers(TOKENS, "model_serving")
        path = DataPath(cast(Routes, SimpleNamespace(find=find)), Traffic(), peers)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await path({**scope, SCOPE_KEY: LOCAL}, receive, send)

        deadline = None if seconds is None else time.time() + seconds
        body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
        try:
            request = Request("POST", "/v1/chat/completions", {"content-type": "application/json"}, body, deadline)
            async with AsgiTransport(app, name="serving").send(request) as response:
                assert response.status == 200
        finally:
            await peers.close()
    assert TOKENS.verify(got[0][CALLER_HEADER], "model_serving") == LOCAL
    assert got[0].get(DEADLINE_HEADER) == (None if deadline is None else f"{deadline:.3f}")


@pytest.mark.parametrize("said", ["", "soon", "nan", "inf"])
def test_what_is_no_time_is_no_deadline(said: str) -> None:
    assert deadline_of({"headers": [(DEADLINE_HEADER.encode(), said.encode())]}) is None
