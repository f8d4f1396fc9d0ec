"""Sessions of the page: a token in an HttpOnly cookie, and a second one against cross-site requests.

The session's token is 256 random bits; only its digest is stored. The CSRF token is derived from it by HMAC, so that a
cookie planted by somebody else (a neighbouring site under the same domain) never fits the session it is sent with. A
session is made new at each login, never taken over, and is renewed while it is used.
"""

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.configuration import Current, defaults
from burnish.core.errors import Forbidden
from burnish.core.ids import new_id
from burnish.core.permissions import EVERY_PROJECT
from burnish.infra.database import Database, utcnow
from burnish.platform.identity import login_store, store
from burnish.platform.identity.principal import Principal
from burnish.platform.identity.tables import SessionRow

COOKIE = "burnish_session"
CSRF_COOKIE = "burnish_csrf"
"""Readable by the page, which sends it back as ``X-CSRF-Token``."""
CSRF_HEADER = "X-CSRF-Token"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
RENEWED_AFTER = 0.1
"""A session is renewed at its next use after this share of its life, so that not each request writes."""
LIVES = 14
"""However much it is used, a session ends after so many times ``identity.session_seconds``."""
_PREFIX = "brn_session_"
"""By it logs know the token and leave it out."""


@dataclass(frozen=True)
class NewSession:
    """A session just made; its token is known now and never again."""

    id: str
    token: str
    csrf: str
    expires_at: datetime


class Sessions:
    """Makes, finds and ends sessions."""

    def __init__(self, database: Database, configuration: Current = defaults) -> None:
        self._database = database
        self._configuration = configuration

    @property
    def seconds(self) -> float:
        """How long a session lives without being used."""
        return self._configuration().identity.session_seconds

    async def create(self, session: AsyncSession, subject: str, *, key_id: str | None = None) -> NewSession:
        """Begin a session of ``subject``; one with ``key_id`` has that key's scopes and ends with it."""
        token = _PREFIX + secrets.token_urlsafe(32)
        now = utcnow()
        row = SessionRow(
            id=new_id("ses"), token_digest=digest_of(token), subject=subject, key_id=key_id, created_at=now,
            expires_at=now + timedelta(seconds=self.seconds), revoked_at=None,
        )  # fmt: skip
        await login_store.add(session, row)
        return NewSession(row.id, token, csrf_of(token), row.expires_at)

    async def principal_of(self, token: str) -> Principal | None:
        """Return whose live session it is; None: there is none.

        Its ``credential`` is the session's id; ``project_id`` and ``scopes`` are those of the key that opened it, as
        which it is counted, else every project (``*``) and no limit. Roles are not looked up here.
        """
        if not token.startswith(_PREFIX):
            return None
        now = utcnow()
        async with self._database.read() as session:
            found = await login_store.live_session(session, digest_of(token), now)
        if found is None:
            return None
        until = self._renewal(found.row, now)
        if until is not None:
            async with self._database.write() as session:
                await login_store.extend(session, found.row.id, until)
        key = found.key
        scopes = None if key is None or key.scopes is None else frozenset(key.scopes)
        project = EVERY_PROJECT if key is None else key.project_id
        row = found.row
        return Principal(row.subject, project, scopes=scopes, credential=row.id, counted_as=row.key_id)

    def _renewal(self, row: SessionRow, now: datetime) -> datetime | None:
        """Return until when a session that is used now lives, if that is to be written."""
        life = timedelta(seconds=self.seconds)
        until = min(now + life, row.created_at + LIVES * life)
        shortened = row.expires_at > until  # session_seconds was made smaller since
        return until if shortened or until - row.expires_at > RENEWED_AFTER * life else None

    async def check_csrf(self, token: str, given: str | None) -> None:
        """Check the CSRF token of a request that changes something.

        Raises:
            Forbidden: it is missing or another session's.
        """
        if given is None or not hmac.compare_digest(csrf_of(token).encode(), given.encode("utf-8", "replace")):
            raise Forbidden(
                f"the request changes something and its {CSRF_HEADER} is {'missing' if given is None else 'not this session’s'}",
                where=CSRF_HEADER,
                hint=f"send the value of the cookie {CSRF_COOKIE} as {CSRF_HEADER}, or use an API key instead of the session",
            )

    async def revoke(self, session: AsyncSession, token: str) -> bool:
        """End a session at once; tell whether there was one."""
        ended = await login_store.revoke(session, digest_of(token), utcnow())
        if ended:
            await store.changed(session)  # no process answers from memory
        return ended


def digest_of(token: str) -> str:
    """Return what is stored of a token: with 256 random bits in it a plain hash tells nothing about it."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def csrf_of(token: str) -> str:
    """Return the CSRF token that belongs to a session's token."""
    return hmac.new(token.encode("utf-8", "replace"), b"burnish csrf", hashlib.sha256).hexdigest()


def token_of(headers: Mapping[str, str]) -> str | None:
    """Return the session's token out of a request's cookies."""
    return cookie_of(headers, COOKIE)


def cookie_of(headers: Mapping[str, str], name: str) -> str | None:
    """Return the first cookie of that name; ``headers`` have lower-case names."""
    for part in headers.get("cookie", "").split(";"):
        key, _, value = part.strip().partition("=")
        if key == name and value:
            return value.strip('"')
    return None


def check_same_site(headers: Mapping[str, str], public_url: str | None) -> None:
    """Refuse a login that another site's page sends: it would log its visitor in as somebody else.

    Raises:
        Forbidden: the request comes from a page of another site.
    """
    origin = headers.get("origin")
    own = {headers.get("host", ""), (public_url or "").rpartition("://")[2].partition("/")[0]}
    foreign = origin is not None and origin.rpartition("://")[2] not in own
    if foreign or headers.get("sec-fetch-site", "none") not in {"same-origin", "none"}:
        raise Forbidden(
            "a page of another site cannot log in here", where="Origin", hint="log in on this server's own page"
        )
