"""Every table, and the trigger that guards the states of a job.

Revises nothing.
"""

from alembic import op

revision = "0001"
down_revision = None

# A copy on purpose: a migration must not change when jobs/states.py does. A test compares the two.
MOVES = (
    ("queued", "running"),
    ("queued", "cancelled"),
    ("queued", "expired"),
    ("queued", "failed"),
    ("running", "succeeded"),
    ("running", "failed"),
    ("running", "cancelling"),
    ("running", "queued"),
    ("cancelling", "cancelled"),
    ("cancelling", "succeeded"),
    ("cancelling", "failed"),
)

GUARD = """
CREATE FUNCTION job_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.state <> OLD.state AND NOT (OLD.state, NEW.state) IN ({moves}) THEN
        RAISE EXCEPTION 'job % cannot go from % to %', OLD.id, OLD.state, NEW.state
            USING ERRCODE = 'check_violation', CONSTRAINT = 'job_moves';
    END IF;
    RETURN NEW;
END $$
"""

TELL = """
CREATE FUNCTION job_tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('mergery_job', NEW.id);
    RETURN NULL;
END $$
"""

TRIGGERS = (
    "CREATE TRIGGER job_guard BEFORE UPDATE OF state ON job FOR EACH ROW EXECUTE FUNCTION job_guard()",
    "CREATE TRIGGER job_tell_insert AFTER INSERT ON job FOR EACH ROW EXECUTE FUNCTION job_tell()",
    "CREATE TRIGGER job_tell_update AFTER UPDATE ON job FOR EACH ROW "
    "WHEN (OLD.state IS DISTINCT FROM NEW.state OR OLD.phase IS DISTINCT FROM NEW.phase "
    "OR OLD.progress IS DISTINCT FROM NEW.progress OR OLD.event_seq IS DISTINCT FROM NEW.event_seq) "
    "EXECUTE FUNCTION job_tell()",
)

NAMES = (
    "tenant",
    "api_key",
    "dataset",
    "hub_credential",
    "idempotency_key",
    "job",
    "artifact",
    "evaluation",
    "job_event",
    "job_input",
    "webhook_endpoint",
    "evaluation_score",
    "webhook_delivery",
)
"""The tables in the order of their making."""

