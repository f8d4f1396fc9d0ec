"""Rules of projects, subjects and roles. Sessions belong to the caller; nothing here commits.

Whoever asks for what they may not see is told that it does not exist; whoever gives, gives no more than they have.
"""

from collections.abc import Iterable

from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.errors import Conflict, Forbidden, NotFound
from burnish.core.ids import new_id
from burnish.core.pages import Page
from burnish.core.permissions import EVERY_PROJECT, PERMISSIONS, PLATFORM_WIDE, permissions_of
from burnish.infra.database import utcnow
from burnish.platform.identity import audit, store
from burnish.platform.identity.permission import authorize_everywhere, refusal
from burnish.platform.identity.principal import Principal
from burnish.platform.identity.schemas import (
    BindingView,
    Me,
    NewBinding,
    NewProject,
    NewSubject,
    ProjectAccess,
    ProjectView,
    SubjectView,
)
from burnish.platform.identity.tables import ProjectRow, RoleBindingRow, SubjectRow

USER, SERVICE_ACCOUNT = "user", "service_account"
RESERVED = frozenset({"local", "anonymous", "burnish", "administrator"})
"""Names of callers that are nobody's account, and that of the first administrator."""


async def add_project(session: AsyncSession, caller: Principal, asked: NewProject) -> ProjectView:
    """Make a project. Only who administers every project may.

    Raises:
        Forbidden: the caller administers some projects only.
        Conflict: there is one of this id.
    """
    authorize_everywhere(caller, "identity:write")
    if await store.project(session, asked.id) is not None:
        raise Conflict(f"there is a project {asked.id} already", where="id", hint="choose another id")
    row = ProjectRow(id=asked.id, display_name=asked.display_name, created_at=utcnow(), created_by=caller.subject)
    await store.insert_row(session, row)
    await store.changed(session)
    await audit.note(session, caller, "project:create", asked.id)
    return project_view(row)


async def projects(session: AsyncSession, caller: Principal, after: str | None, limit: int) -> Page[ProjectView]:
    """Return the projects that the caller administers, by id."""
    among = None if caller.may_everywhere("identity:read") else {caller.project_id}
    rows = await store.projects(session, among, after, limit)
    return Page.of([project_view(row) for row in rows], limit, lambda view: view.id)


async def project(session: AsyncSession, caller: Principal, project_id: str) -> ProjectView:
    """Return a project.

    Raises:
        NotFound: there is none, or it is not the caller's.
    """
    row = None
    if project_id == caller.project_id or caller.may_everywhere("identity:read"):
        row = await store.project(session, project_id)
    if row is None:
        raise no_project(project_id)
    return project_view(row)


def no_project(project_id: str) -> NotFound:
    """Return the error for a project that does not exist, or that the caller has no part in: it is the same."""
    return NotFound(f"there is no project {project_id}", where="project", hint="`burnish whoami` shows your projects")


async def add_user(session: AsyncSession, caller: Principal, asked: NewSubject) -> SubjectView:
    """Make a user. Users are everybody's, so only who administers every project may.

    Raises:
        Forbidden: the caller administers some projects only.
        Conflict: there is a subject of this id.
    """
    authorize_everywhere(caller, "identity:write")
    return await _add_subject(session, caller, asked, USER, None)


async def add_service_account(session: AsyncSession, caller: Principal, asked: NewSubject) -> SubjectView:
    """Make a service account that the caller's project owns.

    Raises:
        Conflict: there is a subject of this id.
    """
    return await _add_subject(session, caller, asked, SERVICE_ACCOUNT, caller.project_id)


async def _add_subject(
    session: AsyncSession, caller: Principal, asked: NewSubject, kind: str, project_id: str | None
) -> SubjectView:
    if asked.id in RESERVED or await store.subject(session, asked.id) is not None:
        raise Conflict(f"the name {asked.id} is taken", where="id", hint="choose another")
    row = SubjectRow(
        id=asked.id, kind=kind, project_id=project_id, display_name=asked.display_name, email=asked.email,
        created_at=utcnow(), created_by=caller.subject,
    )  # fmt: skip
    await store.insert_row(session, row)
    await audit.note(session, caller, f"{kind}:create", asked.id)
    return subject_view(row)


async def subjects(
    session: AsyncSession, caller: Principal, kind: str, after: str | None, limit: int
) -> Page[SubjectView]:
    """Return subjects by id: those of the caller's project, or all for who administers every project."""
    within = None if caller.may_everywhere("identity:read") else caller.project_id
    rows = await store.subjects(session, kind, within, after, limit)
    return Page.of([subject_view(row) for row in rows], limit, lambda view: view.id)


