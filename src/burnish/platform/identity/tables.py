"""Rows of projects, subjects, roles, keys, sessions, and the audit log."""

from datetime import datetime
from typing import Any

from sqlalchemy import DDL, BigInteger, Index, Integer, String, event
from sqlalchemy.orm import Mapped, mapped_column

from burnish.infra.database import Base, JsonB, UtcDateTime, utcnow


class ProjectRow(Base):
    """The owner of every object. Its id stands in ``project_id`` of every owned table."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    display_name: Mapped[str] = mapped_column(String(255), default="")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)
    created_by: Mapped[str] = mapped_column(String(255), default="")


class SubjectRow(Base):
    """A user or a service account."""

    __tablename__ = "subjects"
    __table_args__ = (Index(None, "issuer", "issuer_subject", unique=True), Index(None, "project_id"))

    id: Mapped[str] = mapped_column(String(255), primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    """``user`` or ``service_account``."""
    project_id: Mapped[str | None] = mapped_column(String(64), default=None)
    """Of a service account: the project that owns it."""
    display_name: Mapped[str] = mapped_column(String(255), default="")
    email: Mapped[str | None] = mapped_column(String(255), default=None)
    issuer: Mapped[str | None] = mapped_column(String(500), default=None)
    """The OpenID Connect provider that the user logs in at, and who they are there."""
    issuer_subject: Mapped[str | None] = mapped_column(String(255), default=None)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)
    created_by: Mapped[str] = mapped_column(String(255), default="")
    disabled_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)


class RoleBindingRow(Base):
    """Gives a subject a role in a project, or in every project (``*``)."""

    __tablename__ = "role_bindings"
    __table_args__ = (Index(None, "subject", "project_id", "role", unique=True), Index(None, "project_id"))

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    subject: Mapped[str] = mapped_column(String(255))
    project_id: Mapped[str] = mapped_column(String(64))
    role: Mapped[str] = mapped_column(String(50))
    source: Mapped[str] = mapped_column(String(20), default="given", server_default="given")
    """``given`` by an administrator, or ``oidc``: by the provider's claims at each login."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)
    created_by: Mapped[str] = mapped_column(String(255), default="")


class ApiKeyRow(Base):
    """A key. Of its secret only a digest is kept."""

    __tablename__ = "api_keys"
    __table_args__ = (Index(None, "project_id", "id"), Index(None, "subject"))

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    prefix: Mapped[str] = mapped_column(String(16), unique=True)
    digest: Mapped[str] = mapped_column(String(64))
    """Keyed blake2b of the whole key."""
    name: Mapped[str] = mapped_column(String(255), default="")
    subject: Mapped[str] = mapped_column(String(255))
    project_id: Mapped[str] = mapped_column(String(64))
    """The one project in which it may be used; ``*``: every one in which its subject has a role."""
    scopes: Mapped[list[str] | None] = mapped_column(JsonB, default=None)
    """The permissions that it is limited to; null: all that its subject has."""
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)
    created_by: Mapped[str] = mapped_column(String(255), default="")
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)
    rotated_from: Mapped[str | None] = mapped_column(String(64), default=None)
    component_id: Mapped[str | None] = mapped_column(String(255), default=None)
    component_type: Mapped[str | None] = mapped_column(String(100), default=None)
    """For the credential of an instance: the one that it may register."""


class DigestKeyRow(Base):
    """The key by which API keys are digested, encrypted by a later secret key of the installation."""

    __tablename__ = "api_key_digest_keys"

    wrapped_by: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Fingerprint of the secret key."""
    wrapped: Mapped[str] = mapped_column(String(500))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)


class SessionRow(Base):
    """A login of the page or the CLI."""

    __tablename__ = "sessions"
    __table_args__ = (Index(None, "subject"), Index(None, "expires_at"))

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    token_digest: Mapped[str] = mapped_column(String(64), unique=True)
    subject: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    key_id: Mapped[str | None] = mapped_column(String(64), default=None)
    """The key that opened it: it has that key's project and scopes, and ends with it."""
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime, default=None)


class LoginStateRow(Base):
    """A login that has begun and not ended."""

    __tablename__ = "login_states"
    __table_args__ = (Index(None, "expires_at"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    payload: Mapped[dict[str, Any]] = mapped_column(JsonB, default=dict)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)


class AuditRow(Base):
    """One entry of the audit log; ``hash`` is over ``previous`` and all other columns."""

    __tablename__ = "audit_log"
    __table_args__ = (Index(None, "project_id", "number"), Index(None, "actor", "number"))

    number: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=False
    )
    """1, 2, 3, ... without a gap."""
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    actor: Mapped[str] = mapped_column(String(255))
    credential: Mapped[str | None] = mapped_column(String(64), default=None)
    project_id: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(100))
    object_id: Mapped[str] = mapped_column(String(255), default="")
    route: Mapped[str] = mapped_column(String(255), default="")
    request_id: Mapped[str | None] = mapped_column(String(100), default=None)
    details: Mapped[dict[str, Any]] = mapped_column(JsonB, default=dict)
    previous: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


class AuditHeadRow(Base):
    """The end of the chain: who appends locks it; entries cut off the end are missed by it.

    ``seal`` is an HMAC over both other columns, by a key that is not in the database (:mod:`burnish.platform.identity.seal`).
    """

    __tablename__ = "audit_head"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(BigInteger, default=0)
    hash: Mapped[str] = mapped_column(String(64))
    seal: Mapped[str | None] = mapped_column(String(64), default=None)


_ONLY_APPENDED = {
    "sqlite": [
        f"CREATE TRIGGER audit_log_no_{verb.lower()} BEFORE {verb} ON audit_log "
        "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        for verb in ("UPDATE", "DELETE")
    ],
    "postgresql": [
        (
            "CREATE OR REPLACE FUNCTION audit_log_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ "
            "BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$"
        ),
        (
            "CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log "
            "FOR EACH STATEMENT EXECUTE FUNCTION audit_log_append_only()"
        ),
    ],
}
for _dialect, _statements in _ONLY_APPENDED.items():
    for _statement in _statements:  # the migration has the same; this is for tables made without it
        event.listen(AuditRow.__table__, "after_create", DDL(_statement).execute_if(dialect=_dialect))  # type: ignore[no-untyped-call]
