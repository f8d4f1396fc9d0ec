"""Versions of the configuration, secrets."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Expand the schema."""
    op.create_table(
        "configuration_heads",
        sa.Column("environment", sa.String(length=63), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("environment", name=op.f("pk_configuration_heads")),
    )
    op.create_table(
        "configuration_processes",
        sa.Column("process", sa.String(length=255), nullable=False),
        sa.Column("environment", sa.String(length=63), nullable=False),
        sa.Column("report", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("lease_until", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("process", name=op.f("pk_configuration_processes")),
    )
    op.create_index(
        op.f("ix_configuration_processes_environment"), "configuration_processes", ["environment"], unique=False
    )
    op.create_table(
        "configuration_versions",
        sa.Column("environment", sa.String(length=63), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("action", sa.String(length=20), nullable=False),
        sa.Column("author", sa.String(length=255), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("overrides", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("origins", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.PrimaryKeyConstraint("environment", "number", name=op.f("pk_configuration_versions")),
    )
    op.create_table(
        "secret_keys",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("author", sa.String(length=255), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_secret_keys")),
    )
    op.create_table(
        "secret_key_wraps",
        sa.Column("key_number", sa.Integer(), nullable=False),
        sa.Column("wrapped_by", sa.String(length=64), nullable=False),
        sa.Column("wrapped", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["key_number"],
            ["secret_keys.number"],
            name=op.f("fk_secret_key_wraps_key_number_secret_keys"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("key_number", "wrapped_by", name=op.f("pk_secret_key_wraps")),
    )
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("ciphertext", sa.Text(), nullable=False),
        sa.Column("key_number", sa.Integer(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("author", sa.String(length=255), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["key_number"], ["secret_keys.number"], name=op.f("fk_secrets_key_number_secret_keys")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_secrets")),
    )
    op.create_index(op.f("ix_secrets_key_number"), "secrets", ["key_number"], unique=False)


def downgrade() -> None:
    """Not offered: a schema only grows; go back by restoring a backup."""
    raise NotImplementedError("restore a backup")
