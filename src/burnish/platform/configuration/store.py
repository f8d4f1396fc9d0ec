"""Queries of versions, of what processes obey, and of secrets. Nothing here commits."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from sqlalchemy import delete, exists, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.infra.database import Base, epoch_now, notify, utcnow
from burnish.platform.configuration.tables import (
    ConfigurationHeadRow,
    ConfigurationProcessRow,
    ConfigurationVersionRow,
    SecretKeyRow,
    SecretKeyWrapRow,
    SecretRow,
)

TOPIC = "configuration"

# Versions


async def heads(session: AsyncSession, environments: Sequence[str]) -> dict[str, int]:
    """Return the number of each environment's newest version; 0 where there is none."""
    table = ConfigurationHeadRow
    rows = await session.execute(select(table.environment, table.number).where(table.environment.in_(environments)))
    return dict.fromkeys(environments, 0) | {name: int(number) for name, number in rows}


async def all_heads(session: AsyncSession) -> dict[str, int]:
    """Return the number of the newest version of every environment that has one."""
    rows = await session.execute(select(ConfigurationHeadRow.environment, ConfigurationHeadRow.number))
    return {name: int(number) for name, number in rows}


async def lock_head(session: AsyncSession, environment: str) -> int:
    """Return the number of the newest version, and keep other writers out until the unit of work ends."""
    await session.execute(_insert(session, ConfigurationHeadRow, environment=environment, number=0))
    table = ConfigurationHeadRow
    number = await session.scalar(select(table.number).where(table.environment == environment).with_for_update())
    assert number is not None
    return number


async def append(session: AsyncSession, row: ConfigurationVersionRow) -> None:
    """Add a version behind the newest, and tell every process."""
    session.add(row)
    await session.flush()
    head = ConfigurationHeadRow
    await session.execute(update(head).where(head.environment == row.environment).values(number=row.number))
    await notify(session, TOPIC)


async def version(session: AsyncSession, environment: str, number: int) -> ConfigurationVersionRow | None:
    """Return one version."""
    return await session.get(ConfigurationVersionRow, (environment, number))


async def versions(
    session: AsyncSession, environment: str, before: int | None, limit: int
) -> Sequence[ConfigurationVersionRow]:
    """Return up to ``limit + 1`` versions, newest first."""
    table = ConfigurationVersionRow
    statement = select(table).where(table.environment == environment)
    if before is not None:
        statement = statement.where(table.number < before)
    return (await session.execute(statement.order_by(table.number.desc()).limit(limit + 1))).scalars().all()


# What processes obey


async def report(session: AsyncSession, process: str, environment: str, told: Mapping[str, Any], lease: float) -> None:
    """Note what a process obeys, for ``lease`` seconds, and forget processes whose time is over."""
    table = ConfigurationProcessRow
    values = {"environment": environment, "report": dict(told), "lease_until": epoch_now() + lease}
    done = await session.execute(update(table).where(table.process == process).values(**values))
    if cast(Any, done).rowcount == 0:
        await session.execute(_insert(session, table, process=process, **values))
    await session.execute(delete(table).where(table.lease_until < epoch_now() - lease))


async def forget_process(session: AsyncSession, process: str) -> None:
    """Forget a process that ends."""
    await session.execute(delete(ConfigurationProcessRow).where(ConfigurationProcessRow.process == process))


async def reports(session: AsyncSession) -> Sequence[dict[str, Any]]:
    """Return what each running process said of itself."""
    table = ConfigurationProcessRow
    statement = select(table.report).where(table.lease_until > epoch_now()).order_by(table.process)
    return (await session.execute(statement)).scalars().all()


# Secrets


async def lock_keys(session: AsyncSession) -> list[int]:
    """Return the numbers of the data keys, oldest first; none is removed until the unit of work ends."""
    statement = select(SecretKeyRow.number).order_by(SecretKeyRow.number)
    return list((await session.execute(statement.with_for_update())).scalars())


