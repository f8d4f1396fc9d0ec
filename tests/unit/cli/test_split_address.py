"""Under which URL other processes reach one, and which of a home's processes clients are sent to."""

import ipaddress
import socket
from pathlib import Path

import pytest

from burnish.cli import server
from burnish.cli.server import advertised, bind, own_address
from burnish.client.address import has_platform
from burnish.core.errors import InvalidRequest
from burnish.core.settings import Settings


def _url(home: Path, host: str, advertise_url: str | None = None) -> str | None:
    with bind(host, 0) as listener:
        found = advertised(Settings(home=home, host=host, advertise_url=advertise_url), listener).advertise_url
        port = listener.getsockname()[1]
        return found if found is None else found.replace(f":{port}", ":PORT")


def test_it_is_the_address_that_was_bound(tmp_path: Path) -> None:
    assert _url(tmp_path, "127.0.0.1") == "http://127.0.0.1:PORT"


@pytest.mark.skipif(not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
def test_an_ipv6_address_stands_in_brackets(tmp_path: Path) -> None:
    assert _url(tmp_path, "::1") == "http://[::1]:PORT"


def test_what_was_said_stays(tmp_path: Path) -> None:
    assert _url(tmp_path, "127.0.0.1", advertise_url="http://node-7.example:81") == "http://node-7.example:81"


@pytest.mark.parametrize("address", ["10.1.2.3", "2001:db8::7"])
def test_bound_to_every_address_it_is_the_machines_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(server, "own_address", lambda: address)
    shown = f"[{address}]" if ":" in address else address
    assert _url(tmp_path, "0.0.0.0") == f"http://{shown}:PORT"


def test_what_cannot_be_known_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks with: a process that registers as 0.0.0.0, where everybody finds only himself."""
    monkeypatch.setattr(server, "own_address", lambda: None)
    with pytest.raises(InvalidRequest, match=r"0\.0\.0\.0") as caught:
        _url(tmp_path, "0.0.0.0")
    assert caught.value.where == "BURNISH_ADVERTISE_URL"


def test_loopback_is_nobodys_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolved(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 0)) for one in ("127.0.1.1", "169.254.3.4", "10.9.8.7")
        ]

    monkeypatch.setattr("burnish.cli.server.socket.getaddrinfo", resolved)
    assert own_address() == "10.9.8.7"
    monkeypatch.setattr("burnish.cli.server.socket.getaddrinfo", lambda *_, **__: [])
    found = own_address()
    assert found is None or not ipaddress.ip_address(found).is_loopback


@pytest.mark.parametrize(
    ("components", "expected"),
    [("all", True), ("platform", True), ("fine_tuning,platform", True), ("evaluation", False)],
)
def test_clients_are_sent_to_a_platform(components: str, expected: bool) -> None:
    assert has_platform(components) is expected
