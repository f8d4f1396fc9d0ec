"""The public contract of the configuration and of secrets."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, SecretStr

from burnish.core.configuration import Change
from burnish.core.errors import FieldProblem
from burnish.platform.configuration.environments import NAME_PATTERN
from burnish.platform.configuration.layers import LayerName

EnvironmentName = Annotated[str, Field(max_length=63, pattern=NAME_PATTERN, examples=["production"])]
SECRET_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"  # noqa: S105 - the form of a name
_LONGEST_REASON = 2000
_KEY = {"max_length": 200}


def _example(value: dict[str, Any]) -> ConfigDict:
    return ConfigDict(frozen=True, json_schema_extra={"examples": [value]})


class SettingView(BaseModel):
    """One key as it is obeyed."""

    model_config = ConfigDict(frozen=True)

    key: str
    value: JsonValue = Field(default=None, description="None where `hidden`")
    hidden: bool = Field(default=False, description="Only administrators see the value")
    default: JsonValue = None
    layer: LayerName = Field(description="The layer that won")
    origin: str = Field(description="Where the value stands: a file's line, a version, a variable")
    change: Change = Field(description="`hot`: obeyed at once; `restart`: at the next start")
    restart_needed: bool = Field(default=False, description="The process that answers still has its start's value")
    description: str = ""


class ConfigurationView(BaseModel):
    """Everything that can be set, as it is in one environment."""

    model_config = _example(
        {
            "environment": "production", "version": 7, "digest": "sha256:" + "5f" * 32, "restart_needed": [],
            "settings": [
                {"key": "gateway.per_key.burst", "value": 800, "hidden": False, "default": 400, "layer": "database",
                 "origin": "version 7 of production", "change": "hot", "restart_needed": False,
                 "description": "Requests that may come at once"},
            ],
        }
    )  # fmt: skip

    environment: str
    version: int = Field(description="Of the environment's values in the database; 0: none was ever set")
    digest: str = Field(description="Equal digests, equal configurations")
    settings: tuple[SettingView, ...]
    restart_needed: tuple[str, ...] = Field(default=(), description="Keys that need a restart to be obeyed")


class LayerValue(BaseModel):
    """What one layer says of a key."""

    model_config = ConfigDict(frozen=True)

    layer: LayerName
    given: bool = Field(description="Whether the layer has the key")
    won: bool = False
    value: JsonValue = None
    origin: str | None = Field(default=None, description="A file's line, a version, a variable")
    author: str | None = Field(default=None, description="Of the version")
    reason: str | None = None
    at: datetime | None = None


class Explanation(BaseModel):
    """Where the value of a key comes from."""

    model_config = _example(
        {
            "key": "gateway.per_key.burst", "environment": "production", "value": 800, "hidden": False, "change": "hot",
            "description": "Requests that may come at once", "restart_needed": False,
            "layers": [
                {"layer": "defaults", "given": True, "won": False, "value": 400, "origin": "Burnish itself"},
                {"layer": "database", "given": True, "won": True, "value": 800, "origin": "version 7 of production",
                 "author": "user_01k9zq7d3x8m2v5n0c4r6t1y", "reason": "the spring campaign", "at": "2026-11-24T12:00:00Z"},
            ],
        }
    )  # fmt: skip

    key: str
    environment: str
    value: JsonValue = None
    hidden: bool = Field(default=False, description="Only administrators see the values")
    change: Change
    restart_needed: bool = False
    description: str = ""
    layers: tuple[LayerValue, ...] = Field(description="The lowest first")


class _Write(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: EnvironmentName | None = Field(default=None, description="By default that of the process that answers")
    reason: str = Field(default="", max_length=_LONGEST_REASON, description="Kept with the version")
    expected_version: int | None = Field(
        default=None, ge=0, le=2_000_000_000, description="Refuse (409) when the newest version is another one by now"
    )
    dry_run: bool = Field(default=False, description="Say what would happen, and change nothing")


class ChangeRequest(_Write):
    """Keys to set and to unset."""

    set: dict[Annotated[str, Field(**_KEY)], JsonValue] = Field(
        default={}, max_length=500, description="Values by key; a section may hold its keys"
    )
    unset: tuple[Annotated[str, Field(**_KEY)], ...] = Field(
        default=(), max_length=500, description="Keys or sections whose values a lower layer shall give"
    )


class RollbackRequest(_Write):
    """Back to an older version."""

    to: int = Field(ge=0, le=2_000_000_000, description="Number of the version; 0 has no values")


class ImportRequest(_Write):
    """A document that replaces the environment's values."""

    document: str = Field(max_length=1 << 20, description="YAML, as `export` gives it")


class KeyChange(BaseModel):
    """A key whose value changes."""

    model_config = ConfigDict(frozen=True)

    key: str
    old: JsonValue = None
    new: JsonValue = None
    old_given: bool = Field(default=True, description="False: the old version had no value of its own")
    new_given: bool = Field(default=True, description="False: the new version has none")
    hidden: bool = False
    change: Change = "hot"