async def subject(session: AsyncSession, caller: Principal, subject_id: str, kind: str | None = None) -> SubjectRow:
    """Return a subject that the caller may see: of their project, or with a role in it.

    Raises:
        NotFound: there is none, or the caller may not see it.
    """
    row = await store.subject(session, subject_id)
    if row is not None and kind in (None, row.kind) and await _sees(session, caller, row):
        return row
    noun = "service account" if kind == SERVICE_ACCOUNT else "user"
    raise NotFound(
        f"there is no {noun} {subject_id}", where="subject", hint="an administrator of the platform adds users"
    )


async def _sees(session: AsyncSession, caller: Principal, row: SubjectRow) -> bool:
    if caller.may_everywhere("identity:read") or row.id == caller.subject:
        return True
    if row.project_id == caller.project_id:
        return True
    return bool((await store.grant(session, row.id, caller.project_id)).roles)


async def disable(session: AsyncSession, caller: Principal, subject_id: str, kind: str) -> SubjectView:
    """End a subject's keys and sessions, and let no new ones work; its name and history stay.

    Raises:
        NotFound: there is no such subject.
        Forbidden: it is not the caller's to change.
        Conflict: it is the last administrator of the platform.
    """
    row = await _own_subject(session, caller, subject_id, kind)
    if row.disabled_at is None:
        await _keep_an_administrator(session, without=subject_id)
        row.disabled_at = utcnow()
        await store.end_credentials(session, subject_id, row.disabled_at)
        await store.changed(session)
        await audit.note(session, caller, f"{kind}:disable", subject_id)
    return subject_view(row)


async def enable(session: AsyncSession, caller: Principal, subject_id: str, kind: str) -> SubjectView:
    """Let a subject come in again: with new keys, the old ones stay revoked.

    Raises:
        NotFound: there is no such subject.
        Forbidden: it has roles that the caller has not.
    """
    row = await _own_subject(session, caller, subject_id, kind)
    if row.disabled_at is not None:
        row.disabled_at = None
        await store.changed(session)
        await audit.note(session, caller, f"{kind}:enable", subject_id)
    return subject_view(row)


async def _own_subject(session: AsyncSession, caller: Principal, subject_id: str, kind: str) -> SubjectRow:
    """Return a subject that the caller may change: service accounts of their project, users with all projects."""
    row = await subject(session, caller, subject_id, kind)
    owned = row.project_id is not None and row.project_id == caller.project_id
    elsewhere = [one for one in await store.bindings_of(session, subject_id) if one.project_id != caller.project_id]
    if not owned or elsewhere:
        authorize_everywhere(caller, "identity:write")
    return row


async def give(session: AsyncSession, caller: Principal, asked: NewBinding) -> BindingView:
    """Give a role. The same again changes nothing.

    Raises:
        NotFound: there is no such subject or project for the caller.
        Forbidden: the role allows what the caller may not.
    """
    project_id = await administered(session, caller, asked.project)
    row = await store.subject(session, asked.subject)
    foreign = row is not None and row.project_id not in (None, caller.project_id)
    if row is None or (foreign and not caller.may_everywhere("identity:write")):
        raise NotFound(
            f"there is no user {asked.subject}", where="subject", hint="an administrator of the platform adds users"
        )
    refuse_more(caller, _gives(asked.role, project_id), project_id, f"the role {asked.role}")
    found = await store.binding_of(session, asked.subject, project_id, asked.role)
    if found is not None:
        return binding_view(found)
    found = RoleBindingRow(
        id=new_id("bnd"), subject=asked.subject, project_id=project_id, role=asked.role, created_at=utcnow(),
        created_by=caller.subject,
    )  # fmt: skip
    await store.insert_row(session, found)
    await store.changed(session)
    told = {"subject": asked.subject, "project": project_id, "role": asked.role}
    await audit.note(session, caller, "role:give", found.id, told, project_id=project_id)
    return binding_view(found)


async def take(session: AsyncSession, caller: Principal, binding_id: str) -> None:
    """Take a role away.

    Raises:
        NotFound: there is no such binding for the caller.
        Forbidden: it is a role of which the caller has not all.
        Conflict: it is the last administrator of the platform.
    """
    row = await store.binding(session, binding_id)
    mine = row is not None and row.project_id == caller.project_id
    if row is None or not (mine or caller.may_everywhere("identity:write")):
        raise NotFound(f"there is no binding {binding_id}", where="binding_id")
    refuse_more(caller, _gives(row.role, row.project_id), row.project_id, f"the role {row.role}")
    if row.project_id == EVERY_PROJECT and row.role == store.ADMINISTRATOR:
        await _keep_an_administrator(session, without=row.subject)
    await store.delete_row(session, row)
    await store.changed(session)
    told = {"subject": row.subject, "project": row.project_id, "role": row.role}
    await audit.note(session, caller, "role:take", binding_id, told, project_id=row.project_id)


def _gives(role: str, project_id: str) -> frozenset[str]:
    """Return what a role allows there: what is everybody's only a role in every project gives."""
    found = permissions_of([role])
    return found if project_id == EVERY_PROJECT else found - PLATFORM_WIDE


