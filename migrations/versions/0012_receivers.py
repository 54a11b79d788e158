"""Webhook messages say which host they go to, so that hosts take turns.

Revises 0011.
"""

from alembic import op

revision = "0012"
down_revision = "0011"

UP = (
    "ALTER TABLE webhook_delivery ADD COLUMN receiver TEXT DEFAULT '' NOT NULL",
    "UPDATE webhook_delivery SET receiver = lower(substring(url FROM '//([^/?#:]*)'))"
    " FROM webhook_endpoint WHERE webhook_endpoint.id = endpoint_id AND state = 'pending'",
    "CREATE INDEX ix_webhook_delivery_turn ON webhook_delivery (receiver, next_attempt_at, id)"
    " WHERE state = 'pending'",
)


def upgrade() -> None:
    """Adds the column; what waits is told its host by the URL of its endpoint."""
    for each in UP:
        op.execute(each)


def downgrade() -> None:
    """Drops it."""
    op.execute("ALTER TABLE webhook_delivery DROP COLUMN receiver")
