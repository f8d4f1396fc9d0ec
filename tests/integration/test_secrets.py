"""Secrets: encrypted, rotated whatever happens, and found nowhere but where they are used."""

import asyncio
import base64
import gzip
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from burnish.core.errors import Conflict, InvalidRequest, NotFound, Unavailable
from burnish.core.permissions import ROLES
from burnish.infra import event_log
from burnish.infra import logging as own_logging
from burnish.infra.database import Database
from burnish.platform.configuration import Secrets
from burnish.platform.configuration.keyring import InstallationKey, Keyring, Wrap, new_data_key
from burnish.platform.configuration.layers import REFERENCES
from burnish.platform.configuration.service import OVER_LOGIN
from tests.support.configured import ADMINISTRATOR, BASE, ENGINEER, VIEWER, Configured, configured
from tests.support.postgres import PostgresServer
from tests.support.server import Answered, Server, wait_for

VALUE = 'pl4nted-"secret"-ÜxQ9/+7z'
SECRETS = "/platform/secrets"
KEY = b"k" * 32


@pytest.fixture
async def one(database: Database, home: Path) -> AsyncIterator[Configured]:
    async with configured(database, home) as found:
        yield found


@pytest.fixture(autouse=True)
def forget_values() -> Iterator[None]:
    yield
    own_logging._hidden_values.clear()
    own_logging._known = None
    own_logging._known_long = ()


async def put(one: Configured, name: str, value: Any) -> Any:
    return await one.client.put(f"{SECRETS}/{name}", json={"value": value})


async def column(database: Database, statement: str) -> list[Any]:
    async with database.read() as session:
        return list((await session.execute(text(statement))).scalars())


async def test_a_secret_is_set_listed_used_and_removed(one: Configured) -> None:
    made = (await put(one, "oidc", VALUE)).json()
    assert (made["name"], made["reference"], made["version"], made["author"]) == ("oidc", "secret://oidc", 1, "alice")
    assert await one.secrets.resolve("secret://oidc") == VALUE
    assert (await put(one, "oidc", "another")).json()["version"] == 2
    assert await one.secrets.resolve("secret://oidc") == "another"
    await put(one, "zeta", "x")
    listed = (await one.client.get(SECRETS, params={"limit": 1})).json()
    assert ([s["name"] for s in listed["data"]], listed["has_more"], listed["next"]) == (["oidc"], True, "oidc")
    assert [s["name"] for s in (await one.client.get(SECRETS, params={"after": "oidc"})).json()["data"]] == ["zeta"]
    await one.change({"identity.oidc.client_secret": "secret://oidc"}, environment="production")
    kept = await one.client.delete(f"{SECRETS}/oidc")
    assert (kept.status_code, "identity.oidc.client_secret (version 1 of production)" in kept.json()["detail"]) == (
        409,
        True,
    )
    await one.change(unset=("identity.oidc",), environment="production")
    assert (await one.client.delete(f"{SECRETS}/oidc")).status_code == 204
    assert (await one.client.delete(f"{SECRETS}/oidc")).status_code == 404
    with pytest.raises(NotFound, match="no secret 'oidc'") as caught:
        await one.secrets.resolve("secret://oidc")
    assert "burnish secret set oidc" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "value", [VALUE, "x", "line one\nline two\r\n", "\0\ud800", " ", "-----BEGIN KEY-----\n" + "A" * 60_000]
)
async def test_any_text_comes_back_as_it_was(database: Database, value: str) -> None:
    secrets = Secrets(database, KEY)
    async with database.write() as session:
        await secrets.set(session, "s", value, "alice")
    assert await secrets.resolve("secret://s") == value
    assert value not in str(await column(database, "SELECT ciphertext FROM secrets")) or len(value) < 3


@pytest.mark.parametrize(
    "body",
    [{}, {"value": ""}, {"value": 5}, {"value": ["a"]}, {"value": VALUE * 5000}, {"value": VALUE, "x": 1}, b"{", None],
)
async def test_what_is_wrong_is_refused_without_a_word_of_the_value(one: Configured, body: Any) -> None:
    sent = {"content": body} if isinstance(body, bytes) else {"json": body}
    answer = await one.client.put(f"{SECRETS}/oidc", **sent)
    assert answer.status_code in (400, 422)
    assert "pl4nted" not in answer.text
    for name in ("a b", "-x", "x" * 101, "secret:x"):
        assert (await put(one, name, VALUE)).status_code == 422, name
    for reference in ("oidc", "secret://", "secret://a b", "http://x"):
        with pytest.raises(InvalidRequest):
            await one.secrets.resolve(reference)


