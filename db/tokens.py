"""Queries on tenants, API keys and Hub credentials."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.clock import now, seconds
from db.listen import CHANNEL
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


class KnownKey(NamedTuple):
    """A key as one look finds it: whether it is neither revoked nor expired, and when its use is to be
    noted.
    """

    row: ApiKey
    usable: bool
    unnoted: bool


def key_by_prefix(session: Session, prefix: str, note_seconds: float) -> KnownKey | None:
    """The key whose secret starts with this public part, revoked and expired ones too."""
    return _known(session, ApiKey.prefix == prefix, note_seconds)


def key_by_id(session: Session, key_id: str, note_seconds: float) -> KnownKey | None:
    """The key with this id, revoked and expired ones too."""
    return _known(session, ApiKey.id == key_id, note_seconds)


def _known(session: Session, which: ColumnElement[bool], note_seconds: float) -> KnownKey | None:
    unexpired = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now())
    usable = ApiKey.revoked_at.is_(None) & unexpired
    found = session.execute(select(ApiKey, usable, _unnoted(note_seconds)).where(which)).one_or_none()
    return None if found is None else KnownKey(*found)


def _unnoted(note_seconds: float) -> ColumnElement[bool]:
    return or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < now() - seconds(note_seconds))


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
    session.execute(
        update(ApiKey)
        .where(ApiKey.id == key_id, _unnoted(every_seconds))
        .values(last_used_at=now())
        .execution_options(synchronize_session=False)
    )


def revoke_key(session: Session, key: ApiKey) -> None:
    """Makes the key useless from now on; whoever remembers it hears so when the transaction commits."""
    session.execute(
        update(ApiKey).where(ApiKey.id == key.id, ApiKey.revoked_at.is_(None)).values(revoked_at=now())
    )
    session.execute(select(func.pg_notify(CHANNEL, key.id)))
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
