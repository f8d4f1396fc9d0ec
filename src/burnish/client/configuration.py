"""The configuration and secrets: what an administrator sets while Burnish runs.

:class:`Configuration` and :class:`Secrets` are for the client that waits, the ``Async`` ones for asyncio.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from pydantic import Field

from burnish.client.calls import Call, given, listing, nothing, quoted, raw, reader
from burnish.client.faces import AsyncFace, Face, operation
from burnish.client.views import View
from burnish.core.errors import FieldProblem
from burnish.core.pages import Page

_BASE = "/platform/configuration"
_SECRETS = "/platform/secrets"
Found = TypeVar("Found")


class SettingView(View):
    """One key as it is obeyed."""

    key: str
    value: Any = None
    hidden: bool = False
    default: Any = None
    layer: str = ""
    origin: str = ""
    change: str = ""
    restart_needed: bool = False
    description: str = ""


class ConfigurationView(View):
    """Everything that can be set, as it is in one environment."""

    environment: str
    version: int
    settings: tuple[SettingView, ...] = ()
    restart_needed: tuple[str, ...] = ()


class LayerValue(View):
    """What one layer says of a key."""

    layer: str
    given: bool
    won: bool = False
    value: Any = None
    origin: str | None = None
    author: str | None = None
    reason: str | None = None
    at: datetime | None = None


class Explanation(View):
    """Where the value of a key comes from."""

    key: str
    environment: str
    value: Any = None
    hidden: bool = False
    change: str = ""
    restart_needed: bool = False
    description: str = ""
    layers: tuple[LayerValue, ...] = ()


class KeyChange(View):
    """A key whose value changes."""

    key: str
    old: Any = None
    new: Any = None
    old_given: bool = True
    new_given: bool = True
    hidden: bool = False
    change: str = ""


class ChangeView(View):
    """What a change did, or would do."""

    environment: str
    version: int
    previous: int
    dry_run: bool = False
    changed: tuple[KeyChange, ...] = ()
    restart_needed: tuple[str, ...] = ()
    overridden: tuple[str, ...] = ()
    refusals: tuple[FieldProblem, ...] = ()


class OverrideView(View):
    """A value of a version."""

    key: str
    value: Any = None
    hidden: bool = False
    since: int


class VersionView(View):
    """One version of an environment's values in the database."""

    environment: str
    number: int
    action: str
    author: str
    reason: str = ""
    at: datetime
    overrides: tuple[OverrideView, ...] = ()


class DiffView(View):
    """What differs between two versions."""

    environment: str
    older: int
    newer: int
    changed: tuple[KeyChange, ...] = ()


class ProcessView(View):
    """What one process obeys."""

    process: str
    node: str = ""
    pid: int = 0
    environment: str
    state: str
    versions: dict[str, int]
    newest: dict[str, int]
    refused: dict[str, int] | None = None
    problems: tuple[FieldProblem, ...] = ()
    restart_needed: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    file: str | None = None
    obeyed_at: datetime | None = None


class _Status(View):
    data: tuple[ProcessView, ...] = ()


class SecretView(View):
    """A secret without its value."""

    name: str
    reference: str
    version: int
    key: int
    author: str
    created_at: datetime
    updated_at: datetime


class RotationView(View):
    """What a rotation of the data key did."""

    key: int
    reencrypted: int
    removed_keys: int


class RewrapView(View):
    """Which installation keys can open the data keys."""

    data_keys: int
    installation_keys: tuple[str, ...] = Field(default=())


