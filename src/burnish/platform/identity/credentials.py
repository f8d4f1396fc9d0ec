"""Rules of keys: mint, rotate, revoke; and the first administrator. Sessions belong to the caller.

How long a key lives: as long as was asked, or ``identity.key_days``; and a key of one's own not beyond the credential
that made it, so that whoever holds a short-lived one for a moment does not hold it for good. Not bound by that are keys
for others and for instances (only administrators make them), and what the key of the first start makes: it is there to
make the first lasting ones.
"""

from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.configuration import Current, defaults
from burnish.core.errors import Conflict, FieldProblem, Forbidden, InvalidRequest, NotFound, Unauthenticated
from burnish.core.ids import new_id
from burnish.core.pages import Page
from burnish.core.permissions import EVERY_PROJECT, PERMISSIONS, PLATFORM_WIDE, permissions_of
from burnish.infra.database import Database, utcnow
from burnish.platform.identity import audit, service, store
from burnish.platform.identity.keys import KeyDigests
from burnish.platform.identity.permission import authorize_everywhere
from burnish.platform.identity.principal import LOCAL, Principal
from burnish.platform.identity.schemas import KeyView, MintedKey, NewKeyRequest, RotateRequest
from burnish.platform.identity.sessions import LIVES
from burnish.platform.identity.tables import ApiKeyRow, RoleBindingRow, SubjectRow

FIRST_ADMINISTRATOR = "administrator"
FIRST_KEY_HOURS = 24
MOST_KEYS = 100
"""Of one owner that work at once; of an instance as many. Rotating goes on up to twice as many, while the old ones end."""
_ITSELF = "burnish"
"""Made the first administrator and their key: a name that nobody else can have."""


