"""Rules of the configuration: what may be changed by whom, what is checked before, what is told after."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.configuration import Configuration, Setting, schema, sections, value_at
from burnish.core.errors import Conflict, FieldProblem, Forbidden, InvalidRequest, NotFound
from burnish.core.permissions import ROLES
from burnish.infra import event_log
from burnish.infra.storable import unstorable
from burnish.platform.configuration import environments, secrets, store
from burnish.platform.configuration.file import chain_of
from burnish.platform.configuration.layers import (
    Layer,
    LayerName,
    Placed,
    changed_keys,
    compose,
    flatten,
    same,
    suggestion,
)
from burnish.platform.configuration.live import LiveConfiguration
from burnish.platform.configuration.schemas import ChangeView, KeyChange
from burnish.platform.configuration.tables import ConfigurationVersionRow
from burnish.platform.identity import Principal, audit
from burnish.platform.identity.permission import authorize, authorize_everywhere

_PROJECT = "default"
_LARGEST = 1 << 20
OVER_LOGIN = "identity.oidc."
"""Keys that say who is let in as whom, and to whom a secret is sent when somebody logs in."""

Values = dict[str, JsonValue]


@dataclass(frozen=True)
class Change:
    """What a writer wants, whichever way it was said."""

    environment: str
    action: str
    reason: str
    expected_version: int | None
    dry_run: bool


@dataclass(frozen=True)
class Given:
    """Keys that a request names, with their values, and where each stands."""

    set: Mapping[str, Placed]
    unset: tuple[str, ...] = ()
    problems: tuple[FieldProblem, ...] = ()
    """Names that are none: told together with what is wrong with the values."""


def named(change_set: Mapping[str, JsonValue], unset: Sequence[str]) -> Given:
    """Read the keys of a request."""
    values, problems = flatten(change_set, lambda path: ".".join(("set", *path)))
    gone: list[str] = []
    for key in unset:
        found = [one for one in schema() if one == key or (key in sections() and one.startswith(f"{key}."))]
        gone += found
        if not found:
            problems.append(
                FieldProblem(where=f"unset.{key[:100]}", message=f"there is no key {key[:100]!r}", hint=suggestion(key))
            )
    problems += [
        FieldProblem(where=f"unset.{key}", message=f"{key} is set in the same request") for key in gone if key in values
    ]
    return Given(values, tuple(dict.fromkeys(gone)), tuple(problems))


async def apply(
    session: AsyncSession, live: LiveConfiguration, caller: Principal, change: Change, given: Given
) -> ChangeView:
    """Set and unset keys: checked whole before anything changes, then a new version.

    Raises:
        Forbidden: the caller may not change one of the keys, or decides by it who is an administrator and is none.
        InvalidRequest: a value is wrong, or a part refuses; ``problems`` has every place.
        Conflict: another version than ``expected_version`` is the newest; ``problems`` says what changed.
    """
    number, before = await _locked(session, live, caller, change)
    new = {key: value for key, value in _known(before).items() if key not in given.unset}
    new |= {key: placed.value for key, placed in given.set.items()}
    return await _replace(session, live, caller, change, number, before, new, given)


async def replace(
    session: AsyncSession, live: LiveConfiguration, caller: Principal, change: Change, given: Given
) -> ChangeView:
    """Replace all of an environment's values (an import). Raises as :func:`apply`."""
    number, before = await _locked(session, live, caller, change)
    new = {key: placed.value for key, placed in given.set.items()}
    return await _replace(session, live, caller, change, number, before, new, given)


async def roll_back(
    session: AsyncSession, live: LiveConfiguration, caller: Principal, change: Change, to: int
) -> ChangeView:
    """Make a new version with the values of an older one. Raises as :func:`apply`, and NotFound."""
    number, before = await _locked(session, live, caller, change)
    new = _known(await find_version(session, change.environment, to))
    return await _replace(session, live, caller, change, number, before, new, Given({}))


def overrides_of(row: ConfigurationVersionRow | None) -> Values:
    """Return a version's values by key; None, number 0, has none."""
    return {} if row is None else dict(row.overrides)


async def find_version(session: AsyncSession, environment: str, number: int) -> ConfigurationVersionRow | None:
    """Return a version; None for number 0, which has no values.

    Raises:
        NotFound: there is none of that number.
    """
    if number == 0:
        return None
    row = await store.version(session, environment, number)
    if row is None:
        newest = (await store.heads(session, [environment]))[environment]
        hint = f"the newest is {newest}" if newest else "nothing was ever set there"
        raise NotFound(f"there is no version {number} of {environment}", where="version", hint=hint)
    return row


async def stored_layers(session: AsyncSession, live: LiveConfiguration, environment: str) -> list[Layer]:
    """Return the layers of an environment as they are now.

    Raises:
        NotFound: there is no such environment.
    """
    environments.find(live.file.environments, environment)
    heads = await store.heads(session, live.chain(environment))
    rows = [await store.version(session, name, number) for name, number in heads.items() if number]
    return live.layers(environment, [row for row in rows if row is not None])


