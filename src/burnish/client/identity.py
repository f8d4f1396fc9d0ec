"""Users, roles, keys, logins and the audit log: what an administrator asks of the platform.

:class:`Identity` is for the client that waits, :class:`AsyncIdentity` for asyncio; each operation is one
:class:`~burnish.client.calls.Call`, written once.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from burnish.client.calls import Call, _given, _key, listing, quoted, raw, reader
from burnish.client.views import View
from burnish.client.wire import new_key
from burnish.core.pages import Page

if TYPE_CHECKING:
    from burnish.client.asynchronous import AsyncClient
    from burnish.client.synchronous import Client

_BASE = "/platform/identity"


class LoginMethod(View):
    """A way to log in."""

    type: str
    issuer: str | None = None


class LoginMethods(View):
    """How one can log in to a server."""

    authentication: Literal["on", "off"]
    methods: tuple[LoginMethod, ...] = ()


class LoginKey(View):
    """The key that a login of the command line got."""

    key: str
    key_id: str
    subject: str
    expires_at: datetime | None = None


class Access(View):
    """What one may do in a project."""

    project: str
    roles: tuple[str, ...] = ()
    permissions: tuple[str, ...] = ()


class Me(View):
    """Who one is to the server."""

    subject: str
    kind: str = ""
    project: str = ""
    credential: str | None = None
    permissions: tuple[str, ...] = ()
    everywhere: tuple[str, ...] = ()
    projects: tuple[Access, ...] = ()


class ProjectView(View):
    """A project."""

    id: str
    display_name: str = ""
    created_at: datetime | None = None
    created_by: str = ""


class SubjectView(View):
    """A user or a service account."""

    id: str
    kind: str = ""
    project_id: str | None = None
    display_name: str = ""
    email: str | None = None
    login: bool = False
    created_at: datetime | None = None
    disabled_at: datetime | None = None


class RoleView(View):
    """A role that somebody has in a project."""

    id: str
    subject: str
    project: str
    role: str
    source: str = ""


class KeyView(View):
    """A key, without its secret."""

    id: str
    prefix: str = ""
    name: str = ""
    subject: str = ""
    project: str = ""
    scopes: tuple[str, ...] | None = None
    created_at: datetime | None = None
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None


class MintedKey(KeyView):
    """A new key with its secret, which is shown this once."""

    key: str | None = None


class AuditEntry(View):
    """One entry of the audit log."""

    number: int
    at: datetime
    actor: str
    credential: str | None = None
    project_id: str = ""
    action: str = ""
    object_id: str = ""
    route: str = ""
    request_id: str | None = None
    details: dict[str, Any] = Field(default_factory=dict)
    previous: str = ""
    hash: str = ""


class AuditProblem(View):
    """One place where the audit log is not what was written."""

    number: int
    what: str
    message: str


class AuditVerdict(View):
    """What a check of the whole audit log found."""

    ok: bool
    entries: int
    head: str
    problems: tuple[AuditProblem, ...] = ()


# The operations


def _methods() -> Call[LoginMethods]:
    return Call("GET", "/platform/auth/methods", reader(LoginMethods))


def _exchange(code: str, verifier: str, name: str) -> Call[LoginKey]:
    body = {"code": code, "verifier": verifier, "name": name}
    return Call("POST", "/platform/auth/exchange", reader(LoginKey), json=body)


def _me() -> Call[Me]:
    return Call("GET", f"{_BASE}/me", reader(Me))


def _add_project(project_id: str, display_name: str) -> Call[ProjectView]:
    return _post("projects", reader(ProjectView), id=project_id, display_name=display_name)


def _add_subject(path: str, subject: str, display_name: str, email: str | None) -> Call[SubjectView]:
    return _post(path, reader(SubjectView), id=subject, display_name=display_name, email=email)


def _switch(path: str, subject: str, action: str) -> Call[SubjectView]:
    return Call("POST", f"{_BASE}/{path}/{quoted(subject)}/{action}", reader(SubjectView))


def _give(subject: str, role: str, project: str | None) -> Call[RoleView]:
    return _post("bindings", reader(RoleView), subject=subject, role=role, project=project)


def _delete(path: str, identifier: str) -> Call[Any]:
    return Call("DELETE", f"{_BASE}/{path}/{quoted(identifier)}", raw)


def _mint(
    name: str, subject: str | None, project: str | None, scopes: Sequence[str] | None, days: float | None,
    component: tuple[str, str] | None,
) -> Call[MintedKey]:  # fmt: skip
    instance = None if component is None else {"component_id": component[0], "component_type": component[1]}
    return _post(
        "keys", reader(MintedKey), name=name, subject=subject, project=project, days=days, component=instance,
        scopes=None if scopes is None else list(scopes),
    )  # fmt: skip


def _rotate(key_id: str, overlap_seconds: float) -> Call[MintedKey]:
    return _post(f"keys/{quoted(key_id)}/rotate", reader(MintedKey), overlap_seconds=overlap_seconds)


def _audit(actor: str | None, action: str | None, after: str | None, limit: int) -> Call[Page[AuditEntry]]:
    return listing(f"{_BASE}/audit", AuditEntry, after, limit, actor=actor, action=action)


def _verify() -> Call[AuditVerdict]:
    return Call("GET", f"{_BASE}/audit/verify", reader(AuditVerdict), timeout=600)


def _export(project: str | None) -> Call[Any]:
    return Call("GET", f"{_BASE}/audit/export", raw, _given(project=project), timeout=600)


def _post(path: str, read: Any, **body: Any) -> Call[Any]:
    """Create something; each call has a key of its own, so that a broken connection makes nothing twice."""
    return Call("POST", f"{_BASE}/{path}", read, json=_given(**body), headers=_key(new_key()))


class Identity:
    """Who may do what."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def login_methods(self) -> LoginMethods:
        """Return how one can log in to the server. Needs no key."""
        return self._client.send(_methods())

    def exchange_login_code(self, code: str, verifier: str, name: str) -> LoginKey:
        """Turn the code of a login in the browser into a key. Needs no key."""
        return self._client.send(_exchange(code, verifier, name))

    def me(self) -> Me:
        """Return who the key's owner is, and what they may do where."""
        return self._client.send(_me())

    def projects(self, *, after: str | None = None, limit: int = 50) -> Page[ProjectView]:
        """Return projects."""
        return self._client.send(listing(f"{_BASE}/projects", ProjectView, after, limit))

    def add_project(self, project_id: str, *, display_name: str = "") -> ProjectView:
        """Make a project."""
        return self._client.send(_add_project(project_id, display_name))

    def users(self, *, after: str | None = None, limit: int = 50) -> Page[SubjectView]:
        """Return users."""
        return self._client.send(listing(f"{_BASE}/users", SubjectView, after, limit))

    def add_user(self, user: str, *, display_name: str = "", email: str | None = None) -> SubjectView:
        """Add a user, without any role yet."""
        return self._client.send(_add_subject("users", user, display_name, email))

    def disable_user(self, user: str) -> SubjectView:
        """End a user's keys and sessions at once; the name, the roles and what was done stay."""
        return self._client.send(_switch("users", user, "disable"))

    def enable_user(self, user: str) -> SubjectView:
        """Let a user come in again; old keys stay revoked."""
        return self._client.send(_switch("users", user, "enable"))

    def service_accounts(self, *, after: str | None = None, limit: int = 50) -> Page[SubjectView]:
        """Return service accounts."""
        return self._client.send(listing(f"{_BASE}/service-accounts", SubjectView, after, limit))

    def add_service_account(self, account: str, *, display_name: str = "") -> SubjectView:
        """Add a service account of the present project, without any role yet."""
        return self._client.send(_add_subject("service-accounts", account, display_name, None))

    def disable_service_account(self, account: str) -> SubjectView:
        """End a service account's keys at once."""
        return self._client.send(_switch("service-accounts", account, "disable"))

    def roles(self, *, subject: str | None = None, after: str | None = None, limit: int = 50) -> Page[RoleView]:
        """Return who has which role."""
        return self._client.send(listing(f"{_BASE}/bindings", RoleView, after, limit, subject=subject))

    def give_role(self, subject: str, role: str, project: str | None = None) -> RoleView:
        """Give a role in a project: by default the present one, ``*`` is all of them."""
        return self._client.send(_give(subject, role, project))

    def take_role(self, binding_id: str) -> None:
        """Take a role away, by the id of its :class:`RoleView`."""
        self._client.send(_delete("bindings", binding_id))

    def keys(self, *, subject: str | None = None, after: str | None = None, limit: int = 50) -> Page[KeyView]:
        """Return keys, without their secrets."""
        return self._client.send(listing(f"{_BASE}/keys", KeyView, after, limit, subject=subject))

    def mint_key(
        self,
        name: str = "",
        *,
        subject: str | None = None,
        project: str | None = None,
        scopes: Sequence[str] | None = None,
        days: float | None = None,
        component: tuple[str, str] | None = None,
    ) -> MintedKey:
        """Make a key; its secret is in the answer and never shown again.

        Args:
            name: For people.
            subject: Whose it is; by default one's own.
            project: Where it may be used: by default the present project, ``*`` wherever its owner has a role.
            scopes: The permissions that it is limited to; by default all of its owner's.
            days: How long it lives.
            component: Makes it the credential of this one instance: its ``component_id`` and ``component_type``.
        """
        return self._client.send(_mint(name, subject, project, scopes, days, component))

    def rotate_key(self, key_id: str, *, overlap_seconds: float = 3600) -> MintedKey:
        """Make a key that can do the same as another, which works for ``overlap_seconds`` more."""
        return self._client.send(_rotate(key_id, overlap_seconds))

    def revoke_key(self, key_id: str) -> None:
        """End a key at once."""
        self._client.send(_delete("keys", key_id))

    def audit(
        self, *, actor: str | None = None, action: str | None = None, after: str | None = None, limit: int = 50
    ) -> Page[AuditEntry]:
        """Return who did what, newest first."""
        return self._client.send(_audit(actor, action, after, limit))

    def verify_audit(self) -> AuditVerdict:
        """Have the server check the whole chain of the audit log."""
        return self._client.send(_verify())

    def export_audit(self, *, project: str | None = None) -> Iterator[str]:
        """Yield the audit log as JSON lines, oldest entry first."""
        with self._client._open(_export(project)) as response:
            yield from response.iter_lines()


