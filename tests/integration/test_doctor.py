"""`burnish doctor` finds what was planted, and says what to do about it."""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from burnish.cli.doctor import _server
from burnish.core.protocol import COMPONENT_TYPES
from burnish.core.settings import Settings
from burnish.infra.database import Database
from burnish.platform.integrator.tables import ComponentTable
from burnish.platform.monitoring import examination, store
from burnish.platform.monitoring.examination import Finding, examine
from burnish.wiring import open_installation
from tests.support.command_line import burnish
from tests.support.postgres import free_port
from tests.support.scripted_server import Answer, serving


async def _started_once(home: Path, database_url: str) -> Settings:
    made = Settings(home=home, database_url=SecretStr(database_url), port=free_port(), disk_reserve_bytes=0)
    await (await open_installation(made)).close()
    return made


@pytest.fixture
async def settings(database_url: str, home: Path) -> Settings:
    """A home that has been started once, on SQLite and then on PostgreSQL."""
    return await _started_once(home, database_url)


@pytest.fixture
async def on_sqlite(sqlite_url: str, home: Path) -> Settings:
    """A home that has been started once, for what is not looked for in the database."""
    return await _started_once(home, sqlite_url)


async def _problems(settings: Settings, **variables: str) -> dict[str, Finding]:
    """What is not in order, by check; that nobody runs is left out."""
    found = await examine(settings, variables)
    return {one.check: one for one in found if one.status != "ok" and one.message != "no process runs"}


async def test_nothing_is_said_against_what_is_in_order(settings: Settings) -> None:
    before = sorted(settings.home.rglob("*"))
    assert await _problems(settings, BURNISH_HOME=str(settings.home), PATH="/bin") == {}
    staged = settings.home / "artifacts" / "staging"
    after = sorted(path for path in settings.home.rglob("*") if staged not in path.parents)
    assert after == [path for path in before if staged not in path.parents], "it changes nothing"


async def test_a_new_home_is_in_order_and_stays_new(home: Path) -> None:
    home.rmdir()
    assert await _problems(Settings(home=home)) == {}
    assert not home.exists()


async def test_a_misspelt_variable_is_named_with_its_neighbour(on_sqlite: Settings) -> None:
    found = await _problems(on_sqlite, BURNISH_DATABSE_URL="x", BURNISH_CONFIGURATION__gateway__max_in_flight="5")
    assert "BURNISH_DATABSE_URL" in found["settings"].message
    assert "BURNISH_DATABASE_URL" in str(found["settings"].hint)
    assert len(found) == 1


async def test_another_installations_key_is_found(settings: Settings) -> None:
    path = settings.home / "secret.key"
    path.write_bytes(os.urandom(32))
    found = await _problems(settings)
    assert found["secret key"].status == "problem"
    assert "BURNISH_SECRET_KEY_FILE" in str(found["secret key"].hint)
    path.unlink()
    assert "there is none" in (await _problems(settings))["secret key"].message
    path.write_bytes(b"short")
    assert "32 bytes" in (await _problems(settings))["secret key"].message


async def test_open_files_are_found(on_sqlite: Settings) -> None:
    (on_sqlite.home / "secret.key").chmod(0o644)
    on_sqlite.home.chmod(0o777)
    found = await _problems(on_sqlite)
    assert found["secret key"].hint == f"chmod 600 {on_sqlite.home / 'secret.key'}"
    assert found["home"].hint == f"chmod go-w {on_sqlite.home}"


async def test_a_store_that_is_not_the_databases_is_found(settings: Settings, tmp_path: Path) -> None:
    missing = settings.model_copy(update={"artifact_url": (tmp_path / "not-mounted").as_uri()})
    found = await _problems(missing)
    assert "there is no artifact store" in found["artifact store"].message
    assert not (tmp_path / "not-mounted").exists(), "it makes none"
    other = tmp_path / "other"
    from burnish.infra.artifact_store import open_store

    open_store(other.as_uri())
    found = await _problems(settings.model_copy(update={"artifact_url": other.as_uri()}))
    assert "another store" in found["artifact store"].message
    assert "BURNISH_ARTIFACT_URL" in str(found["artifact store"].hint)


