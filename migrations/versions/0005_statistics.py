"""Statistics of models on data.

Revises 0004.
"""

from alembic import op

revision = "0005"
down_revision = "0004"

TABLE = """
CREATE TABLE statistic (
    tenant_id TEXT NOT NULL,
    digest TEXT NOT NULL,
    kinds TEXT[] NOT NULL,
    model TEXT NOT NULL,
    model_sha256 TEXT NOT NULL,
    stamp TEXT,
    data TEXT NOT NULL,
    data_sha256 TEXT NOT NULL,
    tokens BIGINT NOT NULL,
    size BIGINT NOT NULL,
    manifest JSONB NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    last_used_at timestamptz NOT NULL,
    CONSTRAINT pk_statistic PRIMARY KEY (tenant_id, digest),
    CONSTRAINT fk_statistic_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenant (id) ON DELETE CASCADE
)
"""
INDEXES = (
    "CREATE INDEX ix_statistic_tenant_page ON statistic (tenant_id, created_at, digest)",
    "CREATE INDEX ix_statistic_stamp ON statistic (tenant_id, stamp)",
    "CREATE INDEX ix_statistic_last_used_at ON statistic (last_used_at)",
)


def upgrade() -> None:
    """Makes the table."""
    for each in (TABLE, *INDEXES):
        op.execute(each)


def downgrade() -> None:
    """Drops it. The folders stay where they are and are found again by a later upgrade's jobs."""
    op.execute("DROP TABLE statistic")
