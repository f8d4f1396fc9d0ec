"""Logging in: begun here, confirmed by the provider, ended with a session of the page or a key for the command line.

A login belongs to the browser that began it (a cookie, so that nobody is logged in as somebody else by a link), and
leads back only to a path of this server or, for the command line, to a port of the user's own machine. What is on its
way is a row that is taken once.
"""

import hmac
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from urllib.parse import quote, urlencode, urlsplit

from authlib.oauth2.rfc7636 import create_s256_code_challenge
from pydantic import BaseModel, ConfigDict
from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.configuration import Current, defaults
from burnish.core.errors import BurnishError, Conflict, Forbidden, InvalidRequest, Unauthenticated
from burnish.core.permissions import EVERY_PROJECT
from burnish.infra.database import Database, utcnow
from burnish.platform.identity import arrivals, audit, login_store, store
from burnish.platform.identity.credentials import Credentials
from burnish.platform.identity.oidc import Attempt, Identity, Provider
from burnish.platform.identity.principal import Principal
from burnish.platform.identity.sessions import NewSession, Sessions, digest_of

log = logging.getLogger(__name__)

LOGIN_SECONDS = 600.0
"""How long the user may take at the provider."""
MOST_PENDING = 10_000
"""Logins on their way at once; anybody can begin one, so where there are more the oldest are forgotten."""
CODE_SECONDS = 60.0
"""How long the command line may take to turn its code into a key."""


class CommandLine(BaseModel):
    """Where the command line listens, and how it will prove that it began the login."""

    model_config = ConfigDict(frozen=True)

    url: str
    challenge: str
    """Base64url of the SHA-256 of the verifier that it keeps (as in PKCE)."""
    state: str = ""
    """Given back to it as it is."""


class Pending(BaseModel):
    """What a login on its way needs when the browser comes back."""

    model_config = ConfigDict(frozen=True)

    nonce: str
    verifier: str
    redirect_uri: str
    issuer: str
    browser: str
    """Digest of the cookie of the browser that began it."""
    next: str = "/"
    command_line: CommandLine | None = None


class Granted(BaseModel):
    """What a code of the command line stands for."""

    model_config = ConfigDict(frozen=True)

    subject: str
    challenge: str


@dataclass(frozen=True)
class Begun:
    """Where the browser is sent, and the cookie that it keeps meanwhile."""

    url: str
    browser: str


@dataclass(frozen=True)
class Landed:
    """Where the browser goes after the provider; with a session unless the login was the command line's."""

    url: str
    session: NewSession | None = None


class Authenticates(Protocol):
    """What checks keys (:class:`burnish.platform.identity.authentication.Authenticator`)."""

    async def authenticate(self, headers: Mapping[str, str], *, method: str) -> Principal:
        """Return the caller that these headers prove, or raise what is wrong with them."""


@dataclass(frozen=True)
class ProviderAnswer:
    """What the provider has the browser say when it sends it back."""

    code: str | None = None
    error: str | None = None
    """In place of the code."""
    issuer: str | None = None
    """Who says it, where the provider tells (RFC 9207)."""


