"""Uploaded data sets say when they were last of use, so that those of no use can be forgotten.

Revises 0012.
"""

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Adds the column; of what is there already, the time of the migration counts, and no row is rewritten
    for it.
    """
    op.execute("ALTER TABLE dataset ADD COLUMN last_used_at TIMESTAMPTZ DEFAULT now() NOT NULL")
    op.execute("ALTER TABLE dataset ALTER COLUMN last_used_at SET DEFAULT clock_timestamp()")


def downgrade() -> None:
    """Drops it."""
    op.execute("ALTER TABLE dataset DROP COLUMN last_used_at")
