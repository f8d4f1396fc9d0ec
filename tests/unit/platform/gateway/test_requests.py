"""What a request may say and what becomes of it: limits, priorities, times, origins, what never passes."""

import asyncio
import contextlib
import json
import logging
import time

import httpx
import pytest

from burnish.infra import signals
from burnish.platform.gateway import HttpProtocol
from burnish.platform.gateway.checks import Pace
from tests.support.gateway import ECHO, KEYS, ONE, TWO, Stand, gateway_stand, until


async def test_a_limit_answers_429_and_says_which(stand: Stand) -> None:
    stand.configure(per_key={"requests_per_second": 0.5, "burst": 2})
    before = signals.LIMITED.labels("gateway.per_key")._value.get()
    answers = [await stand.client.get("/platform/things", headers=ONE) for _ in range(3)]
    assert [one.status_code for one in answers] == [200, 200, 429]
    assert [one.headers["x-ratelimit-remaining"] for one in answers] == ["1", "0", "0"]
    last = answers[-1]
    assert (last.headers["retry-after"], last.headers["x-ratelimit-limit"]) == ("2", "2")
    assert (last.json()["code"], last.json()["where"]) == ("rate_limited", "gateway.per_key")
    assert signals.LIMITED.labels("gateway.per_key")._value.get() == before + 1
    assert (await stand.client.get("/platform/things", headers=TWO)).status_code == 200, "another key is free"
    for _ in range(3):
        assert (await stand.client.get("/platform/health", headers=ONE)).status_code == 200, "a probe is never counted"
    openai = await stand.client.get("/v1/models", headers=ONE)
    assert (openai.status_code, openai.json()["error"]["code"]) == (429, "rate_limited")
    stand.configure()
    assert (await stand.client.get("/platform/things", headers=ONE)).status_code == 200, "the next request obeys"


async def test_who_is_refused_by_authentication_is_charged_nothing(stand: Stand) -> None:
    stand.configure(per_project={"requests_per_second": 0.01, "burst": 1})
    for _ in range(5):
        wrong = await stand.client.get("/platform/things", headers={"authorization": "Bearer wrong"})
        assert (wrong.status_code, wrong.headers["www-authenticate"]) == (401, "Bearer")
    assert (await stand.client.get("/platform/things", headers=ONE)).status_code == 200
    for _ in range(3):
        assert (await stand.client.get("/platform/health")).status_code == 200, "open, and not limited"


async def test_what_a_client_claims_never_passes(stand: Stand) -> None:
    """Breaks with: a header of ours, a credential or an address claim that reaches a component."""
    forged = {
        **ONE, "burnish-caller": "forged", "burnish_caller": "forged", "burnish-deadline": "9", "forwarded": "for=1.2.3.4",
        "x-forwarded-for": "1.2.3.4", "x-forwarded-host": "evil", "x-forwarded-user": "root", "x-real-ip": "1.2.3.4",
        "cookie": "session=secret", "x-csrf-token": "t", "x-custom": "kept", "connection": "keep-alive, x-custom-2",
    }  # fmt: skip
    for path in (ECHO, "/v1/chat/completions"):
        method = "GET" if path == ECHO else "POST"
        await stand.client.request(method, path, headers=forged, json=None if method == "GET" else {"model": "m"})
        got = stand.component.got[-1]
        assert got["x-custom"] == "kept"
        leaked = {
            name for name in got
            if name.startswith("x-forwarded") or "_" in name or "caller" in name or "deadline" in name
            or name in {"authorization", "cookie", "x-csrf-token", "forwarded", "x-real-ip"}
        }  # fmt: skip
        assert not leaked, got


