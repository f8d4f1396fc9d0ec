"""How a caller sees the configuration: values with where they come from, versions, documents; sensitive ones hidden."""

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue, SecretStr
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.configuration import SAME_AS, Configuration, schema, value_at
from burnish.core.errors import NotFound
from burnish.core.settings import Settings
from burnish.infra.logging import redact
from burnish.platform.configuration import store
from burnish.platform.configuration.file import write_values
from burnish.platform.configuration.layers import (
    Composed,
    Layer,
    LayerName,
    Placed,
    compose,
    default_layer,
    nearest,
    parse,
    suggestion,
)
from burnish.platform.configuration.live import LiveConfiguration
from burnish.platform.configuration.schemas import (
    ConfigurationView,
    Explanation,
    LayerValue,
    OverrideView,
    ProcessReport,
    ProcessView,
    SettingView,
    StatusView,
    VersionView,
)
from burnish.platform.configuration.service import find_version, may_read, overrides_of, stored_layers
from burnish.platform.configuration.tables import ConfigurationVersionRow
from burnish.platform.identity import Principal

PROCESS_SECTION = "process"
"""The section of what each process is started with (:class:`~burnish.core.settings.Settings`); needs a restart."""


async def effective(
    session: AsyncSession, live: LiveConfiguration, caller: Principal, environment: str
) -> ConfigurationView:
    """Return every key as it is: of this process's own environment what it obeys, of another what holds there."""
    layers = await stored_layers(session, live, environment)
    heads = await store.heads(session, [environment])
    if environment == live.environment:
        shown, winners, stale = live.current(), live.snapshot.winners, live.snapshot.restart_needed
    else:
        outcome = compose(layers)
        shown, winners, stale = _shown(outcome), outcome.winners, ()
    settings = [
        _setting_view(caller, key, value_at(shown, key), winners[key], restart_needed=key in stale) for key in schema()
    ]
    if environment == live.environment:
        settings += process_settings(live.settings)
    version = live.version if environment == live.environment else heads[environment]
    return ConfigurationView(
        environment=environment, version=version, digest=shown.digest(), settings=tuple(settings), restart_needed=stale
    )


async def explain(
    session: AsyncSession, live: LiveConfiguration, caller: Principal, environment: str, key: str
) -> Explanation:
    """Return what each layer says of a key, and which won.

    Raises:
        NotFound: there is no such key (the hint has the nearest), or environment.
    """
    if key.startswith(f"{PROCESS_SECTION}."):
        return _explain_process(live, key)
    if key not in schema():
        raise NotFound(f"there is no key {key!r}", where="key", hint=suggestion(key))
    layers = [default_layer(), *await stored_layers(session, live, environment)]
    setting, hidden = schema()[key], not may_read(caller, key)
    holding = [layer for layer in layers if key in layer.values]
    values = [await _layer_value(session, layer, key, hidden, won=layer is holding[-1]) for layer in holding]
    silent = [name for name in LayerName if name not in {layer.name for layer in holding}]
    values += [LayerValue(layer=name, given=False) for name in silent]
    own = environment == live.environment
    value = value_at(live.current(), key) if own else holding[-1].values[key].value
    return Explanation(
        key=key, environment=environment, value=None if hidden else value, hidden=hidden, change=setting.change,
        description=setting.description, restart_needed=own and key in live.snapshot.restart_needed,
        layers=tuple(sorted(values, key=lambda one: list(LayerName).index(one.layer))),
    )  # fmt: skip


def process_settings(settings: Settings) -> list[SettingView]:
    """Return how this process is set up, as the section ``process``. What is secret in it stays so."""
    return [
        SettingView(
            key=f"{PROCESS_SECTION}.{name}", value=_plain(getattr(settings, name)), default=_default(name),
            layer=LayerName.PROCESS if name in settings.model_fields_set else LayerName.DEFAULTS,
            origin=_process_origin(settings, name), change="restart", description=field.description or "",
        )
        for name, field in Settings.model_fields.items()
        if name not in SAME_AS
    ]  # fmt: skip


def version_view(caller: Principal, row: ConfigurationVersionRow) -> VersionView:
    """Return a version with its values."""
    return VersionView(
        environment=row.environment, number=row.number, action=row.action, author=row.author, reason=row.reason,
        at=row.at,
        overrides=tuple(
            OverrideView(
                key=key, value=value if may_read(caller, key) else None, hidden=not may_read(caller, key),
                since=row.origins.get(key, row.number),
            )
            for key, value in sorted(row.overrides.items())
        ),
    )  # fmt: skip


