"""Who has a place and for how long, and what is left for whom nobody knows."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest

from burnish.platform.gateway.admission import priority_of
from burnish.platform.gateway.checks import CONTROL_BYTES
from burnish.platform.gateway.proxies import address_of, over_https
from tests.support.gateway import ENGINEER, ONE, TWO, Keys, Stand, slowly, until


async def test_when_full_batch_goes_first(stand: Stand) -> None:
    stand.configure(max_in_flight=2, batch_share=0.5, caller_share=1)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(stand.client.post("/platform/datasets/a", headers=ONE, content=slowly(stand, 1)))
        await until(lambda: stand.component.running == 1)
        refused = await stand.client.post("/platform/workflows/run", headers=ONE, json={})
        assert (refused.status_code, refused.headers["retry-after"], refused.json()["code"]) == (503, "1", "overloaded")
        asked = await stand.client.get("/platform/things", headers={**ONE, "burnish-priority": "batch"})
        assert asked.status_code == 503
        assert (await stand.client.get("/platform/things", headers=ONE)).status_code == 200
        assert (await stand.client.get("/platform/health")).status_code == 200
        wrong = await stand.client.get("/platform/things", headers={**ONE, "burnish-priority": "urgent"})
        assert wrong.status_code == 400
        stand.configure(max_in_flight=10, caller_share=1)
    assert first.result().status_code == 200


LOGIN = "/platform/auth/exchange"


async def idle_posts(
    stand: Stand, count: int, *, addresses: int = 1
) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Begin requests to log in whose bodies never come."""
    found = []
    head = f"POST {LOGIN} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\nx-forwarded-for: 192.0.2."
    for number in range(count):
        found.append(await asyncio.open_connection("127.0.0.1", stand.port))
        found[-1][1].write(f"{head}{number % addresses}\r\n\r\n{{".encode())
    return found


async def test_without_a_credential_nobody_takes_anothers_place(stand: Stand) -> None:
    """Breaks with: idle requests to open routes that leave no place to whoever has a key."""
    stand.configure(max_in_flight=3, anonymous={"max_in_flight": 2, "address_share": 0.5, "body_seconds": 0.3})
    idle = await idle_posts(stand, 5, addresses=5)
    try:
        await until(lambda: stand.gateway._admission.in_flight == 2)
        for _ in range(3):
            assert (await stand.client.get("/platform/things", headers=ONE)).status_code == 200
            assert (await stand.client.get("/platform/health")).status_code == 200, "probes are always answered"
        refused = await stand.client.post(LOGIN, content=b"{}")
        assert (refused.status_code, refused.json()["where"]) == (503, "gateway.anonymous.max_in_flight")
        began = time.monotonic()
        answers = [(await asyncio.wait_for(reader.readline(), 3)).split()[1] for reader, _ in idle]
        assert sorted(answers) == [b"408", b"408", b"503", b"503", b"503"]
        assert time.monotonic() - began < 2
        assert (await stand.client.post(LOGIN, content=b"{}")).json() == {"bytes": 2}
    finally:
        for _, writer in idle:
            writer.close()


async def test_nobody_takes_every_place(stand: Stand) -> None:
    """Breaks with: a viewer's slow bodies, or one address's, that leave no place to anybody else."""
    few = {"max_in_flight": 10, "address_share": 0.2, "body_seconds": 0.3}
    stand.configure(max_in_flight=4, anonymous=few)
    async with asyncio.TaskGroup() as group:
        slow = [
            group.create_task(stand.client.post("/platform/datasets/a", headers=ONE, content=slowly(stand, 2)))
            for _ in range(2)
        ]
        await until(lambda: stand.component.running == 2)
        refused = await stand.client.get("/platform/things", headers=ONE)
        assert (refused.status_code, refused.json()["where"], refused.headers["retry-after"]) == (
            429, "gateway.caller_share", "1",
        )  # fmt: skip
        assert (await stand.client.get("/platform/things", headers=TWO)).status_code == 200
        assert (await stand.client.get("/platform/health", headers=ONE)).status_code == 200
        stand.configure(max_in_flight=10, anonymous=few)
    assert [one.result().status_code for one in slow] == [200, 200]
    assert (await stand.client.get("/platform/things", headers=ONE)).status_code == 200, "they were given back"
    idle = await idle_posts(stand, 3)
    try:
        await until(lambda: stand.gateway._admission.in_flight == 2)
        assert (await stand.client.post(LOGIN, content=b"{}")).status_code == 200, "from another address"
        answers = [(await asyncio.wait_for(reader.readline(), 5)).split()[1] for reader, _ in idle]
        assert sorted(answers) == [b"408", b"408", b"429"]
    finally:
        for _, writer in idle:
            writer.close()
    assert stand.gateway._admission.in_flight == 0
    assert not stand.gateway._admission._held


