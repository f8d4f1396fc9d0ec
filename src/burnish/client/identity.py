"""Users, roles, keys, logins and the audit log: what an administrator asks of the platform.

:class:`Identity` is for the client that waits, :class:`AsyncIdentity` for asyncio.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime
from typing import Any, Literal, TypeVar

from pydantic import Field

from burnish.client.calls import Call, given, key_header, listing, nothing, quoted, raw, reader
from burnish.client.faces import AsyncFace, Face, operation
from burnish.client.views import View
from burnish.client.wire import new_key
from burnish.core.pages import Page

_BASE = "/platform/identity"
Made = TypeVar("Made")


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
    created_by: str = ""


class KeyView(View):
    """A key, without its secret."""

    id: str
    prefix: str = ""
    name: str = ""
    subject: str = ""
    project: str = ""
    scopes: tuple[str, ...] | None = None
    created_at: datetime | None = None
    created_by: str = ""
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None
    component_id: str | None = None
    """Of the credential of an instance: the one that it registers."""
    component_type: str | None = None


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


class _Operations:
    """Who may do what."""

    @operation
    def login_methods(self) -> Call[LoginMethods]:
        """Return how one can log in to the server. Needs no key."""
        return Call("GET", "/platform/auth/methods", reader(LoginMethods))

    @operation
    def exchange_login_code(self, code: str, verifier: str, name: str) -> Call[LoginKey]:
        """Turn the code of a login in the browser into a key. Needs no key."""
        body = {"code": code, "verifier": verifier, "name": name}
        return Call("POST", "/platform/auth/exchange", reader(LoginKey), json=body)

    @operation
    def me(self) -> Call[Me]:
        """Return who the key's owner is, and what they may do where."""
        return Call("GET", f"{_BASE}/me", reader(Me))

    @operation
    def projects(self, *, after: str | None = None, limit: int = 50) -> Call[Page[ProjectView]]:
        """Return projects."""
        return listing(f"{_BASE}/projects", ProjectView, after, limit)

    @operation
    def add_project(self, project_id: str, *, display_name: str = "") -> Call[ProjectView]:
        """Make a project."""
        return _create("projects", ProjectView, id=project_id, display_name=display_name)

    @operation
    def users(self, *, after: str | None = None, limit: int = 50) -> Call[Page[SubjectView]]:
        """Return users."""
        return listing(f"{_BASE}/users", SubjectView, after, limit)

    @operation
    def add_user(self, user: str, *, display_name: str = "", email: str | None = None) -> Call[SubjectView]:
        """Add a user, without any role yet."""
        return _create("users", SubjectView, id=user, display_name=display_name, email=email)

    @operation
    def disable_user(self, user: str) -> Call[SubjectView]:
        """End a user's keys and sessions at once; the name, the roles and what was done stay."""
        return Call("POST", f"{_BASE}/users/{quoted(user)}/disable", reader(SubjectView))

    @operation
    def enable_user(self, user: str) -> Call[SubjectView]:
        """Let a user come in again; old keys stay revoked."""
        return Call("POST", f"{_BASE}/users/{quoted(user)}/enable", reader(SubjectView))

    @operation
    def service_accounts(self, *, after: str | None = None, limit: int = 50) -> Call[Page[SubjectView]]:
        """Return service accounts."""
        return listing(f"{_BASE}/service-accounts", SubjectView, after, limit)

    @operation
    def add_service_account(self, account: str, *, display_name: str = "") -> Call[SubjectView]:
        """Add a service account of the present project, without any role yet."""
        return _create("service-accounts", SubjectView, id=account, display_name=display_name)

    @operation
    def disable_service_account(self, account: str) -> Call[SubjectView]:
        """End a service account's keys at once."""
        return Call("POST", f"{_BASE}/service-accounts/{quoted(account)}/disable", reader(SubjectView))

    @operation
    def roles(
        self, *, subject: str | None = None, after: str | None = None, limit: int = 50
    ) -> Call[Page[RoleView]]:  # fmt: skip
        """Return who has which role."""
        return listing(f"{_BASE}/bindings", RoleView, after, limit, subject=subject)

    @operation
    def give_role(self, subject: str, role: str, project: str | None = None) -> Call[RoleView]:
        """Give a role in a project: by default the present one, ``*`` is all of them."""
        return _create("bindings", RoleView, subject=subject, role=role, project=project)

    @operation
    def take_role(self, binding_id: str) -> Call[None]:
        """Take a role away, by the id of its :class:`RoleView`."""
        return Call("DELETE", f"{_BASE}/bindings/{quoted(binding_id)}", nothing)

    @operation
    def keys(self, *, subject: str | None = None, after: str | None = None, limit: int = 50) -> Call[Page[KeyView]]:
        """Return keys, without their secrets."""
        return listing(f"{_BASE}/keys", KeyView, after, limit, subject=subject)

    @operation
    def mint_key(
        self,
        name: str = "",
        *,
        subject: str | None = None,
        project: str | None = None,
        scopes: Sequence[str] | None = None,
        days: float | None = None,
        component: tuple[str, str] | None = None,
    ) -> Call[MintedKey]:
        """Make a key; its secret is in the answer and never shown again.

        Args:
            name: For people.
            subject: Whose it is; by default one's own.
            project: Where it may be used: by default the present project, ``*`` wherever its owner has a role.
            scopes: The permissions that it is limited to; by default all of its owner's.
            days: How long it lives.
            component: Makes it the credential of this one instance: its ``component_id`` and ``component_type``.
        """
        instance = None if component is None else {"component_id": component[0], "component_type": component[1]}
        return _create(
            "keys", MintedKey, name=name, subject=subject, project=project, days=days, component=instance,
            scopes=None if scopes is None else list(scopes),
        )  # fmt: skip

    @operation
    def rotate_key(self, key_id: str, *, overlap_seconds: float = 3600) -> Call[MintedKey]:
        """Make a key that can do the same as another, which works for ``overlap_seconds`` more."""
        return _create(f"keys/{quoted(key_id)}/rotate", MintedKey, overlap_seconds=overlap_seconds)

    @operation
    def revoke_key(self, key_id: str) -> Call[None]:
        """End a key at once."""
        return Call("DELETE", f"{_BASE}/keys/{quoted(key_id)}", nothing)

    @operation
    def audit(
        self, *, actor: str | None = None, action: str | None = None, after: str | None = None, limit: int = 50
    ) -> Call[Page[AuditEntry]]:
        """Return who did what, newest first."""
        return listing(f"{_BASE}/audit", AuditEntry, after, limit, actor=actor, action=action)

    @operation
    def verify_audit(self) -> Call[AuditVerdict]:
        """Have the server check the whole chain of the audit log."""
        return Call("GET", f"{_BASE}/audit/verify", reader(AuditVerdict), timeout=600)


def _create(path: str, model: type[Made], **body: Any) -> Call[Made]:
    """Create something; each call has a key of its own, so that a broken connection makes nothing twice."""
    return Call("POST", f"{_BASE}/{path}", reader(model), json=given(**body), headers=key_header(new_key()))


def _export(project: str | None) -> Call[Any]:
    return Call("GET", f"{_BASE}/audit/export", raw, given(project=project), timeout=600)


class Identity(_Operations, Face):
    """Who may do what."""

    def export_audit(self, *, project: str | None = None) -> Iterator[str]:
        """Yield the audit log as JSON lines, oldest entry first."""
        with self._client._open(_export(project)) as response:
            yield from response.iter_lines()


class AsyncIdentity(_Operations, AsyncFace):
    """Who may do what, from asyncio."""

    async def export_audit(self, *, project: str | None = None) -> AsyncIterator[str]:
        """Yield the audit log as JSON lines, oldest entry first."""
        async with self._client._open(_export(project)) as response:
            async for line in response.aiter_lines():
                yield line
