"""Who sends a request: a key or a session becomes a principal, fast, and also while the database is away.

What the database said of a credential is used for a few seconds, or until some process tells (topic ``identity``) that
what somebody may do has changed. A credential that is not good costs the same whatever is wrong with it: one digest,
one look-up, and one answer.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.configuration import Current, defaults
from burnish.core.errors import BurnishError, NotFound, Unauthenticated, Unavailable
from burnish.core.permissions import EVERY_PROJECT
from burnish.infra.database import Database, utcnow
from burnish.infra.loop import Periodic
from burnish.platform.identity import audit, store
from burnish.platform.identity.keys import KeyDigests, prefix_of, same
from burnish.platform.identity.principal import Principal
from burnish.platform.identity.service import no_project
from burnish.platform.identity.tables import ApiKeyRow, SubjectRow

log = logging.getLogger(__name__)

FRESH_SECONDS = 3.0
_AHEAD_SECONDS = 1.0
"""So long before an answer is no longer fresh it is asked for again, while requests still go on with what is known."""
_STRANGER_SECONDS = 1.0
"""So long a credential that was not good lately waits for its look-up."""
_LOOKUP_SECONDS = 5.0
"""So long one that was good waits: longer than it takes to find that the database is away, which ends the look-up."""
_TROUBLE_SECONDS = 30.0
"""So long an answer is believed while look-ups fail although the database is not away, if nobody told of a change."""
_AWAY_SECONDS = 1.0
"""After a look-up that failed nobody waits for another one for this long."""
_STOP_SECONDS = 1.0
_STRANGERS = 8
"""Looked up at once: whoever sends made-up keys does not take the database away from those who are known."""
_REMEMBERED = 10_000
_REFUSED_REMEMBERED = 1_000
_WRITE_USES_SECONDS = 10.0
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_COOKIE = "burnish_session"
_NO_DIGEST = "0" * 64
_PROJECT_HEADERS = ("burnish-project", "openai-project")


class Sessions(Protocol):
    """What is asked of the sessions of people who logged in."""

    async def principal_of(self, token: str) -> Principal | None:
        """Return whose session it is, and for which project (``*``: any) and scopes it holds; None: no live session."""

    async def check_csrf(self, token: str, given: str | None) -> None:
        """Raise Forbidden unless ``given`` is the session's own token against cross-site requests."""


@dataclass(frozen=True)
class _Answer:
    """What the database said of a credential for a project."""

    found: Principal | BurnishError
    expires_at: datetime | None = None
    key_id: str | None = None
    shown: str = "unknown"
    """What may be written down of a credential that was not good: the prefix of a key that there is."""


@dataclass
class _Known:
    answer: _Answer
    version: int
    """Of the topic when it was looked up."""
    at: float
    """When it was looked up, on the monotonic clock."""
    renewing: bool = False
    """It has been asked for again ahead of time."""


