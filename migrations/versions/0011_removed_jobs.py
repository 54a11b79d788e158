"""Which jobs were deleted, so that workers remove what they keep of them.

Revises 0010.
"""

from alembic import op

revision = "0011"
down_revision = "0010"

TABLES = """
CREATE TABLE removed_job (
    job_id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT pk_removed_job PRIMARY KEY (job_id),
    CONSTRAINT fk_removed_job_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenant (id) ON DELETE CASCADE
);
CREATE INDEX ix_removed_job_tenant_id ON removed_job (tenant_id)
"""


def upgrade() -> None:
    """Makes the table."""
    op.execute(TABLES)


def downgrade() -> None:
    """Drops it."""
    op.execute("DROP TABLE removed_job")