async def test_only_administrators_of_everything_set_secrets(one: Configured) -> None:
    one.caller = ENGINEER
    assert (await one.client.get(SECRETS)).status_code == 200
    assert (await put(one, "oidc", VALUE)).status_code == 403
    for path in ("/rotate-key", "/rewrap/finish"):
        assert (await one.client.post(SECRETS + path)).status_code == 403
    one.caller = VIEWER
    assert (await one.client.get(SECRETS)).status_code == 403


async def test_who_may_not_use_a_secret_has_it_sent_nowhere(one: Configured) -> None:
    """Breaks with: a provider of one's own, to which the next login sends any secret of the installation."""
    for name in ("oidc", "other"):
        await put(one, name, VALUE)
    first = {"identity.oidc.issuer": "https://login.example.org", "identity.oidc.client_secret": "secret://oidc"}
    version = (await one.change(first))["version"]
    document = (await one.client.get(BASE + "/export")).text
    await one.change({"identity.oidc.issuer": "https://staging.example.org"})
    few = frozenset({"configuration:read", "configuration:write", "identity:write"})
    everything = frozenset(ROLES["administrator"])
    for scopes, lacks in (
        (few, "model:deploy"), (everything - {"secret:write"}, "secret:write"), (everything - {"job:read"}, "job:read"),
    ):  # fmt: skip
        one.caller = replace(ADMINISTRATOR, scopes=scopes)
        refused = [
            await one.patch({"identity.oidc.client_secret": "secret://other"}),
            await one.patch({"identity.oidc.issuer": "https://evil.example"}),
            await one.patch({"identity.oidc.issuer": "https://evil.example"}, environment="production"),
            await one.patch({"identity.oidc.role_bindings": {"all": "*/administrator"}}),
            await one.patch(unset=("identity.oidc",)),
            await one.patch({"identity.oidc.issuer": "https://evil.example"}, dry_run=True),
            await one.client.post(BASE + "/rollback", json={"to": version}),
            await one.client.post(BASE + "/import", json={"document": document}),
        ]
        assert [answer.status_code for answer in refused] == [403] * 8, [answer.text for answer in refused]
        assert all(lacks in answer.json()["detail"] for answer in refused)
        assert (await one.patch({"identity.session_seconds": 60})).status_code == 200, "it says nothing of who is who"
    one.caller = replace(ADMINISTRATOR, scopes=everything)
    await one.change({"identity.oidc.client_secret": "secret://other"})


def test_a_key_that_refers_to_a_secret_is_changed_by_administrators_alone() -> None:
    """Breaks with: another such key, whose secret anybody has sent where they like."""
    assert all(one.startswith(OVER_LOGIN) for one in REFERENCES)


async def test_a_value_opens_under_its_own_name_only(one: Configured) -> None:
    """Whoever can write into the database cannot move a secret to where they may read it."""
    await put(one, "mine", "of no worth")
    await put(one, "theirs", VALUE)
    async with one.database.write() as session:
        await session.execute(
            text(
                "UPDATE secrets SET ciphertext = (SELECT ciphertext FROM secrets WHERE name = 'theirs') WHERE name = 'mine'"
            )
        )
    with pytest.raises(Unavailable, match="was not stored under that name") as caught:
        await one.secrets.resolve("secret://mine")
    assert VALUE not in str(caught.value)
    async with one.database.write() as session:
        await session.execute(text("UPDATE secrets SET ciphertext = 'gAAAA' WHERE name = 'mine'"))
    with pytest.raises(Unavailable, match="cannot be opened"):
        await one.secrets.resolve("secret://mine")


async def test_a_process_with_another_key_says_so(one: Configured, database: Database) -> None:
    await put(one, "oidc", VALUE)
    other = Secrets(database, b"o" * 32)
    with pytest.raises(Unavailable, match="another installation key") as caught:
        await other.resolve("secret://oidc")
    assert "rewrap" in (caught.value.hint or "")
    async with database.write() as session:
        with pytest.raises(Unavailable):
            await other.set(session, "x", "y", "alice")
    await other.start()  # leaves it to others, and lives
    with pytest.raises(ValueError, match="32 bytes"):
        InstallationKey(b"short")