class Credentials:
    """Makes and ends keys."""

    def __init__(self, digests: KeyDigests, configuration: Current = defaults) -> None:
        self._digests = digests
        self._configuration = configuration

    async def mint(self, session: AsyncSession, caller: Principal, asked: NewKeyRequest) -> MintedKey:
        """Make a key; its secret is in the answer and nowhere else. One of the caller's own ends with what they showed.

        Raises:
            InvalidRequest: a scope is no permission.
            NotFound: there is no such subject or project for the caller.
            Forbidden: the key could do what the caller may not, or would let them act as somebody else.
            Conflict: the owner is disabled, has no role there, may not register the instance, or has too many keys.
            Unauthenticated: the credential that was shown is gone.
        """
        _check_scopes(asked.scopes)
        owner = await self._owner(session, caller, asked.subject)
        project_id = await self._project(session, caller, owner, asked.project)
        row = ApiKeyRow(
            id=new_id("key"), name=asked.name, subject=owner.id, project_id=project_id, created_at=utcnow(),
            created_by=caller.subject, expires_at=self._end(asked.days),
            scopes=None if asked.scopes is None else sorted(set(asked.scopes)),
        )  # fmt: skip
        if asked.component is not None:
            authorize_everywhere(caller, "component:register")
            if not await store.may_everywhere(session, owner.id, "component:register"):
                raise Conflict(
                    f"{owner.id} may not register instances, so this key could not either", where="subject",
                    hint="leave it out: the key is yours then, and works while you may register instances",
                )  # fmt: skip
            row.component_id, row.component_type = asked.component.component_id, asked.component.component_type
        else:
            if asked.scopes is None:
                row.scopes = _own_scopes(caller, owner.id)
            await self._limit(session, caller, row)
            await self._bound(session, caller, row)
        return await self._insert(session, caller, row, "key:mint")

    async def _owner(self, session: AsyncSession, caller: Principal, subject_id: str | None) -> SubjectRow:
        """Return whose key it will be: the caller, or whom they administer."""
        if subject_id is None and caller.subject == LOCAL.subject:
            raise InvalidRequest(
                "with authentication off a key needs an owner", where="subject",
                hint="add a user or a service account first, and name it as `subject`",
            )  # fmt: skip
        row = await service.subject(session, caller, subject_id or caller.subject)
        if row.id != caller.subject and not caller.may("identity:write"):
            raise NotFound(f"there is no user {row.id}", where="subject", hint="leave it out for a key of your own")
        _refuse_impersonation(caller, row)
        if row.disabled_at is not None:
            raise Conflict(f"{row.id} is disabled", where="subject", hint="enable it first")
        return row

    async def _project(
        self, session: AsyncSession, caller: Principal, owner: SubjectRow, project_id: str | None
    ) -> str:
        """Return where the key will hold: one project, or every one in which its owner has a role."""
        if project_id == EVERY_PROJECT and owner.id == caller.subject:
            return EVERY_PROJECT
        return await service.administered(session, caller, project_id)

    async def _limit(self, session: AsyncSession, caller: Principal, row: ApiKeyRow) -> None:
        """Refuse what the caller has not; a key for somebody else can do what its owner may now, never more later.

        Whoever minted it has seen its secret, and may be nobody's administrator by the time its owner is given more.
        """
        own = row.subject == caller.subject
        if own and row.project_id == EVERY_PROJECT:
            await self._refuse_bound(session, caller)
            service.refuse_beyond_scopes(caller, row.scopes)
            return
        if row.project_id == EVERY_PROJECT:
            can = permissions_of(one.role for one in await store.bindings_of(session, row.subject))
        else:
            grant = await store.grant(session, row.subject, row.project_id)
            can = permissions_of(grant.roles | grant.everywhere) - PLATFORM_WIDE
        if not can:
            place = "any project" if row.project_id == EVERY_PROJECT else f"project {row.project_id}"
            raise Conflict(
                f"{row.subject} has no role in {place}, so the key would open nothing", where="subject",
                hint=f"give a role first: burnish role grant {row.subject} viewer --project PROJECT",
            )  # fmt: skip
        can = can if row.scopes is None else can & set(row.scopes)
        service.refuse_more(caller, can, row.project_id, f"a key of {row.subject}")
        if row.scopes is None and not own:
            row.scopes = sorted(can)

    async def _refuse_bound(self, session: AsyncSession, caller: Principal) -> None:
        """Refuse a key for every project to whoever shows one for a single project."""
        holds = await _holds_in(session, caller)
        if holds != EVERY_PROJECT:
            raise Forbidden(
                f"the key that was shown is for project {holds} only", where="project",
                hint="show a key for every project, or log in",
            )  # fmt: skip

    def _end(self, days: float | None) -> datetime | None:
        lives = days or self._configuration().identity.key_days
        return utcnow() + timedelta(days=lives) if lives else None

    async def _bound(self, session: AsyncSession, caller: Principal, row: ApiKeyRow) -> None:
        """Have a key of the caller's own end with the credential that they showed, at the latest."""
        if row.subject != caller.subject or caller.credential is None:  # without one: authentication is off
            return
        opened, key = await store.shown(session, caller.credential)
        if opened is None and key is None:
            raise _gone()
        if key is not None and key.created_by == _ITSELF:
            return
        ends = [row.expires_at, None if key is None else key.expires_at]
        if opened is not None:
            ends.append(opened.created_at + timedelta(seconds=LIVES * self._configuration().identity.session_seconds))
        row.expires_at = min((one for one in ends if one is not None), default=None)

    async def _insert(self, session: AsyncSession, caller: Principal, row: ApiKeyRow, action: str) -> MintedKey:
        new = self._digests.new()
        row.prefix, row.digest = new.prefix, new.digest
        if row.created_by != _ITSELF:
            await _refuse_many(session, row)
        await store.insert_row(session, row)  # told to nobody: of a key that was not there nobody remembers anything
        await audit.note(
            session, caller, action, row.id,
            {"subject": row.subject, "project": row.project_id, "scopes": None if row.scopes is None else [*row.scopes],
             "component": row.component_id, "expires_at": None if row.expires_at is None else row.expires_at.isoformat(),
             "rotated_from": row.rotated_from},
        )  # fmt: skip
        return MintedKey(**key_view(row).model_dump(), key=new.text)

    async def issue(
        self, session: AsyncSession, caller: Principal, name: str, project_id: str, expires_at: datetime | None
    ) -> MintedKey:
        """Make a key of the caller's own, as :meth:`mint` does, with this end (a login of the CLI)."""
        row = ApiKeyRow(
            id=new_id("key"), name=name[:255], subject=caller.subject, project_id=project_id, created_at=utcnow(),
            created_by=caller.subject, expires_at=expires_at, scopes=_own_scopes(caller, caller.subject),
        )  # fmt: skip
        await self._limit(session, caller, row)
        return await self._insert(session, caller, row, "key:mint")

    async def rotate(self, session: AsyncSession, caller: Principal, key_id: str, asked: RotateRequest) -> MintedKey:
        """Make a key that stands for another, which works for a while yet. One of the caller's own ends as in :meth:`mint`.

        Raises:
            NotFound: there is no such key for the caller.
            Conflict: the key is revoked, has expired or was rotated already, or its owner has too many.
            Forbidden: it can do what the caller may not, or would let them act as somebody else.
            Unauthenticated: the credential that was shown is gone.
        """
        old = await self._own(session, caller, key_id)
        if (owner := await store.subject(session, old.subject)) is not None:
            _refuse_impersonation(caller, owner)
        now = utcnow()
        if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
            raise Conflict(f"key {key_id} does not work any more", where="key_id", hint="mint a new one")
        if (newer := await store.rotation_of(session, old.id)) is not None:
            raise Conflict(
                f"key {key_id} was rotated already", where="key_id", hint=f"rotate {newer.id}, which stands for it"
            )
        row = ApiKeyRow(
            id=new_id("key"), name=old.name, subject=old.subject, project_id=old.project_id, scopes=old.scopes,
            expires_at=None if old.expires_at is None else now + (old.expires_at - old.created_at), created_at=now,
            created_by=caller.subject, rotated_from=old.id, component_id=old.component_id, component_type=old.component_type,
        )  # fmt: skip
        if row.component_id is None:
            await self._limit(session, caller, row)
            await self._bound(session, caller, row)
        elif caller.component is None:
            authorize_everywhere(caller, "component:register")
        end = now + timedelta(seconds=asked.overlap_seconds)
        old.expires_at = end if old.expires_at is None else min(end, old.expires_at)
        await store.changed(session)
        return await self._insert(session, caller, row, "key:rotate")

    async def revoke(self, session: AsyncSession, caller: Principal, key_id: str) -> None:
        """End a key at once, in every process. Again changes nothing.

        Raises:
            NotFound: there is no such key for the caller.
            Forbidden: it holds in every project, and the credential that was shown in one.
            Unauthenticated: that credential is gone.
        """
        row = await self._own(session, caller, key_id)
        if row.revoked_at is None:
            row.revoked_at = utcnow()
            await store.changed(session)
            await audit.note(session, caller, "key:revoke", key_id, {"subject": row.subject})

    async def _own(self, session: AsyncSession, caller: Principal, key_id: str) -> ApiKeyRow:
        """Return a key, locked, that is the caller's own or of the project that they administer."""
        row = await store.key(session, key_id, lock=True)
        if row is not None and row.subject == caller.subject:
            if row.project_id == EVERY_PROJECT:
                await self._refuse_bound(session, caller)
                return row
            if row.project_id == caller.project_id:
                return row
        mine = row is not None and row.project_id == caller.project_id and caller.may("identity:write")
        if row is not None and (mine or caller.may_everywhere("identity:write")):
            return row
        raise NotFound(f"there is no key {key_id}", where="key_id", hint="`burnish key list` shows them")

    async def first_key(self, session: AsyncSession) -> str:
        """Make the first administrator (or let them in again) and return a key for them."""
        now = utcnow()
        row = await store.subject(session, FIRST_ADMINISTRATOR)
        if row is None:
            row = SubjectRow(id=FIRST_ADMINISTRATOR, kind=service.USER, created_at=now, created_by=_ITSELF)
            await store.insert_row(session, row)
        row.disabled_at = None
        if await store.binding_of(session, row.id, EVERY_PROJECT, store.ADMINISTRATOR) is None:
            binding = RoleBindingRow(
                id=new_id("bnd"), subject=row.id, project_id=EVERY_PROJECT, role=store.ADMINISTRATOR, created_at=now,
                created_by=_ITSELF,
            )  # fmt: skip
            await store.insert_row(session, binding)
        key = ApiKeyRow(
            id=new_id("key"), name="first start", subject=row.id, project_id=EVERY_PROJECT, created_at=now,
            created_by=_ITSELF, expires_at=now + timedelta(hours=FIRST_KEY_HOURS),
        )  # fmt: skip
        await store.changed(session)
        minted = await self._insert(session, Principal(_ITSELF), key, "key:mint")
        assert minted.key is not None, "just made"
        return minted.key


