"""The fronts that searches have found, with the points that they predict.

Revises 0009.
"""

from alembic import op

revision = "0010"
down_revision = "0009"

TABLE = """
CREATE TABLE front (
    job_id TEXT NOT NULL,
    body JSONB NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT pk_front PRIMARY KEY (job_id),
    CONSTRAINT fk_front_job_id FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
)
"""


def upgrade() -> None:
    """Makes the table."""
    op.execute(TABLE)


def downgrade() -> None:
    """Drops it."""
    op.execute("DROP TABLE front")