async def test_rotation_encrypts_everything_anew_while_secrets_are_used_and_set(one: Configured) -> None:
    for number in range(45):
        await put(one, f"s{number}", f"value {number}")
    before = await column(one.database, "SELECT ciphertext FROM secrets ORDER BY name")
    stop = asyncio.Event()

    async def use() -> int:
        used = 0
        while not stop.is_set():
            assert await one.secrets.resolve(f"secret://s{used % 45}") == f"value {used % 45}"
            used += 1
        return used

    async def put_more() -> None:
        for number in range(45, 60):
            assert (await put(one, f"s{number}", f"value {number}")).status_code == 200

    using = asyncio.create_task(use())
    more = asyncio.create_task(put_more())
    answers = await asyncio.gather(*(one.client.post(SECRETS + "/rotate-key") for _ in range(2)))
    await more
    stop.set()
    assert await using > 0
    assert [answer.status_code for answer in answers] == [200, 200]
    await one.secrets.finish()
    assert len(await column(one.database, "SELECT number FROM secret_keys")) == 1
    assert len(set(await column(one.database, "SELECT key_number FROM secrets"))) == 1
    after = await column(one.database, "SELECT ciphertext FROM secrets ORDER BY name")
    assert not set(before) & set(after)
    for number in range(60):
        assert await one.secrets.resolve(f"secret://s{number}") == f"value {number}"


