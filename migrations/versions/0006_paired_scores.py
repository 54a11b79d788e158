"""Scores say what they are known by, which way is better, and how they differ from other models' scores.

Revises 0005.
"""

from alembic import op

revision = "0006"
down_revision = "0005"

COLUMNS = {
    "evaluation": "task_sha256 TEXT",
    "evaluation_score": "known_key TEXT, higher_is_better BOOLEAN, differences JSONB",
    "known_score": "model_sha256 TEXT, task_sha256 TEXT",
}


def upgrade() -> None:
    """Adds the columns; what was measured before has none of it."""
    for table, columns in COLUMNS.items():
        added = ", ".join(f"ADD COLUMN {each}" for each in columns.split(", "))
        op.execute(f"ALTER TABLE {table} {added}")


def downgrade() -> None:
    """Drops them."""
    for table, columns in COLUMNS.items():
        dropped = ", ".join(f"DROP COLUMN {each.split()[0]}" for each in columns.split(", "))
        op.execute(f"ALTER TABLE {table} {dropped}")