class Authenticator:
    """Turns a request's headers into the principal who sent it. One a process."""

    def __init__(
        self,
        database: Database,
        digests: KeyDigests,
        *,
        configuration: Current = defaults,
        sessions: Sessions | None = None,
    ) -> None:
        self._database = database
        self._digests = digests
        self._configuration = configuration
        self._sessions = sessions
        self._topic = database.topic(store.TOPIC)
        self._known: dict[tuple[str, str | None], _Known] = {}
        self._refused: dict[tuple[str, str | None], _Known] = {}
        self._running: dict[tuple[str, str | None], asyncio.Task[_Known]] = {}
        self._away_until = 0.0
        self._stopping = False
        self._strangers = asyncio.Semaphore(_STRANGERS)
        self._uses: dict[str, datetime] = {}
        self._use_writer = Periodic(self.write_uses, _WRITE_USES_SECONDS, "key-uses")
        self._refusals = audit.RefusalWriter(database)

    async def start(self) -> None:
        """Start writing down when keys were used, and what was refused."""
        await self._refusals.start()
        await self._use_writer.start()

    async def stop(self) -> None:
        """Write what is left, and stop."""
        self._stopping = True
        await self._use_writer.stop()
        if running := set(self._running.values()):  # a statement that is cut off would leave its connection half-open
            _, late = await asyncio.wait(running, timeout=_STOP_SECONDS)
            for look_up in late:
                look_up.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        await self._refusals.stop()
        await self.write_uses()

    @property
    def alive(self) -> bool:
        """Whether its loops run."""
        return self._use_writer.alive and self._refusals.alive

    async def authenticate(
        self, headers: Mapping[str, str], *, method: str, unknown: Callable[[], Awaitable[None]] | None = None
    ) -> Principal:
        """Return who sent a request.

        Args:
            headers: the request's, with lower-case names.
            method: the request's.
            unknown: awaited before a credential is looked up of which nothing is known here; may refuse.

        Raises:
            Unauthenticated: no credential, or none that is good: whatever is wrong with it, the answer is the same.
            NotFound: the project that was asked for is none, or one in which the caller has no role.
            Forbidden: a page's request that changes something lacks the token against cross-site requests.
            Unavailable: the database is away, and the credential was not good lately; or it takes too long to ask it.
        """
        token = _bearer(headers)
        if token is not None:
            return await self._principal(token, _project(headers), unknown)
        cookie = _cookie(headers)
        if cookie is None or self._sessions is None:
            raise Unauthenticated(
                "the request carries no credential", where="Authorization",
                hint="log in (`burnish login`), or send a key: `Authorization: Bearer bk_...`",
            )  # fmt: skip
        principal = await self._principal(cookie, _project(headers), unknown)
        if method not in _SAFE_METHODS:
            await self._sessions.check_csrf(cookie, headers.get("x-csrf-token"))
        return principal

    async def _principal(
        self, token: str, project: str | None, unknown: Callable[[], Awaitable[None]] | None
    ) -> Principal:
        digest = self._digests.of(token)
        known = self._known.get((digest, project)) or self._refused.get((digest, project))
        if known is None and unknown is not None:
            await unknown()
        if known is None or not self._fresh(known):
            known = await self._renewed(digest, project, token, known)
        elif self._is_due(known):
            known.renewing = True
            self._look_up_soon((digest, project), token)
        answer = known.answer
        if isinstance(answer.found, BurnishError):
            if isinstance(answer.found, Unauthenticated):
                audit.failed_login(answer.shown)
            raise answer.found.with_traceback(None)
        if answer.expires_at is not None and answer.expires_at <= utcnow():
            raise _not_good()
        if answer.key_id is not None:
            self._uses[answer.key_id] = utcnow()
        return answer.found

    def _fresh(self, known: _Known) -> bool:
        return known.version == self._topic.version and time.monotonic() - known.at < FRESH_SECONDS

    def _is_due(self, known: _Known) -> bool:
        """Tell whether a good answer is old enough to be asked for again while requests go on with it: nobody waits."""
        if known.renewing or not isinstance(known.answer.found, Principal):
            return False
        return time.monotonic() - known.at > FRESH_SECONDS - _AHEAD_SECONDS

    async def _renewed(self, digest: str, project: str | None, token: str, known: _Known | None) -> _Known:
        """Ask the database; while it is away, honour what it said not long ago. That it is slow makes nothing good."""
        key = (digest, project)
        failed = True
        if time.monotonic() >= self._away_until:
            patience = _LOOKUP_SECONDS if key in self._known else _STRANGER_SECONDS
            task = self._look_up_soon(key, token)
            await asyncio.wait({task}, timeout=patience)
            if _succeeded(task) and task.result().version != self._topic.version:  # begun before the last change
                task = self._look_up_soon(key, token)
                await asyncio.wait({task}, timeout=patience)
            if _succeeded(task):
                return self._remember(key, task.result())
            failed = task.done() or self._database.away
            if failed:  # what has not ended may only have waited for others
                self._away_until = time.monotonic() + _AWAY_SECONDS
        if known is not None and failed and self._honoured(known):
            return known
        raise Unavailable(
            "who you are cannot be looked up: the database does not answer", retry_after=2,
            hint="send the request again in a moment; keys that were used lately go on working meanwhile",
        )  # fmt: skip

    def _honoured(self, known: _Known) -> bool:
        """Tell whether an answer counts although it cannot be had again: told of a change, only while none can be read."""
        age = time.monotonic() - known.at
        stale = self._configuration().gateway.authenticated_stale_seconds
        if not isinstance(known.answer.found, Principal) or age >= stale:
            return False
        return self._database.away or (known.version == self._topic.version and age < _TROUBLE_SECONDS)

    def _look_up_soon(self, key: tuple[str, str | None], token: str) -> "asyncio.Task[_Known]":
        """Return the task that asks the database for a credential: one at a time for each."""
        task = self._running.get(key)
        if task is None:
            stranger = key not in self._known
            task = self._running[key] = asyncio.create_task(self._asked(key, token, stranger), name="look-up")
            task.add_done_callback(lambda done: self._ended(key, done))
        return task

    def _ended(self, key: tuple[str, str | None], task: "asyncio.Task[_Known]") -> None:
        self._running.pop(key, None)
        if task.cancelled():
            return
        if (error := task.exception()) is None:
            self._remember(key, task.result())
        elif not isinstance(error, Unavailable):
            log.error("a credential could not be looked up", exc_info=error)

    def _remember(self, key: tuple[str, str | None], known: _Known) -> _Known:
        good = isinstance(known.answer.found, Principal)
        kept, most = (self._known, _REMEMBERED) if good else (self._refused, _REFUSED_REMEMBERED)
        if not good:
            self._known.pop(key, None)
        if len(kept) >= most:
            for old in sorted(kept, key=lambda one: kept[one].at)[: most // 2]:
                del kept[old]
        kept[key] = known
        return known

    async def _asked(self, key: tuple[str, str | None], token: str, stranger: bool) -> _Known:
        """Return what the database says now, noting as of when: a change that comes meanwhile makes it old at once."""
        async with self._strangers if stranger else nullcontext():
            if self._stopping:
                raise Unavailable("the server is stopping", retry_after=2)
            version, at = self._topic.version, time.monotonic()
            return _Known(await self._look_up(key[0], key[1], token), version, at)

    async def _look_up(self, digest: str, project: str | None, token: str) -> _Answer:
        row = None
        try:
            if self._sessions is not None and not token.startswith("bk_"):
                held = await self._sessions.principal_of(token)
                if held is not None:
                    return _Answer(await self._of_subject(held, project))
            async with self._database.read() as session:
                row = await store.key_by_prefix(session, prefix_of(token))
            return await self._of_key(row, digest, project)
        except (NotFound, Unauthenticated) as error:
            return _Answer(error) if row is None else _Answer(error, shown=row[0].prefix)

    async def _of_key(self, row: tuple[ApiKeyRow, SubjectRow] | None, digest: str, project: str | None) -> _Answer:
        good = same(_NO_DIGEST if row is None else row[0].digest, digest)
        if row is None or not good:
            raise _not_good()
        key, owner = row
        if key.revoked_at is not None or owner.disabled_at is not None:
            raise _not_good()
        if key.expires_at is not None and key.expires_at <= utcnow():
            raise _not_good()
        scopes = None if key.scopes is None else frozenset(key.scopes)
        if key.component_id is not None and key.component_type is not None:
            if project not in (None, store.DEFAULT_PROJECT):
                raise no_project(str(project))
            async with self._database.read() as session:
                if not await store.may_everywhere(session, key.subject, "component:register"):
                    raise _not_good()
            role = frozenset({"component"})
            instance = (key.component_id, key.component_type)
            found = Principal(key.subject, store.DEFAULT_PROJECT, role, scopes, role, key.id, instance)
        else:
            held = Principal(key.subject, key.project_id, scopes=scopes, credential=key.id)
            found = await self._of_subject(held, project)
        return _Answer(found, key.expires_at, key.id)

    async def _of_subject(self, held: Principal, project: str | None) -> Principal:
        """Return the principal in the project asked for.

        ``held`` says where the credential holds: in one project, or (``*``) in every one in which its owner has a role.
        """
        anywhere = held.project_id == EVERY_PROJECT
        async with self._database.read() as session:
            owner: SubjectRow | None = await store.subject(session, held.subject)
            if owner is None or owner.disabled_at is not None:
                raise _not_good()
            if project is None:
                project = await _default_project(session, held) if anywhere else held.project_id
            if not anywhere and project != held.project_id:
                raise no_project(project)
            grant = await store.grant(session, held.subject, project)
        if not grant.project_exists or not (grant.roles | grant.everywhere):
            raise no_project(project) if anywhere else _no_role(held)
        everywhere = grant.everywhere if anywhere else frozenset()
        return Principal(
            held.subject, project, grant.roles | grant.everywhere, held.scopes, everywhere, held.credential,
            counted_as=held.counted_as,
        )  # fmt: skip

    async def write_uses(self) -> None:
        """Write down when keys were used since the last time."""
        uses, self._uses = self._uses, {}
        if not uses:
            return
        try:
            async with self._database.write() as session:
                await store.used(session, uses)
        except BurnishError as error:
            log.warning("when keys were used is not written down yet: %s", error.message)
            self._uses = uses | self._uses


def _succeeded(task: "asyncio.Task[_Known]") -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


async def _default_project(session: AsyncSession, held: Principal) -> str:
    """Return the project of a credential for every project when none is named: ``default``, or the first that it may."""
    bound = [one.project_id for one in await store.bindings_of(session, held.subject)]
    if EVERY_PROJECT in bound or store.DEFAULT_PROJECT in bound or not bound:
        return store.DEFAULT_PROJECT
    return bound[0]


def _no_role(held: Principal) -> NotFound:
    """Return the error of a credential that holds in one project alone, in which its owner has no role."""
    return NotFound(
        f"there is no project {held.project_id} for {held.subject}: the credential holds there only, and its owner has no role in it",
        where="project", hint=f"an administrator gives one: burnish role grant {held.subject} viewer --project {held.project_id}",
    )  # fmt: skip


def _not_good() -> Unauthenticated:
    return Unauthenticated(
        "the credential is not valid", where="Authorization",
        hint="it may be mistyped, expired or revoked; an administrator mints another",
    )  # fmt: skip


def _bearer(headers: Mapping[str, str]) -> str | None:
    """Return what the request shows as its bearer; the empty string where it shows something else."""
    given = headers.get("authorization")
    if given is None:
        return None
    scheme, _, token = given.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _cookie(headers: Mapping[str, str]) -> str | None:
    for part in headers.get("cookie", "").split(";"):
        name, _, value = part.strip().partition("=")
        if name == _COOKIE and value:
            return value.strip('"')
    return None


def _project(headers: Mapping[str, str]) -> str | None:
    return next((headers[name] for name in _PROJECT_HEADERS if headers.get(name)), None)
