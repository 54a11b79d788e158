"""Trials of a search that wait for a worker, and the jobs by which other workers join a search.

Revises 0007.
"""

from alembic import op

revision = "0008"
down_revision = "0007"

UP = (
    "ALTER TABLE job ADD COLUMN parent_id TEXT",
    "ALTER TABLE job ADD CONSTRAINT fk_job_parent_id FOREIGN KEY(parent_id)"
    " REFERENCES job (id) ON DELETE CASCADE",
    "CREATE INDEX ix_job_parent_id ON job (parent_id)",
    "ALTER TABLE trial ALTER COLUMN told DROP NOT NULL",
    "ALTER TABLE trial ADD COLUMN examples BOOLEAN DEFAULT false NOT NULL",
    "ALTER TABLE trial ADD COLUMN worker TEXT",
    "ALTER TABLE trial ADD COLUMN attempt INTEGER",
)
DOWN = (
    "DELETE FROM trial WHERE told IS NULL",
    "ALTER TABLE trial DROP COLUMN attempt",
    "ALTER TABLE trial DROP COLUMN worker",
    "ALTER TABLE trial DROP COLUMN examples",
    "ALTER TABLE trial ALTER COLUMN told SET NOT NULL",
    "DELETE FROM job WHERE parent_id IS NOT NULL",
    "ALTER TABLE job DROP COLUMN parent_id",
)


def upgrade() -> None:
    """Adds the columns."""
    for each in UP:
        op.execute(each)


def downgrade() -> None:
    """Drops them, and what only they could say."""
    for each in DOWN:
        op.execute(each)
