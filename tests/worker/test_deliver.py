"""One webhook on the wire."""

import socket
import threading
import time
from pathlib import Path

import pytest

from tests.worker.receivers import answer, certificate, receiver
from worker.address import parse_networks
from worker.deliver import REPLY_BYTES, Sender

LOOPBACK = parse_networks(["127.0.0.0/8"])


def to_loopback(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]


def plain(**options: object) -> Sender:
    return Sender(allow_http=True, allowed=LOOPBACK, resolver=to_loopback, **options)  # type: ignore[arg-type]


def test_body_and_headers_arrive_under_the_name_of_the_host() -> None:
    with receiver(answer("204 No Content", body=b"")) as (port, requests):
        reply = plain().post(f"http://hook.example:{port}/in?x=1", {"webhook-id": "msg_1"}, b'{"a":1}')
    assert reply.accepted and reply.status == 204 and reply.error is None
    head, _, body = requests[0].partition(b"\r\n\r\n")
    assert body == b'{"a":1}'
    lines = head.lower().split(b"\r\n")
    assert lines[0] == b"post /in?x=1 http/1.1"
    assert f"host: hook.example:{port}".encode() in lines
    assert b"webhook-id: msg_1" in lines and b"content-type: application/json" in lines


def test_tls_is_checked_against_the_name_although_the_address_is_given(tmp_path: Path) -> None:
    server, client = certificate(tmp_path, "hook.example")
    named: list[str | None] = []
    server.sni_callback = lambda _socket, name, _context: named.append(name)
    with receiver(answer("200 OK"), server) as (port, _):
        sender = Sender(allowed=LOOPBACK, resolver=to_loopback, ssl_context=client)
        assert sender.post(f"https://hook.example:{port}/", {}, b"{}").accepted
        wrong = sender.post(f"https://other.example:{port}/", {}, b"{}")
    assert named[0] == "hook.example"
    assert wrong.status is None and "certificate verify failed" in (wrong.error or "")


def test_the_name_is_resolved_once_so_a_rebinding_name_cannot_move_the_connection() -> None:
    asked: list[str] = []

    def rebinding(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        asked.append(host)
        return to_loopback(host, port)

    with receiver(answer("200 OK")) as (port, requests):
        sender = Sender(allow_http=True, allowed=LOOPBACK, resolver=rebinding)
        assert sender.post(f"http://hook.invalid:{port}/", {}, b"{}").accepted
        assert sender.post(f"http://hook.invalid:{port}/", {}, b"{}").accepted
    assert asked == ["hook.invalid", "hook.invalid"]
    assert len(requests) == 2


def test_nothing_is_sent_to_an_address_that_is_not_allowed() -> None:
    with receiver(answer("200 OK")) as (port, requests):
        reply = Sender(allow_http=True).post(f"http://127.0.0.1:{port}/", {}, b"{}")
    assert reply.status is None and "not a public address" in (reply.error or "")
    assert requests == []


def test_a_redirect_is_a_failure_and_is_not_followed() -> None:
    with (
        receiver(answer("200 OK")) as (other, reached),
        receiver(answer("307 Temporary Redirect", f"location: http://127.0.0.1:{other}/\r\n")) as (port, _),
    ):
        reply = plain().post(f"http://hook.example:{port}/", {}, b"{}")
    assert reply.status == 307 and not reply.accepted and "not followed" in (reply.error or "")
    assert reached == []


def test_the_environments_proxy_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with receiver(answer("200 OK")) as (port, requests):
        assert plain().post(f"http://hook.example:{port}/", {}, b"{}").accepted
    assert len(requests) == 1


def test_no_more_than_64_kib_of_the_answer_is_read() -> None:
    with receiver(answer("200 OK", body=b"x" * (8 << 20))) as (port, _):
        reply = plain().post(f"http://hook.example:{port}/", {}, b"{}")
    assert reply.accepted and len(reply.body) == REPLY_BYTES


def test_a_dripping_answer_ends_at_the_deadline() -> None:
    def drip(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        for _ in range(100):
            connection.sendall(b"x")
            time.sleep(0.1)

    with receiver(drip) as (port, _):
        started = time.monotonic()
        reply = plain(total_seconds=0.6).post(f"http://hook.example:{port}/", {}, b"{}")
    assert time.monotonic() - started < 3
    assert reply.status is None and reply.error == "no complete answer within 0.6 s"


def test_a_silent_receiver_ends_at_the_deadline() -> None:
    over = threading.Event()

    def wait(*_: object) -> None:
        over.wait(20)

    with receiver(wait) as (port, _):
        reply = plain(total_seconds=0.4).post(f"http://hook.example:{port}/", {}, b"{}")
        over.set()
    assert reply.status is None and "0.4 s" in (reply.error or "") and reply.seconds < 1


def test_a_refused_connection_and_nonsense_are_failures_with_a_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert "ConnectError" in (plain().post(f"http://hook.example:{port}/", {}, b"{}").error or "")
    with receiver(lambda connection, _: connection.sendall(b"nonsense\r\n\r\n")) as (port, _):
        reply = plain().post(f"http://hook.example:{port}/", {}, b"{}")
    assert reply.status is None and "RemoteProtocolError" in (reply.error or "")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("soon", None),
        ("-3", None),
        ("1 Jan 1 1:1:1 +99999999999999", None),
    ],
)
def test_retry_after_is_read_in_both_forms(header: str, seconds: float | None) -> None:
    with receiver(answer("429 Too Many Requests", f"retry-after: {header}\r\n")) as (port, _):
        reply = plain().post(f"http://hook.example:{port}/", {}, b"{}")
    assert (reply.status, reply.retry_after) == (429, seconds)
