"""Who may call: tenants, their API keys, their Hub credentials."""

from sqlalchemy import ForeignKey, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt, Time


class Tenant(Base):
    """One customer: owns jobs, keys, credentials, endpoints and data sets."""

    __tablename__ = "tenant"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    max_queued_jobs: Mapped[int | None]
    created_at: Mapped[CreatedAt]


class ApiKey(Base):
    """One API key; only the SHA-256 of the secret is kept."""

    __tablename__ = "api_key"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    prefix: Mapped[str] = mapped_column(unique=True)
    hash: Mapped[str]
    scopes: Mapped[list[str]]
    created_at: Mapped[CreatedAt]
    expires_at: Mapped[Time | None]
    last_used_at: Mapped[Time | None]
    revoked_at: Mapped[Time | None]


class HubCredential(Base):
    """One Hub token, encrypted; the clear token is never a column."""

    __tablename__ = "hub_credential"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenant.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    key_id: Mapped[str]
    ciphertext: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[CreatedAt]
    last_used_at: Mapped[Time | None]
    revoked_at: Mapped[Time | None]
