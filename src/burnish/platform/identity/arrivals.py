"""Users who come by the login provider: known by issuer and subject alone, never by a name or an address.

An address can be given to somebody else, and a provider may let its users choose one; so it never joins a login to a
user who was there before. Roles that a user's groups give are taken away with the group; those that an administrator
gave stay.
"""

import hashlib
import logging
import re

from sqlalchemy.ext.asyncio import AsyncSession

from burnish.core.configuration import OidcConfiguration
from burnish.core.errors import Forbidden
from burnish.core.ids import new_id
from burnish.core.permissions import EVERY_PROJECT
from burnish.infra.database import utcnow
from burnish.platform.identity import login_store, service, store
from burnish.platform.identity.oidc import Identity
from burnish.platform.identity.schemas import SUBJECT_PATTERN
from burnish.platform.identity.tables import RoleBindingRow, SubjectRow

log = logging.getLogger(__name__)

SOURCE = "oidc"
"""Of the bindings that are the provider's."""


async def arrive(session: AsyncSession, identity: Identity, settings: OidcConfiguration) -> str:
    """Return the user of an identity, made at its first login, with its address and its groups' roles as they are now.

    Raises:
        Forbidden: the user was disabled.
    """
    row = await _user(session, identity)
    if row.disabled_at is not None:
        raise Forbidden(
            f"{row.id} was disabled",
            where=row.id,
            hint="an administrator can let the user in again: burnish user enable",
        )
    row.email = identity.email or row.email
    row.display_name = identity.name or row.display_name
    await _bind(session, row.id, _wanted(identity, settings))
    return row.id


async def _user(session: AsyncSession, identity: Identity) -> SubjectRow:
    found = await store.subject_of_issuer(session, identity.issuer, identity.subject)
    if found is None:
        for name in _names(identity):
            if await login_store.add_user(session, name, identity.issuer, identity.subject):
                log.info("%s came by the login provider for the first time", name)
                break
        found = await store.subject_of_issuer(session, identity.issuer, identity.subject)
    assert found is not None, "made here, or by a login at the same time"
    return found


def _names(identity: Identity) -> tuple[str, ...]:
    """Return the ids that a new user may get: the verified address unless it is taken, then one that is nobody else's."""
    own = hashlib.sha256(f"{identity.issuer}\0{identity.subject}".encode()).hexdigest()[:24]
    address = identity.email if identity.email_verified and identity.email is not None else ""
    usable = "@" in address and address not in service.RESERVED and re.fullmatch(SUBJECT_PATTERN, address)
    return (address, f"user-{own}") if usable else (f"user-{own}",)


def _wanted(identity: Identity, settings: OidcConfiguration) -> set[tuple[str, str]]:
    """Return the pairs of project and role that the groups give."""
    given = [settings.role_bindings[group] for group in identity.groups if group in settings.role_bindings]
    given += [f"{store.DEFAULT_PROJECT}/{settings.default_role}"] if settings.default_role else []
    return {(project, role) for project, _, role in (one.rpartition("/") for one in given)}


async def _bind(session: AsyncSession, subject: str, wanted: set[tuple[str, str]]) -> None:
    """Make the provider's bindings of a user those that are wanted."""
    present = {(row.project_id, row.role): row for row in await store.bindings_of(session, subject)}
    superfluous = [row for pair, row in present.items() if row.source == SOURCE and pair not in wanted]
    missing = sorted(wanted - present.keys())
    for row in superfluous:
        if (row.project_id, row.role) == (EVERY_PROJECT, store.ADMINISTRATOR) and await _is_the_last(session, subject):
            log.warning("%s has left the administrators' group, and stays one: there is no other", subject)
            continue
        await store.delete_row(session, row)
    for project, role in missing:
        if project != EVERY_PROJECT and await store.project(session, project) is None:
            log.warning("a group of %s gives %s in project %s, which there is not", subject, role, project)
            continue
        await store.insert_row(
            session,
            RoleBindingRow(
                id=new_id("bnd"), subject=subject, project_id=project, role=role, source=SOURCE, created_at=utcnow(),
                created_by=SOURCE,
            ),
        )  # fmt: skip
    if superfluous or missing:
        await store.changed(session)


async def _is_the_last(session: AsyncSession, subject: str) -> bool:
    return set(await store.lock_administrators(session)) <= {subject}