async def _keep_an_administrator(session: AsyncSession, without: str) -> None:
    administrators = await store.lock_administrators(session)
    others = [one for one in administrators if one != without]
    if without in administrators and not others:
        raise Conflict(
            f"{without} is the last administrator of the platform", where="subject",
            hint="make somebody else administrator of `*` first",
        )  # fmt: skip
    if (
        without in administrators
        and await store.come_in(session, [without])
        and not await store.come_in(session, others)
    ):
        raise Conflict(
            f"{without} is the last administrator of the platform who can come in: {', '.join(sorted(others)[:5])} "
            "administer it too, but have no key for every project that works, and no login", where="subject",
            hint=f"give one of them a key first: burnish key create --for {min(others)} --project '*'",
        )  # fmt: skip


async def bindings(
    session: AsyncSession, caller: Principal, subject_id: str | None, after: str | None, limit: int
) -> Page[BindingView]:
    """Return role bindings by id: those of the caller's project, or all for who administers every project."""
    within = None if caller.may_everywhere("identity:read") else caller.project_id
    rows = await store.bindings(session, within, subject_id, after, limit)
    return Page.of([binding_view(row) for row in rows], limit, lambda view: view.id)


async def administered(session: AsyncSession, caller: Principal, project_id: str | None) -> str:
    """Return the project that a request names, or the caller's.

    Raises:
        NotFound: there is none, or the caller has no part in it.
        Forbidden: it is every project, and the caller administers some only.
    """
    if project_id is None or project_id == caller.project_id:
        return caller.project_id
    if project_id == EVERY_PROJECT:
        authorize_everywhere(caller, "identity:write")
        return project_id
    if not caller.may_everywhere("identity:write") or await store.project(session, project_id) is None:
        raise no_project(project_id)
    return project_id


def refuse_more(caller: Principal, permissions: Iterable[str], project_id: str, what: str) -> None:
    """Refuse to give what the caller has not.

    Raises:
        Forbidden: it names what the caller lacks.
    """
    own = permissions_of(caller.everywhere)
    if project_id == caller.project_id:
        own |= permissions_of(caller.roles)
    if caller.scopes is not None:
        own &= caller.scopes
    lacking = sorted(set(permissions) - own)
    if lacking:
        audit.refused(caller, lacking[0])
        raise Forbidden(
            f"{what} allows {', '.join(lacking)}, which {caller.subject} may not do in project {project_id}",
            where=lacking[0], hint="nobody can give more than they have; ask an administrator who has it",
        )  # fmt: skip


def refuse_beyond_scopes(caller: Principal, scopes: Iterable[str] | None) -> None:
    """Refuse scopes (None: all) that the caller's own credential does not have.

    Raises:
        Forbidden: it names the first of them.
    """
    wanted = set(PERMISSIONS if scopes is None else scopes)
    beyond = [] if caller.scopes is None else sorted(wanted - caller.scopes)
    if beyond:
        raise refusal(caller, beyond[0], "with the credential that was shown")


async def me(session: AsyncSession, caller: Principal) -> Me:
    """Return who the caller is and what they may do in each project where they have a role of their own."""
    row = await store.subject(session, caller.subject)
    roles: dict[str, set[str]] = {}
    for one in await store.bindings_of(session, caller.subject):
        roles.setdefault(one.project_id, set()).add(one.role)
    everywhere = roles.pop(EVERY_PROJECT, set()) & caller.everywhere
    own = [
        Principal(caller.subject, name, frozenset(found), caller.scopes, frozenset(everywhere))
        for name, found in sorted(roles.items())
    ]
    return Me(
        subject=caller.subject, kind=row.kind if row else USER, display_name=row.display_name if row else "",
        project=caller.project_id, credential=caller.credential, permissions=tuple(sorted(caller.permissions())),
        everywhere=tuple(sorted(caller.everywhere)),
        projects=tuple(
            ProjectAccess(project=one.project_id, roles=tuple(sorted(one.roles)), permissions=tuple(sorted(one.permissions())))
            for one in own
        ),
    )  # fmt: skip


def project_view(row: ProjectRow) -> ProjectView:
    """Return the public view of a row."""
    return ProjectView(id=row.id, display_name=row.display_name, created_at=row.created_at, created_by=row.created_by)


def subject_view(row: SubjectRow) -> SubjectView:
    """Return the public view of a row."""
    return SubjectView.model_validate(
        {"id": row.id, "kind": row.kind, "project_id": row.project_id, "display_name": row.display_name,
         "email": row.email, "login": row.issuer is not None, "created_at": row.created_at,
         "created_by": row.created_by, "disabled_at": row.disabled_at}
    )  # fmt: skip


def binding_view(row: RoleBindingRow) -> BindingView:
    """Return the public view of a row."""
    return BindingView(
        id=row.id, subject=row.subject, project=row.project_id, role=row.role, source=row.source or "given",
        created_at=row.created_at, created_by=row.created_by,
    )  # fmt: skip
