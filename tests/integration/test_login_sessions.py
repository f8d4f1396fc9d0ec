"""Sessions and logins on their way, on both databases: renewal, ends, races."""

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from sqlalchemy import select

from burnish.core.configuration import Configuration, IdentityConfiguration, OidcConfiguration
from burnish.core.errors import Forbidden, Unauthenticated
from burnish.infra.database import Database
from burnish.platform.identity import arrivals, login_store, sessions, store
from burnish.platform.identity import logins as logins_module
from burnish.platform.identity.authentication import Authenticator
from burnish.platform.identity.credentials import Credentials
from burnish.platform.identity.keys import KeyDigests
from burnish.platform.identity.logins import CommandLine, Logins, ProviderAnswer
from burnish.platform.identity.oidc import Identity, Provider
from burnish.platform.identity.principal import CallerTokens, Principal
from burnish.platform.identity.sessions import COOKIE, LIVES, Sessions, digest_of
from burnish.platform.identity.tables import LoginStateRow
from tests.support.identity import People
from tests.support.oidc import lying_provider

HOUR = 3600.0
START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """What the sessions take for now."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def after(self, **duration: float) -> None:
        self.now += timedelta(**duration)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(sessions, "utcnow", found)
    return found


def hours(seconds: float = HOUR) -> Configuration:
    return Configuration(identity=IdentityConfiguration(session_seconds=seconds))


async def user(database: Database, name: str = "ada") -> str:
    identity = Identity("https://login.example.org", name, f"{name}@example.org", email_verified=True)
    async with database.write() as session:
        await store.ensure_project(session, "default")
        return await arrivals.arrive(session, identity, OidcConfiguration())


async def test_a_session_is_renewed_while_it_is_used_and_not_forever(database: Database, clock: Clock) -> None:
    holder = Sessions(database, hours)
    subject = await user(database)
    async with database.write() as session:
        made = await holder.create(session, subject)
    found = await holder.principal_of(made.token)
    assert found is not None
    assert (found.subject, found.project_id, found.credential, found.scopes) == (subject, "*", made.id, None)
    uses = 0
    while await holder.principal_of(made.token) is not None:
        clock.after(minutes=50)  # never an hour without use
        uses += 1
        assert uses < 100
    lived = clock.now - START
    assert timedelta(hours=LIVES - 1) < lived <= timedelta(hours=LIVES, minutes=50)


async def test_a_session_that_is_not_used_ends(database: Database, clock: Clock) -> None:
    holder = Sessions(database, hours)
    subject = await user(database)
    async with database.write() as session:
        made = await holder.create(session, subject)
    clock.after(minutes=59)
    assert await holder.principal_of(made.token) is not None
    clock.after(minutes=59)
    assert await holder.principal_of(made.token) is not None, "it was renewed"
    clock.after(minutes=61)
    assert await holder.principal_of(made.token) is None
    clock.after(minutes=-30)
    assert await holder.principal_of(made.token) is not None, "the row says when, not the use"


async def test_a_shorter_life_holds_for_sessions_that_are_there(database: Database, clock: Clock) -> None:
    life = [24 * HOUR]
    holder = Sessions(database, lambda: hours(life[0]))
    subject = await user(database)
    async with database.write() as session:
        made = await holder.create(session, subject)
    life[0] = HOUR
    assert await holder.principal_of(made.token) is not None
    clock.after(minutes=61)
    assert await holder.principal_of(made.token) is None


async def test_a_session_ends_with_its_revocation_its_user_and_its_key(database: Database) -> None:
    holder, keys = Sessions(database, hours), Credentials(KeyDigests(b"k" * 32))
    subject = await user(database)
    caller = Principal(subject, "*")
    async with database.write() as session:
        key = await keys.issue(session, caller, "page", "*", None)
        by_key = await holder.create(session, subject, key_id=key.id)
        plain = await holder.create(session, subject)
        other = await holder.create(session, subject)
    async with database.write() as session:
        assert await holder.revoke(session, plain.token)
        assert not await holder.revoke(session, plain.token)
        assert not await holder.revoke(session, "brn_session_never")
    assert await holder.principal_of(plain.token) is None
    assert await holder.principal_of(by_key.token) is not None
    async with database.write() as session:
        await keys.revoke(session, caller, key.id)
    assert await holder.principal_of(by_key.token) is None
    assert await holder.principal_of(other.token) is not None
    async with database.write() as session:
        row = await store.subject(session, subject)
        assert row is not None
        row.disabled_at = START
    assert await holder.principal_of(other.token) is None
    for odd in ("", "brn_session_", "brn_session_\udcff", "bk_x", "brn_session_" + "x" * 100_000):
        assert await holder.principal_of(odd) is None


async def test_a_session_is_known_to_be_of_the_key_that_opened_it(database: Database) -> None:
    """Breaks with: limits by key that each new session escapes. No token tells it to anybody."""
    people = People(database)
    await people.begin()
    ada = await people.user("ada", "engineer", "default")
    key, holder = await people.key(ada), Sessions(database, hours)
    async with database.write() as session:
        by_key, plain = await holder.create(session, "ada", key_id=key.id), await holder.create(session, "ada")
    authenticator = Authenticator(database, people.digests, sessions=holder)

    async def come_in(token: str) -> Principal:
        return await authenticator.authenticate({"cookie": f"{COOKIE}={token}"}, method="GET")

    found, other = await come_in(by_key.token), await come_in(plain.token)
    assert (found.credential, found.counted_as, found.counted) == (by_key.id, key.id, key.id)
    assert (other.counted_as, other.counted) == (None, plain.id)
    assert (await people.come_in(key.key)).counted == key.id
    tokens = CallerTokens(b"t" * 32)
    token = tokens.sign(found, "echo")
    assert key.id not in json.dumps(jwt.decode(token, options={"verify_signature": False}))
    assert tokens.verify(token, "echo").counted == by_key.id


async def test_a_csrf_token_fits_one_session(database: Database) -> None:
    holder = Sessions(database, hours)
    subject = await user(database)
    async with database.write() as session:
        one, two = await holder.create(session, subject), await holder.create(session, subject)
    await holder.check_csrf(one.token, one.csrf)
    for given in (None, "", two.csrf, one.csrf.upper(), one.token, "ü"):
        with pytest.raises(Forbidden, match="X-CSRF-Token"):
            await holder.check_csrf(one.token, given)


async def test_of_two_who_take_one_state_one_gets_it(database: Database) -> None:
    async with database.write() as session:
        await login_store.keep(session, "state", {"a": 1}, datetime.now(UTC) + timedelta(seconds=60))

    async def take() -> object:
        async with database.write() as session:
            return await login_store.take(session, "state", datetime.now(UTC))

    found = await asyncio.gather(*(take() for _ in range(8)))
    assert [one for one in found if one is not None] == [{"a": 1}]


async def test_two_first_logins_at_once_make_one_user(database: Database) -> None:
    assert set(await asyncio.gather(*(user(database) for _ in range(8)))) == {"ada@example.org"}


@pytest.mark.parametrize(
    ("address", "verified"),
    [
        ("eve@example.org", False),
        ("administrator", True),
        ("burnish", True),
        ("local", True),
        ("root", True),
        (None, True),
    ],
)
async def test_an_address_is_an_id_only_if_it_is_one_and_verified(
    database: Database, address: str | None, verified: bool
) -> None:
    identity = Identity("https://login.example.org", "eve", address, email_verified=verified)
    async with database.write() as session:
        made = await arrivals.arrive(session, identity, OidcConfiguration())
    assert re.fullmatch("user-[0-9a-f]{24}", made)


async def test_guessing_a_login_code_writes_nothing(database: Database) -> None:
    """Breaks with: a transaction that may write, begun before it is known that there is such a code."""
    logins = Logins(
        database, Provider(hours), Sessions(database, hours), Credentials(KeyDigests(b"k" * 32)), authenticator=None
    )
    database.write = _fails  # type: ignore[assignment,method-assign]
    for code in ("x" * 43, "", "\udcff"):
        with pytest.raises(Unauthenticated, match="login code is not valid"):
            await logins.exchange(code, "v" * 43, "laptop")


def _fails() -> object:
    raise AssertionError("begun")


async def test_logins_on_their_way_are_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks with: logins that somebody begins and never ends, which keep everybody else from beginning one."""
    monkeypatch.setattr(logins_module, "MOST_PENDING", 3)
    with lying_provider() as lying:

        def configuration() -> Configuration:
            return Configuration(identity=IdentityConfiguration(oidc=OidcConfiguration(issuer=lying.url)))

        logins = Logins(
            database, Provider(configuration), Sessions(database, configuration), Credentials(KeyDigests(b"k" * 32)),
            authenticator=None, configuration=configuration,
        )  # fmt: skip

        async def begun() -> str:
            url = (await logins.begin("http://127.0.0.1/cb", "/", None)).url
            return digest_of(parse_qs(urlsplit(url).query)["state"][0])

        async def kept() -> set[str]:
            async with database.read() as session:
                return set((await session.execute(select(LoginStateRow.id))).scalars())

        async with database.write() as session:  # of a command line, on its way to its key
            await login_store.keep(
                session, "code", {}, datetime.now(UTC) + timedelta(seconds=logins_module.CODE_SECONDS)
            )
        states = [await begun() for _ in range(6)]
        assert await kept() == {"code", *states[-2:]}
        monkeypatch.setattr(logins_module, "utcnow", lambda: datetime.now(UTC) + timedelta(seconds=601))
        monkeypatch.setattr(store, "utcnow", lambda: datetime.now(UTC) + timedelta(seconds=601))
        last = await begun()
        assert await kept() == {last}, "what is over was forgotten"
        await logins.stop()


