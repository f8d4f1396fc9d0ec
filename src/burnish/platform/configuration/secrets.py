"""Secrets: encrypted at rest, given out by :meth:`Secrets.resolve` alone, at the moment of use.

Invariants: no value is kept in memory beyond its use, except for the log's redaction, which knows every value that this
process has received or resolved; a value opens under its own name only; each step of a rotation leaves every secret
readable, so that one that was cut short is finished by the next.
"""

import logging
import re
from pathlib import Path

from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.errors import BurnishError, Conflict, InvalidRequest, NotFound, Unavailable
from burnish.core.pages import Page
from burnish.infra.artifact_store import store as artifacts
from burnish.infra.database import Database, utcnow
from burnish.infra.logging import hide
from burnish.platform.configuration import store
from burnish.platform.configuration.keyring import SHORTEST_KEY, InstallationKey, Keyring, Wrap, new_data_key
from burnish.platform.configuration.schemas import SECRET_NAME, RewrapView, RotationView, SecretView
from burnish.platform.configuration.tables import SecretRow

log = logging.getLogger(__name__)

SCHEME = "secret://"
_BATCH = 20
_TRIES = 3


class Secrets:
    """The secrets of an installation, for processes that have its key.

    Args:
        database: where they are kept.
        installation_key: at least 32 bytes.
    """

    def __init__(self, database: Database, installation_key: bytes) -> None:
        self._database = database
        self._key = InstallationKey(installation_key)

    async def resolve(self, reference: str) -> str:
        """Return the value that ``secret://name`` stands for. Use it now; do not keep it.

        Raises:
            InvalidRequest: it is no reference.
            NotFound: there is no secret of that name.
            Unavailable: the database is away, or this process has not the key.
        """
        name = name_of(reference)
        for tries_left in reversed(range(_TRIES)):
            async with self._database.read() as session:
                row = await store.secret(session, name)
                if row is None:
                    raise _unknown(name)
                ring = await self._ring(session)
            try:
                value = ring.decrypt(name, row.ciphertext)
            except Unavailable:  # between the two queries a rotation may have removed the key that the row was under
                if not tries_left:
                    raise
                continue
            hide(value)
            return value
        raise AssertionError("unreachable")

    async def set(self, session: AsyncSession, name: str, value: str, author: str) -> SecretView:
        """Set a secret, or give it a new value.

        Raises:
            Unavailable: this process has not the installation's key.
        """
        hide(value)
        ring = await self._ring_to_write(session, author)
        ciphertext, now = ring.encrypt(name, value), utcnow()
        row = await store.secret(session, name, lock=True)
        if row is None:
            added = await store.add_secret(
                session, name=name, ciphertext=ciphertext, key_number=ring.newest, version=1, author=author,
                created_at=now, updated_at=now,
            )  # fmt: skip
            row = await store.secret(session, name, lock=True)
            if row is None:
                raise Conflict(f"secret {name!r} was removed at the same moment", hint="set it again")
            if added:
                return _view(row)
        row.ciphertext, row.key_number, row.author, row.updated_at = ciphertext, ring.newest, author, now
        row.version += 1
        return _view(row)

    async def rotate(self, author: str) -> RotationView:
        """Encrypt everything with a new data key. Cut short, it is finished by the next, or by :meth:`finish`.

        Raises:
            Conflict: the installation's key is being exchanged.
        """
        async with self._database.write() as session:
            numbers = await store.lock_keys(session)
            await self._refuse_while_rewrapping(session)
            number = max(numbers, default=0) + 1
            await store.add_key(session, number, author, self._key.fingerprint, self._key.wrap(new_data_key()))
        reencrypted, removed = await self.finish()
        return RotationView(key=number, reencrypted=reencrypted, removed_keys=removed)

    async def finish(self) -> tuple[int, int]:
        """Bring secrets under older data keys under the newest and remove keys without secrets; return how many each."""
        reencrypted = 0
        while True:
            async with self._database.write() as session:
                numbers = await store.lock_keys(session)
                if not numbers:
                    return 0, 0
                rows = await store.secrets_under_other_keys(session, max(numbers), _BATCH)
                if not rows:
                    return reencrypted, await store.drop_unused_keys(session, but=max(numbers))
                ring = await self._ring(session)
                for row in rows:
                    row.ciphertext = ring.encrypt(row.name, ring.decrypt(row.name, row.ciphertext))
                    row.key_number = ring.newest
                reencrypted += len(rows)

    async def start(self) -> None:
        """Finish a rotation that was cut short. A process without the key leaves it to others, and says so."""
        try:
            done, removed = await self.finish()
        except BurnishError as error:
            log.warning("secrets: %s", error.message)
            return
        if done or removed:
            log.info("a rotation was finished: %d secrets were encrypted anew, %d old keys removed", done, removed)

    async def stop(self) -> None:
        """Nothing runs between the calls."""

    async def rewrap(self, session: AsyncSession, new: InstallationKey) -> RewrapView:
        """Let another installation key open the data keys too: the one that processes start with from now on.

        Raises:
            Conflict: it is the key that this process has.
        """
        if new.fingerprint == self._key.fingerprint:
            raise Conflict("the new key is the one that this server has", where="new_key_file")
        await store.lock_keys(session)
        wraps = await _wraps(session)
        if wraps:
            ring = Keyring(self._key, wraps)
            for number, data_key in ring.data_keys.items():
                await store.add_wrap(session, number, new.fingerprint, new.wrap(data_key))
        await self._key.api_keys.hand_over(session, new.api_keys)
        await artifacts.change_key(session, new.fingerprint)
        return await _rewrapped(session)

    async def finish_rewrap(self, session: AsyncSession) -> RewrapView:
        """Let no installation key but this process's open the data keys: it is the one that processes start with.

        Raises:
            Unavailable: this process's key does not open them.
        """
        await store.lock_keys(session)
        if await _wraps(session):
            await self._ring(session)
            await store.drop_other_wraps(session, self._key.fingerprint)
        await artifacts.change_key(session, self._key.fingerprint)
        return await _rewrapped(session)

    async def _ring(self, session: AsyncSession) -> Keyring:
        return Keyring(self._key, await _wraps(session))

    async def _ring_to_write(self, session: AsyncSession, author: str) -> Keyring:
        """Return the keyring, made with the first secret; its newest key stays until the unit of work ends."""
        if not await store.lock_keys(session):
            await store.add_key(session, 1, author, self._key.fingerprint, self._key.wrap(new_data_key()))
            await store.lock_keys(session)
        return await self._ring(session)

    async def _refuse_while_rewrapping(self, session: AsyncSession) -> None:
        wraps = await _wraps(session)
        if others := {wrap.wrapped_by for wrap in wraps} - {self._key.fingerprint}:
            raise Conflict(
                f"the installation's key is being exchanged: {', '.join(sorted(others))} opens the data keys too",
                hint="start every server with the new key, then `burnish secret rewrap --finish`, then rotate",
            )


