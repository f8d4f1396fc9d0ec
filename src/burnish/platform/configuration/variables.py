"""The highest layer: what the process was started with, by ``BURNISH_CONFIGURATION__section__key`` and older names."""

from collections.abc import Mapping

import yaml

from burnish.core.configuration import SAME_AS, given_in, schema
from burnish.core.errors import FieldProblem, InvalidRequest
from burnish.core.settings import Settings
from burnish.platform.configuration.file import read_value
from burnish.platform.configuration.layers import Layer, LayerName, Placed, suggestion

PREFIX = "BURNISH_CONFIGURATION__"


def process_layer(settings: Settings, variables: Mapping[str, str]) -> Layer:
    """Return what this process's variables and flags say.

    Raises:
        InvalidRequest: a variable names a key that there is not, or is no YAML; ``problems`` names each.
    """
    names = {key: name for name, key in SAME_AS.items()}
    values = {key: Placed(value, _variable(names[key])) for key, value in given_in(settings).items()}
    problems = []
    for variable, text in sorted(variables.items()):
        if not variable.startswith(PREFIX):
            continue
        key = variable.removeprefix(PREFIX).replace("__", ".").lower()
        if key not in schema():
            problems.append(FieldProblem(where=variable, message=f"there is no key {key!r}", hint=suggestion(key)))
            continue
        try:
            values[key] = Placed(read_value(text), variable)
        except (ValueError, yaml.YAMLError) as error:
            problems.append(FieldProblem(where=variable, message=f"is not YAML: {' '.join(str(error).split())}"))
    if problems:
        raise InvalidRequest(problems[0].message, where=problems[0].where, hint=problems[0].hint, problems=problems)
    return Layer(LayerName.PROCESS, values)


def _variable(name: str) -> str:
    return f"BURNISH_{name.upper()} or --{name.replace('_', '-')}"