class AsyncIdentity:
    """Who may do what, from asyncio."""

    def __init__(self, client: "AsyncClient") -> None:
        self._client = client

    async def login_methods(self) -> LoginMethods:
        """Return how one can log in to the server. Needs no key."""
        return await self._client.send(_methods())

    async def exchange_login_code(self, code: str, verifier: str, name: str) -> LoginKey:
        """Turn the code of a login in the browser into a key. Needs no key."""
        return await self._client.send(_exchange(code, verifier, name))

    async def me(self) -> Me:
        """Return who the key's owner is, and what they may do where."""
        return await self._client.send(_me())

    async def projects(self, *, after: str | None = None, limit: int = 50) -> Page[ProjectView]:
        """Return projects."""
        return await self._client.send(listing(f"{_BASE}/projects", ProjectView, after, limit))

    async def add_project(self, project_id: str, *, display_name: str = "") -> ProjectView:
        """Make a project."""
        return await self._client.send(_add_project(project_id, display_name))

    async def users(self, *, after: str | None = None, limit: int = 50) -> Page[SubjectView]:
        """Return users."""
        return await self._client.send(listing(f"{_BASE}/users", SubjectView, after, limit))

    async def add_user(self, user: str, *, display_name: str = "", email: str | None = None) -> SubjectView:
        """Add a user, without any role yet."""
        return await self._client.send(_add_subject("users", user, display_name, email))

    async def disable_user(self, user: str) -> SubjectView:
        """End a user's keys and sessions at once; the name, the roles and what was done stay."""
        return await self._client.send(_switch("users", user, "disable"))

    async def enable_user(self, user: str) -> SubjectView:
        """Let a user come in again; old keys stay revoked."""
        return await self._client.send(_switch("users", user, "enable"))

    async def service_accounts(self, *, after: str | None = None, limit: int = 50) -> Page[SubjectView]:
        """Return service accounts."""
        return await self._client.send(listing(f"{_BASE}/service-accounts", SubjectView, after, limit))

    async def add_service_account(self, account: str, *, display_name: str = "") -> SubjectView:
        """Add a service account of the present project, without any role yet."""
        return await self._client.send(_add_subject("service-accounts", account, display_name, None))

    async def disable_service_account(self, account: str) -> SubjectView:
        """End a service account's keys at once."""
        return await self._client.send(_switch("service-accounts", account, "disable"))

    async def roles(self, *, subject: str | None = None, after: str | None = None, limit: int = 50) -> Page[RoleView]:
        """Return who has which role."""
        return await self._client.send(listing(f"{_BASE}/bindings", RoleView, after, limit, subject=subject))

    async def give_role(self, subject: str, role: str, project: str | None = None) -> RoleView:
        """Give a role in a project: by default the present one, ``*`` is all of them."""
        return await self._client.send(_give(subject, role, project))

    async def take_role(self, binding_id: str) -> None:
        """Take a role away, by the id of its :class:`RoleView`."""
        await self._client.send(_delete("bindings", binding_id))

    async def keys(self, *, subject: str | None = None, after: str | None = None, limit: int = 50) -> Page[KeyView]:
        """Return keys, without their secrets."""
        return await self._client.send(listing(f"{_BASE}/keys", KeyView, after, limit, subject=subject))

    async def mint_key(
        self,
        name: str = "",
        *,
        subject: str | None = None,
        project: str | None = None,
        scopes: Sequence[str] | None = None,
        days: float | None = None,
        component: tuple[str, str] | None = None,
    ) -> MintedKey:
        """Make a key; its secret is in the answer and never shown again.

        Args:
            name: For people.
            subject: Whose it is; by default one's own.
            project: Where it may be used: by default the present project, ``*`` wherever its owner has a role.
            scopes: The permissions that it is limited to; by default all of its owner's.
            days: How long it lives.
            component: Makes it the credential of this one instance: its ``component_id`` and ``component_type``.
        """
        return await self._client.send(_mint(name, subject, project, scopes, days, component))

    async def rotate_key(self, key_id: str, *, overlap_seconds: float = 3600) -> MintedKey:
        """Make a key that can do the same as another, which works for ``overlap_seconds`` more."""
        return await self._client.send(_rotate(key_id, overlap_seconds))

    async def revoke_key(self, key_id: str) -> None:
        """End a key at once."""
        await self._client.send(_delete("keys", key_id))

    async def audit(
        self, *, actor: str | None = None, action: str | None = None, after: str | None = None, limit: int = 50
    ) -> Page[AuditEntry]:
        """Return who did what, newest first."""
        return await self._client.send(_audit(actor, action, after, limit))

    async def verify_audit(self) -> AuditVerdict:
        """Have the server check the whole chain of the audit log."""
        return await self._client.send(_verify())

    async def export_audit(self, *, project: str | None = None) -> AsyncIterator[str]:
        """Yield the audit log as JSON lines, oldest entry first."""
        async with self._client._open(_export(project)) as response:
            async for line in response.aiter_lines():
                yield line
