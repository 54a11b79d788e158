"""Known scores say when they were last of use, so that those of no use can be forgotten.

Revises 0008.
"""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Adds the column; of what is there already, the time of the migration counts, and no row is rewritten
    for it.
    """
    op.execute("ALTER TABLE known_score ADD COLUMN last_used_at TIMESTAMPTZ DEFAULT now() NOT NULL")
    op.execute("ALTER TABLE known_score ALTER COLUMN last_used_at SET DEFAULT clock_timestamp()")


def downgrade() -> None:
    """Drops it."""
    op.execute("ALTER TABLE known_score DROP COLUMN last_used_at")