async def used_by(session: AsyncSession, live: LiveConfiguration, secret: str) -> list[str]:
    """Return where values refer to a secret: ``identity.oidc.client_secret (version 3 of production)``."""
    heads = await store.all_heads(session)
    rows = [await store.version(session, name, number) for name, number in heads.items()]
    places = {
        f"{key} (version {row.number} of {row.environment})"
        for row in rows
        if row is not None
        for key, value in row.overrides.items()
        if secret in secrets.references_in(value)
    }
    places |= {
        f"{key} ({placed.origin})"
        for name in live.file.environments
        for layer in live.layers(name, ())
        for key, placed in layer.values.items()
        if secret in secrets.references_in(placed.value)
    }
    return sorted(places)


def may_read(caller: Principal, key: str) -> bool:
    """Tell whether a caller may see a key's value."""
    setting = schema().get(key)
    return caller.may("configuration:write" if setting is None else setting.read_permission)


def difference(caller: Principal, old: Mapping[str, JsonValue], new: Mapping[str, JsonValue]) -> tuple[KeyChange, ...]:
    """Return what differs between two sets of values, as a caller may see it."""
    return tuple(_key_change(caller, key, old, new) for key in changed_keys(old, new))


async def _locked(
    session: AsyncSession, live: LiveConfiguration, caller: Principal, change: Change
) -> tuple[int, ConfigurationVersionRow | None]:
    """Return the newest version, with other writers kept out.

    Raises:
        NotFound: there is no such environment.
        Conflict: the newest version is not the expected one.
    """
    environments.find(live.file.environments, change.environment)
    number = await store.lock_head(session, change.environment)
    row = await find_version(session, change.environment, number)
    expected = change.expected_version
    if expected is None or expected == number:
        return number, row
    if expected > number:
        raise Conflict(
            f"there is no version {expected} of {change.environment}; the newest is {number}", where="expected_version"
        )
    since = await find_version(session, change.environment, expected)
    changed = difference(caller, overrides_of(since), overrides_of(row))
    assert row is not None
    raise Conflict(
        f"{change.environment} is at version {number} by now, by {row.author}, not at {expected}", where="expected_version",
        problems=[FieldProblem(where=one.key, message=_told(one)) for one in changed],
        hint="look at what changed, then send the change again with the new version",
    )  # fmt: skip


async def _replace(
    session: AsyncSession, live: LiveConfiguration, caller: Principal, change: Change, number: int,
    before: ConfigurationVersionRow | None, new: Values, given: Given,
) -> ChangeView:  # fmt: skip
    old = overrides_of(before)
    changed = changed_keys(old, new)
    _authorize(caller, changed)
    judged = await _check(session, live, change, new, given)
    if judged.refusals and not change.dry_run:
        raise InvalidRequest("a part of the platform refuses the change; nothing was changed", problems=judged.refusals)
    shown = difference(caller, old, new)
    view = ChangeView(
        environment=change.environment, version=number, previous=number, dry_run=change.dry_run, changed=shown,
        restart_needed=judged.stale(changed, live), refusals=judged.refusals,
        overridden=tuple(key for key in changed if live.decides(change.environment, key)),
    )  # fmt: skip
    if change.dry_run or not changed:
        return view
    origins = before.origins if before else {}
    row = ConfigurationVersionRow(
        environment=change.environment, number=number + 1, action=change.action, author=caller.subject,
        reason=change.reason, overrides=new,
        origins={key: number + 1 if key in changed else origins.get(key, number + 1) for key in new},
    )  # fmt: skip
    await store.append(session, row)
    await _note(session, caller, row, shown)
    return view.model_copy(update={"version": number + 1})


def _authorize(caller: Principal, changed: Collection[str]) -> None:
    authorize(caller, "configuration:write")
    needed = {permission: key for key in changed for permission in _setting(key).write_permissions}
    for permission in sorted(needed):
        authorize_everywhere(caller, permission)
    for key in sorted(changed):
        if key.startswith(OVER_LOGIN):
            _refuse_lesser(caller, key)


def _refuse_lesser(caller: Principal, key: str) -> None:
    """Refuse whoever may not do all that an administrator of every project may.

    By a provider of their own, or by its groups, they would be let in as one; and the next login would send the
    provider the secret that is referred to.
    """
    lacking = sorted(one for one in ROLES["administrator"] if not caller.may_everywhere(one))
    if lacking:
        audit.refused(caller, lacking[0])
        raise Forbidden(
            f"{key} decides who is let in as an administrator, and to whom a secret is sent: to change it one needs all that an "
            f"administrator of every project may; {caller.subject}, with the credential that was shown, lacks {', '.join(lacking)}",
            where=key, hint="show a key of an administrator of every project that has no fewer scopes, or log in as one",
        )  # fmt: skip