async def keys(
    session: AsyncSession, caller: Principal, subject_id: str | None, after: str | None, limit: int
) -> Page[KeyView]:
    """Return keys by id: the caller's own, those of the project they administer, or all.

    Raises:
        Unauthenticated: the credential that was shown is gone.
    """
    if caller.may_everywhere("identity:read"):
        rows = await store.api_keys(session, None, subject_id, after, limit)
    elif subject_id is None and caller.may("identity:read"):
        rows = await store.api_keys(session, caller.project_id, None, after, limit)
    elif subject_id in (None, caller.subject):
        holds = await _holds_in(session, caller)
        rows = await store.api_keys(session, None if holds == EVERY_PROJECT else holds, caller.subject, after, limit)
    elif caller.may("identity:read"):
        rows = await store.api_keys(session, caller.project_id, subject_id, after, limit)
    else:
        rows = []
    return Page.of([key_view(row) for row in rows], limit, lambda view: view.id)


async def bootstrap(database: Database, credentials: Credentials, *, issuer: str | None = None) -> str | None:
    """Make sure that somebody can administer the platform; return a new key if nobody could.

    The key is to be shown once, to whoever starts the server; it holds for a day, for every project. It is made anew at
    a start at which no administrator of every project could come in, by a key or a login.
    """
    async with database.write() as session:
        await store.lock_head(session, audit.BEGINNING)  # one server at a time
        await store.ensure_project(session, store.DEFAULT_PROJECT)
        administrators = await store.lock_administrators(session)
        if administrators and await store.usable_keys(session, administrators):
            return None
        if administrators and issuer is not None and await store.with_login(session, administrators, issuer):
            return None
        return await credentials.first_key(session)


