"""One way to talk to a Hub: the client library's calls with time limits, retries and our own errors around
them.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import set_client_factory
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import get_session, hf_raise_for_status, parse_ratelimit_headers
from huggingface_hub.utils.tqdm import disable_progress_bars

from hub.errors import (
    Conflict,
    FileMissing,
    Gated,
    HubError,
    NameRefused,
    PermissionDenied,
    RateLimited,
    RepoNotFound,
    RequestRefused,
    RevisionNotFound,
    TokenInvalid,
    Unavailable,
)

Result = TypeVar("Result")
CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
TRIES = 5
FIRST_WAIT = 0.5
LONGEST_WAIT = 8.0
PIECE = 1 << 20
PIECE_SECONDS = 0.5
ROUTES = ("tree", "preupload", "commit", "batch", "xet-read-token", "xet-write-token", "create", "whoami-v2")
XET_REFUSED = re.compile(
    r"HTTP status client error \((4[0-9]{2}) [^)]*\), domain: \S+/xet-(?:read|write)-token/"
)
TRANSPORT = (httpx2.RequestError, ConnectionError, TimeoutError)


Heard = Callable[[str, int], None]
_heard: list[Heard] = []


def count_answers(heard: Heard) -> Callable[[], None]:
    """Calls ``heard`` with the route and the status of every answer that this process gets from a Hub.

    Gives a function that ends it, also when it is called again.
    """
    _heard.append(heard)

    def end() -> None:
        if heard in _heard:
            _heard.remove(heard)

    return end


def route_of(path: str) -> str:
    """What kind of request a path is; never a name of a repository or a file."""
    parts = path.strip("/").split("/")
    if "resolve" in parts:
        return "resolve"
    named = [part for part in parts if part in ROUTES]
    return named[-1] if named else "info" if parts[:1] == ["api"] else "other"


def _tell(response: httpx2.Response) -> None:
    for heard in _heard:
        heard(route_of(response.url.path), response.status_code)


def _client() -> httpx2.Client:
    return httpx2.Client(
        follow_redirects=True,
        timeout=httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
        event_hooks={"response": [_tell]},
    )


set_client_factory(_client)
disable_progress_bars()
WITHOUT_TOKEN: dict[type[HubError], str] = {
    TokenInvalid: "the Hub wants a token for {what} and none was given; name a stored one that may do this "
    "(hub_credential)",
    Gated: "{what} is gated and no token was given: ask its owner for access, and name a stored token of "
    "that account (hub_credential)",
    RepoNotFound: "{what} does not exist on the Hub, or is private and no token was given (hub_credential)",
}
"""What is said where nobody told who asks."""


@dataclass(frozen=True)
class Patience:
    """The longest pause, in seconds, that a caller will make before another try, and how it is made."""

    seconds: float
    sleep: Callable[[float], None] = time.sleep

    def wait(self, seconds: float) -> bool:
        """Pause, unless that is too long; whether it did."""
        if seconds > self.seconds:
            return False
        self.sleep(seconds)
        return True


class Session:
    """Calls to one endpoint with one token. The token is never part of a message, and of an endpoint with a
    user and a password only ``public`` is shown.
    """

    def __init__(self, endpoint: str, token: str | None, patience: Patience) -> None:
        self.endpoint = endpoint.rstrip("/")
        self.public = without_user(self.endpoint)
        if token and "@" in urlsplit(self.endpoint).netloc:
            raise RequestRefused(
                "the address of the Hub holds a user or a password, beside which no token can be sent; give "
                "the job none, or the service an address without them (MERGERY_HUB_ENDPOINT)"
            )
        self.token: str | bool = token or False
        self.headers = dict(build_hf_headers(token=self.token))
        self._patience = patience

    def call(self, what: str, work: Callable[[], Result], *, tries: int = TRIES) -> Result:
        """``work()``, tried again after failures that pass; ``what`` names the repository or file in
        messages.
        """
        for number in range(tries):
            last = number == tries - 1
            try:
                return work()
            except Exception as error:
                found = translate(error, what)
                if found is None:
                    raise
                if not self.token and type(found) in WITHOUT_TOKEN:
                    raise type(found)(WITHOUT_TOKEN[type(found)].format(what=what)) from None
                if (
                    last
                    or not found.retryable
                    or isinstance(found, Conflict)
                    or not self.pause(found, number)
                ):
                    raise found from None
        raise Unavailable(f"{what}: no try was left")

    def pause(self, error: HubError, failures: int) -> bool:
        """Wait as long as the Hub asked for, else longer with each failure; False when patience does not
        reach.
        """
        seconds = min(FIRST_WAIT * 2**failures, LONGEST_WAIT)
        if isinstance(error, RateLimited) and error.seconds is not None:
            seconds = error.seconds
        return self._patience.wait(seconds)

    @contextmanager
    def stream(self, url: str, headers: dict[str, str]) -> Iterator[httpx2.Response]:
        """A GET whose body has not been read yet and whose status is good. Not tried again: use it inside
        ``call``.
        """
        with get_session().stream("GET", url, headers={**self.headers, **headers}) as response:
            if response.is_error:
                response.read()
            hf_raise_for_status(response)
            yield response

    def get(self, url: str, what: str, headers: dict[str, str] | None = None) -> httpx2.Response:
        """A GET whose reply has been read whole and whose status is good."""

        def work() -> httpx2.Response:
            response = get_session().get(url, headers={**self.headers, **(headers or {})})
            hf_raise_for_status(response)
            return response

        return self.call(what, work)


def arriving(response: httpx2.Response) -> Iterator[bytes]:
    """The body of a reply a MiB at a time, or what half a second has brought; before an error, what came
    until then.
    """
    gathered, since = bytearray(), time.monotonic()
    try:
        for piece in response.iter_bytes():
            gathered += piece
            if len(gathered) >= PIECE or time.monotonic() - since >= PIECE_SECONDS:
                yield bytes(gathered)
                gathered, since = bytearray(), time.monotonic()
    except Exception:
        if gathered:
            yield bytes(gathered)
        raise
    if gathered:
        yield bytes(gathered)


def without_user(url: str) -> str:
    """An address as it may be shown: without a user and a password in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def translate(error: BaseException, what: str) -> HubError | None:
    """Our error for what the client library raised about ``what``; None if it is none of the Hub's."""
    if isinstance(error, HubError):
        return error
    for seen in _chain(error):
        if isinstance(seen, HfHubHTTPError):
            return _of_reply(seen, what)
        if isinstance(seen, httpx2.HTTPStatusError):  # its body was none that the client library can read
            return _of_status(seen.response, what)
    if isinstance(error, HFValidationError):
        return NameRefused(f"{what} is not a name that a Hub repository can have")
    if isinstance(error, EntryNotFoundError):
        return FileMissing(f"{what} does not exist")
    refused = XET_REFUSED.search(str(error)) if isinstance(error, ConnectionError) else None
    if refused is not None:
        return _of_xet(int(refused[1]), what)
    if any(isinstance(seen, TRANSPORT) for seen in _chain(error)) or _is_closed_client(error):
        return Unavailable(f"the Hub cannot be reached for {what}; it is tried again later")
    return None


