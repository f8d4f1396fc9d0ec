"""Users, roles and keys for tests, made as an administrator makes them."""

from dataclasses import dataclass, field
from typing import Literal

from burnish.infra.database import Database
from burnish.platform.identity import Principal, service, store
from burnish.platform.identity.authentication import Authenticator
from burnish.platform.identity.credentials import Credentials
from burnish.platform.identity.keys import KeyDigests
from burnish.platform.identity.schemas import MintedKey, NewBinding, NewKeyRequest, NewProject, NewSubject

KEY = b"k" * 32
ROOT = Principal("root", "default", frozenset({"administrator"}), everywhere=frozenset({"administrator"}))
Role = Literal["viewer", "engineer", "administrator"]


@dataclass
class People:
    """An installation's identity over a database."""

    database: Database
    digests: KeyDigests = field(default_factory=lambda: KeyDigests(KEY))

    @property
    def credentials(self) -> Credentials:
        return Credentials(self.digests)

    def authenticator(self) -> Authenticator:
        return Authenticator(self.database, self.digests)

    async def begin(self, *projects: str) -> None:
        """Make an administrator of everything and these projects."""
        async with self.database.write() as session:
            await store.ensure_project(session, "default")
            await service.add_user(session, ROOT, NewSubject(id="root"))
            await service.give(session, ROOT, NewBinding(subject="root", role="administrator", project="*"))
            for project in projects:
                await service.add_project(session, ROOT, NewProject(id=project))

    async def user(self, name: str, role: Role, project: str) -> Principal:
        """Make a user with a role (more roles if they are there); return them as they come in with a session."""
        async with self.database.write() as session:
            if await store.subject(session, name) is None:
                await service.add_user(session, ROOT, NewSubject(id=name))
            await service.give(session, ROOT, NewBinding(subject=name, role=role, project=project))
        everywhere = frozenset({role}) if project == "*" else frozenset()
        return Principal(name, "default" if project == "*" else project, frozenset({role}), everywhere=everywhere)

    async def robot(self, name: str, owner: Principal) -> Principal:
        """Make a service account of the owner's project, an engineer there; return it as it comes in."""
        async with self.database.write() as session:
            await service.add_service_account(session, owner, NewSubject(id=name))
            await service.give(session, owner, NewBinding(subject=name, role="engineer"))
        return Principal(name, owner.project_id, frozenset({"engineer"}))

    async def key(self, caller: Principal, asked: NewKeyRequest | None = None) -> MintedKey:
        async with self.database.write() as session:
            return await self.credentials.mint(session, caller, asked or NewKeyRequest())

    async def come_in(self, key: str | None, project: str | None = None) -> Principal:
        """Authenticate with a key, asking the database anew."""
        headers = {"authorization": f"Bearer {key}"} | ({} if project is None else {"burnish-project": project})
        return await self.authenticator().authenticate(headers, method="GET")
