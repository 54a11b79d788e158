"""API keys, Hub tokens and the keyring: shown once, never stored in clear."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from db import tokens
from db.schema import metadata
from jobs import credentials, keys, webhooks
from jobs.errors import CredentialUnreadable, NotFound, RequestInvalid, ScopeMissing, Unauthenticated
from jobs.keyring import Keyring, Sealed
from tests.factories import make_caller, make_job, make_key

CANARY = "hf_canaryCANARYcanaryCANARYcanaryCANARY"
CANARY_SECRET = "whsec_Y2FuYXJ5Q0FOQVJZY2FuYXJ5Q0FOQVJZY2FuYXJ5"


def test_a_key_authenticates_its_tenant_with_its_scopes(session: Session) -> None:
    caller, secret = make_key(session, "acme", "merges:read", "webhooks")
    found = keys.authenticate(session, secret)
    assert found == caller
    assert found.may("merges:read") and not found.may("merges:write")
    with pytest.raises(ScopeMissing, match="merges:write"):
        found.require("merges:write")


def test_admin_may_do_everything(session: Session) -> None:
    assert all(make_caller(session).may(scope) for scope in keys.SCOPES)


def test_wrong_revoked_and_expired_keys_are_refused(session: Session) -> None:
    caller, secret = make_key(session)
    with pytest.raises(Unauthenticated, match="looks like"):
        keys.authenticate(session, secret[:-1] + ("0" if secret[-1] != "0" else "1"))
    forged = keys._new_secret()[1]
    with pytest.raises(Unauthenticated, match="no such"):
        keys.authenticate(session, forged)
    past = datetime.now(UTC) - timedelta(seconds=1)
    _, expired = keys.create_key(session, caller.tenant_id, "old", ["admin"], past)
    with pytest.raises(Unauthenticated, match="expired"):
        keys.authenticate(session, expired)
    keys.revoke_key(session, caller, caller.key_id)
    with pytest.raises(Unauthenticated, match="revoked"):
        keys.authenticate(session, secret)
    with pytest.raises(Unauthenticated):
        keys.caller_of(session, caller.key_id)


def test_same_prefix_with_another_body_is_refused(session: Session) -> None:
    _, secret = make_key(session)
    start = secret[: len(keys.MARK) + keys.PREFIX_LENGTH + 1] + "A" * keys.BODY_LENGTH
    with pytest.raises(Unauthenticated, match="no such"):
        keys.authenticate(session, start + keys._checksum(start))


def test_use_is_noted_at_most_once_a_minute(session: Session) -> None:
    caller, secret = make_key(session)
    other, _ = make_key(session)
    keys.authenticate(session, secret)
    row = tokens.tenant_key(session, caller.tenant_id, caller.key_id)
    unused = tokens.tenant_key(session, other.tenant_id, other.key_id)
    assert row is not None and unused is not None
    session.refresh(row)
    session.refresh(unused)
    assert unused.last_used_at is None
    first = row.last_used_at
    keys.authenticate(session, secret)
    session.refresh(row)
    assert first is not None and row.last_used_at == first


def test_unknown_scopes_are_refused_by_name(session: Session) -> None:
    caller = make_caller(session)
    with pytest.raises(RequestInvalid, match="'merge:all'"):
        keys.create_key(session, caller.tenant_id, "x", ["merge:all"])
    with pytest.raises(RequestInvalid, match="at least one"):
        keys.create_key(session, caller.tenant_id, "x", [])


@pytest.mark.parametrize("name", ["", "x" * 129, "\udcff"])
def test_a_key_needs_a_name_of_some_length(session: Session, name: str) -> None:
    caller = make_caller(session)
    with pytest.raises(RequestInvalid, match="name must have 1 to 128 characters"):
        keys.create_key(session, caller.tenant_id, name, ["admin"])


def test_a_tenant_sees_and_revokes_only_its_own_keys(session: Session) -> None:
    caller, stranger = make_caller(session, "a"), make_caller(session, "b")
    assert [key.id for key in keys.list_keys(session, caller)] == [caller.key_id]
    with pytest.raises(NotFound):
        keys.revoke_key(session, caller, stranger.key_id)


def test_a_hub_token_comes_back_for_its_own_tenant_only(session: Session, keyring: Keyring) -> None:
    caller, stranger = make_caller(session, "a"), make_caller(session, "b")
    row = credentials.store_token(session, keyring, caller.tenant_id, "mine", CANARY)
    assert credentials.open_token(session, keyring, caller.tenant_id, row.id) == CANARY
    with pytest.raises(NotFound):
        credentials.open_token(session, keyring, stranger.tenant_id, row.id)
    credentials.revoke_credential(session, caller.tenant_id, row.id)
    assert row.ciphertext == b""
    with pytest.raises(NotFound):
        credentials.open_token(session, keyring, caller.tenant_id, row.id)


def test_a_ciphertext_moved_to_another_row_does_not_open(session: Session, keyring: Keyring) -> None:
    caller = make_caller(session)
    row = credentials.store_token(session, keyring, caller.tenant_id, "one", CANARY)
    other = credentials.store_token(session, keyring, caller.tenant_id, "two", "hf_other")
    other.ciphertext = row.ciphertext
    session.flush()
    with pytest.raises(CredentialUnreadable, match="altered"):
        credentials.open_token(session, keyring, caller.tenant_id, other.id)


def test_the_key_can_be_changed_while_old_ciphertexts_still_open() -> None:
    sealed = Keyring("first").seal("text", "tenant", "row")
    rotated = Keyring("second", older=("first",))
    assert rotated.open(sealed, "tenant", "row") == "text"
    assert rotated.seal("text", "tenant", "row").key_id != sealed.key_id
    with pytest.raises(CredentialUnreadable, match="not configured"):
        Keyring("third").open(sealed, "tenant", "row")


def test_what_an_earlier_release_kept_is_read_by_this_one() -> None:
    body = "c97e82cf8271c9275c81d988bb76254a7ae3e1d91451337ef08e2b4bf840c77d79c304"
    kept = Sealed("706b9d477680", bytes.fromhex(body))  # its key worked out by hand from RFC 5869
    assert Keyring("an operator's secret of long ago").open(kept, "ten_1", "cred_1") == "hf_kept"
    assert keys.is_well_formed("mk_live_AbCd0123_0123456789abcdefghijklmnopqrstuv37Y1Fx")


def test_equal_texts_have_different_ciphertexts(keyring: Keyring) -> None:
    one, two = keyring.seal("x", "t"), keyring.seal("x", "t")
    assert one.ciphertext != two.ciphertext
    changed = Sealed(one.key_id, one.ciphertext[:-1] + bytes([one.ciphertext[-1] ^ 1]))
    with pytest.raises(CredentialUnreadable):
        keyring.open(changed, "t")


@pytest.mark.parametrize("token", ["", "  ", "x" * 513, "hf_\n", "hf_ü"])
def test_unfit_tokens_are_refused_without_being_repeated(
    session: Session, keyring: Keyring, token: str
) -> None:
    caller = make_caller(session)
    with pytest.raises(RequestInvalid) as refused:
        credentials.store_token(session, keyring, caller.tenant_id, "x", token)
    assert len(token) < 3 or token not in str(refused.value)


def test_no_secret_lies_in_any_row_in_clear(session: Session, keyring: Keyring) -> None:
    caller, key = make_key(session)
    row = credentials.store_token(session, keyring, caller.tenant_id, "mine", CANARY)
    job = make_job(
        session,
        caller,
        hub_credential=row.id,
        webhook={"url": "https://a.example", "secret": CANARY_SECRET},
    )
    assert "secret" not in job.spec["webhook"]
    endpoint, _ = webhooks.create_endpoint(
        session, keyring, caller.tenant_id, "https://b.example", secret=CANARY_SECRET
    )
    webhooks.rotate_secret(session, keyring, endpoint)
    secrets = [CANARY, CANARY_SECRET, CANARY_SECRET.removeprefix("whsec_"), key]
    searched = 0
    for table in metadata().tables:
        for (content,) in session.execute(text(f'SELECT t::text FROM "{table}" t')):
            searched += 1
            for secret in secrets:
                assert secret not in content
                assert secret.encode().hex() not in content
    assert searched >= 8