async def add_key(session: AsyncSession, number: int, author: str, wrapped_by: str, wrapped: str) -> bool:
    """Add a data key unless another unit of work added that number first; tell whether it was added."""
    done = await session.execute(_insert(session, SecretKeyRow, number=number, author=author, created_at=utcnow()))
    if cast(Any, done).rowcount == 0:
        return False
    await add_wrap(session, number, wrapped_by, wrapped)
    return True


async def add_wrap(session: AsyncSession, number: int, wrapped_by: str, wrapped: str) -> None:
    """Keep a data key as an installation key encrypts it; one that is there stays."""
    values = {"key_number": number, "wrapped_by": wrapped_by, "wrapped": wrapped}
    await session.execute(_insert(session, SecretKeyWrapRow, **values))


async def wraps(session: AsyncSession) -> list[tuple[int, str, str]]:
    """Return (data key, installation key's fingerprint, wrapped) of all, newest data key first."""
    table = SecretKeyWrapRow
    statement = select(table.key_number, table.wrapped_by, table.wrapped).order_by(table.key_number.desc())
    return [(number, by, wrapped) for number, by, wrapped in await session.execute(statement)]


async def drop_other_wraps(session: AsyncSession, wrapped_by: str) -> int:
    """Forget the data keys as other installation keys encrypt them; return how many."""
    table = SecretKeyWrapRow
    done = await session.execute(delete(table).where(table.wrapped_by != wrapped_by))
    return int(cast(Any, done).rowcount)


async def drop_unused_keys(session: AsyncSession, but: int) -> int:
    """Remove data keys under which no secret is, except number ``but``; return how many."""
    used = exists().where(SecretRow.key_number == SecretKeyRow.number)
    numbers = list(
        (await session.execute(select(SecretKeyRow.number).where(SecretKeyRow.number != but, ~used))).scalars()
    )
    await session.execute(delete(SecretKeyWrapRow).where(SecretKeyWrapRow.key_number.in_(numbers)))
    await session.execute(delete(SecretKeyRow).where(SecretKeyRow.number.in_(numbers)))
    return len(numbers)


async def secret(session: AsyncSession, name: str, *, lock: bool = False) -> SecretRow | None:
    """Return a secret's row."""
    statement = select(SecretRow).where(SecretRow.name == name)
    if lock:
        statement = statement.with_for_update()
    return (await session.execute(statement.execution_options(populate_existing=True))).scalar_one_or_none()


async def add_secret(session: AsyncSession, **values: Any) -> bool:
    """Add a secret unless it is there; tell whether it was added."""
    done = await session.execute(_insert(session, SecretRow, **values))
    return bool(cast(Any, done).rowcount)


async def remove_secret(session: AsyncSession, row: SecretRow) -> None:
    """Remove a secret."""
    await session.delete(row)
    await session.flush()


async def secrets(session: AsyncSession, after: str | None, limit: int) -> Sequence[SecretRow]:
    """Return up to ``limit + 1`` secrets by name."""
    statement = select(SecretRow)
    if after is not None:
        statement = statement.where(SecretRow.name > after)
    return (await session.execute(statement.order_by(SecretRow.name).limit(limit + 1))).scalars().all()


async def secrets_named(session: AsyncSession, names: Sequence[str]) -> set[str]:
    """Return those of the names that there is a secret of."""
    return set((await session.execute(select(SecretRow.name).where(SecretRow.name.in_(names)))).scalars())


async def secrets_under_other_keys(session: AsyncSession, number: int, limit: int) -> Sequence[SecretRow]:
    """Return secrets, locked, that are not under data key ``number``."""
    statement = select(SecretRow).where(SecretRow.key_number != number).order_by(SecretRow.name).limit(limit)
    return (await session.execute(statement.with_for_update())).scalars().all()


def _insert(session: AsyncSession, table: type[Base], **values: Any) -> Any:
    """Return an INSERT that does nothing where the row is there."""
    insert = postgresql_insert if session.get_bind().dialect.name == "postgresql" else sqlite_insert
    return insert(cast(Any, table.__table__)).values(**values).on_conflict_do_nothing()
