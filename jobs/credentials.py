"""Hub tokens of tenants: sealed when they come in, opened only where a call to the Hub is made."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from db import tokens
from db.models.base import new_id
from db.models.tenant import HubCredential
from jobs.errors import NotFound, RequestInvalid
from jobs.keyring import Keyring, Sealed

LONGEST_TOKEN = 512


def store_token(session: Session, keyring: Keyring, tenant_id: str, name: str, token: str) -> HubCredential:
    """Keeps a Hub token, encrypted and bound to the tenant and the row."""
    if not token.strip() or len(token) > LONGEST_TOKEN or not token.isascii() or not token.isprintable():
        raise RequestInvalid("The Hub token is empty, too long, or holds odd characters.", "/token")
    row_id = new_id("cred")
    sealed = keyring.seal(token.strip(), tenant_id, row_id)
    row = HubCredential(
        id=row_id, tenant_id=tenant_id, name=name, key_id=sealed.key_id, ciphertext=sealed.ciphertext
    )
    session.add(row)
    session.flush()
    return row


def open_token(session: Session, keyring: Keyring, tenant_id: str, credential_id: str) -> str:
    """The clear token. Raises ``NotFound`` when revoked, ``CredentialUnreadable`` when the key is gone."""
    row = find_credential(session, tenant_id, credential_id)
    token = keyring.open(Sealed(row.key_id, row.ciphertext), tenant_id, row.id)
    tokens.touch_credential(session, row)
    return token


def find_credential(session: Session, tenant_id: str, credential_id: str) -> HubCredential:
    """The row of a tenant's credential. Raises ``NotFound``."""
    row = tokens.credential(session, tenant_id, credential_id)
    if row is None:
        raise NotFound("Hub credential", credential_id)
    return row


def list_credentials(session: Session, tenant_id: str) -> Sequence[HubCredential]:
    """The tenant's credentials, newest first; none holds a clear token."""
    return tokens.credentials(session, tenant_id)


def revoke_credential(session: Session, tenant_id: str, credential_id: str) -> HubCredential:
    """Forgets the token: the ciphertext is overwritten, the row stays for the jobs that name it."""
    row = find_credential(session, tenant_id, credential_id)
    tokens.revoke_credential(session, row)
    return row