async def test_a_components_page_is_no_page_of_ours(stand: Stand) -> None:
    """Breaks with: script of a third party in our origin, a cookie or a rule of its own for the origin."""
    stand.configure(cors_origins=["https://console.example.org"])
    kept = [(b"content-type", b"text/html"), (b"etag", b'"1"'), (b"cache-control", b"no-store")]
    stand.component.said = [
        *kept, (b"Set-Cookie", b"burnish_session=theirs; Path=/"), (b"clear-site-data", b'"*"'),
        (b"x-accel-redirect", b"/etc/passwd"), (b"x-sendfile", b"/etc/passwd"), (b"refresh", b"0"), (b"www-authenticate", b"Basic"),
        (b"service-worker-allowed", b"/"), (b"access-control-allow-origin", b"*"),
        (b"access-control-allow-credentials", b"true"), (b"content-security-policy", b"default-src *"),
        (b"content-security-policy-report-only", b"default-src *"), (b"x-content-type-options", b"sniff"),
        (b"strict-transport-security", b"max-age=99999999"),
    ]  # fmt: skip
    for method, path in (("GET", "/platform/datasets/x/page"), ("HEAD", "/platform/datasets/x/page")):
        answer = await stand.client.request(method, path, headers=ONE)
        assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert all(answer.headers[name.decode()] == value.decode() for name, value in kept)
        bad = (
            "set-cookie",
            "x-accel",
            "x-sendfile",
            "refresh",
            "www-authenticate",
            "clear-site",
            "service-worker",
            "access-control",
            "report-only",
            "strict",
        )
        assert not [name for name in answer.headers if name.startswith(bad) or name.endswith(bad)]


async def test_the_model_in_a_body_chooses_the_instance(stand: Stand) -> None:
    await stand.client.post("/v1/chat/completions", headers=ONE, json={"messages": [], "model": "sentiment"})
    await stand.client.post("/v1/chat/completions", headers=ONE, content=b"no json at all")
    await stand.client.get("/v1/models", headers=TWO)
    assert stand.way.preferred == ["sentiment", None, None]
    refused = await stand.client.post("/v1/chat/completions", headers=TWO, json={"model": "sentiment"})
    assert (refused.status_code, len(stand.way.preferred)) == (403, 3)


