"""Where registered endpoints may lead."""

import asyncio
import socket
from typing import Any

import pytest

from burnish.core.configuration import IntegratorConfiguration
from burnish.core.errors import Forbidden, InvalidRequest, Unavailable
from burnish.infra.http import Request, Unreachable
from burnish.infra.http_client import HttpTransport
from burnish.platform.integrator.network import CheckedResolver, check_endpoint, is_forbidden
from burnish.platform.integrator.ways import Ways
from tests.support.scripted_server import Answer, serving

ALLOWED = IntegratorConfiguration().allowed_networks


async def test_endpoints_lead_to_hosts_and_not_to_cloud_metadata() -> None:
    await check_endpoint("http://127.0.0.1:9000/base", "api_endpoint", ALLOWED)
    await check_endpoint("https://[::1]:9000", "api_endpoint", ALLOWED)
    for wrong in (
        "ftp://127.0.0.1",
        "http://",
        "http://user:pw@127.0.0.1",
        "file:///etc/passwd",
        "http://127.0.0.1:99999",
    ):
        with pytest.raises(InvalidRequest) as refused:
            await check_endpoint(wrong, "api_endpoint", ALLOWED)
        assert refused.value.where == "api_endpoint"
    with pytest.raises(Unavailable):
        await check_endpoint("http://no.such.host.invalid", "api_endpoint", ALLOWED)


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254", "0.0.0.0", "224.0.0.1", "[fe80::1]", "[fd00:ec2::254]", "[fd20:ce::254]", "100.100.100.200", "168.63.129.16",
        "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[64:ff9b::169.254.169.254]", "[2002:a9fe:a9fe::1]",
        "[::169.254.169.254]", "[::]", "[::ffff:0.0.0.0]", "8.8.8.8", "[2001:4860:4860::8888]", "[::ffff:8.8.8.8]",
    ],
)  # fmt: skip
async def test_metadata_and_foreign_addresses_are_refused_however_they_are_written(host: str) -> None:
    with pytest.raises(Forbidden):
        await check_endpoint(f"http://{host}:80/latest", "api_endpoint", ALLOWED)


@pytest.mark.parametrize(
    "host", ["2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "0177.0.0.1", "127.1", "1", "0x7f.1", "127.0.0.1."]
)
async def test_hidden_addresses_are_refused(host: str) -> None:
    with pytest.raises(Forbidden, match="unusual way"):
        await check_endpoint(f"http://{host}:80", "api_endpoint", ALLOWED)


async def test_the_allow_list_is_obeyed_as_it_is_at_the_moment() -> None:
    with pytest.raises(Forbidden, match="none of the allowed networks"):
        await check_endpoint("http://localhost:1", "api_endpoint", ("10.0.0.0/8",))
    networks = ["10.0.0.0/8"]
    ways = Ways(lambda: networks)
    with pytest.raises(Unreachable) as refused:
        ways.to("a", "http://127.0.0.1:1")
    assert not refused.value.sent
    networks[:] = ["127.0.0.0/8"]
    first = ways.to("a", "http://127.0.0.1:1")
    assert ways.to("a", "http://127.0.0.1:1") is first
    networks[:] = ["127.0.0.0/8", "10.0.0.0/8"]
    assert ways.to("a", "http://127.0.0.1:1") is not first, "connections made under other rules are not used"
    await ways.close()


class Names:
    """Answers of a name server that changes its mind with each question."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: list[list[str]]) -> None:
        self.answers = answers
        self.asked = 0
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "getaddrinfo", self._resolve, raising=False)

    async def _resolve(self, host: str, port: int, **_: Any) -> list[Any]:
        found = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]


@pytest.mark.parametrize("name", ["localhost.", "LOCALHOST", "sub.localhost", "innocent.test"])
async def test_a_name_is_judged_by_where_it_leads(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    Names(monkeypatch, [["127.0.0.1"]])
    await check_endpoint(f"http://{name}:80", "api_endpoint", ALLOWED)
    with pytest.raises(Forbidden, match=r"127\.0\.0\.1, which lies in none"):
        await check_endpoint(f"http://{name}:80", "api_endpoint", ("10.0.0.0/8",))


async def test_a_name_that_leads_elsewhere_a_moment_later_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda asked: Answer(body={"ours": True})) as server:
        port = int(server.url.rpartition(":")[2])
        names = Names(monkeypatch, [["10.1.2.3"], ["127.0.0.1"], ["169.254.169.254"]])
        await check_endpoint(f"http://rebind.test:{port}", "api_endpoint", ("10.0.0.0/8",))
        transport = HttpTransport(f"http://rebind.test:{port}", resolver=CheckedResolver(lambda: ("10.0.0.0/8",)))
        with pytest.raises(Unreachable) as refused:  # the second answer is not what was checked first
            async with transport.send(Request("GET", "/")):
                pass
        assert is_forbidden(refused.value)
        assert not refused.value.sent
        with pytest.raises(Unreachable, match=r"169\.254\.169\.254"):
            async with transport.send(Request("GET", "/")):
                pass
        assert names.asked == 3
        assert not server.asked
        await transport.close()


async def test_what_was_checked_is_what_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda asked: Answer(body={"ours": True})) as server:
        port = int(server.url.rpartition(":")[2])
        names = Names(monkeypatch, [["127.0.0.1", "8.8.8.8"], ["169.254.169.254"]])
        transport = HttpTransport(f"http://mixed.test:{port}", resolver=CheckedResolver(lambda: ALLOWED))
        async with transport.send(Request("GET", "/x")) as response:
            assert response.status == 200
        assert (server.paths(), names.asked) == (["GET /x"], 1)
        assert server.asked[0].headers["host"] == f"mixed.test:{port}"
        await transport.close()


async def test_redirects_are_not_followed() -> None:
    with serving(lambda asked: Answer(302, {}, {"location": "http://169.254.169.254/"})) as server:
        transport = HttpTransport(server.url, resolver=CheckedResolver(lambda: ALLOWED))
        async with transport.send(Request("GET", "/x")) as response:
            assert response.status == 302
        await transport.close()
