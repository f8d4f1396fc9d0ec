"""Instances that are found: static URLs, DNS names against a real name server, entry points."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from burnish.platform.integrator import discovery, entry_points, service
from burnish.platform.integrator.discovery import DnsResolver, Target
from tests.support.integrating import wait_for, world
from tests.support.name_server import NameServer, name_server
from tests.support.tiny_component import component_processes


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_SOONEST_SECONDS", 0.2)
    monkeypatch.setattr(service, "DRAIN_SECONDS", 1.0)


def resolver(server: NameServer) -> DnsResolver:
    return DnsResolver(["127.0.0.1"], server.port, timeout=0.5)


async def test_static_instances_appear_when_they_answer_and_go_with_their_entry(database_url: str, home: Path) -> None:
    with component_processes("a") as (a,):
        url = a.url
        a.kill()
        async with world(database_url, home, static=(url,)) as found:
            assert not found.integrator.instances
            a.start()
            component_id = Target(url).component_id
            await found.until_known(component_id)
            view = await found.view(component_id)
            assert view is not None
            assert (view.source, view.component_type, view.api_endpoint) == ("static", "echo_metric", url)
            assert (await found.call())["name"] == "a"
        async with world(database_url, home, static=()) as found:
            gone = await found.until(component_id, lambda one: one.status == "draining")
            assert gone.problem == "its entry is no longer configured"


async def test_an_endpoint_that_registered_itself_is_not_found_a_second_time(database_url: str, home: Path) -> None:
    with component_processes("a", "b") as (a, b):
        async with world(database_url, home, static=(a.url, b.url)) as found:
            await found.register("a", a.url)
            await found.until_known("a", Target(b.url).component_id)
            await wait_for(lambda: Target(a.url).component_id not in found.integrator.instances)
            assert "a" in found.integrator.instances


async def test_names_are_resolved_again_and_what_vanishes_is_drained(database_url: str, home: Path) -> None:
    with component_processes("a", "b") as (a, _b):
        port = a.url.rpartition(":")[2]
        async with name_server() as server:
            name = "echo.default.svc.test"
            server.records[name, "A"] = ["127.0.0.1"]
            async with world(database_url, home, dns=(f"a:{name}:{port}",), resolver=resolver(server)) as found:
                first = Target(f"http://127.0.0.1:{port}").component_id
                await found.until_known(first)
                view = await found.view(first)
                assert view is not None
                assert view.source == "dns"
                server.mute = True
                asked = server.asked
                await found.until(first, lambda one: server.asked > asked + 2 and one.status == "healthy")
                server.mute, server.failing = False, True
                asked = server.asked
                await found.until(first, lambda one: server.asked > asked + 2 and one.status == "healthy")
                server.failing = False
                server.records[name, "A"] = ["127.0.0.2"]
                gone = await found.until(first, lambda one: one.status == "draining")
                assert "no longer leads to it" in (gone.problem or "")
                server.records[name, "A"] = ["127.0.0.1"]
                await found.until_known(first)


async def test_srv_records_give_ports_and_weights_of_the_best_priority(database_url: str, home: Path) -> None:
    with component_processes("a", "b") as (a, b):
        ports = [one.url.rpartition(":")[2] for one in (a, b)]
        async with name_server() as server:
            name = "_burnish._tcp.example.test"
            server.records[name, "SRV"] = [
                f"10 30 {ports[0]} localhost.",
                f"10 10 {ports[1]} localhost.",
                "20 1 9 localhost.",
            ]
            async with world(database_url, home, dns=(f"srv:{name}",), resolver=resolver(server)) as found:
                ids = [Target(f"http://localhost:{port}").component_id for port in ports]
                await found.until_known(*ids)
                assert [found.integrator.instances[one].weight for one in ids] == [1.5, 0.5]
                assert len(found.integrator.instances) == 2


async def test_nothing_is_sent_where_a_name_may_not_lead(database_url: str, home: Path) -> None:
    with component_processes("a") as (a,):
        port = a.url.rpartition(":")[2]
        async with name_server() as server:
            server.records["bad.test", "A"] = ["127.0.0.1"]
            async with world(
                database_url, home, dns=(f"a:bad.test:{port}",), resolver=resolver(server), allowed_networks=("10.0.0.0/8",)
            ) as found:  # fmt: skip
                for _ in range(3):
                    await found.integrator._discovery.look()
                assert await found.view(Target(f"http://127.0.0.1:{port}").component_id) is None


async def test_odd_entries_harm_nobody(database_url: str, home: Path) -> None:
    with component_processes("a") as (a,):
        odd = ("nonsense", "a:no-port", "srv:", "a::1", "a:x.test:notaport")
        async with (
            name_server() as server,
            world(database_url, home, dns=odd, static=(a.url,), resolver=resolver(server)) as found,
        ):
            await found.until_known(Target(a.url).component_id)


def test_entry_points_that_cannot_be_loaded_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "some_plugin.py").write_text("def build(runtime):\n    return runtime\nodd = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        EntryPoint(name, value, entry_points.GROUP)
        for name, value in [
            ("good", "some_plugin:build"),
            ("odd", "some_plugin:odd"),
            ("gone", "no_such_module:x"),
            ("good", "some_plugin:other"),
        ]
    ]
    monkeypatch.setattr(entry_points, "entry_points", lambda group: points if group == entry_points.GROUP else [])
    found = entry_points.component_builders()
    assert list(found) == ["good"]
    assert found["good"](7) == 7
    sys.modules.pop("some_plugin", None)