async def document(
    session: AsyncSession, live: LiveConfiguration, caller: Principal, environment: str, number: int | None
) -> str:
    """Return an environment's values in the database as YAML, for review and for :func:`service.replace`.

    Raises:
        NotFound: there is no such version.
    """
    heads = await store.heads(session, [environment])
    wanted = heads[environment] if number is None else number
    values = overrides_of(await find_version(session, environment, wanted))
    hidden = [key for key in values if not may_read(caller, key)]
    lines = [f"# {environment}, version {wanted}"]
    lines += [f"# {key} is left out: only administrators see it" for key in hidden]
    shown = {key: values[key] for key in schema() if key in values and key not in hidden}
    shown |= {key: value for key, value in values.items() if key not in schema() and key not in hidden}
    return "\n".join([*lines, write_values(shown)])


async def status(session: AsyncSession) -> StatusView:
    """Return every running process, and what it obeys."""
    reports = [ProcessReport.model_validate(one) for one in await store.reports(session)]
    heads = await store.heads(session, sorted({name for one in reports for name in one.versions}))
    return StatusView(data=tuple(_process_view(one, heads) for one in reports))


def _process_view(report: ProcessReport, heads: Mapping[str, int]) -> ProcessView:
    newest = {name: heads[name] for name in report.versions}
    state = "obeys" if newest == report.versions else "refuses" if report.refused else "behind"
    if state == "obeys" and report.problems:  # its file
        state = "refuses"
    return ProcessView.model_validate({**report.model_dump(), "newest": newest, "state": state})


def _setting_view(
    caller: Principal, key: str, value: JsonValue, winner: tuple[LayerName, Placed], *, restart_needed: bool
) -> SettingView:
    setting, hidden, (layer, placed) = schema()[key], not may_read(caller, key), winner
    return SettingView(
        key=key, value=None if hidden else value, hidden=hidden, default=setting.default, layer=layer,
        origin=placed.origin, change=setting.change, restart_needed=restart_needed, description=setting.description,
    )  # fmt: skip


async def _layer_value(session: AsyncSession, layer: Layer, key: str, hidden: bool, *, won: bool) -> LayerValue:
    placed = layer.values[key]
    view = LayerValue(
        layer=layer.name, given=True, won=won, value=None if hidden else placed.value, origin=placed.origin
    )
    if placed.version is None:
        return view
    row = await store.version(session, *placed.version)
    return view if row is None else view.model_copy(update={"author": row.author, "reason": row.reason, "at": row.at})


def _shown(outcome: Composed) -> Configuration:
    """Return an environment's configuration; where it is wrong, the defaults stand in for what is."""
    if outcome.configuration is not None:
        return outcome.configuration
    wrong = {problem.where for problem in outcome.problems}
    values = {key: placed.value for key, (_, placed) in outcome.winners.items() if placed.origin not in wrong}
    return parse(values)


def _explain_process(live: LiveConfiguration, key: str) -> Explanation:
    found = {one.key: one for one in process_settings(live.settings)}
    if key not in found:
        name = key.removeprefix(f"{PROCESS_SECTION}.")
        near = SAME_AS.get(name) or nearest(key, found)
        raise NotFound(
            f"there is no key {key!r}", where="key", hint=f"did you mean {near}?" if near else suggestion(key)
        )
    one = found[key]
    given = one.layer is LayerName.PROCESS
    layers = (
        LayerValue(layer=LayerName.DEFAULTS, given=True, won=not given, value=one.default, origin="Burnish itself"),
        LayerValue(layer=LayerName.PROCESS, given=given, won=given, value=one.value if given else None,
                   origin=one.origin if given else None),
    )  # fmt: skip
    return Explanation(
        key=key,
        environment=live.environment,
        value=one.value,
        change="restart",
        description=one.description,
        layers=layers,
    )


def _plain(value: Any) -> JsonValue:
    if isinstance(value, SecretStr):
        return str(value)  # stars
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact(str(value))


def _default(name: str) -> JsonValue:
    field = Settings.model_fields[name]
    return None if field.default_factory is not None else _plain(field.default)


def _process_origin(settings: Settings, name: str) -> str:
    if name not in settings.model_fields_set:
        return "Burnish itself"
    return f"BURNISH_{name.upper()} or --{name.replace('_', '-')}"
