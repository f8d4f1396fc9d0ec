"""The tables of the configuration's versions, of who obeys which, and of secrets."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Float, ForeignKey, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from burnish.infra.database import Base, JsonB, UtcDateTime, utcnow


class ConfigurationHeadRow(Base):
    """The newest version of each environment that has one: what processes poll, and what writers lock."""

    __tablename__ = "configuration_heads"

    environment: Mapped[str] = mapped_column(String(63), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, default=0)


class ConfigurationVersionRow(Base):
    """One version of an environment's values in the database. Immutable."""

    __tablename__ = "configuration_versions"

    environment: Mapped[str] = mapped_column(String(63), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    action: Mapped[str] = mapped_column(String(20))
    """``change``, ``import`` or ``rollback``."""
    author: Mapped[str] = mapped_column(String(255))
    reason: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)
    overrides: Mapped[dict[str, Any]] = mapped_column(JsonB)
    """Every value that the version has, by key."""
    origins: Mapped[dict[str, int]] = mapped_column(JsonB)
    """By key: the number of the version that gave the key this value."""


class ConfigurationProcessRow(Base):
    """What one running process obeys. A row whose lease is over is of a process that ended."""

    __tablename__ = "configuration_processes"

    process: Mapped[str] = mapped_column(String(255), primary_key=True)
    environment: Mapped[str] = mapped_column(String(63), index=True)
    report: Mapped[dict[str, Any]] = mapped_column(JsonB)
    lease_until: Mapped[float] = mapped_column(Float)


class SecretKeyRow(Base):
    """A data key, under which secrets are encrypted. The newest is used for what is written."""

    __tablename__ = "secret_keys"

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    author: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)


class SecretKeyWrapRow(Base):
    """A data key as one installation key encrypts it. While that key is exchanged, each data key has two."""

    __tablename__ = "secret_key_wraps"

    key_number: Mapped[int] = mapped_column(ForeignKey("secret_keys.number", ondelete="CASCADE"), primary_key=True)
    wrapped_by: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Fingerprint of the installation key."""
    wrapped: Mapped[str] = mapped_column(Text)


class SecretRow(Base):
    """A secret, encrypted."""

    __tablename__ = "secrets"

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    ciphertext: Mapped[str] = mapped_column(Text)
    key_number: Mapped[int] = mapped_column(ForeignKey("secret_keys.number"), index=True)
    version: Mapped[int] = mapped_column(BigInteger)
    author: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utcnow)