class CommandLineKey(BaseModel):
    """The key of a command line, shown this once."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={"examples": [
            {"key": "bk_a8k2m4p6r0t1_...", "key_id": "key_01k9zq7d3x8m2v5n0c4r6t1y", "subject": "ada@example.org",
             "expires_at": "2026-11-24T12:00:00Z"}
        ]},
    )  # fmt: skip

    key: str
    key_id: str
    subject: str
    expires_at: datetime | None


class Logins:
    """Carries logins from their beginning to their end. With ``authenticator`` None authentication is off."""

    def __init__(
        self, database: Database, provider: Provider, sessions: Sessions, credentials: Credentials, *,
        authenticator: Authenticates | None, configuration: Current = defaults,
    ) -> None:  # fmt: skip
        self._database = database
        self._provider = provider
        self._sessions = sessions
        self._credentials = credentials
        self._authenticator = authenticator
        self._configuration = configuration

    async def start(self) -> None:
        """Nothing runs: the provider is read at the first login."""

    async def stop(self) -> None:
        """Close the connections to the provider."""
        await self._provider.close()

    @property
    def on(self) -> bool:
        """Whether anybody is asked who they are."""
        return self._authenticator is not None

    @property
    def issuer(self) -> str | None:
        """The login provider; None: there is none."""
        return self._provider.issuer

    @property
    def public_url(self) -> str | None:
        """The URL under which browsers reach us, where it is configured."""
        return self._configuration().identity.public_url

    async def begin(self, redirect_uri: str, next_path: str, command_line: CommandLine | None) -> Begun:
        """Begin a login; ``redirect_uri`` is where the provider sends the browser back to.

        Raises:
            InvalidRequest: it would lead to another host.
            NotFound: no provider is configured.
            Unavailable: the provider does not answer.
        """
        local_path(next_path)
        if command_line is not None:
            command_line = command_line.model_copy(update={"url": loopback_url(command_line.url)})
        attempt = await self._provider.begin(redirect_uri)
        browser = secrets.token_urlsafe(32)
        pending = Pending(
            nonce=attempt.nonce, verifier=attempt.verifier, redirect_uri=redirect_uri, issuer=attempt.issuer,
            browser=digest_of(browser),
            next=next_path, command_line=command_line,
        )  # fmt: skip
        now = utcnow()
        async with self._database.write() as session:
            await store.prune(session)
            more = await login_store.on_their_way(session, now) - MOST_PENDING + 1
            if more > 0:  # not the codes of command lines, which end sooner than any login that is new
                await login_store.forget_oldest(session, more, now + timedelta(seconds=CODE_SECONDS))
            await login_store.keep(
                session, digest_of(attempt.state), pending.model_dump(), now + timedelta(seconds=LOGIN_SECONDS)
            )
        return Begun(attempt.url, browser)

    async def finish(
        self, state: str | None, browser: str | None, answer: ProviderAnswer, *, old: str | None
    ) -> Landed:
        """End a login when the provider has sent the browser back.

        Args:
            state: what we gave the provider.
            browser: the cookie of the browser that comes.
            answer: what the provider has it say.
            old: the token of the session that the browser had; it ends, a new one begins.

        Raises:
            Unauthenticated: this browser began no such login, or the provider does not vouch for anybody.
            Forbidden: the user was disabled.
            Unavailable: the provider does not answer.
        """
        if state is None and answer.error is not None:  # some providers leave it out when they refuse
            raise _let_nobody_in(answer.error)
        pending = await self._take(state or "", browser)
        try:
            identity = await self._identity(pending, answer)
            async with self._database.write() as session:
                subject = await arrivals.arrive(session, identity, self._configuration().identity.oidc)
                if old is not None:
                    await self._sessions.revoke(session, old)
                return await self._land(session, pending, subject)
        except (Unauthenticated, Forbidden) as error:
            audit.failed_login("a login by the provider", {"reason": error.message})
            if pending.command_line is None:
                raise
            return Landed(_told(pending.command_line, error))

    async def exchange(self, code: str, verifier: str, name: str) -> CommandLineKey:
        """Turn a code into a key that lives as long as a session; the code is gone, whoever showed it.

        Raises:
            Unauthenticated: there is no such code (any more), or the verifier is not that of who began the login.
        """
        async with self._database.read() as session:  # anybody can ask, and a guess is no reason to lock anything
            payload = await login_store.look(session, digest_of(code), utcnow())
        if payload is not None and "challenge" in payload:
            async with self._database.write() as session:
                payload = await login_store.take(session, digest_of(code), utcnow())
        granted = None if payload is None or "challenge" not in payload else Granted.model_validate(payload)
        if granted is None or not _same(granted.challenge, create_s256_code_challenge(verifier)):
            audit.failed_login("a command line", {"reason": "its code or verifier is not valid"})
            raise Unauthenticated(
                "the login code is not valid", where="code",
                hint=f"run `burnish login` again; a code is good once, for {CODE_SECONDS:g} s, for the program that asked for it",
            )  # fmt: skip
        async with self._database.write() as session:
            caller = Principal(granted.subject, EVERY_PROJECT)
            until = utcnow() + timedelta(seconds=self._sessions.seconds)
            made = await self._credentials.issue(session, caller, name, EVERY_PROJECT, until)
        return CommandLineKey(key=str(made.key), key_id=made.id, subject=granted.subject, expires_at=made.expires_at)

    async def open_session(self, key: str, *, old: str | None) -> tuple[Principal, NewSession]:
        """Begin a session with an API key; the session that the browser had ends.

        Raises:
            Conflict: authentication is off.
            Unauthenticated: it is no key that holds.
            Forbidden: it is the credential of a component.
        """
        if self._authenticator is None:
            raise Conflict(
                "authentication is off on this server, so there is nothing to log in to", hint="go on without a session"
            )
        caller = await self._authenticator.authenticate({"authorization": f"Bearer {key}"}, method="GET")
        if caller.component is not None:
            raise Forbidden("the credential of a component opens no session", hint="log in with a user's key")
        async with self._database.write() as session:
            if old is not None:
                await self._sessions.revoke(session, old)
            made = await self._sessions.create(session, caller.subject, key_id=caller.credential)
            await audit.note(session, caller, "login:ok", caller.subject, {"by": "key", "session": made.id})
        return caller, made

    async def close_session(self, token: str, caller: Principal) -> None:
        """End a session at once."""
        async with self._database.write() as session:
            if await self._sessions.revoke(session, token):
                await audit.note(session, caller, "login:ended", caller.subject, {"session": caller.credential})

    async def expiry(self, token: str) -> datetime | None:
        """Return until when a session lives unless it is used."""
        async with self._database.read() as session:
            found = await login_store.live_session(session, digest_of(token), utcnow())
        return None if found is None else found.row.expires_at

    async def _take(self, state: str, browser: str | None) -> Pending:
        """Take what was kept of a login; a state that another browser shows stays for its own."""
        key, now = digest_of(state), utcnow()
        async with self._database.read() as session:
            payload = await login_store.look(session, key, now)
        if payload is not None and "browser" in payload and _same(str(payload["browser"]), digest_of(browser or "")):
            async with self._database.write() as session:
                if (taken := await login_store.take(session, key, now)) is not None:
                    return Pending.model_validate(taken)
        raise Unauthenticated(
            "this browser began no login that could end here", where="state",
            hint=f"begin again: /platform/auth/login. A login is good once, for {LOGIN_SECONDS / 60:g} minutes, in the browser that began it (with cookies)",
        )  # fmt: skip

    async def _identity(self, pending: Pending, answer: ProviderAnswer) -> Identity:
        if answer.issuer is not None and answer.issuer != pending.issuer:
            raise Unauthenticated(
                f"the answer is {_printable(answer.issuer)}'s, and {pending.issuer} was asked", where="iss",
                hint="log in again",
            )  # fmt: skip
        if answer.code is None:
            raise _let_nobody_in(answer.error or "it sent no code")
        return await self._provider.finish(
            Attempt("", "", pending.nonce, pending.verifier, pending.redirect_uri, pending.issuer), answer.code
        )

    async def _land(self, session: AsyncSession, pending: Pending, subject: str) -> Landed:
        target, caller = pending.command_line, Principal(subject)
        if target is None:
            made = await self._sessions.create(session, subject)
            await audit.note(session, caller, "login:ok", subject, {"by": "oidc", "session": made.id})
            return Landed(pending.next, made)
        code = secrets.token_urlsafe(32)
        granted = Granted(subject=subject, challenge=target.challenge)
        until = utcnow() + timedelta(seconds=CODE_SECONDS)
        await login_store.keep(session, digest_of(code), granted.model_dump(), until)
        return Landed(f"{target.url}?{urlencode({'code': code, 'state': target.state})}")


def local_path(path: str) -> str:
    """Return ``path`` if it leads nowhere but to this server.

    Raises:
        InvalidRequest: it could be another host's (``//evil``, a scheme, a backslash) or is no path.
    """
    parts = urlsplit(path)
    odd = "\\" in path or not path.isprintable() or any(character.isspace() for character in path)
    if not path.startswith("/") or path.startswith("//") or parts.scheme or parts.netloc or odd:
        raise InvalidRequest(
            f"after the login only a path of this server can be opened, not {_printable(path)!r}", where="next",
            hint="send a path that begins with one slash, such as /runs",
        )  # fmt: skip
    return path


def loopback_url(url: str) -> str:
    """Return ``url``, put together anew, if it is a port of the user's own machine.

    Raises:
        InvalidRequest: it is another host's, or has more than a path.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    plain = (
        bool(host and port)
        and url.isprintable()
        and not (parts.username or parts.password or parts.query or parts.fragment)
    )
    if not plain or parts.scheme != "http" or host not in {"127.0.0.1", "::1"}:
        raise InvalidRequest(
            f"the command line's address must be a port of this machine, not {_printable(url)!r}", where="cli",
            hint="send http://127.0.0.1:PORT/PATH without a query",
        )  # fmt: skip
    return f"http://{'[::1]' if host == '::1' else host}:{port}{quote(parts.path or '/', safe='/-._~')}"


def _let_nobody_in(reason: str) -> Unauthenticated:
    return Unauthenticated(
        f"the login provider let nobody in: {_printable(reason)}", where="error",
        hint="log in again, or ask the provider's administrator for access to Burnish",
    )  # fmt: skip


def _told(target: CommandLine, error: BurnishError) -> str:
    """Return the address at which the command line learns why nobody was logged in."""
    told = {"error": error.code, "error_description": error.message, "state": target.state}
    return f"{target.url}?{urlencode(told)}"


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)[:200]
