"""``--set`` and ``--set-file``: parameters as YAML values."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from burnish.core.errors import FieldProblem, InvalidRequest


class _Loader(yaml.SafeLoader):
    """YAML with numbers as everyone writes them: PyYAML takes ``1e-3`` for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def read_parameters(file: Path | None, pairs: Sequence[str] | None) -> dict[str, Any]:
    """Return the parameters of ``--set-file``, overridden by those of ``--set``; there, ``./x`` is a path from here.

    Raises:
        InvalidRequest: a pair has no ``=``, or a value or the file is not YAML.
    """
    found: dict[str, Any] = dict(_read_file(file)) if file else {}
    problems = []
    for pair in pairs or ():
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            problems.append(FieldProblem(where=f"--set {pair}", message="is not KEY=VALUE"))
            continue
        try:
            found[key.strip()] = _read(text) if text else ""
        except yaml.YAMLError as error:
            problems.append(FieldProblem(where=f"--set {key}", message=f"is not YAML: {_first_line(error)}"))
    if problems:
        raise InvalidRequest(
            "parameters cannot be read", problems=problems, hint="quote what is to stay text: --set 'name=\"1.0\"'"
        )
    return found


def read_definition(file: Path) -> Mapping[str, Any]:
    """Return the workflow definition in a YAML or JSON file.

    Raises:
        InvalidRequest: it is not a mapping in YAML.
    """
    return _read_file(file)


def _read_file(file: Path) -> Mapping[str, Any]:
    try:
        value = _read(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidRequest(f"{file} cannot be read: {_first_line(error)}", where=str(file)) from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"{file} is not a mapping of names to values", where=str(file))
    return value


def _read(text: str) -> Any:
    return yaml.load(text, _Loader)  # noqa: S506 - a safe loader


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())
