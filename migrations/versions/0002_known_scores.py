"""Scores that are known already.

Revises 0001.
"""

from alembic import op

revision = "0002"
down_revision = "0001"

TABLE = """
CREATE TABLE known_score (
    tenant_id TEXT NOT NULL,
    key TEXT NOT NULL,
    scores JSONB NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT pk_known_score PRIMARY KEY (tenant_id, key),
    CONSTRAINT fk_known_score_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenant (id) ON DELETE CASCADE
)
"""


def upgrade() -> None:
    """Makes the table."""
    op.execute(TABLE)


def downgrade() -> None:
    """Drops it."""
    op.execute("DROP TABLE known_score")