def _of_reply(error: HfHubHTTPError, what: str) -> HubError:
    if isinstance(error, GatedRepoError):
        return Gated(f"{what} is gated: ask its owner for access with the account the token belongs to")
    if isinstance(error, RepositoryNotFoundError):
        return RepoNotFound(f"{what} does not exist on the Hub, or is private and the token may not see it")
    if isinstance(error, RevisionNotFoundError):
        return RevisionNotFound(f"{what} does not have this revision")
    if isinstance(error, EntryNotFoundError):
        return FileMissing(f"{what} does not exist in this revision")
    if isinstance(error, DisabledRepoError):
        return PermissionDenied(f"{what} was disabled by the Hub")
    return _of_status(error.response, what)


def quoted(said: str) -> str:
    """What a Hub said, on one line, as the end of a message."""
    flat = " ".join("".join(char if char.isprintable() else " " for char in said).split())
    return f" (the Hub says: {flat[:300]})" if flat else ""


def _of_status(response: httpx2.Response, what: str) -> HubError:
    status, said = response.status_code, quoted(response.headers.get("x-error-message", ""))
    if status < 500 and status not in (408, 429) and _is_of_storage(response):
        return Unavailable(
            f"the Hub's storage answered {status} for {what}; it is tried again with a new link"
        )
    if status == 401:
        return TokenInvalid(
            "the Hub does not accept the token: it is wrong or has been revoked; give a new one"
        )
    if status in (402, 403):
        return PermissionDenied(f"the token has no permission for {what}{said}; use one that has")
    if status == 404:
        return FileMissing(f"the Hub has nothing at the address of {what}")
    if status in (409, 412):
        return Conflict(f"{what} changed on the Hub in the meantime")
    if status == 429:
        seconds = _reset_seconds(response)
        later = "later" if seconds is None else f"in {seconds:.0f} s"
        return RateLimited(f"the Hub's rate limit is used up; {what} can be tried again {later}", seconds)
    if status == 408 or status >= 500:
        return Unavailable(f"the Hub answered {status} for {what}; it is tried again later")
    return RequestRefused(f"the Hub refused the request for {what} with status {status}{said}")


def _of_xet(status: int, what: str) -> HubError:
    """Of a refusal to hand out a token for xet the client library tells only the status, in a text."""
    if status == 404:
        return RequestRefused(
            f"the Hub takes no upload of {what} by xet; set HF_HUB_DISABLE_XET=1 for workers"
        )
    return _of_status(httpx2.Response(status, request=httpx2.Request("GET", "")), what)


def _is_of_storage(response: httpx2.Response) -> bool:
    """Whether a reply comes from behind a link that the Hub has signed: such links run out, and no token is
    shown there.
    """
    hosts = {each.url.netloc for each in (*response.history, response)}
    return len(hosts) > 1 or response.request.method == "PUT"


def _reset_seconds(response: httpx2.Response) -> float | None:
    limit = parse_ratelimit_headers(response.headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds) + 1
    after = response.headers.get("retry-after", "")
    if after.isascii() and after.isdigit():
        return float(after)
    try:
        return max(parsedate_to_datetime(after).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return None


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found


def _is_closed_client(error: BaseException) -> bool:
    """A connection that failed in another thread closes the shared client; the next call opens a new one."""
    return isinstance(error, RuntimeError) and "client has been closed" in str(error)


def json_of(response: httpx2.Response, what: str) -> Any:
    """The JSON of a reply; anything else is an endpoint that is not a Hub."""
    try:
        return response.json()
    except (ValueError, RecursionError):
        raise Unavailable(f"the Hub's answer for {what} is not JSON; is the endpoint right?") from None
