"""Who is calling: an API key in the Authorization header, or the dashboard's signed session cookie."""

import base64
import binascii
import hmac
import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request, Response

from api.errors import CHALLENGE, Problem
from jobs.keys import Caller

SESSION_SECONDS = 12 * 3600
FORMS_SECONDS = 24 * 3600
"""So long after a session's end its forms can still be sent, by whoever signs in again with the same key."""
REMEMBER_SECONDS = 60.0
DEAF_SECONDS = 1.0
REMEMBER_MOST = 10_000
CSRF_HEADER = "X-CSRF-Token"
CSRF_FIELD = "csrf_token"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def derive(master: bytes, purpose: str) -> bytes:
    """A key for one purpose, so that what is signed for one thing is never valid for another."""
    return hmac.digest(master, b"mergery/" + purpose.encode(), "sha256")


@dataclass(frozen=True)
class Session:
    """What a session cookie says: the API key it stands for and when it ends (unix seconds)."""

    key_id: str
    expires_at: int
    nonce: str


@dataclass(frozen=True)
class Signer:
    """Makes and checks session cookies and CSRF tokens. ``clock`` gives unix seconds."""

    key: bytes
    https: bool
    clock: Callable[[], float] = time.time

    @property
    def cookie(self) -> str:
        """Name of the cookie; the ``__Host-`` prefix needs https."""
        return "__Host-mergery" if self.https else "mergery"

    def session(self, key_id: str, seconds: int = SESSION_SECONDS, before: Session | None = None) -> Session:
        """A new session for an API key. The forms of the one ``before`` are good for it too, if that was of
        the same key: only its time was over.
        """
        nonce = before.nonce if before and before.key_id == key_id else secrets.token_urlsafe(12)
        return Session(key_id, int(self.clock()) + seconds, nonce)

    def sign(self, session: Session) -> str:
        """The cookie value of ``session``."""
        text = json.dumps([session.key_id, session.expires_at, session.nonce]).encode()
        return base64.urlsafe_b64encode(self._mac(b"session", text) + text).decode()

    def verify(self, value: str) -> Session | None:
        """The session in a cookie value, or nothing when it was changed or is over."""
        session = self.read(value)
        return session if session and session.expires_at > self.clock() else None

    def read(self, value: str) -> Session | None:
        """The session in a cookie value, also one that is over; nothing when it was changed."""
        try:
            raw = base64.urlsafe_b64decode(value.encode("ascii"))
        except (binascii.Error, ValueError):
            return None
        mac, text = raw[:32], raw[32:]
        if not hmac.compare_digest(mac, self._mac(b"session", text)):
            return None
        return Session(*json.loads(text))

    def csrf_token(self, session: Session) -> str:
        """The token that forms of this session must carry."""
        return self._mac(b"csrf", session.nonce.encode()).hex()

    def csrf_ok(self, session: Session, token: str | None) -> bool:
        """Whether ``token`` belongs to ``session``."""
        return token is not None and hmac.compare_digest(token.encode(), self.csrf_token(session).encode())

    def set_cookie(self, response: Response, session: Session) -> None:
        """Puts ``session`` into the browser: HttpOnly, SameSite=Lax, Secure under https."""
        age = max(0, session.expires_at - int(self.clock())) + FORMS_SECONDS
        response.set_cookie(
            self.cookie, self.sign(session), age, path="/", secure=self.https, httponly=True, samesite="lax"
        )

    def clear_cookie(self, response: Response) -> None:
        """Ends the session in the browser."""
        response.delete_cookie(self.cookie, path="/", secure=self.https, httponly=True, samesite="lax")

    def _mac(self, purpose: bytes, text: bytes) -> bytes:
        return hmac.digest(self.key, purpose + b"\0" + text, "sha256")


class Remembered:
    """Callers seen lately, so that a busy client costs no query a request.

    A revocation is heard from the database within milliseconds (``api/feed.py``) and forgets them all. While
    nobody listens, a caller is remembered for a second only.
    """

    def __init__(
        self, hearing: Callable[[], bool] = lambda: False, clock: Callable[[], float] = time.time
    ) -> None:
        self.hearing = hearing
        self.clock = clock
        self.seen: dict[str, tuple[float, Caller]] = {}
        self.lock = threading.Lock()
        self.forgotten = 0

    def held(self, credential: str) -> Caller | None:
        """The caller behind ``credential`` if it was seen lately."""
        held = self.seen.get(credential)
        return held[1] if held and held[0] > self.clock() else None

    def get(self, credential: str, find: Callable[[], Caller]) -> Caller:
        """The caller behind ``credential``; ``find`` is asked for one not seen lately. No refusal is kept."""
        held = self.held(credential)
        if held is not None:
            return held
        forgotten = self.forgotten
        caller = find()
        until = self.clock() + (REMEMBER_SECONDS if self.hearing() else DEAF_SECONDS)
        if caller.expires_at is not None:
            until = min(until, caller.expires_at.timestamp())
        with self.lock:
            if self.forgotten == forgotten:  # else it may have been revoked since it was found
                if len(self.seen) >= REMEMBER_MOST:
                    self.seen.clear()
                self.seen[credential] = (until, caller)
        return caller

    def forget(self) -> None:
        """After a key was revoked, or may have been: everybody is looked up again."""
        with self.lock:
            self.forgotten += 1
            self.seen.clear()


def bearer_of(request: Request) -> str | None:
    """The secret in the Authorization header, if there is one."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    return secret.strip() or None if scheme.lower() == "bearer" else None


def session_of(request: Request, signer: Signer) -> Session | None:
    """The valid session of this request's cookie, if there is one."""
    value = request.cookies.get(signer.cookie)
    return signer.verify(value) if value else None


def unauthenticated(detail: str = "send `Authorization: Bearer mk_live_…`") -> Problem:
    """The 401 answer."""
    return Problem("unauthenticated", detail, headers={"WWW-Authenticate": CHALLENGE})


def check_csrf(request: Request, signer: Signer, session: Session, token: str | None = None) -> None:
    """Raises ``csrf_failed`` when a cookie-borne request changes something without its token.

    ``token`` is the form field where there is one; scripts send the header.
    """
    if request.method in SAFE_METHODS:
        return
    if not signer.csrf_ok(session, token or request.headers.get(CSRF_HEADER)):
        raise Problem(
            "csrf_failed", f"send the session's token as {CSRF_HEADER} or as the field {CSRF_FIELD}"
        )