async def test_whoever_is_not_known_has_the_rate_of_an_address(stand: Stand) -> None:
    """Breaks with: guesses at keys, each of them a question to the database, without end."""
    few = {"requests_per_second": 0.01, "burst": 3}
    stand.configure(anonymous={"per_address": few, "unknown_keys": few})
    for shown in ({"authorization": "Bearer sk-unknown"}, {}):
        answers = [await stand.client.get("/platform/things", headers=shown) for _ in range(5)]
        assert [one.status_code for one in answers] == [401, 401, 401, 429, 429]
        limit = "unknown_keys" if shown else "per_address"
        assert answers[-1].json()["where"] == f"gateway.anonymous.{limit}"
    wrong = {"authorization": "Bearer sk-unknown"}
    assert (await stand.client.get("/platform/things", headers=ONE)).status_code == 200, "a good key is not held up"
    assert (await stand.client.get("/platform/health", headers=wrong)).status_code == 401, "what asks often: a probe"
    elsewhere = {**wrong, "x-forwarded-for": "192.0.2.7"}
    assert (await stand.client.get("/platform/things", headers=elsewhere)).status_code == 401


async def to_its_end(chunks: AsyncIterator[bytes]) -> None:
    async for _ in chunks:
        pass


async def test_a_stream_ends_with_what_its_reader_may(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks with: a key that was revoked, or a role that was taken, and events that go on to be told."""
    stand.configure(idle_timeout_seconds=0.4)  # then it is looked at each 0.2 s
    keys = stand.gateway._authenticator
    assert isinstance(keys, Keys)
    less = replace(ENGINEER, roles=frozenset({"viewer"}))
    for now in (None, less):
        keys.keys["sk-one"] = ENGINEER
        async with stand.client.stream("GET", "/platform/datasets/x/stream", headers=ONE) as answer:
            assert answer.status_code == 200
            chunks = answer.aiter_raw()
            for _ in range(20):
                await anext(chunks)
            if now is None:
                del keys.keys["sk-one"]
            else:
                keys.keys["sk-one"] = now
            with pytest.raises(httpx.RemoteProtocolError):
                await asyncio.wait_for(to_its_end(chunks), 5)
        await until(lambda: stand.component.running == 0)
    keys.keys["sk-one"] = replace(ENGINEER, roles=ENGINEER.roles | {"administrator"})
    async with stand.client.stream("GET", "/platform/datasets/x/stream", headers=ONE) as answer:
        began = time.monotonic()
        async for _ in answer.aiter_raw():
            if time.monotonic() - began > 0.7:
                break
    await until(lambda: stand.component.running == 0)


async def test_heartbeats_of_whoever_may_not_send_them_take_places_as_others_do(stand: Stand) -> None:
    """Breaks with: what is let in however full the process is, with bodies of any size, from anybody."""
    path = "/platform/components/x/heartbeat"
    assert priority_of("POST", path, {}, upload=False, registers=lambda: False) == "interactive"
    assert priority_of("POST", path, {}, upload=False, registers=lambda: True) == "control"
    stand.gateway._authenticator.keys["sk-boss"] = replace(  # type: ignore[union-attr]
        ENGINEER, roles=frozenset({"administrator"}), everywhere=frozenset({"administrator"})
    )
    body = b"x" * (CONTROL_BYTES + 1)
    refused = await stand.client.post(path, headers={"authorization": "Bearer sk-boss"}, content=body)
    assert (refused.status_code, "the protocol of components" in refused.json()["hint"]) == (413, True)
    assert (await stand.client.post(path, headers=ONE, content=body)).status_code == 404


async def test_without_a_credential_a_body_is_small(stand: Stand) -> None:
    assert (await stand.client.post(LOGIN, content=b"x" * 4096)).json() == {"bytes": 4096}
    refused = await stand.client.post(LOGIN, content=b"x" * 4097)
    assert (refused.status_code, "gateway.anonymous.max_body_bytes" in refused.json()["hint"]) == (413, True)
    assert (await stand.client.post(LOGIN, content=b"x" * 9000, headers=ONE)).json() == {"bytes": 9000}


async def test_without_a_credential_an_address_has_a_rate(stand: Stand) -> None:
    """Behind a proxy on this machine it is the address that the proxy saw, and no other that its client claims."""
    stand.configure(anonymous={"per_address": {"requests_per_second": 0.01, "burst": 2}})
    hosts = ["10.0.0.1", "9.9.9.9, 10.0.0.1", "8.8.8.8,10.0.0.1", "10.0.0.2", *(f"2001:db8::{n}" for n in (1, 2, 3))]
    found = [(await stand.client.post(LOGIN, headers={"x-forwarded-for": one})).status_code for one in hosts]
    assert found == [200, 200, 429, 200, 200, 200, 429]
    refused = await stand.client.post(LOGIN, headers={"x-forwarded-for": "10.0.0.1"})
    assert refused.json()["where"] == "gateway.anonymous.per_address"
    for _ in range(3):
        assert (await stand.client.get("/platform/health")).status_code == 200
        assert (await stand.client.get("/platform/things", headers=ONE)).status_code == 200


async def test_a_proxy_on_another_machine_is_believed_once_it_is_named(stand: Stand) -> None:
    """Breaks with: a setting that nobody reads."""
    limit = {"per_address": {"requests_per_second": 0.01, "burst": 1}}
    balancer = httpx.ASGITransport(stand.gateway, client=("10.1.2.3", 7))
    async with httpx.AsyncClient(transport=balancer, base_url=stand.url) as client:

        async def found(*hosts: str) -> list[int]:
            return [(await client.post(LOGIN, headers={"x-forwarded-for": one})).status_code for one in hosts]

        stand.configure(anonymous=limit)
        assert await found("203.0.113.1", "203.0.113.2") == [200, 429], "all are the balancer"
        stand.configure(anonymous=limit, trusted_proxies=["10.0.0.0/8"])
        assert await found("203.0.113.1", "203.0.113.2", "203.0.113.1") == [200, 200, 429]


def test_addresses() -> None:
    proxied = {"x-forwarded-for": "10.0.0.1"}
    assert address_of(("192.0.2.1", 1), proxied) == "192.0.2.1", "only a proxy on this machine is believed"
    assert address_of(("::ffff:192.0.2.1", 1), {}) == "192.0.2.1"
    assert address_of(("2001:db8::9", 1), {}) == "2001:db8::/64"
    assert address_of(("127.0.0.1", 1), {}) == "127.0.0.1"
    assert address_of(("127.0.0.1", 1), {"x-forwarded-for": "x" * 9000}) == "unknown"
    assert address_of(None, proxied) == "unknown"
    assert address_of(("::1", 1), proxied) == "10.0.0.1"


def test_proxies_on_other_machines_are_believed_where_they_are_named() -> None:
    """Breaks with: an address that a client claims, or all clients of a proxy that count as one."""
    trusted = ("10.0.0.0/8", "2001:db8:1::/48")
    assert address_of(("10.1.2.3", 1), {"x-forwarded-for": "203.0.113.7"}, trusted) == "203.0.113.7"
    assert address_of(("192.0.2.1", 1), {"x-forwarded-for": "203.0.113.7"}, trusted) == "192.0.2.1"
    chain = {"x-forwarded-for": "6.6.6.6, 203.0.113.7, 10.9.9.9"}
    assert address_of(("2001:db8:1::1", 1), chain, trusted) == "203.0.113.7", "what is left of it is a claim"
    assert address_of(("10.1.2.3", 1), {"x-forwarded-for": "10.7.7.7"}, trusted) == "10.7.7.7"
    assert address_of(("10.1.2.3", 1), {}, trusted) == "10.1.2.3"
    https = {"x-forwarded-proto": "https"}
    assert over_https("http", ("10.1.2.3", 1), https, trusted)
    assert not over_https("http", ("192.0.2.1", 1), https, trusted)
    assert not over_https("http", ("10.1.2.3", 1), {"x-forwarded-proto": "http"}, trusted)
    assert over_https("https", None, {}, ())