TABLES = (
    """
CREATE TABLE tenant (
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    max_queued_jobs INTEGER,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT pk_tenant PRIMARY KEY (id),
    CONSTRAINT uq_tenant_name UNIQUE (name)
)
""",
    """
CREATE TABLE api_key (
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    name TEXT NOT NULL,
    prefix TEXT NOT NULL,
    hash TEXT NOT NULL,
    scopes TEXT[] NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    expires_at timestamptz,
    last_used_at timestamptz,
    revoked_at timestamptz,
    CONSTRAINT pk_api_key PRIMARY KEY (id),
    CONSTRAINT fk_api_key_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenant (id) ON DELETE CASCADE,
    CONSTRAINT uq_api_key_prefix UNIQUE (prefix)
)
""",
    """
CREATE TABLE dataset (
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    name TEXT NOT NULL,
    size BIGINT NOT NULL,
    body BYTEA NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT pk_dataset PRIMARY KEY (id),
    CONSTRAINT uq_dataset_tenant_id_sha256 UNIQUE (tenant_id, sha256),
    CONSTRAINT fk_dataset_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenant (id) ON DELETE CASCADE
)
""",
    """
CREATE TABLE hub_credential (
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    name TEXT NOT NULL,
    key_id TEXT NOT NULL,
    ciphertext BYTEA NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    last_used_at timestamptz,
    revoked_at timestamptz,
    CONSTRAINT pk_hub_credential PRIMARY KEY (id),
    CONSTRAINT fk_hub_credential_tenant_id FOREIGN KEY(tenant_id)
        REFERENCES tenant (id) ON DELETE CASCADE
)
""",
    """
CREATE TABLE idempotency_key (
    tenant_id TEXT NOT NULL,
    key TEXT NOT NULL,
    request_hash TEXT NOT NULL,
    status INTEGER NOT NULL,
    body JSONB NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT pk_idempotency_key PRIMARY KEY (tenant_id, key),
    CONSTRAINT fk_idempotency_key_tenant_id FOREIGN KEY(tenant_id)
        REFERENCES tenant (id) ON DELETE CASCADE
)
""",
    """
CREATE TABLE job (
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    kind TEXT DEFAULT 'merge' NOT NULL,
    state TEXT DEFAULT 'queued' NOT NULL,
    phase TEXT,
    progress JSONB DEFAULT '{}'::jsonb NOT NULL,
    progress_at timestamptz,
    method TEXT,
    spec JSONB NOT NULL,
    recipe JSONB NOT NULL,
    recipe_sha256 TEXT NOT NULL,
    plan JSONB,
    queue TEXT DEFAULT 'cpu' NOT NULL,
    priority INTEGER DEFAULT '0' NOT NULL,
    attempt INTEGER DEFAULT '0' NOT NULL,
    max_attempts INTEGER DEFAULT '3' NOT NULL,
    lease_owner TEXT,
    lease_until timestamptz,
    heartbeat_at timestamptz,
    announced_at timestamptz,
    not_before timestamptz,
    cancel_requested_at timestamptz,
    expires_at timestamptz,
    timeout_seconds double precision NOT NULL,
    error_code TEXT,
    error_detail TEXT,
    error_findings JSONB,
    result JSONB,
    metadata JSONB DEFAULT '{}'::jsonb NOT NULL,
    event_seq BIGINT DEFAULT '0' NOT NULL,
    root_id TEXT NOT NULL,
    retry_of TEXT,
    hub_credential_id TEXT,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    started_at timestamptz,
    finished_at timestamptz,
    CONSTRAINT pk_job PRIMARY KEY (id),
    CONSTRAINT ck_job_state
        CHECK (state IN ('queued', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled', 'expired')),
    CONSTRAINT ck_job_lease CHECK ((state IN ('running', 'cancelling')) = (lease_owner IS NOT NULL)),
    CONSTRAINT ck_job_queue CHECK (queue IN ('cpu', 'gpu')),
    CONSTRAINT fk_job_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenant (id) ON DELETE CASCADE,
    CONSTRAINT fk_job_retry_of FOREIGN KEY(retry_of) REFERENCES job (id) ON DELETE SET NULL,
    CONSTRAINT fk_job_hub_credential_id FOREIGN KEY(hub_credential_id)
        REFERENCES hub_credential (id) ON DELETE SET NULL
)
""",
    """
CREATE TABLE artifact (
    id TEXT NOT NULL,
    job_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    uri TEXT NOT NULL,
    sha256 TEXT,
    size BIGINT,
    commit_sha TEXT,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT pk_artifact PRIMARY KEY (id),
    CONSTRAINT uq_artifact_job_id_kind_uri UNIQUE (job_id, kind, uri),
    CONSTRAINT fk_artifact_job_id FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
)
""",
    """
CREATE TABLE evaluation (
    id TEXT NOT NULL,
    job_id TEXT NOT NULL,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    passed BOOLEAN,
    detail JSONB NOT NULL,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT pk_evaluation PRIMARY KEY (id),
    CONSTRAINT uq_evaluation_job_id_name UNIQUE (job_id, name),
    CONSTRAINT fk_evaluation_job_id FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
)
""",
    """
CREATE TABLE job_event (
    job_id TEXT NOT NULL,
    seq BIGINT NOT NULL,
    type TEXT NOT NULL,
    at timestamptz DEFAULT clock_timestamp() NOT NULL,
    data JSONB NOT NULL,
    CONSTRAINT pk_job_event PRIMARY KEY (job_id, seq),
    CONSTRAINT fk_job_event_job_id FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
)
""",
    """
CREATE TABLE job_input (
    job_id TEXT NOT NULL,
    role TEXT NOT NULL,
    kind TEXT NOT NULL,
    repo TEXT NOT NULL,
    requested_revision TEXT,
    sha TEXT,
    size_bytes BIGINT DEFAULT '0' NOT NULL,
    license TEXT,
    private BOOLEAN DEFAULT false NOT NULL,
    gated BOOLEAN DEFAULT false NOT NULL,
    params JSONB DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT pk_job_input PRIMARY KEY (job_id, role),
    CONSTRAINT ck_job_input_kind CHECK (kind IN ('hub', 'folder')),
    CONSTRAINT fk_job_input_job_id FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
)
""",
    """
CREATE TABLE webhook_endpoint (
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    job_id TEXT,
    url TEXT NOT NULL,
    events TEXT[] NOT NULL,
    description TEXT,
    key_id TEXT NOT NULL,
    secret BYTEA NOT NULL,
    old_key_id TEXT,
    old_secret BYTEA,
    old_secret_until timestamptz,
    failing_since timestamptz,
    disabled_at timestamptz,
    disabled_reason TEXT,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT pk_webhook_endpoint PRIMARY KEY (id),
    CONSTRAINT fk_webhook_endpoint_tenant_id FOREIGN KEY(tenant_id)
        REFERENCES tenant (id) ON DELETE CASCADE,
    CONSTRAINT fk_webhook_endpoint_job_id FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
)
""",
    """
CREATE TABLE evaluation_score (
    evaluation_id TEXT NOT NULL,
    subject TEXT NOT NULL,
    metric TEXT NOT NULL,
    value double precision NOT NULL,
    stderr double precision,
    n BIGINT,
    CONSTRAINT pk_evaluation_score PRIMARY KEY (evaluation_id, subject, metric),
    CONSTRAINT fk_evaluation_score_evaluation_id FOREIGN KEY(evaluation_id)
        REFERENCES evaluation (id) ON DELETE CASCADE
)
""",
    """
CREATE TABLE webhook_delivery (
    id TEXT NOT NULL,
    endpoint_id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    job_id TEXT,
    event_seq INTEGER,
    message_id TEXT NOT NULL,
    type TEXT NOT NULL,
    body TEXT NOT NULL,
    state TEXT DEFAULT 'pending' NOT NULL,
    attempts INTEGER DEFAULT '0' NOT NULL,
    next_attempt_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    lease_owner TEXT,
    lease_until timestamptz,
    status_code INTEGER,
    error TEXT,
    attempted_at timestamptz,
    delivered_at timestamptz,
    created_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT pk_webhook_delivery PRIMARY KEY (id),
    CONSTRAINT ck_webhook_delivery_state CHECK (state IN ('pending', 'delivered', 'dead')),
    CONSTRAINT fk_webhook_delivery_endpoint_id FOREIGN KEY(endpoint_id)
        REFERENCES webhook_endpoint (id) ON DELETE CASCADE,
    CONSTRAINT fk_webhook_delivery_tenant_id FOREIGN KEY(tenant_id)
        REFERENCES tenant (id) ON DELETE CASCADE,
    CONSTRAINT fk_webhook_delivery_job_id FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
)
""",
)