@dataclass(frozen=True)
class _Judged:
    """What the platform makes of a change that is right in itself."""

    refusals: tuple[FieldProblem, ...] = ()
    own: Configuration | None = None
    """What this process would obey; None when the change is of an environment that it is not made of."""

    def stale(self, changed: Iterable[str], live: LiveConfiguration) -> tuple[str, ...]:
        """Return the changed keys that need a restart; in this process's environment only where its start's value differs."""
        cold = [key for key in changed if _setting(key).change == "restart"]
        if self.own is None:
            return tuple(cold)
        started = live.started_with()
        return tuple(key for key in cold if not same(value_at(self.own, key), started.get(key)))


async def _check(session: AsyncSession, live: LiveConfiguration, change: Change, new: Values, given: Given) -> _Judged:
    """Judge an environment, and those that inherit from it, as they would be.

    Raises:
        InvalidRequest: values are wrong; ``problems`` has every place.
    """
    if len(json.dumps(new)) > _LARGEST:
        raise InvalidRequest("the environment's values are larger than 1 MiB together", where=change.environment)
    if odd := tuple(unstorable(change.reason, "reason")):
        raise InvalidRequest("the reason cannot be stored", problems=odd)
    fresh = Layer(LayerName.DATABASE, {key: given.set.get(key, Placed(value, key)) for key, value in new.items()})
    problems = list(given.problems)
    judged = _Judged()
    for name in live.file.environments:
        chain = chain_of(live.file.environments, name)
        if change.environment not in chain:
            continue
        stored = {one: await _layer(session, one) for one in chain}
        outcome = compose(
            live.layers_with(name, [fresh if one == change.environment else stored[one] for one in chain])
        )
        problems += [one for one in outcome.problems if one not in problems]
        if outcome.configuration is not None and name == live.environment:
            judged = _Judged(live.refusals(outcome.configuration), outcome.configuration)
    problems += await _missing_secrets(session, fresh)
    _raise(problems)
    return judged


async def _layer(session: AsyncSession, environment: str) -> Layer:
    heads = await store.heads(session, [environment])
    row = await find_version(session, environment, heads[environment])
    origin = f"version {heads[environment]} of {environment}"
    return Layer(LayerName.DATABASE, {key: Placed(value, origin) for key, value in _known(row).items()})


async def _missing_secrets(session: AsyncSession, layer: Layer) -> list[FieldProblem]:
    wanted = {key: secrets.references_in(placed.value) for key, placed in layer.values.items()}
    names = sorted(set().union(*wanted.values()))
    there = await store.secrets_named(session, names) if names else set()
    return [
        FieldProblem(
            where=layer.values[key].origin, message=f"{key}: there is no secret {name[:100]!r}",
            hint=f"set it first: `burnish secret set {name[:100]}`",
        )
        for key, names_of_key in wanted.items()
        for name in sorted(names_of_key - there)
    ]  # fmt: skip


async def _note(
    session: AsyncSession, caller: Principal, row: ConfigurationVersionRow, changed: Sequence[KeyChange]
) -> None:
    """Leave the change in the audit log and in the event log: which keys, and never a value that not everybody sees."""
    shown: list[JsonValue] = [
        {"key": one.key} if _setting(one.key).sensitive else {"key": one.key, "old": one.old, "new": one.new}
        for one in changed
    ]
    subject = f"configuration/{row.environment}"
    details: Values = {"version": row.number, "reason": row.reason, "changed": shown}
    await audit.note(session, caller, f"configuration:{row.action}", subject, details)
    await event_log.append(
        session, project_id=_PROJECT, subject=subject, type="action",
        data={"action": row.action, "by": caller.subject, **details},
    )  # fmt: skip


def _key_change(caller: Principal, key: str, old: Mapping[str, JsonValue], new: Mapping[str, JsonValue]) -> KeyChange:
    hidden = not may_read(caller, key)
    return KeyChange(
        key=key, old=None if hidden else old.get(key), new=None if hidden else new.get(key), hidden=hidden,
        old_given=key in old, new_given=key in new, change=_setting(key).change,
    )  # fmt: skip


def _setting(key: str) -> Setting:
    """Return what is known of a key; one of an older Burnish that there is no more may be unset by anybody who may write."""
    return schema().get(key) or Setting(key, None, "not a key of this version", "hot", sensitive=True)


def _told(change: KeyChange) -> str:
    if change.hidden:
        return "changed"
    was = f"was {json.dumps(change.old)}" if change.old_given else "was not set"
    now = f"is {json.dumps(change.new)}" if change.new_given else "is not set any more"
    return f"{was}, {now}"


def _known(row: ConfigurationVersionRow | None) -> Values:
    """Return a version's values without those of keys that there are no more."""
    return {key: value for key, value in overrides_of(row).items() if key in schema()}


def _raise(problems: Sequence[FieldProblem]) -> None:
    if problems:
        first = problems[0]
        raise InvalidRequest(first.message, where=first.where, hint=first.hint, problems=problems)
