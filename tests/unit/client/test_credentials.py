"""The file of stored keys: private, atomic, refused when others can read it."""

import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from burnish.client import AsyncClient, Client, credentials
from burnish.client.credentials import Credential, UnsafeCredentials
from burnish.core.errors import Forbidden, Unauthenticated
from tests.support.scripted_server import Answer, Asked, serving

URL = "http://127.0.0.1:8000"
KEY = Credential(key="bk_one", subject="ada")


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("BURNISH_API_KEY", "BURNISH_PROJECT", "BURNISH_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "config" / "burnish" / "credentials.json"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_keys_are_kept_one_a_server_where_only_their_owner_reads(config: Path) -> None:
    before = os.umask(0)  # a lax umask does not make it readable
    try:
        credentials.store(URL, KEY)
    finally:
        os.umask(before)
    assert (mode(config), mode(config.parent)) == (0o600, 0o700)
    credentials.store("https://burnish.example.org", Credential(key="bk_two"))
    found = credentials.find("http://LOCALHOST:8000/")
    assert found == KEY
    assert "bk_one" not in repr(found)
    assert credentials.find("http://127.0.0.1:8001") is None
    assert (credentials.find("https://burnish.example.org:443/") or KEY).key == "bk_two"
    assert credentials.forget(URL) == KEY
    assert credentials.find(URL) is None
    assert credentials.forget(URL) is None
    assert credentials.find("https://burnish.example.org") is not None
    assert [path.name for path in config.parent.iterdir()] == ["credentials.json"]


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o644, 0o620])
def test_a_file_that_others_can_read_is_refused(config: Path, bits: int) -> None:
    credentials.store(URL, KEY)
    config.chmod(bits)
    uses: list[Callable[[], object]] = [
        lambda: credentials.find(URL), lambda: credentials.store(URL, KEY), lambda: Client(URL),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(UnsafeCredentials, match=f"{bits:04o}") as caught:
            use()
        assert f"chmod 600 {config}" in str(caught.value.hint)
    assert Client(URL, api_key="bk_given").url == URL  # one that is given needs no file


def test_a_file_that_is_something_else_is_not_overwritten(config: Path) -> None:
    config.parent.mkdir(parents=True)
    config.write_text("half a fi")
    config.chmod(0o600)
    uses: list[Callable[[], object]] = [lambda: credentials.find(URL), lambda: credentials.store(URL, KEY)]
    for use in uses:
        with pytest.raises(UnsafeCredentials, match="not a file of keys"):
            use()
    assert config.read_text() == "half a fi"


def test_a_write_that_fails_leaves_the_file_as_it_was(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials.store(URL, KEY)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnsafeCredentials, match="No space left"):
        credentials.store(URL, Credential(key="bk_two"))
    monkeypatch.undo()
    assert [path.name for path in config.parent.iterdir()] == ["credentials.json"]
    assert json.loads(config.read_text())["servers"][URL]["key"] == "bk_one"


def test_two_logins_at_once_lose_neither_key(config: Path) -> None:
    def log_in(number: int) -> None:
        credentials.store(f"http://127.0.0.1:{9000 + number}", Credential(key=f"bk_{number}"))

    threads = [threading.Thread(target=log_in, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(json.loads(config.read_text())["servers"]) == 16


def sent(asked: Asked) -> tuple[str | None, str | None]:
    return asked.headers.get("authorization"), asked.headers.get("burnish-project")


def test_the_key_and_the_project_that_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argument, then BURNISH_API_KEY, then the file; what is kept for one server goes to no other."""
    with serving(lambda _: Answer(body={"status": "ready"})) as server, serving(lambda _: Answer(body={})) as other:
        with Client(server.url) as client:
            client.ready()
        credentials.store(server.url, Credential(key="bk_kept"))
        for one in (server, other):
            with Client(one.url) as client:
                client.ready()
        monkeypatch.setenv("BURNISH_API_KEY", "bk_variable")
        monkeypatch.setenv("BURNISH_PROJECT", "ml")
        for given, project in ((None, None), ("bk_given", "vision"), ("", None)):
            with Client(server.url, api_key=given, project=project) as client:
                client.ready()
        assert [sent(asked) for asked in server.asked] == [
            (None, None), ("Bearer bk_kept", None), ("Bearer bk_variable", "ml"), ("Bearer bk_given", "vision"), (None, "ml"),
        ]  # fmt: skip
        assert [sent(asked) for asked in other.asked] == [(None, None)]


def test_a_refusal_says_how_to_mend_it() -> None:
    problem = {"detail": "the credential is not valid", "code": "unauthenticated", "hint": "server's"}
    with serving(lambda _: Answer(401, problem)) as server:
        for given, told in (("bk_x", "BURNISH_API_KEY"), ("", "burnish login")):
            with (
                Client(server.url, api_key=given) as client,
                pytest.raises(Unauthenticated, match="not valid") as caught,
            ):
                client.models.list()
            assert told in str(caught.value.hint)
            assert server.url in str(caught.value.hint)
        credentials.store(server.url, Credential(key="bk_kept"))
        with Client(server.url) as client, pytest.raises(Unauthenticated) as caught:
            client.models.list()
        assert "again" in str(caught.value.hint)
    with (
        serving(lambda _: Answer(403, {"detail": "ada lacks model:deploy", "code": "forbidden"})) as server,
        Client(server.url) as client,
        pytest.raises(Forbidden, match="model:deploy") as refused,
    ):
        client.models.list()
    assert "burnish whoami" in str(refused.value.hint)


async def test_identity_from_asyncio() -> None:
    def script(asked: Asked) -> Answer:
        if "export" in asked.path:
            return Answer(lines=['{"number": 1}', '{"number": 2}'])
        return Answer(body={"subject": "ada", "permissions": ["model:read"]})

    with serving(script) as server:
        async with AsyncClient(server.url, api_key="bk_x", project="ml") as client:
            assert (await client.identity.me()).subject == "ada"
            assert len([line async for line in client.identity.export_audit(project="ml")]) == 2
    assert server.asked[1].path == "/platform/identity/audit/export?project=ml"
    assert [sent(asked) for asked in server.asked] == [("Bearer bk_x", "ml")] * 2