INDEXES = (
    "CREATE INDEX ix_api_key_tenant_id ON api_key (tenant_id)",
    "CREATE INDEX ix_hub_credential_tenant_id ON hub_credential (tenant_id)",
    "CREATE INDEX ix_idempotency_key_created_at ON idempotency_key (created_at)",
    "CREATE INDEX ix_job_lease ON job (lease_until) WHERE state IN ('running', 'cancelling')",
    "CREATE INDEX ix_job_metadata ON job USING gin (metadata)",
    "CREATE INDEX ix_job_queued ON job (priority, created_at) WHERE state = 'queued'",
    "CREATE INDEX ix_job_retry_of ON job (retry_of)",
    "CREATE INDEX ix_job_root_id ON job (root_id)",
    "CREATE INDEX ix_job_tenant_page ON job (tenant_id, created_at, id)",
    "CREATE INDEX ix_job_input_repo ON job_input (repo)",
    "CREATE INDEX ix_webhook_endpoint_job_id ON webhook_endpoint (job_id)",
    "CREATE INDEX ix_webhook_endpoint_tenant_id ON webhook_endpoint (tenant_id)",
    "CREATE INDEX ix_webhook_delivery_due ON webhook_delivery (next_attempt_at) WHERE state = 'pending'",
    "CREATE INDEX ix_webhook_delivery_endpoint ON webhook_delivery (endpoint_id, created_at)",
    "CREATE INDEX ix_webhook_delivery_job_id ON webhook_delivery (job_id)",
)


def upgrade() -> None:
    moves = ", ".join(f"('{before}', '{after}')" for before, after in MOVES)
    for statement in (*TABLES, *INDEXES, GUARD.replace("{moves}", moves), TELL, *TRIGGERS):
        op.execute(statement)


def downgrade() -> None:
    for table in reversed(NAMES):
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP FUNCTION job_guard(), job_tell()")