async def test_a_full_disk_is_found(on_sqlite: Settings) -> None:
    found = await _problems(on_sqlite.model_copy(update={"disk_reserve_bytes": 1 << 60}))
    assert {found["home disk"].status, found["artifact disk"].status} == {"problem"}


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u@127.0.0.1:{port}/x",
        "postgresql://u@nowhere.invalid/x",
        "nonsense://x",
        "postgresql://u@127.0.0.1:silent/x",
    ],
)
async def test_a_database_that_does_not_answer_is_found_in_time(home: Path, url: str) -> None:
    """Refused, unknown, unreadable, and one that takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = url.replace("{port}", str(free_port())).replace("silent", str(silent.getsockname()[1]))
        began = time.monotonic()
        found = await _problems(Settings(home=home, database_url=SecretStr(url)))
    assert found["database"].status == "problem"
    assert "BURNISH_DATABASE_URL" in str(found["database"].hint)
    assert time.monotonic() - began < 15


async def test_a_damaged_sqlite_file_is_found(sqlite_url: str, home: Path) -> None:
    made = Settings(home=home, database_url=SecretStr(sqlite_url))
    path = Path(sqlite_url.partition("///")[2])
    content = bytearray(path.read_bytes())
    content[4096:12_288] = os.urandom(8192)
    path.write_bytes(bytes(content))
    assert (await _problems(made))["database"].status == "problem"


async def test_a_redis_that_does_not_answer_is_found(on_sqlite: Settings) -> None:
    gone = on_sqlite.model_copy(update={"redis_url": SecretStr(f"redis://:secret@127.0.0.1:{free_port()}/0")})
    found = await _problems(gone)
    assert found["redis"].status == "problem"
    assert "secret" not in found["redis"].message


async def test_clocks_that_differ_are_found(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    for off, status in ((5.0, "warning"), (-90.0, "problem")):
        monkeypatch.setattr("burnish.platform.monitoring.examination.time.time", lambda off=off: real() + off)
        assert (await _problems(settings))["clock"].status == status


async def test_missing_packages_are_named_by_role(on_sqlite: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "_PACKAGES", {"fine_tuning": ("no_such_package",), "evaluation": ("json",)})
    found = await _problems(on_sqlite)
    assert "fine_tuning" in found["packages"].message
    assert "no_such_package" in found["packages"].message


async def test_too_few_connections_are_found() -> None:
    assert examination._connections(100, 20, 2).status == "ok"
    scarce = examination._connections(100, 20, 7)
    assert scarce.status == "problem"
    assert "max_connections" in str(scarce.hint)


async def test_missing_sick_and_outdated_instances_are_named(settings: Settings) -> None:
    database = Database(settings.resolved_database_url)
    try:
        async with database.write() as session:
            for component_type in set(COMPONENT_TYPES) - {"evaluation"}:
                old = component_type == "compression"
                session.add(
                    ComponentTable(
                        component_id=f"{component_type}-1", component_type=component_type, name=component_type,
                        version="0.0.9" if old else "0.1.0", status="unhealthy" if old else "healthy",
                        problem="it does not answer" if old else None, process=f"p-{component_type}", embedded=True,
                    )
                )  # fmt: skip
    finally:
        await database.dispose()
    found = [one for one in await examine(settings, {}) if one.status != "ok"]
    said = "\n".join(one.message for one in found)
    assert "no instance of evaluation is healthy" in said
    assert "no instance of compression is healthy" in said
    assert "compression-1 is unhealthy: it does not answer" in said
    assert "different versions of Burnish run" in said
    assert any("burnish components compression-1" in str(one.hint) for one in found)


def test_no_process_is_no_list_of_missing_components() -> None:
    assert [one.status for one in examination.instance_findings([], served=False)] == ["warning"]
    row = store.KnownInstance("x-1", "x", "1", "healthy", None)
    assert len(examination.instance_findings([row], served=True)) == len(COMPONENT_TYPES)


def test_what_somebody_stopped_is_no_fault() -> None:
    rows = [store.KnownInstance(f"{one}-1", one, "1", "healthy", None) for one in COMPONENT_TYPES]
    lost = store.KnownInstance("x-2", "evaluation", "1", "lost", "it was stopped and has not come back", stopped=True)
    found = examination.instance_findings([*rows, lost], served=True)
    assert [one.status for one in found] == ["ok", "ok"]
    assert found[0].message.startswith(f"{len(rows)} instances")
    (said,) = examination.instance_findings([*rows, replace(lost, stopped=False)], served=True)
    assert said.status == "warning"


def _environment(**variables: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("BURNISH_")} | variables


def test_the_command_ends_with_1_if_something_must_be_mended(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "burnish.cli", "doctor", "--home", str(home), "--json"]
        environment = _environment(BURNISH_PORT=port)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1, done.stderr
        answer = json.loads(done.stdout)
        assert answer["status"] == "problem"
        assert [one["check"] for one in answer["findings"] if one["status"] == "problem"] == ["port"]
    done = burnish("doctor", "--home", str(home), environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 to mend" in done.stdout
    done = burnish("doctor", "--home", str(home), environment=_environment(BURNISH_COMPONENTS="nonsense"))
    assert done.returncode == 1
    assert "unknown component 'nonsense'" in done.stdout


async def test_processes_without_a_component_are_counted(postgres_url: str, home: Path) -> None:
    """Breaks with: a count of connections that leaves the platforms out."""
    settings = await _started_once(home, postgres_url)
    code = (
        "import sys, asyncpg, asyncio; from burnish.infra.database import Database\n"
        "async def main():\n"
        "    database = Database(sys.argv[1])\n"
        "    held = [await asyncpg.connect(database.dsn, server_settings=database.server_settings) for _ in range(2)]\n"
        "    print(flush=True); sys.stdin.readline()\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", code, settings.resolved_database_url]
    others = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for one in others:
            assert one.stdout is not None
            assert one.stdout.readline() == b"\n"
        (found,) = [one for one in await examine(settings, {}) if one.check == "connections"]
    finally:
        for one in others:
            one.kill()
            one.communicate()
    assert found.message.startswith(f"2 process(es) open up to {2 * examination.CONNECTIONS_A_PROCESS} connections")


def test_a_server_that_waits_for_its_database_is_not_to_be_restarted(home: Path) -> None:
    """Breaks with: "start it again" said of a process that is ready by itself once its database is back."""
    away = {"where": "database", "message": "connection refused"}
    problem = {"code": "unavailable", "detail": "not ready", "status": 503, "problems": [away]}
    with serving(lambda _: Answer(503, problem)) as server:
        (found,) = _server(Settings(home=home), server.url)
    assert found.message == f"{server.url} is not ready: database: connection refused"
    assert "by itself" in str(found.hint)
    (found,) = _server(Settings(home=home), f"http://127.0.0.1:{free_port()}")
    assert "no Burnish server answers" in found.message
    assert "burnish serve" in str(found.hint)