async def test_a_rotation_between_two_queries_of_a_use_is_seen_through(
    one: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks with: a key that was removed after the secret's row was read, taken for a secret that is lost."""
    await put(one, "oidc", VALUE)
    plain, turns = one.secrets._ring, iter([True, False, False])

    async def rotating(session: Any) -> Keyring:
        if next(turns):
            await Secrets(one.database, KEY).rotate("alice")
        return await plain(session)

    monkeypatch.setattr(one.secrets, "_ring", rotating)
    assert await one.secrets.resolve("secret://oidc") == VALUE


_ROTATE = """
import asyncio, sys
from burnish.infra.database import Database
from burnish.platform.configuration import secrets, store
from burnish.platform.configuration.secrets import Secrets
secrets._BATCH = 2
async def main():
    database = Database(sys.argv[1])
    plain = store.secrets_under_other_keys
    async def slow(*arguments):
        print("batch", flush=True)
        return await plain(*arguments)
    store.secrets_under_other_keys = slow
    print(await Secrets(database, b"k" * 32).rotate("alice"), flush=True)
    await database.dispose()
asyncio.run(main())
"""


@pytest.mark.parametrize("batches", [1, 2, 4])
async def test_a_rotation_that_is_killed_loses_nothing_and_is_finished_later(database_url: str, batches: int) -> None:
    database = Database(database_url)
    secrets = Secrets(database, KEY)
    for number in range(10):
        async with database.write() as session:
            await secrets.set(session, f"s{number}", f"value {number}", "alice")
    process = subprocess.Popen([sys.executable, "-c", _ROTATE, database_url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(batches):
        assert (await asyncio.to_thread(process.stdout.readline)).startswith("batch")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    for number in range(10):
        assert await secrets.resolve(f"secret://s{number}") == f"value {number}"
    again = Secrets(database, KEY)
    await again.start()
    assert len(await column(database, "SELECT number FROM secret_keys")) == 1
    assert set(await column(database, "SELECT key_number FROM secrets")) == {2}
    for number in range(10):
        assert await again.resolve(f"secret://s{number}") == f"value {number}"
    await database.dispose()


async def test_the_installations_key_is_exchanged_without_losing_a_secret(one: Configured, tmp_path: Path) -> None:
    await put(one, "oidc", VALUE)
    (tmp_path / "short").write_bytes(b"x")
    for path in (tmp_path / "none", tmp_path / "short", tmp_path):
        wrong = await one.client.post(SECRETS + "/rewrap", json={"new_key_file": str(path)})
        assert (wrong.status_code, wrong.json()["where"]) == (422, "new_key_file")
    file = tmp_path / "new.key"
    file.write_bytes(b"n" * 40)
    done = (await one.client.post(SECRETS + "/rewrap", json={"new_key_file": str(file)})).json()
    assert (done["data_keys"], len(done["installation_keys"])) == (1, 2)
    assert (await one.client.post(SECRETS + "/rotate-key")).status_code == 409
    new = Secrets(one.database, b"n" * 40)
    assert await new.resolve("secret://oidc") == await one.secrets.resolve("secret://oidc") == VALUE
    async with one.database.write() as session:
        finished = await new.finish_rewrap(session)
    assert len(finished.installation_keys) == 1
    with pytest.raises(Unavailable, match="another installation key"):
        await one.secrets.resolve("secret://oidc")
    await new.rotate("alice")
    assert await new.resolve("secret://oidc") == VALUE
    async with one.database.write() as session:
        with pytest.raises(Conflict):
            await new.rewrap(session, InstallationKey(b"n" * 40))


def test_a_keyring_opens_older_keys_and_writes_with_the_newest() -> None:
    key = InstallationKey(KEY)
    first, second = new_data_key(), new_data_key()
    old = Keyring(key, [Wrap(1, key.fingerprint, key.wrap(first))])
    sealed = old.encrypt("a", VALUE)
    both = Keyring(key, [Wrap(1, key.fingerprint, key.wrap(first)), Wrap(2, key.fingerprint, key.wrap(second))])
    assert (both.newest, both.decrypt("a", sealed)) == (2, VALUE)
    with pytest.raises(Unavailable):
        old.decrypt("a", both.encrypt("a", VALUE))
    with pytest.raises(Unavailable, match="was changed"):
        Keyring(key, [Wrap(1, key.fingerprint, InstallationKey(b"o" * 32).wrap(first))])


async def test_logs_and_events_hide_values_that_were_received_or_resolved(
    one: Configured, caplog: pytest.LogCaptureFixture
) -> None:
    await put(one, "oidc", VALUE)
    own_logging._hidden_values.clear()
    own_logging._known = None  # as in another process: it resolves the value, and knows it from then on
    value = await one.secrets.resolve("secret://oidc")
    record = logging.getLogger("burnish.test").makeRecord(
        "burnish.test", logging.ERROR, __file__, 1, "the provider refused %s", (value,), None, extra={"sent": {"q": value}, "error": ValueError(value)},
    )  # fmt: skip
    try:
        raise ValueError(f"bad {value}")
    except ValueError:
        record.exc_info = sys.exc_info()
    for formatter in (own_logging.JsonFormatter(), own_logging.TextFormatter()):
        line = formatter.format(record)
        assert "pl4nted" not in line
        assert "***" in line
    async with one.database.write() as session:
        for kind in ("log", "state"):
            await event_log.append(session, project_id="default", subject="s", type=kind, data={"m": f"x {value} y"})
    assert "pl4nted" not in str(await column(one.database, "SELECT data FROM events"))


# The search


def forms() -> dict[str, bytes]:
    """Every form in which the value could stand somewhere."""
    data = VALUE.encode()
    shifted = [base64.b64encode(b"\0" * shift + data).decode()[4 * (shift > 0) : -4] for shift in range(3)]
    return {
        "plain": data, "json": json.dumps(VALUE)[1:-1].encode(), "hex": data.hex().encode(), "HEX": data.hex().upper().encode(),
        "utf-16": VALUE.encode("utf-16-le"), "part": b"pl4nted", "reversed": data[::-1],
        **{f"base64+{shift}": text.encode() for shift, text in enumerate(shifted)},
        **{f"url64+{shift}": text.replace("+", "-").replace("/", "_").encode() for shift, text in enumerate(shifted)},
    }  # fmt: skip


def found_in(content: bytes) -> list[str]:
    if content[:2] == b"\x1f\x8b":
        content = content + gzip.decompress(content)
    return [name for name, form in forms().items() if form in content]


def search(places: dict[str, bytes]) -> None:
    assert places
    assert {place: names for place, content in places.items() if (names := found_in(content))} == {}


def test_the_search_finds_each_form() -> None:
    for name, form in forms().items():
        assert name in found_in(b"something before " + form + b" and behind")
    for shift in range(3):
        assert found_in(base64.b64encode(b"x" * shift + VALUE.encode() + b"rest"))


def dump(server: Server, database: str, postgres_server: PostgresServer | None) -> bytes:
    if postgres_server is None:
        with sqlite3.connect(server.home / "burnish.db") as connection:
            return "\n".join(connection.iterdump()).encode()
    tables = postgres_server.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database).split()
    return b"\n".join(postgres_server.execute(f"SELECT * FROM {table}", database).encode() for table in tables)


def processes_of(server: Server) -> dict[str, bytes]:
    found = {}
    for pid in [server.pid, *(one.pid for one in server.processes())]:
        for name in ("environ", "cmdline"):
            try:
                found[f"/proc/{pid}/{name}"] = Path(f"/proc/{pid}/{name}").read_bytes()
            except OSError:
                continue
    return found


def cli(server: Server, *arguments: str, stdin: str = "") -> bytes:
    done = subprocess.run(
        [sys.executable, "-m", "burnish.cli", *arguments], input=stdin.encode(), capture_output=True, check=False,
        env={**os.environ, "BURNISH_URL": server.url, "BURNISH_HOME": str(server.home)},
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "dialect",
    [pytest.param("sqlite", marks=pytest.mark.full), pytest.param("postgresql", marks=pytest.mark.postgres)],
)
def test_a_planted_secret_is_found_nowhere(dialect: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Breaks with: a value in an argument, a log line, an answer, an event, a job's environment, a row."""
    postgres_server: PostgresServer | None = None
    name, url = "", None
    if dialect == "postgresql":
        postgres_server = request.getfixturevalue("postgres_server")
        assert postgres_server is not None
        name = postgres_server.create_database()
        url = postgres_server.url(name)
    server = Server(tmp_path / "home", database_url=url, environment={"BURNISH_LOG_LEVEL": "debug"})
    try:
        server.start()
        said = use_everywhere(server, tmp_path)
        places = {**said, **processes_of(server), "database": dump(server, name, postgres_server)}
        places |= {
            str(path): path.read_bytes() for path in server.home.rglob("*") if path.is_file() and not path.is_symlink()
        }
        search(places)
        assert b"secret://planted" in places["database"]
        assert b"PUT /platform/secrets/planted" in server.log.read_bytes()
        server.stop()
        search({str(path): path.read_bytes() for path in server.home.rglob("*") if path.is_file()})
    finally:
        server.end_everything()
        if postgres_server is not None:
            postgres_server.drop_database(name)


def use_everywhere(server: Server, folder: Path) -> dict[str, bytes]:
    """Set the secret, refer to it, make it fail; return everything that was answered."""
    said = {"secret set": cli(server, "secret", "set", "planted", stdin=VALUE + "\n")}
    assert b"secret://planted" in said["secret set"], said
    assert server.request("GET", SECRETS)["data"][0]["version"] == 1
    reference = "identity.oidc.client_secret=secret://planted"
    for command in (
        ["config", "set", reference, "--reason", "log in"], ["secret", "rotate-key"], ["config", "export"],
        ["secret", "remove", "planted"], ["secret", "set", "planted", VALUE],
    ):  # fmt: skip
        said[" ".join(command).replace(VALUE, "...")] = cli(server, *command)
    said.pop("secret set planted ...")  # the shell's own: what was typed as an argument is refused, and quoted
    for what, (method, path, body) in {
        "long": ("PUT", f"{SECRETS}/planted", {"value": VALUE * 5000}), "name": ("PUT", f"{SECRETS}/a%20b", {"value": VALUE}),
        "field": ("PUT", f"{SECRETS}/planted", {"value": VALUE, "more": VALUE}), "cut": ("PUT", f"{SECRETS}/planted", json.dumps({"value": VALUE})[:-2].encode()),
        "key": ("PATCH", "/platform/configuration", {"set": {"identity.oidc.client_secret": VALUE}}),
    }.items():  # fmt: skip
        with pytest.raises(Answered) as caught:
            server.request(method, path, body)
        said[what] = caught.value.text.encode()
    said |= {path: json.dumps(server.request("GET", path)).encode() for path in (
        SECRETS, "/platform/configuration", "/platform/configuration/versions", "/platform/configuration/status",
        "/platform/configuration/explain/identity.oidc.client_secret", "/openapi.json", "/platform/components",
    )}  # fmt: skip
    said["job"] = run_job(server, folder)
    return said


def run_job(server: Server, folder: Path) -> bytes:
    """Run a job in a host of its own; return its environment and what is known of it."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "film {n}", "label": "{"good" if n % 2 else "bad"}"}}\n' for n in range(40)))
    server.upload("reviews", rows)
    split = {"component": "data_management", "kind": "split", "with": {"dataset": "${{ parameters.data.artifact }}"}}
    definition = {"name": "cut", "parameters": {"data": {"type": "dataset"}}, "steps": {"first": split}}
    run = server.request(
        "POST", "/platform/workflows/run", {"definition": definition, "parameters": {"data": "reviews"}}
    )
    path, seen = f"/platform/workflows/{run['workflow_id']}", b""
    deadline = time.monotonic() + 60
    while server.request("GET", f"{path}/status")["status"] not in {"succeeded", "failed"}:
        assert time.monotonic() < deadline
        seen += b"".join(processes_of(server).values())
    jobs = server.request("GET", "/platform/jobs")["data"]
    logs = [server.request("GET", f"/platform/jobs/{job['job_id']}/logs") for job in jobs]
    wait_for(lambda: bool(jobs), 1)
    assert server.request("GET", f"{path}/status")["status"] == "succeeded"
    assert b"burnish.platform.jobs.host" in seen, "the job's host was not seen"
    return seen + json.dumps([jobs, logs, server.request("GET", f"{path}/status")]).encode()