class _Operations:
    """What can be set while Burnish runs."""

    @operation
    def show(self, *, environment: str | None = None) -> Call[ConfigurationView]:
        """Return every key with its value and where that comes from."""
        return _get("", reader(ConfigurationView), environment=environment)

    @operation
    def explain(self, key: str, *, environment: str | None = None) -> Call[Explanation]:
        """Return what each layer says of a key, and which won."""
        return _get(f"/explain/{quoted(key)}", reader(Explanation), environment=environment)

    @operation
    def change(
        self, set: Mapping[str, Any] | None = None, unset: Sequence[str] = (), *, environment: str | None = None,  # noqa: A002
        reason: str = "", expected_version: int | None = None, dry_run: bool = False,
    ) -> Call[ChangeView]:  # fmt: skip
        """Set and unset keys, as one new version.

        Args:
            set: Values by key.
            unset: Keys whose values a lower layer shall give.
            environment: By default that of the server's process.
            reason: Kept with the version.
            expected_version: Refuse when the newest version is another one by now.
            dry_run: Say what would happen, and change nothing.

        Raises:
            InvalidRequest: ``problems`` names each place that is wrong.
            Conflict: the newest version is not the expected one; ``problems`` says what changed.
        """
        how = _how(environment, reason, expected_version, dry_run)
        return _write("PATCH", "", how, set=dict(set or {}), unset=list(unset))

    @operation
    def versions(
        self, *, environment: str | None = None, after: str | None = None, limit: int = 50
    ) -> Call[Page[VersionView]]:
        """Return an environment's versions, newest first."""
        return listing(f"{_BASE}/versions", VersionView, after, limit, environment=environment)

    @operation
    def version(self, number: int, *, environment: str | None = None) -> Call[VersionView]:
        """Return one version."""
        return _get(f"/versions/{number}", reader(VersionView), environment=environment)

    @operation
    def diff(self, older: int, newer: int, *, environment: str | None = None) -> Call[DiffView]:
        """Return what differs between two versions; version 0 has no values."""
        return _get("/diff", reader(DiffView), older=older, newer=newer, environment=environment)

    @operation
    def roll_back(
        self, to: int, *, environment: str | None = None, reason: str = "", expected_version: int | None = None,
        dry_run: bool = False,
    ) -> Call[ChangeView]:  # fmt: skip
        """Make a new version with the values of an older one."""
        return _write("POST", "/rollback", _how(environment, reason, expected_version, dry_run), to=to)

    @operation
    def import_document(
        self, document: str, *, environment: str | None = None, reason: str = "",
        expected_version: int | None = None, dry_run: bool = False,
    ) -> Call[ChangeView]:  # fmt: skip
        """Replace an environment's values by those of a YAML document."""
        return _write("POST", "/import", _how(environment, reason, expected_version, dry_run), document=document)

    @operation
    def status(self) -> Call[tuple[ProcessView, ...]]:
        """Return every running process, and which version it obeys."""
        return _get("/status", lambda answer: _Status.model_validate(answer).data)


def _get(path: str, read: Callable[[Any], Found], **query: Any) -> Call[Found]:
    return Call("GET", f"{_BASE}{path}", read, given(**query))


def _write(method: str, path: str, how: Mapping[str, Any], **body: Any) -> Call[ChangeView]:
    return Call(method, f"{_BASE}{path}", reader(ChangeView), json=given(**how, **body))


def _how(environment: str | None, reason: str, expected_version: int | None, dry_run: bool) -> dict[str, Any]:
    return {"environment": environment, "reason": reason, "expected_version": expected_version, "dry_run": dry_run}


def _export(environment: str | None, version: int | None) -> Call[Any]:
    return _get("/export", raw, environment=environment, version=version)


class Configuration(_Operations, Face):
    """What can be set while Burnish runs."""

    def export(self, *, environment: str | None = None, version: int | None = None) -> str:
        """Return the values that an environment has in the database, as YAML."""
        with self._client._open(_export(environment, version)) as response:
            response.read()
            return response.text


class AsyncConfiguration(_Operations, AsyncFace):
    """What can be set while Burnish runs, from asyncio."""

    async def export(self, *, environment: str | None = None, version: int | None = None) -> str:
        """Return the values that an environment has in the database, as YAML."""
        async with self._client._open(_export(environment, version)) as response:
            await response.aread()
            return response.text


class _SecretOperations:
    """Values that are kept encrypted, and never given back."""

    @operation
    def list(self, *, after: str | None = None, limit: int = 50) -> Call[Page[SecretView]]:
        """Return secrets by name, without their values."""
        return listing(_SECRETS, SecretView, after, limit)

    @operation
    def set(self, name: str, value: str) -> Call[SecretView]:
        """Set a secret, or give it a new value."""
        return Call("PUT", f"{_SECRETS}/{quoted(name)}", reader(SecretView), json={"value": value})

    @operation
    def remove(self, name: str) -> Call[None]:
        """Remove a secret that the configuration does not refer to."""
        return Call("DELETE", f"{_SECRETS}/{quoted(name)}", nothing)

    @operation
    def rotate_key(self) -> Call[RotationView]:
        """Encrypt every secret with a new data key."""
        return Call("POST", f"{_SECRETS}/rotate-key", reader(RotationView), timeout=600)

    @operation
    def rewrap(self, new_key_file: str) -> Call[RewrapView]:
        """Let the installation key in a file of the server's machine open the secrets too."""
        return Call("POST", f"{_SECRETS}/rewrap", reader(RewrapView), json={"new_key_file": new_key_file})

    @operation
    def finish_rewrap(self) -> Call[RewrapView]:
        """Let no installation key but the server's own open the secrets."""
        return Call("POST", f"{_SECRETS}/rewrap/finish", reader(RewrapView))


class Secrets(_SecretOperations, Face):
    """Values that are kept encrypted, and never given back."""


class AsyncSecrets(_SecretOperations, AsyncFace):
    """Values that are kept encrypted, and never given back, from asyncio."""
