"""What a call that we make ourselves says of the trace that it belongs to (W3C Trace Context)."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from burnish.core.settings import Settings
from burnish.infra import logging as logs
from burnish.infra.database import Database
from burnish.infra.http import Request
from burnish.platform.gateway.exchange import Exchange
from burnish.platform.identity import CallerTokens
from burnish.platform.integrator import Integrator

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def _said() -> tuple[str, str, str | None]:
    headers = logs.trace_headers()
    _, trace, span, flags = headers["traceparent"].split("-")
    assert span != SPAN
    return trace, flags, headers.get("tracestate")


@pytest.mark.parametrize(("flags", "on"), [("00", "00"), ("01", "01"), ("03", "03"), ("fe", "02")])
def test_a_call_says_of_the_trace_what_its_caller_said(flags: str, on: str) -> None:
    """Breaks with: everything that a client does not sample, sampled behind us."""
    with logs.tracing(f"00-{TRACE}-{SPAN}-{flags}", "vendor=1,other=2"):
        assert _said() == (TRACE, on, "vendor=1,other=2")
        with logs.tracing("nonsense", "evil=1"):
            assert _said() == (TRACE, on, "vendor=1,other=2"), "what says nothing changes nothing"
        with logs.tracing(f"00-{'1' * 32}-{SPAN}-01", ""):
            assert _said() == ("1" * 32, "01", None)
        assert _said() == (TRACE, on, "vendor=1,other=2")
    trace, new_flags, state = _said()
    assert (trace != TRACE, new_flags, state) == (True, "01", None), "a trace of our own"


def test_flags_and_state_are_not_logged() -> None:
    with logs.tracing(f"00-{TRACE}-{SPAN}-00", "vendor=1"):
        assert logs.context() == {"trace_id": TRACE}


def _exchange(*headers: tuple[bytes, bytes]) -> Exchange:
    async def send(_message: Any) -> None:
        raise AssertionError("nothing is sent")

    scope = {"type": "http", "method": "GET", "path": "/", "headers": list(headers), "scheme": "http", "client": None}
    return Exchange(scope, send)


async def test_the_gateway_keeps_what_a_client_says_for_the_calls_on_its_behalf() -> None:
    parent = (b"traceparent", f"00-{TRACE}-{SPAN}-00".encode())
    states = ((b"tracestate", b"a=1"), (b"tracestate", b"b=2"))
    assert _exchange(parent, *states).passed_on == ("00", "a=1,b=2")
    assert _exchange(parent).passed_on == ("00", None)
    assert _exchange(*states).passed_on == ("01", None)
    assert _exchange((b"traceparent", b"bad"), *states).passed_on == ("01", None)

    async def on_its_behalf() -> tuple[str, str, str | None]:
        exchange = _exchange(parent, *states)
        logs.bind_only(trace_id=exchange.trace)
        logs.bind_trace(*exchange.passed_on)
        return _said()

    assert await asyncio.create_task(on_its_behalf()) == (TRACE, "00", "a=1,b=2")


async def test_the_integrators_own_calls_say_it(sqlite_url: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database_url=SecretStr(sqlite_url))
    integrator = Integrator(Database(sqlite_url), CallerTokens(b"k" * 32), settings)
    body: Any = SimpleNamespace(content=b"")
    with logs.tracing(f"00-{TRACE}-{SPAN}-00", "vendor=1"):
        sent = integrator._addressed(Request("GET", "/x", {}), body).headers
        relayed = integrator._addressed(
            Request("GET", "/x", {"traceparent": "its own", "Idempotency-Key": "k"}), body
        ).headers
    assert (sent["traceparent"][3:35], sent["traceparent"][-2:], sent["tracestate"]) == (TRACE, "00", "vendor=1")
    assert relayed == {"traceparent": "its own", "idempotency-key": "k"}, "what is safe to repeat is seen by its name"
