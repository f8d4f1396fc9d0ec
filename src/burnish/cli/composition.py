"""The file that ``burnish up`` reads: which processes an installation has on this machine."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from burnish.core.errors import FieldProblem, InvalidRequest
from burnish.core.settings import ALL_ROLES

_NAME = r"^[a-z0-9][a-z0-9_-]{0,40}$"
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class ProcessSpec(BaseModel):
    """One entry below ``processes``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    components: str = "all"
    """As ``--components`` takes it."""
    port: int | None = Field(default=None, ge=1, le=65535)
    """Of the first replica; the next ones count on from it. None: each takes a free one."""
    replicas: int = Field(default=1, ge=1, le=64)
    environment: dict[str, str] = Field(default_factory=dict)

    @field_validator("components")
    @classmethod
    def _known(cls, components: str) -> str:
        names = [name.strip() for name in components.split(",") if name.strip()]
        unknown = sorted(set(names) - ALL_ROLES)
        if components.strip() != "all" and (unknown or not names):
            said = f"unknown component {unknown[0]!r}" if unknown else "no component is named"
            raise ValueError(f"{said}; known: {', '.join(sorted(ALL_ROLES))}, or all")
        return ",".join(names)

    @field_validator("environment", mode="before")
    @classmethod
    def _texts(cls, given: Any) -> Any:
        return _as_texts(given)


class Composition(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: dict[str, str] = Field(default_factory=dict)
    """Of every process."""
    processes: dict[str, ProcessSpec] = Field(min_length=1)

    @field_validator("environment", mode="before")
    @classmethod
    def _texts(cls, given: Any) -> Any:
        return _as_texts(given)

    @field_validator("processes")
    @classmethod
    def _named(cls, processes: dict[str, ProcessSpec]) -> dict[str, ProcessSpec]:
        for name in processes:
            if not re.fullmatch(_NAME, name):
                raise ValueError(f"{name!r} is no name of a process: small letters, digits, _ and -")
        return processes


@dataclass(frozen=True)
class Launch:
    """One process to run."""

    key: str
    """``name`` or, with replicas, ``name-2``: unique in the file."""
    components: str
    port: int | None
    environment: Mapping[str, str]
    """What the file says, whole; it goes over the supervisor's own."""

    @property
    def with_platform(self) -> bool:
        """Whether it is one that clients ask."""
        return self.components == "all" or "platform" in self.components.split(",")

    @property
    def digest(self) -> str:
        """Equal for equal launches: a process whose digest has changed is started anew."""
        text = json.dumps([self.components, self.port, sorted(self.environment.items())])
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def read(path: Path, outside: Mapping[str, str] = os.environ) -> tuple[Launch, ...]:
    """Return the processes of a file, in its order. ``${NAME}`` in it is the variable of ``outside``, ``${NAME:-x}`` or ``x``.

    Raises:
        InvalidRequest: the file cannot be read, or is not as it has to be; ``problems`` say where.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}", where=str(path)) from error
    except yaml.YAMLError as error:
        raise InvalidRequest(f"{path} is not YAML: {error}", where=str(path)) from error
    if not isinstance(document, dict):
        raise InvalidRequest(f"{path} has no `processes`", where=str(path), hint="see examples/split/burnish.yaml")
    unset: list[FieldProblem] = []
    filled = _filled(document, outside, "", unset)
    if unset:
        names = ", ".join(sorted({one.message for one in unset}))
        raise InvalidRequest(
            f"variables that {path} needs are not set: {names}", where=str(path), hint="set them, or write ${NAME:-a default}",
            problems=[FieldProblem(where=one.where, message=f"{one.message} is not set") for one in unset],
        )  # fmt: skip
    try:
        composition = Composition.model_validate(filled)
    except ValidationError as error:
        problems = [
            FieldProblem(where=".".join(str(part) for part in one["loc"]), message=one["msg"]) for one in error.errors()
        ]
        raise InvalidRequest(
            f"{path} is not as it has to be", where=str(path), problems=problems, hint="see examples/split/burnish.yaml"
        ) from error
    launches = tuple(_launches(composition))
    _refuse_twice(launches, path)
    return launches


def _launches(composition: Composition) -> list[Launch]:
    found = []
    for name, spec in composition.processes.items():
        for number in range(spec.replicas):
            found.append(
                Launch(
                    key=name if spec.replicas == 1 else f"{name}-{number + 1}",
                    components=spec.components,
                    port=None if spec.port is None else spec.port + number,
                    environment={**composition.environment, **spec.environment},
                )
            )
    return found


def _refuse_twice(launches: tuple[Launch, ...], path: Path) -> None:
    for what in ("key", "port"):
        seen: dict[object, str] = {}
        for launch in launches:
            value = getattr(launch, what)
            if value is not None and value in seen:
                raise InvalidRequest(
                    f"{seen[value]} and {launch.key} have the same {'name' if what == 'key' else 'port'} {value}",
                    where=str(path), hint="replicas count their ports on from the first one's",
                )  # fmt: skip
            seen[value] = launch.key


def _filled(value: Any, outside: Mapping[str, str], where: str, unset: list[FieldProblem]) -> Any:
    """Return the document with its variables filled in, and note those that are not set, by name.

    Secrets need not stand in the file.
    """
    if isinstance(value, dict):
        return {key: _filled(inner, outside, f"{where}.{key}".lstrip("."), unset) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, outside, where, unset) for inner in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        name, default = match[1], match[2]
        if name not in outside and default is None:
            unset.append(FieldProblem(where=where, message=name))
        return outside.get(name, default or "")

    return _VARIABLE.sub(fill, value)


def _as_texts(given: Any) -> Any:
    """YAML reads `4` and `true` as what they are; variables are texts."""
    if not isinstance(given, dict):
        return given
    return {
        str(name): str(value).lower()
        if isinstance(value, bool)
        else str(value)
        if isinstance(value, int | float)
        else value
        for name, value in given.items()
    }
