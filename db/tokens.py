"""Queries on tenants, API keys and Hub credentials."""

from collections.abc import Sequence

from sqlalchemy import func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.clock import now, seconds
from db.models.base import new_id
from db.models.tenant import ApiKey, HubCredential, Tenant


def tenant(session: Session, tenant_id: str) -> Tenant | None:
    """The tenant with this id."""
    return session.get(Tenant, tenant_id)


def lock_tenant(session: Session, tenant_id: str) -> Tenant | None:
    """The tenant, held against other holders until the transaction ends (rows that refer to it may still be
    made).
    """
    return session.scalars(
        select(Tenant).where(Tenant.id == tenant_id).with_for_update(key_share=True)
    ).one_or_none()


def tenant_named(session: Session, name: str) -> Tenant:
    """The tenant of this name, made if there is none; safe when two ask at once."""
    session.execute(insert(Tenant).values(id=new_id("ten"), name=name).on_conflict_do_nothing())
    return session.scalars(select(Tenant).where(Tenant.name == name)).one()


def key_by_prefix(session: Session, prefix: str) -> ApiKey | None:
    """The key whose secret starts with this public part, revoked and expired ones too."""
    return session.scalars(select(ApiKey).where(ApiKey.prefix == prefix)).one_or_none()


def usable_key(session: Session, key_id: str) -> ApiKey | None:
    """The key with this id unless it is revoked or expired."""
    unexpired = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now())
    found = select(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None), unexpired)
    return session.scalars(found).one_or_none()


def tenant_key(session: Session, tenant_id: str, key_id: str) -> ApiKey | None:
    """One key of a tenant."""
    return session.scalars(
        select(ApiKey).where(ApiKey.id == key_id, ApiKey.tenant_id == tenant_id)
    ).one_or_none()


def tenant_keys(session: Session, tenant_id: str) -> Sequence[ApiKey]:
    """All keys of a tenant, newest first."""
    return session.scalars(
        select(ApiKey).where(ApiKey.tenant_id == tenant_id).order_by(ApiKey.created_at.desc(), ApiKey.id)
    ).all()


def count_keys(session: Session) -> int:
    """How many keys exist at all (``mergery up`` makes the first one)."""
    return session.scalar(select(func.count()).select_from(ApiKey)) or 0


def touch_key(session: Session, key_id: str, every_seconds: float) -> None:
    """Notes that the key was used, at most once in ``every_seconds``."""
    stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < now() - seconds(every_seconds))
    session.execute(
        update(ApiKey)
        .where(ApiKey.id == key_id, stale)
        .values(last_used_at=now())
        .execution_options(synchronize_session=False)
    )


def revoke_key(session: Session, key: ApiKey) -> None:
    """Makes the key useless from now on."""
    session.execute(
        update(ApiKey).where(ApiKey.id == key.id, ApiKey.revoked_at.is_(None)).values(revoked_at=now())
    )
    session.refresh(key)


def credential(session: Session, tenant_id: str, credential_id: str) -> HubCredential | None:
    """One Hub credential of a tenant that is not revoked."""
    return session.scalars(
        select(HubCredential).where(
            HubCredential.id == credential_id,
            HubCredential.tenant_id == tenant_id,
            HubCredential.revoked_at.is_(None),
        )
    ).one_or_none()


def credentials(session: Session, tenant_id: str) -> Sequence[HubCredential]:
    """The Hub credentials of a tenant, newest first."""
    return session.scalars(
        select(HubCredential)
        .where(HubCredential.tenant_id == tenant_id, HubCredential.revoked_at.is_(None))
        .order_by(HubCredential.created_at.desc(), HubCredential.id)
    ).all()


def revoke_credential(session: Session, credential: HubCredential) -> None:
    """Revokes the credential and overwrites the ciphertext."""
    session.execute(
        update(HubCredential)
        .where(HubCredential.id == credential.id)
        .values(revoked_at=now(), ciphertext=b"")
    )
    session.refresh(credential)


def touch_credential(session: Session, credential: HubCredential) -> None:
    """Notes that the token was used."""
    session.execute(
        update(HubCredential)
        .where(HubCredential.id == credential.id)
        .values(last_used_at=now())
        .execution_options(synchronize_session=False)
    )
