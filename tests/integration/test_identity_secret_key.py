"""API keys go on working when the installation gets another secret key."""

import pytest
from sqlalchemy import text

from burnish.core.errors import Unauthenticated, Unavailable
from burnish.infra.database import Database
from burnish.platform.configuration.keyring import InstallationKey
from burnish.platform.configuration.secrets import Secrets
from burnish.platform.identity import audit
from burnish.platform.identity.digest_key import DigestKey
from burnish.platform.identity.keys import KeyDigests
from burnish.platform.identity.schemas import NewKeyRequest
from burnish.platform.identity.seal import seal_with
from tests.support.identity import ROOT, People

KEYS = [bytes([number]) * 32 for number in range(3)]


async def opened(database: Database, secret: bytes) -> KeyDigests:
    async with database.read() as session:
        return KeyDigests(await DigestKey(secret).load(session))


async def rewrap(database: Database, old: bytes, new: bytes) -> None:
    async with database.write() as session:
        await Secrets(database, old).rewrap(session, InstallationKey(new))
    async with database.write() as session:
        await Secrets(database, new).finish_rewrap(session)


async def test_a_key_works_whatever_secret_keys_follow(database: Database) -> None:
    """Breaks with: digests by a key that is derived from the present secret key."""
    first = People(database, await opened(database, KEYS[0]))
    await first.begin()
    key = (await first.key(ROOT, NewKeyRequest(subject="root", project="*"))).key
    for old, new in ((KEYS[0], KEYS[1]), (KEYS[1], KEYS[2]), (KEYS[2], KEYS[0]), (KEYS[0], KEYS[1])):
        await rewrap(database, old, new)
        later = People(database, await opened(database, new))
        assert (await later.come_in(key)).subject == "root"
    strange = People(database, await opened(database, b"x" * 32))
    with pytest.raises(Unauthenticated):
        await strange.come_in(key)


async def test_the_audit_log_keeps_its_seal_whatever_secret_keys_follow(database: Database) -> None:
    """Breaks with: a seal by a key that is derived from the present secret key."""
    people = People(database)
    for number, secret in enumerate((KEYS[0], KEYS[1], KEYS[2])):
        if number:
            await rewrap(database, KEYS[number - 1], secret)
        async with database.read() as session:
            seal_with(database, await DigestKey(secret).load(session))
        async with database.read() as session:
            assert (await audit.verify(session)).problems == ()
        if not number:
            await people.begin()
    seal_with(database, b"x" * 32)
    async with database.read() as session:
        assert [one.what for one in (await audit.verify(session)).problems] == ["unsealed"]


async def test_what_was_handed_over_cannot_be_changed_unseen(database: Database) -> None:
    await rewrap(database, KEYS[0], KEYS[1])
    async with database.read() as session:
        told = await session.scalar(text("SELECT wrapped FROM api_key_digest_keys"))
        plain = await DigestKey(KEYS[0]).load(session)
    assert plain.hex() not in str(told)
    async with database.write() as session:
        await session.execute(text("UPDATE api_key_digest_keys SET wrapped = 'gAAAAA'"))
    with pytest.raises(Unavailable, match="was changed in the database"):
        await opened(database, KEYS[1])
