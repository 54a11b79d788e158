"""Orders, and what comes of them, keep the order of names, which JSONB forgets: in a space, or among the new
tokens of a recipe, it counts.

Revises 0013.
"""

from alembic import op

revision = "0014"
down_revision = "0013"

COLUMNS = {"job": ("spec", "recipe", "plan", "result"), "front": ("body",)}


def upgrade() -> None:
    """Makes them JSON; what is there already stays as it is. Each table is written anew, once."""
    _change("JSON")


def downgrade() -> None:
    """Makes them JSONB again."""
    _change("JSONB")


def _change(kind: str) -> None:
    for table, columns in COLUMNS.items():
        changes = ", ".join(f"ALTER COLUMN {name} TYPE {kind} USING {name}::{kind}" for name in columns)
        op.execute(f"ALTER TABLE {table} {changes}")