class ChangeView(BaseModel):
    """What a change did, or would do."""

    model_config = _example(
        {
            "environment": "production", "version": 8, "previous": 7, "dry_run": False, "refusals": [], "overridden": [],
            "changed": [{"key": "gateway.per_key.burst", "old": 800, "new": 1200, "hidden": False, "change": "hot"}],
            "restart_needed": [],
        }
    )  # fmt: skip

    environment: str
    version: int = Field(description="The newest version now; the previous one where nothing changed")
    previous: int
    dry_run: bool = False
    changed: tuple[KeyChange, ...] = ()
    restart_needed: tuple[str, ...] = Field(default=(), description="Changed keys that need a restart to be obeyed")
    overridden: tuple[str, ...] = Field(
        default=(), description="Changed keys that the variables of the process that answers decide otherwise"
    )
    refusals: tuple[FieldProblem, ...] = Field(default=(), description="Parts that would refuse (in a dry run)")


class OverrideView(BaseModel):
    """A value of a version."""

    model_config = ConfigDict(frozen=True)

    key: str
    value: JsonValue = None
    hidden: bool = False
    since: int = Field(description="The version that gave it this value")


class VersionView(BaseModel):
    """One version of an environment's values in the database."""

    model_config = _example(
        {
            "environment": "production", "number": 7, "action": "change", "author": "user_01k9zq7d3x8m2v5n0c4r6t1y",
            "reason": "the spring campaign", "at": "2026-11-24T12:00:00Z",
            "overrides": [{"key": "gateway.per_key.burst", "value": 800, "hidden": False, "since": 7}],
        }
    )  # fmt: skip

    environment: str
    number: int
    action: Literal["change", "import", "rollback"]
    author: str
    reason: str
    at: datetime
    overrides: tuple[OverrideView, ...] = ()


class DiffView(BaseModel):
    """What differs between two versions."""

    model_config = _example(
        {"environment": "production", "older": 3, "newer": 7,
         "changed": [{"key": "gateway.per_key.burst", "old": None, "new": 800, "old_given": False, "change": "hot"}]}
    )  # fmt: skip

    environment: str
    older: int
    newer: int
    changed: tuple[KeyChange, ...] = ()


class ProcessReport(BaseModel):
    """What one process obeys."""

    model_config = ConfigDict(frozen=True)

    process: str = Field(description="Node, process id and a random part")
    node: str
    pid: int
    components: tuple[str, ...] = ()
    environment: str
    versions: dict[str, int] = Field(description="The version obeyed, of each environment that it is made of")
    digest: str
    restart_needed: tuple[str, ...] = Field(default=(), description="Keys that still have the value of the start")
    refused: dict[str, int] | None = Field(default=None, description="The newer versions that it refuses")
    problems: tuple[FieldProblem, ...] = Field(default=(), description="Why it refuses a version or its file")
    file: str | None = None
    started_at: datetime
    obeyed_at: datetime = Field(description="Since when it obeys these versions")


class ProcessView(ProcessReport):
    """What one process obeys, against what is the newest."""

    state: Literal["obeys", "refuses", "behind"] = Field(description="`behind`: it has not heard of the newest yet")
    newest: dict[str, int]


class StatusView(BaseModel):
    """Every running process, and what it obeys."""

    model_config = _example(
        {
            "data": [
                {"process": "gpu-1-4711-a1b2c3", "node": "gpu-1", "pid": 4711, "components": ["platform"],
                 "environment": "production", "versions": {"production": 7}, "newest": {"production": 7}, "state": "obeys",
                 "digest": "sha256:" + "5f" * 32, "restart_needed": [], "refused": None, "problems": [], "file": None,
                 "started_at": "2026-11-24T12:00:00Z", "obeyed_at": "2026-11-24T12:05:00Z"},
            ]
        }
    )  # fmt: skip

    data: tuple[ProcessView, ...]


# Secrets


class SetSecret(BaseModel):
    """The value of a secret. It is never given back."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    value: SecretStr = Field(min_length=1, max_length=65_536, description="At most 64 Ki characters")


class SecretView(BaseModel):
    """A secret without its value."""

    model_config = _example(
        {
            "name": "oidc-client", "reference": "secret://oidc-client", "version": 2, "key": 1,
            "author": "user_01k9zq7d3x8m2v5n0c4r6t1y", "created_at": "2026-11-24T12:00:00Z",
            "updated_at": "2026-11-25T09:30:00Z",
        }
    )  # fmt: skip

    name: str
    reference: str = Field(description="Write this into a configuration value")
    version: int = Field(description="How often it was set")
    key: int = Field(description="Number of the data key that it is encrypted with")
    author: str
    created_at: datetime
    updated_at: datetime


class RotationView(BaseModel):
    """What a rotation of the data key did."""

    model_config = _example({"key": 2, "reencrypted": 14, "removed_keys": 1})

    key: int = Field(description="Number of the data key that is used from now on")
    reencrypted: int = Field(description="Secrets that were encrypted anew")
    removed_keys: int = Field(description="Old data keys that no secret needs any more")


class RewrapRequest(BaseModel):
    """Another key of the installation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    new_key_file: str = Field(
        min_length=1, max_length=4096, pattern=r"^/[^\x00]*$",
        description="Path of the new key's file on the machine of the server that answers; its content never travels",
        examples=["/etc/burnish/secret-2027.key"],
    )  # fmt: skip


class RewrapView(BaseModel):
    """Which installation keys can open the data keys."""

    model_config = _example({"data_keys": 1, "installation_keys": ["9f2c41d07be3a518", "1be0c2a94d57f603"]})

    data_keys: int
    installation_keys: tuple[str, ...] = Field(description="Fingerprints of the installation keys that open them")