async def page(session: AsyncSession, after: str | None, limit: int) -> Page[SecretView]:
    """Return secrets by name, without their values."""
    rows = await store.secrets(session, after, limit)
    return Page[SecretView].of([_view(row) for row in rows], limit, lambda one: one.name)


async def remove(session: AsyncSession, name: str, used_by: list[str]) -> None:
    """Remove a secret.

    Args:
        session: a unit of work.
        name: of the secret.
        used_by: where the configuration refers to it.

    Raises:
        NotFound: there is none.
        Conflict: the configuration refers to it.
    """
    row = await store.secret(session, name, lock=True)
    if row is None:
        raise _unknown(name)
    if used_by:
        raise Conflict(
            f"secret {name!r} is referred to by {', '.join(used_by)}", where=f"{SCHEME}{name}",
            hint="unset those keys first, or give the secret a new value",
        )  # fmt: skip
    await store.remove_secret(session, row)


def name_of(reference: str) -> str:
    """Return the name in ``secret://name``.

    Raises:
        InvalidRequest: it is no reference.
    """
    name = reference.removeprefix(SCHEME)
    if not reference.startswith(SCHEME) or re.fullmatch(SECRET_NAME, name) is None:
        raise InvalidRequest(
            "that is no reference to a secret", hint="write secret://NAME, and set it: burnish secret set NAME"
        )
    return name


def references_in(value: JsonValue) -> set[str]:
    """Return the names of secrets that a configuration value refers to."""
    if isinstance(value, str):
        return {value.removeprefix(SCHEME)} if value.startswith(SCHEME) else set()
    if isinstance(value, dict):
        return set().union(*map(references_in, value.values()))
    return set().union(*map(references_in, value)) if isinstance(value, list) else set()


def read_installation_key(path: Path) -> InstallationKey:
    """Return the installation key in a file.

    Raises:
        InvalidRequest: it cannot be read, or is too short.
    """
    try:
        content = path.read_bytes() if path.is_file() else None
    except OSError:
        content = None
    if content is None or not SHORTEST_KEY <= len(content) <= 1 << 16:
        raise InvalidRequest(
            f"{path} is no key file that this server can read", where="new_key_file",
            hint=f"a file of {SHORTEST_KEY} random bytes or more: head -c 32 /dev/urandom > FILE",
        )  # fmt: skip
    return InstallationKey(content)


async def _wraps(session: AsyncSession) -> list[Wrap]:
    return [Wrap(*one) for one in await store.wraps(session)]


async def _rewrapped(session: AsyncSession) -> RewrapView:
    wraps = await _wraps(session)
    by = sorted({wrap.wrapped_by for wrap in wraps})
    return RewrapView(data_keys=len({wrap.number for wrap in wraps}), installation_keys=tuple(by))


def _view(row: SecretRow) -> SecretView:
    return SecretView(
        name=row.name, reference=SCHEME + row.name, version=row.version, key=row.key_number, author=row.author,
        created_at=row.created_at, updated_at=row.updated_at,
    )  # fmt: skip


def _unknown(name: str) -> NotFound:
    return NotFound(
        f"there is no secret {name!r}", where=f"{SCHEME}{name}",
        hint=f"set it: `burnish secret set {name}`, with the value on stdin",
    )  # fmt: skip
