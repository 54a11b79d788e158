"""Heartbeats change no index any more, and jobs are counted without a look at their rows.

Revises 0014.
"""

from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Makes the two indexes and drops the one by the end of the lease."""
    op.execute("CREATE INDEX ix_job_active ON job (queue) WHERE state IN ('running', 'cancelling')")
    op.execute("CREATE INDEX ix_job_count ON job (tenant_id, queue, state, parent_id)")
    op.execute("DROP INDEX ix_job_lease")


def downgrade() -> None:
    """Makes that again and drops the two."""
    op.execute("CREATE INDEX ix_job_lease ON job (lease_until) WHERE state IN ('running', 'cancelling')")
    op.execute("DROP INDEX ix_job_count")
    op.execute("DROP INDEX ix_job_active")
