"""What searches have tried.

Revises 0006.
"""

from alembic import op

revision = "0007"
down_revision = "0006"

TABLE = """
CREATE TABLE trial (
    root_id TEXT NOT NULL,
    key TEXT NOT NULL,
    share FLOAT NOT NULL,
    number INTEGER NOT NULL,
    point JSONB NOT NULL,
    told JSONB NOT NULL,
    elapsed FLOAT NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT pk_trial PRIMARY KEY (root_id, key, share),
    CONSTRAINT fk_trial_root_id FOREIGN KEY(root_id) REFERENCES job (id) ON DELETE CASCADE
)
"""
INDEX = "CREATE INDEX ix_trial_root_id_number ON trial (root_id, number)"


def upgrade() -> None:
    """Makes the table."""
    op.execute(TABLE)
    op.execute(INDEX)


def downgrade() -> None:
    """Drops it."""
    op.execute("DROP TABLE trial")
