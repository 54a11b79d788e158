"""Pinning a repository and reading its small parts, through the real client library."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from huggingface_hub.utils._http import hf_raise_for_status

from hub.errors import (
    FileMissing,
    Gated,
    HashMismatch,
    HubError,
    NameRefused,
    RateLimited,
    RepoNotFound,
    RequestRefused,
    RevisionNotFound,
    TokenInvalid,
    TooLarge,
    Unavailable,
)
from hub.folder_faults import Fault
from hub.folder_server import FolderHub
from hub.snapshot import Hub
from tests.hub.conftest import HEADER, WEIGHTS, write_model

Clients = Callable[..., Hub]


def test_a_branch_is_pinned_to_the_commit_it_has_now(
    client: Clients, folder_hub: FolderHub, root: Path
) -> None:
    first = client().pin("team/model", "main")
    (root / "team/model/config.json").write_text("{}")
    assert first.sha != client().pin("team/model").sha == folder_hub.head("team/model")
    again = client().pin("team/model", first.sha)
    assert (again.sha, again.files) == (first.sha, first.files)
    assert (first.license, first.private, first.gated) == ("mit", False, False)


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlicense: other\nlicense_name: gemma\n---\n", "gemma"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit, apache-2.0"),
        ("no front matter", None),
        ("---\nlicense: {a: [}\n---\n", None),
    ],
)
def test_the_licence_comes_from_the_card(client: Clients, root: Path, card: str, license: str | None) -> None:
    write_model(root / "team/model", card=card)
    assert client().pin("team/model").license == license


def test_datasets_are_pinned_and_read(client: Clients) -> None:
    snapshot = client().pin("team/texts", repo_type="dataset")
    assert client().read_file(snapshot, "test.jsonl", 1000) == b'{"text": "hello"}\n'


def test_the_first_bytes_of_a_file_move_no_more_than_those(client: Clients, root: Path) -> None:
    folder = root / "datasets/team/texts"
    (folder / "long.txt").write_bytes(bytes(range(256)) * 400)
    snapshot = client().pin("team/texts", repo_type="dataset")
    assert client().start(snapshot, "long.txt", 10) == bytes(range(10))
    assert client().start(snapshot, "test.jsonl", 1000) == b'{"text": "hello"}\n'
    with pytest.raises(FileMissing):
        client().start(snapshot, "none.txt", 10)


def test_a_tree_of_twenty_thousand_files_is_read_whole(client: Clients, folder_hub: FolderHub) -> None:
    folder_hub.faults.tree_extra += [
        {"type": "file", "path": f"data/{number}.txt", "oid": "0" * 40, "size": 1} for number in range(20_000)
    ]
    snapshot = client().pin("team/model")
    assert len({file.path for file in snapshot.files}) == 20_003
    assert folder_hub.stats.requests["tree"] == 21


UNSAFE = ["../evil", "/etc/passwd", "a/../../b", "a\\..\\b", "C:/x", "a\u0000b", ".git/x", "x" * 2000, "", 7]


def test_a_repository_with_an_unsafe_file_name_is_refused(client: Clients, folder_hub: FolderHub) -> None:
    for name in UNSAFE:
        folder_hub.faults.tree_extra[:] = [{"type": "file", "path": name, "oid": "0" * 40, "size": 1}]
        with pytest.raises(NameRefused, match="not safe"):
            client().pin("team/model")


@pytest.mark.parametrize(
    "row",
    [
        {"path": "x", "oid": "0" * 40, "size": -1},
        {"path": "x", "oid": "nothex", "size": 1},
        {"path": "x", "oid": "0" * 40, "size": 1, "lfs": {"oid": "short"}},
    ],
)
def test_a_tree_without_digests_is_refused(
    client: Clients, folder_hub: FolderHub, row: dict[str, object]
) -> None:
    folder_hub.faults.tree_extra.append({"type": "file", **row})
    with pytest.raises(Unavailable):
        client().pin("team/model")


NAMELESS = ["../model", "a/b/c", "team/..", "", "a b", "team/model.git", "/model", "team/a--b", "team/a-"]


@pytest.mark.parametrize("repo", NAMELESS)
def test_names_that_are_no_repositories_never_reach_the_network(client: Clients, repo: str) -> None:
    with pytest.raises(NameRefused):
        client().pin(repo)


def test_texts_come_whole_and_checked(client: Clients) -> None:
    hub = client()
    snapshot = hub.pin("team/model")
    texts = hub.texts(snapshot, ["config.json", "README.md", "config.json"])
    assert json.loads(texts["config.json"]) == {"model_type": "llama"} and len(texts) == 2
    with pytest.raises(FileMissing):
        hub.texts(snapshot, ["absent.json"])
    with pytest.raises(TooLarge):
        hub.read_file(snapshot, "config.json", 5)


def test_headers_never_move_a_byte_of_a_tensor(client: Clients, folder_hub: FolderHub) -> None:
    hub = client()
    snapshot = hub.pin("team/model")
    assert hub.headers(snapshot, ["model.safetensors"]) == {"model.safetensors": WEIGHTS[: 8 + len(HEADER)]}
    assert folder_hub.stats.bytes == {"header": 8 + len(HEADER)}


@pytest.mark.parametrize(("end", "moved"), [(100, 1 << 18), (1 << 18, 1 << 18), (600_000, 1 << 20)])
def test_a_header_that_does_not_say_its_length_is_fetched_as_far_as_it_goes(
    client: Clients, folder_hub: FolderHub, root: Path, end: int, moved: int
) -> None:
    content = bytes(range(256)) * (1 << 14)
    (root / "team/model/m.gguf").write_bytes(content)
    hub = client()
    snapshot = hub.pin("team/model")
    folder_hub.stats.clear()
    found = hub.headers(snapshot, ["m.gguf"], lambda _, raw: end if len(raw) >= end else None)
    assert found == {"m.gguf": content[:end]}
    assert sum(folder_hub.stats.bytes.values()) == moved


def test_small_parts_of_files_move_no_more_than_themselves(
    client: Clients, folder_hub: FolderHub, root: Path
) -> None:
    content = bytes(range(256)) * (1 << 10)
    (root / "team/model/m.gguf").write_bytes(content)
    hub = client()
    snapshot = hub.pin("team/model")
    folder_hub.stats.clear()
    wanted = [("m.gguf", 5, 25), ("m.gguf", 1000, 1300), ("config.json", 0, 1), ("m.gguf", 7, 7)]
    assert hub.spans(snapshot, wanted) == {
        wanted[0]: content[5:25], wanted[1]: content[1000:1300], wanted[2]: b"{", wanted[3]: b"",
    }  # fmt: skip
    assert sum(folder_hub.stats.bytes.values()) == 20 + 300 + 1


@pytest.mark.parametrize("more", [1, -1])
def test_a_part_of_a_file_of_another_size_is_none_of_the_commit_s(
    client: Clients, waits: list[float], more: int
) -> None:
    snapshot = client().pin("team/model")
    other = replace(snapshot, files=tuple(replace(each, size=each.size + more) for each in snapshot.files))
    with pytest.raises(Unavailable, match="other bytes"):
        client().spans(other, [("config.json", 2, 8)])
    assert len(waits) == 4


def test_a_header_without_an_end_is_the_whole_of_a_short_file(client: Clients, root: Path) -> None:
    (root / "team/model/m.gguf").write_bytes(b"GGUF" * 1000)
    hub = client()
    assert hub.headers(hub.pin("team/model"), ["m.gguf"], lambda *_: None) == {"m.gguf": b"GGUF" * 1000}


@pytest.mark.parametrize("length", [0, 10_000, 1 << 40, (1 << 64) - 1])
def test_a_length_prefix_that_cannot_be_true_comes_back_alone(
    client: Clients, root: Path, length: int
) -> None:
    prefix = length.to_bytes(8, "little")
    write_model(root / "team/model", prefix + b"x" * 100)
    hub = client()
    assert hub.headers(hub.pin("team/model"), ["model.safetensors"]) == {"model.safetensors": prefix}


def test_a_file_shorter_than_its_length_prefix_comes_back_as_it_is(client: Clients, root: Path) -> None:
    write_model(root / "team/model", b"abc")
    hub = client()
    assert hub.headers(hub.pin("team/model"), ["model.safetensors"]) == {"model.safetensors": b"abc"}


def test_planning_a_large_model_takes_under_two_seconds(
    client: Clients, folder_hub: FolderHub, root: Path
) -> None:
    names = [f"model-0000{number}-of-00006.safetensors" for number in range(1, 7)]
    for name in names:
        entry = {"dtype": "BF16", "shape": [1024, 1024], "data_offsets": [0, 2 << 20]}
        header = json.dumps({f"model.layers.{number}.{name}": entry for number in range(100)}).encode()
        with (root / "team/model" / name).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(20 << 20)
    folder_hub.store.warm()
    folder_hub.stats.clear()
    hub, begin = client(), time.monotonic()
    snapshot = hub.pin("team/model")
    hub.texts(snapshot, ["config.json"])
    hub.headers(snapshot, names)
    assert time.monotonic() - begin < 2
    assert folder_hub.stats.bytes["weight"] == 0


def test_absent_private_and_gated_repositories_are_told_apart(client: Clients, folder_hub: FolderHub) -> None:
    with pytest.raises(RepoNotFound) as absent:
        client().pin("team/absent")
    folder_hub.mark("team/model", private=True)
    with pytest.raises(RepoNotFound) as private:
        client("hf_bob").pin("team/model")
    assert str(private.value) == str(absent.value).replace("team/absent", "team/model")
    folder_hub.mark("team/model", gated=True)
    with pytest.raises(Gated, match="team/model is gated"):
        client("hf_bob").pin("team/model")
    with pytest.raises(Gated):
        client(None).pin("team/model")
    assert client("hf_alice").pin("team/model").gated


def test_who_asks_without_a_token_hears_that_there_was_none(client: Clients, folder_hub: FolderHub) -> None:
    folder_hub.mark("team/model", gated=True)
    with pytest.raises(Gated, match="is gated and no token was given: ask its owner"):
        client(None).pin("team/model")
    with pytest.raises(RepoNotFound, match="is private and no token was given"):
        client(None).pin("team/absent")


def test_a_revoked_token_is_named_as_the_reason(client: Clients, folder_hub: FolderHub) -> None:
    hub = client()
    hub.pin("team/model")
    folder_hub.tokens.revoke("hf_alice")
    with pytest.raises(TokenInvalid) as caught:
        hub.pin("team/model")
    assert "hf_alice" not in str(caught.value) and not caught.value.retryable


@pytest.mark.parametrize("revision", ["absent", "0" * 40, "refs/pr/1", "../main"])
def test_an_unknown_revision_is_named(client: Clients, revision: str) -> None:
    with pytest.raises(RevisionNotFound, match="team/model"):
        client().pin("team/model", revision)


@pytest.mark.parametrize(("route", "status"), [("info", 500), ("tree", 503), ("get", 408)])
def test_passing_failures_are_tried_again(
    client: Clients, folder_hub: FolderHub, waits: list[float], route: str, status: int
) -> None:
    folder_hub.faults.add(route, Fault(status=status), times=2)
    hub = client()
    snapshot = hub.pin("team/model")
    assert hub.texts(snapshot, ["config.json"])
    assert waits == [0.5, 1.0]


def test_a_failure_that_stays_becomes_unavailable(
    client: Clients, folder_hub: FolderHub, waits: list[float]
) -> None:
    folder_hub.faults.add("info", Fault(status=502), times=100)
    with pytest.raises(Unavailable) as caught:
        client().pin("team/model")
    assert caught.value.retryable and "team/model" in str(caught.value)
    assert len(waits) == 4


@pytest.mark.parametrize("route", ["info", "tree"])
def test_a_rate_limit_is_waited_for_as_long_as_the_hub_says(
    client: Clients, folder_hub: FolderHub, waits: list[float], route: str
) -> None:
    limit = {"ratelimit": '"api";r=0;t=7', "ratelimit-policy": '"fixed window";"api";q=500;w=300'}
    folder_hub.faults.add(route, Fault(status=429, headers=limit), times=2)
    client().pin("team/model")
    assert waits == [8.0, 8.0]


def test_a_rate_limit_beyond_the_callers_patience_is_told_at_once(
    client: Clients, folder_hub: FolderHub, waits: list[float]
) -> None:
    folder_hub.faults.add("info", Fault(status=429, headers={"retry-after": "300"}))
    with pytest.raises(RateLimited, match="300 s") as caught:
        client(patience=5).pin("team/model")
    assert caught.value.seconds == 300 and caught.value.retryable and not waits


def test_a_text_that_breaks_off_is_fetched_again(
    client: Clients, folder_hub: FolderHub, waits: list[float]
) -> None:
    hub = client()
    snapshot = hub.pin("team/model")
    folder_hub.faults.add("get", Fault(drop_after=5))
    assert hub.read_file(snapshot, "config.json", 100) == b'{"model_type": "llama"}'
    assert waits == [0.5]


def test_a_text_with_other_content_than_the_commit_is_refused(client: Clients, folder_hub: FolderHub) -> None:
    hub = client()
    snapshot = hub.pin("team/model")
    folder_hub.faults.add("get", Fault(corrupt=True))
    assert hub.read_file(snapshot, "config.json", 100)
    folder_hub.faults.add("get", Fault(corrupt=True), times=2)
    with pytest.raises(HashMismatch, match=r"config\.json"):
        hub.read_file(snapshot, "config.json", 100)


@pytest.mark.parametrize("body", [["bad gateway"], "busy"])
def test_an_error_whose_body_the_client_library_cannot_read_is_told_by_its_status(
    client: Clients, body: object
) -> None:
    request = httpx2.Request("GET", "http://127.0.0.1/x")

    def work() -> None:
        hf_raise_for_status(httpx2.Response(502, json=body, request=request))

    with pytest.raises(Unavailable, match="answered 502 for team/model"):
        client().session.call("team/model", work)


def test_a_hub_that_sends_in_circles_is_unavailable(client: Clients) -> None:
    def work() -> None:
        raise httpx2.TooManyRedirects("Exceeded maximum allowed redirects.")

    with pytest.raises(Unavailable, match="team/model"):
        client().session.call("team/model", work)


def test_a_link_to_storage_that_has_run_out_is_no_lack_of_permission(client: Clients) -> None:
    request = httpx2.Request("GET", "https://storage.example/x")
    first = httpx2.Response(302, request=httpx2.Request("GET", "https://hub.example/x"))
    answer = httpx2.Response(403, request=request, history=[first])
    with pytest.raises(Unavailable, match="storage answered 403 for team/model"):
        client().session.call("team/model", lambda: hf_raise_for_status(answer))


def test_a_hub_that_is_not_there_is_unavailable() -> None:
    hub = Hub("http://127.0.0.1:9", None, sleep=lambda seconds: None)
    with pytest.raises(Unavailable, match="cannot be reached"):
        hub.pin("team/model")


def test_a_token_is_not_left_out_in_silence_where_the_address_has_a_password() -> None:
    """Of both, httpx sends the password alone; private models looked absent."""
    with pytest.raises(RequestRefused, match="no token can be sent"):
        Hub("http://ann:secret@127.0.0.1:9", "hf_alice")
    assert Hub("HTTP://127.0.0.1:9", "hf_alice").session.token == "hf_alice"


def test_a_pinned_private_commit_asks_the_hub_each_time(client: Clients, folder_hub: FolderHub) -> None:
    folder_hub.mark("team/model", private=True)
    sha = client("hf_alice").pin("team/model").sha
    with pytest.raises(RepoNotFound):
        client("hf_bob").pin("team/model", sha)


def test_the_token_is_in_no_log_line_and_no_message(
    client: Clients, folder_hub: FolderHub, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        hub = client()
        hub.texts(hub.pin("team/model"), ["config.json"])
        folder_hub.faults.add("info", Fault(status=500), times=9)
        with pytest.raises(HubError) as caught:
            hub.pin("team/model")
    assert "hf_alice" not in caplog.text + str(caught.value) + repr(hub.session)
