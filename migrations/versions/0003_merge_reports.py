"""What a merge did to the weights.

Revises 0002.
"""

from alembic import op

revision = "0003"
down_revision = "0002"

TABLE = """
CREATE TABLE merge_report (
    job_id TEXT NOT NULL,
    survey JSONB NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT pk_merge_report PRIMARY KEY (job_id),
    CONSTRAINT fk_merge_report_job_id FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
)
"""


def upgrade() -> None:
    """Makes the table."""
    op.execute(TABLE)


def downgrade() -> None:
    """Drops it."""
    op.execute("DROP TABLE merge_report")