async def test_a_group_gives_nothing_in_a_project_that_there_is_not(database: Database) -> None:
    settings = OidcConfiguration(
        role_bindings={"a": "nowhere/engineer", "b": "default/viewer"}, default_role="engineer"
    )
    subject = await user(database)
    for groups, expected in ((("a", "b"), {"viewer", "engineer"}), ((), {"engineer"})):
        identity = Identity("https://login.example.org", "ada", groups=groups)
        async with database.write() as session:
            assert await arrivals.arrive(session, identity, settings) == subject
            assert {row.role for row in await store.bindings_of(session, subject)} == expected
            row = await store.subject(session, subject)
            assert row is not None
            assert row.email == "ada@example.org", "an address that is not told is kept"


async def test_the_last_administrator_stays_one(database: Database) -> None:
    settings = OidcConfiguration(role_bindings={"admins": "*/administrator"})
    first, second = (Identity("https://login.example.org", name, None, groups=("admins",)) for name in ("a", "b"))
    async with database.write() as session:
        one = await arrivals.arrive(session, first, settings)
        two = await arrivals.arrive(session, second, settings)
    async with database.write() as session:
        for subject, left in ((one, []), (two, ["administrator"])):
            issuer_subject = "a" if subject == one else "b"
            await arrivals.arrive(session, Identity("https://login.example.org", issuer_subject), settings)
            assert [row.role for row in await store.bindings_of(session, subject)] == left


