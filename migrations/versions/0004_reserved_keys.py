"""An idempotency key is reserved while its request is planned, so that no transaction stays open meanwhile.

Revises 0003.
"""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds who holds a key that is not answered yet, and until when."""
    op.execute("ALTER TABLE idempotency_key ADD COLUMN owner TEXT, ADD COLUMN reserved_until timestamptz")


def downgrade() -> None:
    """Forgets keys that are not answered, as the older code knows none."""
    op.execute("DELETE FROM idempotency_key WHERE owner IS NOT NULL")
    op.execute("ALTER TABLE idempotency_key DROP COLUMN owner, DROP COLUMN reserved_until")