async def _holds_in(session: AsyncSession, caller: Principal) -> str:
    """Return where the credential that was shown holds: in one project, or (``*``) in every one.

    Raises:
        Unauthenticated: it is gone.
    """
    if caller.credential is None:  # authentication is off, or a login was proven just now
        return EVERY_PROJECT
    opened, key = await store.shown(session, caller.credential)
    if key is not None:
        return key.project_id
    if opened is None or opened.key_id is not None:
        raise _gone()
    return EVERY_PROJECT


def _gone() -> Unauthenticated:
    return Unauthenticated("the credential that was shown is gone", hint="log in again")


def _refuse_impersonation(caller: Principal, owner: SubjectRow) -> None:
    """Refuse a key of somebody else's, but for service accounts of the caller's project: whoever has seen it is them.

    Raises:
        Forbidden: the caller does not administer every project.
    """
    if owner.id == caller.subject or owner.project_id == caller.project_id:
        return
    if not caller.may_everywhere("identity:write"):
        audit.refused(caller, "identity:write")
        raise Forbidden(
            f"whoever has a key of {owner.id} acts as {owner.id}, in the audit log too: only an administrator of every "
            "project makes one", where="identity:write",
            hint="they make their own (`burnish key create`); for a program add a service account of the project "
            "(`burnish service-account add`)",
        )  # fmt: skip


async def _refuse_many(session: AsyncSession, row: ApiKeyRow) -> None:
    """Refuse one more key where there are many already.

    Raises:
        Conflict: the owner (or the instance) has as many as may work at once.
    """
    most = MOST_KEYS if row.rotated_from is None else 2 * MOST_KEYS
    if await store.living_keys(session, row.subject, row.component_id) >= most:
        raise Conflict(
            f"{row.component_id or row.subject} has {most} keys that work; there can be no more", where="subject",
            hint="revoke some that nobody uses: `burnish key list`, then `burnish key revoke KEY`",
        )  # fmt: skip


def _own_scopes(caller: Principal, owner: str) -> list[str] | None:
    """Return the scopes of a key for which none were asked: a key of one's own has those of the credential shown."""
    return sorted(caller.scopes) if owner == caller.subject and caller.scopes is not None else None


def _check_scopes(scopes: tuple[str, ...] | None) -> None:
    unknown = [one for one in scopes or () if one not in PERMISSIONS]
    if unknown:
        problems = [
            FieldProblem(where="body.scopes", message=f"there is no permission {one[:100]!r}") for one in unknown
        ]
        raise InvalidRequest("a scope is no permission", problems=problems, hint="see the reference of permissions")


def key_view(row: ApiKeyRow) -> KeyView:
    """Return the public view of a row: no secret, no digest."""
    return KeyView(
        id=row.id, prefix=row.prefix, name=row.name, subject=row.subject, project=row.project_id,
        scopes=None if row.scopes is None else tuple(row.scopes), created_at=row.created_at, created_by=row.created_by,
        expires_at=row.expires_at, last_used_at=row.last_used_at, revoked_at=row.revoked_at,
        rotated_from=row.rotated_from, component_id=row.component_id, component_type=row.component_type,
    )  # fmt: skip