async def test_origins(stand: Stand) -> None:
    origin = "https://console.example.org"
    ask = {
        "origin": origin, "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }  # fmt: skip
    assert (await stand.client.options(ECHO, headers=ask)).status_code == 401, "nothing is listed"
    stand.configure(cors_origins=[origin])
    preflight = await stand.client.options(ECHO, headers=ask)
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (204, origin)
    assert preflight.headers["access-control-allow-headers"] == "authorization, content-type"
    assert preflight.headers["access-control-allow-credentials"] == "true"
    assert "origin" in preflight.headers["vary"]
    answer = await stand.client.get(ECHO, headers={**ONE, "origin": origin})
    assert answer.headers["access-control-allow-origin"] == origin
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    failed = await stand.client.get("/platform/nothing", headers={**ONE, "origin": origin})
    assert failed.headers["access-control-allow-origin"] == origin, "a page can read why"
    for other in ("https://evil.example.org", "https://console.example.org.evil", "null", "http://console.example.org"):
        refused = await stand.client.options(ECHO, headers={**ask, "origin": other})
        assert (refused.status_code, refused.headers.get("access-control-allow-origin")) == (403, None)
        unread = await stand.client.get(ECHO, headers={**ONE, "origin": other})
        assert "access-control-allow-origin" not in unread.headers
    stand.configure(cors_origins=["*"])
    anyone = await stand.client.get(ECHO, headers={**ONE, "origin": "https://any.example"})
    assert anyone.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in anyone.headers


async def test_with_authentication_off_a_listed_origin_opens_nothing(open_stand: Stand) -> None:
    open_stand.configure(cors_origins=["https://evil.example", "http://localhost:5173"])
    evil = {"origin": "https://evil.example"}
    assert (await open_stand.client.get("/platform/things", headers=evil)).status_code == 403
    page = await open_stand.client.get("/platform/things", headers={"origin": "http://localhost:5173"})
    assert page.headers["access-control-allow-origin"] == "http://localhost:5173"


async def test_draining(stand: Stand) -> None:
    async with stand.client.stream("GET", "/platform/datasets/x/stream", headers=ONE) as running:
        chunks = running.aiter_raw()
        await anext(chunks)
        stand.gateway.drain()
        refused = await stand.client.get("/platform/things", headers=ONE)
        assert (refused.status_code, refused.headers["connection"]) == (503, "close")
        assert refused.headers["retry-after"] == "1"
        assert not await stand.gateway.drained(0.05)
        await anext(chunks)
    assert await stand.gateway.drained(5)


async def test_an_answer_must_begin_in_time(stand: Stand) -> None:
    stand.configure(request_timeout_seconds=0.15)
    for path in ("/platform/datasets/x/silent", "/v1/models/silent", "/platform/slow/1"):
        began = time.monotonic()
        late = await stand.client.get(path, headers=ONE)
        assert late.status_code == 504, path
        assert 0.1 < time.monotonic() - began < 0.9
    assert late.json()["where"] == "gateway.request_timeout_seconds"
    await until(lambda: stand.component.running == 0)
    await until(lambda: stand.way.platform.state.ended == 1)
    assert (await stand.client.get("/platform/things", headers=ONE)).status_code == 200


async def test_a_client_says_how_long_it_waits(stand: Stand) -> None:
    began = time.monotonic()
    late = await stand.client.get("/platform/datasets/x/silent", headers={**ONE, "x-request-timeout": "0.2"})
    assert late.status_code == 504
    assert time.monotonic() - began < 1
    deadline = float(stand.component.got[-1]["burnish-deadline"])
    assert -1 < deadline - time.time() < 0.3, "it travels"
    assert "x-request-timeout" not in stand.component.got[-1]
    own = await stand.client.get("/platform/slow/1", headers={**ONE, "x-request-timeout": "0.1"})
    assert (own.status_code, own.json()["where"]) == (504, "X-Request-Timeout")
    for wrong in ("soon", "-1", "0", "nan", "inf", "1e9"):
        answer = await stand.client.get("/platform/things", headers={**ONE, "x-request-timeout": wrong})
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_request")


async def test_a_silence_in_an_answer_ends_it(stand: Stand) -> None:
    stand.configure(idle_timeout_seconds=0.2)
    with pytest.raises(httpx.RemoteProtocolError):
        await stand.client.get("/platform/datasets/x/stall", headers=ONE)
    await until(lambda: stand.component.running == 0)
    async with stand.client.stream("GET", "/platform/datasets/x/stream", headers=ONE) as running:
        chunks = running.aiter_raw()
        began = time.monotonic()
        while time.monotonic() - began < 0.5:
            assert await anext(chunks), "one that moves goes on"


async def test_answers_have_a_limit_and_streams_have_none(stand: Stand) -> None:
    stand.configure(max_response_bytes=1000)
    assert (await stand.client.get("/platform/datasets/big/1000", headers=ONE)).content == b"x" * 1000
    large = await stand.client.get("/platform/datasets/big/1001", headers=ONE)
    assert (large.status_code, large.json()["where"]) == (502, "gateway.max_response_bytes")
    with pytest.raises(httpx.RemoteProtocolError):
        await stand.client.get("/platform/datasets/big-chunked/1001", headers=ONE)
    async with stand.client.stream("GET", "/platform/datasets/x/stream", headers=ONE) as running:
        size = 0
        async for chunk in running.aiter_raw():
            size += len(chunk)
            if size > 1500:
                break


async def test_body_limits_are_hot(stand: Stand) -> None:
    stand.configure(max_body_bytes=2000, max_upload_bytes=4000)
    for path, size, kind, status in (
        ("/platform/workflows/run", 2000, "application/json", 200),
        ("/platform/workflows/run", 2001, "application/json", 413),
        ("/platform/datasets/a", 4000, "text/csv", 200),
        ("/platform/datasets/a", 4001, "text/csv", 413),
        ("/platform/datasets/a", 2001, "application/json", 413),
    ):
        answer = await stand.client.post(path, headers={**ONE, "content-type": kind}, content=b"x" * size)
        assert answer.status_code == status, (path, size)
    assert answer.json()["hint"].endswith("gateway.max_body_bytes")
    stand.configure(max_body_bytes=3000)
    assert (await stand.client.post("/platform/workflows/run", headers=ONE, content=b"x" * 2001)).status_code == 200


@pytest.mark.parametrize("name", ["authorization", "burnish-project", "x-csrf-token", "x-request-timeout"])
async def test_what_decides_comes_once(stand: Stand, name: str) -> None:
    headers = [("authorization", "Bearer sk-one"), (name, "1"), (name, "2")]
    answer = await stand.client.get("/platform/things", headers=headers)
    assert (answer.status_code, answer.json()["where"]) == (400, name)
    twice = [("authorization", "Bearer sk-one"), ("x-mine", "1"), ("x-mine", "2")]
    assert (await stand.client.get(ECHO, headers=twice)).json()["headers"]["x-mine"] == "1, 2"


@pytest.mark.parametrize("path", ["/platform/datasets/a", "/platform/workflows/run"])
@pytest.mark.parametrize("pause", [0.02, 10.0], ids=["trickle", "stop"])
async def test_bodies_that_hardly_come(path: str, pause: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are given up, and with them the connection. Breaks with: a body that is waited for without end."""
    monkeypatch.setattr("burnish.platform.gateway.wire.LINGER_SECONDS", 0.3)
    async with gateway_stand(keys=KEYS, pace=Pace(silence=0.3, grace=0.4, rate=1000)) as stand:
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-one\r\nContent-Length: 9000\r\n\r\n"
        writer.write(head.encode())
        answer = b""

        async def read() -> None:
            nonlocal answer
            with contextlib.suppress(ConnectionError):  # what we still write may meet a closed connection
                while part := await reader.read(4096):
                    answer += part

        answered = asyncio.create_task(read())
        while not answered.done() and time.monotonic() - began < 15:
            with contextlib.suppress(OSError):
                writer.write(b"x")
                await writer.drain()
            await asyncio.wait({answered}, timeout=pause)
        writer.close()
        await answered
        assert b"408 Request Timeout" in answer
        assert b"body_too_slow" in answer
        assert time.monotonic() - began < 12
        await until(lambda: stand.component.running == 0)
        assert stand.component.stored == []
        assert stand.gateway._admission.in_flight == 0


async def test_the_access_log_says_who_and_no_secret(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "burnish.access"):
        await stand.client.get(f"{ECHO}?token=hidden-query", headers={**ONE, "x-request-id": "r-1"})
        await until(lambda: bool(caplog.records))
    record = next(one for one in caplog.records if one.name == "burnish.access")
    fields = record.__dict__["checked"]
    told = {name: fields[name] for name in ("subject", "credential", "project_id", "route", "status", "method")}
    assert told == {
        "subject": "user_1", "credential": "key_1", "project_id": "red", "route": "/platform/datasets/{path}",
        "status": 200, "method": "GET",
    }  # fmt: skip
    everything = json.dumps(record.__dict__, default=str)
    assert "hidden-query" not in everything
    assert "sk-one" not in everything


async def test_a_trace_goes_on_as_its_caller_says(stand: Stand) -> None:
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

    async def passed_on(**headers: str) -> tuple[list[str], str | None]:
        got = (await stand.client.get(ECHO, headers={**ONE, **headers})).json()["headers"]
        return got["traceparent"].split("-"), got.get("tracestate")

    for flags in ("00", "01"):
        (version, its, span_on, its_flags), state = await passed_on(
            traceparent=f"00-{trace}-{span}-{flags}", tracestate="vendor=1"
        )
        assert (version, its, its_flags, state) == ("00", trace, flags, "vendor=1")
        assert span_on != span
    for bad in (f"00-{'0' * 32}-{span}-01", "nonsense"):
        (_, its, _, flags), state = await passed_on(traceparent=bad, tracestate="vendor=1")
        assert (its != trace, flags, state) == (True, "01", None), "of a trace that is none, nothing is passed on"


async def test_long_paths_are_cut_in_the_access_log(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    secret = "sk-abcdefghijklmnop"
    with caplog.at_level(logging.INFO, "burnish.access"):
        for path in (f"/{'a' * 1990}{secret}{'b' * 5000}", f"/{'a' * 50}/{secret}", f"/{'a' * 60_000}"):
            await stand.client.get(path, headers=ONE)
        await until(lambda: len([one for one in caplog.records if one.name == "burnish.access"]) == 3)
    lines = [one.getMessage() for one in caplog.records if one.name == "burnish.access"]
    assert all(len(line) < 2100 for line in lines)
    assert not any("abcdefgh" in line for line in lines)
    assert "***" in lines[1]


@pytest.mark.parametrize("then", [b"", b"\r\n"], ids=["silence", "empty line"])
async def test_a_connection_that_asks_no_more_is_closed(then: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks with: an empty line after an answer that stops the clock for ever."""
    made = HttpProtocol.connection_made

    def impatient(protocol: HttpProtocol, transport: asyncio.Transport) -> None:
        made(protocol, transport)
        monkeypatch.setattr(protocol, "timeout_keep_alive", 0.3)

    monkeypatch.setattr(HttpProtocol, "connection_made", impatient)
    async with gateway_stand() as stand:
        reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
        ask = b"GET /platform/things HTTP/1.1\r\nHost: localhost\r\n\r\n"
        began = time.monotonic()
        for _ in range(4):
            writer.write(ask)
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
            await reader.readuntil(b"}}")
            await asyncio.sleep(0.1)
        assert time.monotonic() - began > 0.35, "longer than that, but never so long without a request"
        writer.write(then)
        asked = time.monotonic()
        assert await asyncio.wait_for(reader.read(), 5) == b""
        assert time.monotonic() - asked < 3
        writer.close()