async def test_a_login_is_over_after_its_time_and_ends_with_its_provider(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lying_provider() as lying, lying_provider() as another:
        issuer = [lying.url]

        def configuration() -> Configuration:
            return Configuration(identity=IdentityConfiguration(oidc=OidcConfiguration(issuer=issuer[0])))

        provider = Provider(configuration)
        logins = Logins(
            database, provider, Sessions(database, configuration), Credentials(KeyDigests(b"k" * 32)), authenticator=None,
            configuration=configuration,
        )  # fmt: skip
        begun = await logins.begin("http://127.0.0.1/cb", "/", CommandLine(url="http://[::1]:9/x", challenge="c" * 43))
        query = dict(part.split("=") for part in begun.url.partition("?")[2].split("&"))
        answer = ProviderAnswer(code=query["nonce"])
        monkeypatch.setattr(
            "burnish.platform.identity.logins.utcnow", lambda: datetime.now(UTC) + timedelta(seconds=601)
        )
        with pytest.raises(Unauthenticated, match="began no login"):
            await logins.finish(query["state"], begun.browser, answer, old=None)
        monkeypatch.undo()
        issuer[0] = another.url
        landed = await logins.finish(query["state"], begun.browser, answer, old=None)
        assert landed.session is None
        assert landed.url.startswith(
            "http://[::1]:9/x?error=unauthenticated&error_description=the+login+provider+was+changed"
        )
        await logins.stop()
