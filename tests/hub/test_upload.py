"""Pushing a result: shard by shard, visible at once, once, and only where it belongs."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from starlette.responses import JSONResponse

from hub.errors import (
    Conflict,
    NameRefused,
    PermissionDenied,
    RateLimited,
    RepoNotOurs,
    RepoPublic,
    RequestRefused,
    TokenInvalid,
    Unavailable,
)
from hub.folder_faults import Fault
from hub.folder_server import FolderHub
from hub.snapshot import Hub
from hub.upload import KEPT_IN_MEMORY, Push

Clients = Callable[..., Hub]
SMALL = {
    "README.md": b"---\nlicense: mit\n---\n# Merged\n",
    "mergery.json": b'{"recipe": {}}',
    "config.json": b"{}",
}
REPO = "team/result"


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Two output shards of three megabytes."""
    paths = [tmp_path / f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for number, path in enumerate(paths):
        path.write_bytes(hashlib.shake_128(bytes([number])).digest(3 << 20))
    return paths


def names(hub: Hub, repo: str = REPO) -> list[str]:
    return sorted(file.path for file in hub.pin(repo).files)


def manifest(hub: Hub, repo: str = REPO) -> dict[str, object]:
    document = json.loads(hub.read_file(hub.pin(repo), "mergery.json", 1000))
    assert isinstance(document, dict)
    return document


def push_all(hub: Hub, shards: list[Path], job_id: str = "job_1") -> Push:
    push = Push(hub, REPO, job_id=job_id)
    push.prepare()
    for shard in shards:
        push.add_file(shard.name, shard)
    push.commit("Merge", SMALL)
    return push


def test_shards_leave_the_disk_as_they_go_and_show_all_at_once(
    client: Clients, folder_hub: FolderHub, shards: list[Path], root: Path
) -> None:
    hub, push = client(), Push(client(), REPO, job_id="job_1")
    assert push.prepare() is None
    contents, text = {}, shards[0].with_name("tokenizer.json")
    text.write_bytes(b"a" * (2 << 20))  # no large file to the Hub, so sent with the commit alone
    for shard in (*shards, text):
        contents[shard.name] = shard.read_bytes()
        push.add_file(shard.name, shard)
        shard.unlink()
        assert names(hub) == []
    result = push.commit("Merge", SMALL)
    assert result.sha == hub.pin(REPO).sha and result.url.endswith(f"/{REPO}/commit/{result.sha}")
    assert names(hub) == sorted([*contents, *SMALL])
    assert hub.pin(REPO).private
    assert {name: (root / REPO / name).read_bytes() for name in contents} == contents
    assert manifest(hub) == {"recipe": {}, "job_id": "job_1"}
    assert folder_hub.stats.requests["commit"] == 1 and folder_hub.stats.requests["xet-token"] > 0


def test_a_password_in_the_address_of_the_hub_is_not_in_that_of_the_result(client: Clients) -> None:
    head = client().pin("team/model")
    push = Push(Hub("http://ann:secret@127.0.0.1:9/hub", None), REPO, job_id="job_1")
    assert push._result(head).url == f"http://127.0.0.1:9/hub/{REPO}/commit/{head.sha}"


def test_a_lost_reply_is_settled_without_a_second_commit(
    client: Clients, folder_hub: FolderHub, shards: list[Path]
) -> None:
    folder_hub.faults.add("commit", Fault(status=500, after=True))
    push = push_all(client(), shards)
    assert folder_hub.stats.requests["commit"] == 1
    assert push.commit("Merge", SMALL).sha == client().pin(REPO).sha
    assert folder_hub.stats.requests["commit"] == 1


def test_a_failed_commit_is_posted_again(
    client: Clients, folder_hub: FolderHub, shards: list[Path], waits: list[float]
) -> None:
    folder_hub.faults.add("commit", Fault(status=503), times=2)
    push_all(client(), shards)
    assert folder_hub.stats.requests["commit"] == 3
    assert len(names(client())) == 5 and waits


def test_a_commit_is_not_sent_when_there_is_to_be_none_any_more(
    client: Clients, folder_hub: FolderHub
) -> None:
    """Also where it was sent before, and was refused."""
    folder_hub.faults.add("commit", Fault(status=503))
    push = Push(client(), REPO, job_id="job_1")
    asked = iter([lambda: None, pytest.fail])
    with pytest.raises(pytest.fail.Exception):
        push.commit("Merge", SMALL, lambda: next(asked)())
    assert folder_hub.stats.requests["commit"] == 1


def test_a_commit_that_keeps_failing_leaves_nothing_visible(
    client: Clients, folder_hub: FolderHub, shards: list[Path]
) -> None:
    folder_hub.faults.add("commit", Fault(status=503), times=99)
    with pytest.raises(Unavailable):
        push_all(client(), shards)
    assert names(client()) == []


def test_a_second_attempt_of_the_job_finds_its_own_commit(
    client: Clients, folder_hub: FolderHub, shards: list[Path]
) -> None:
    push_all(client(), shards)
    again = Push(client(), REPO, job_id="job_1")
    found = again.prepare()
    assert found is not None and found.sha == client().pin(REPO).sha
    again.add_file("x.safetensors", shards[0].with_name("absent"))
    assert again.commit("Merge", SMALL) == found
    assert folder_hub.stats.requests["commit"] == 1


def test_a_new_process_commits_shards_that_an_earlier_one_uploaded(
    client: Clients, shards: list[Path], root: Path
) -> None:
    contents = {shard.name: shard.read_bytes() for shard in shards}
    first = Push(client(), REPO, job_id="job_1")
    first.add_file(shards[0].name, shards[0])
    second = Push(client(), REPO, job_id="job_1")
    digest = hashlib.sha256(contents[shards[0].name]).hexdigest()
    second.add_uploaded(shards[0].name, digest, len(contents[shards[0].name]))
    second.add_file(shards[1].name, shards[1])
    second.commit("Merge", SMALL)
    assert {name: (root / REPO / name).read_bytes() for name in contents} == contents


def test_a_shard_that_was_never_uploaded_cannot_be_committed(client: Clients, folder_hub: FolderHub) -> None:
    push = Push(client(), REPO, job_id="job_1")
    push.prepare()
    push.add_uploaded("model.safetensors", "0" * 64, 10)
    with pytest.raises(Exception, match=REPO) as caught:
        push.commit("Merge", SMALL)
    assert getattr(caught.value, "code", None) == "hub_refused"
    assert names(client()) == []


def test_a_repository_of_somebody_else_is_left_alone(client: Clients, folder_hub: FolderHub) -> None:
    head = folder_hub.head("team/model")
    with pytest.raises(RepoNotOurs, match="overwrite"):
        Push(client(), "team/model", private=False, job_id="job_1").prepare()
    assert folder_hub.head("team/model") == head


def test_overwrite_takes_over_a_repository_and_its_old_weights_go(
    client: Clients, shards: list[Path]
) -> None:
    push = Push(client(), "team/model", private=False, job_id="job_1", overwrite=True)
    push.add_file(shards[0].name, shards[0])
    push.commit("Merge", SMALL)
    assert names(client(), "team/model") == sorted([shards[0].name, *SMALL])


def test_a_later_job_replaces_the_result_of_an_earlier_one(client: Clients, shards: list[Path]) -> None:
    push_all(client(), shards, "job_1")
    push_all(client(), shards[:1], "job_2")
    assert names(client()) == sorted([shards[0].name, *SMALL])
    assert manifest(client())["job_id"] == "job_2"


def test_nothing_of_an_earlier_result_of_another_kind_stays(client: Clients, shards: list[Path]) -> None:
    first, second = Push(client(), REPO, job_id="job_1"), Push(client(), REPO, job_id="job_2")
    first.add_file("members/a/adapter_model.safetensors", shards[0])
    parts = {"bundle.json": b"{}", "chat_template.jinja": b"x", "members/a/adapter_config.json": b"{}"}
    listed = {name: {"size": 1} for name in ["members/a/adapter_model.safetensors", *parts]}
    first.commit("Merge", {**SMALL, **parts, "mergery.json": json.dumps({"files": listed}).encode()})
    HfApi(endpoint=client().session.endpoint, token="hf_alice").create_commit(
        REPO, [CommitOperationAdd("notes.txt", b"mine")], commit_message="by hand"
    )
    second.commit("Merge", SMALL)
    assert names(client()) == sorted([*SMALL, "notes.txt"])


def test_overwriting_an_adapter_leaves_nothing_that_makes_the_result_one(
    client: Clients, root: Path, shards: list[Path]
) -> None:
    (root / "team/model/adapter_config.json").write_text("{}")
    (root / "team/model/other").mkdir()
    (root / "team/model/other/model.bin").write_bytes(b"of somebody else, and no part of the result")
    push = Push(client(), "team/model", private=False, job_id="job_1", overwrite=True)
    push.add_file(shards[0].name, shards[0])
    push.commit("Merge", SMALL)
    assert names(client(), "team/model") == sorted([shards[0].name, *SMALL, "other/model.bin"])


def test_a_large_text_leaves_the_disk_as_shards_do(client: Clients, tmp_path: Path, root: Path) -> None:
    words = tmp_path / "tokenizer.json"
    words.write_bytes(b"x" * (KEPT_IN_MEMORY + 1))
    push = Push(client(), REPO, job_id="job_1")
    push.add_file(words.name, words)
    words.unlink()
    push.commit("Merge", SMALL)
    assert (root / REPO / "tokenizer.json").stat().st_size == KEPT_IN_MEMORY + 1


def test_a_private_result_never_goes_into_a_public_repository(client: Clients) -> None:
    with pytest.raises(RepoPublic):
        Push(client(), "team/model", job_id="job_1", overwrite=True).prepare()


def test_a_repository_made_public_on_the_way_does_not_get_a_private_result(
    client: Clients, folder_hub: FolderHub
) -> None:
    push = Push(client(), REPO, job_id="job_1")
    push.prepare()
    folder_hub.mark(REPO, private=False)
    with pytest.raises(RepoPublic):
        push.commit("Merge", SMALL)
    assert names(client()) == []


def test_a_change_by_somebody_else_is_a_conflict(
    client: Clients, folder_hub: FolderHub, shards: list[Path]
) -> None:
    push = Push(client(), REPO, job_id="job_1")
    push.add_file(shards[0].name, shards[0])
    HfApi(endpoint=folder_hub.url, token="hf_alice").create_commit(
        REPO, [CommitOperationAdd("notes.txt", b"mine")], commit_message="by hand"
    )
    with pytest.raises(Conflict) as caught:
        push.commit("Merge", SMALL)
    assert caught.value.retryable and names(client()) == ["notes.txt"]


@pytest.mark.parametrize("route", ["create", "info", "tree", "preupload", "xet-token", "validate"])
def test_passing_failures_on_the_way_are_tried_again(
    client: Clients, folder_hub: FolderHub, shards: list[Path], route: str
) -> None:
    folder_hub.faults.add(route, Fault(status=503))
    push_all(client(), shards[:1])
    assert len(names(client())) == 4


class Gateway(JSONResponse):
    def render(self, content: object) -> bytes:
        return b"<html>502 Bad Gateway</html>"


def test_a_page_of_a_proxy_in_place_of_an_answer_passes(
    client: Clients, folder_hub: FolderHub, shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.folder_http.JSONResponse", Gateway)
    folder_hub.faults.add("validate", Fault(status=502), times=2)
    push_all(client(), shards[:1])
    assert len(names(client())) == 4


def test_a_card_that_the_hub_refuses_is_told_in_its_words(client: Clients) -> None:
    push = Push(client(), REPO, job_id="job_1")
    with pytest.raises(RequestRefused, match=rf"card of {REPO} was refused .*front matter is not a YAML"):
        push.commit("Merge", {**SMALL, "README.md": b"---\n- a list\n---\n"})


@pytest.mark.parametrize(
    ("status", "error"), [(401, TokenInvalid), (403, PermissionDenied), (404, RequestRefused)]
)
def test_a_refused_token_for_xet_is_no_hub_that_cannot_be_reached(
    client: Clients, folder_hub: FolderHub, shards: list[Path], status: int, error: type[Exception]
) -> None:
    folder_hub.faults.add("xet-token", Fault(status=status), times=99)
    with pytest.raises(error):
        push_all(client(), shards[:1])


def test_a_refusal_is_told_with_what_the_hub_says(client: Clients, folder_hub: FolderHub) -> None:
    folder_hub.faults.add("commit", Fault(status=403, message="Private repository storage limit reached"))
    with pytest.raises(PermissionDenied, match=rf"{REPO} \(the Hub says: Private .* reached\); use one"):
        Push(client(), REPO, job_id="job_1").commit("Merge", SMALL)


def test_a_lost_reply_to_create_is_settled(client: Clients, folder_hub: FolderHub) -> None:
    folder_hub.faults.add("create", Fault(status=500, after=True))
    assert Push(client(), REPO, job_id="job_1").prepare() is None
    assert client().pin(REPO).private


@pytest.mark.parametrize(("token", "error"), [("hf_carol", PermissionDenied), ("hf_bob", PermissionDenied)])
def test_a_token_that_may_not_write_is_named_as_the_reason(
    client: Clients, token: str, error: type[Exception]
) -> None:
    with pytest.raises(error, match=REPO):
        Push(client(token), REPO, job_id="job_1").prepare()


def test_a_push_without_a_token_says_that_there_is_none(client: Clients) -> None:
    with pytest.raises(TokenInvalid, match="wants a token for team/result and none was given"):
        Push(client(None), REPO, job_id="job_1").prepare()


def test_a_token_revoked_on_the_way_is_named(
    client: Clients, folder_hub: FolderHub, shards: list[Path]
) -> None:
    push = Push(client(), REPO, job_id="job_1")
    push.prepare()
    folder_hub.tokens.revoke("hf_alice")
    with pytest.raises(TokenInvalid):
        push.add_file(shards[0].name, shards[0])
    with pytest.raises(TokenInvalid):
        push.commit("Merge", SMALL)


def test_a_rate_limited_commit_says_so(client: Clients, folder_hub: FolderHub) -> None:
    push = Push(client(patience=1), REPO, job_id="job_1")
    push.prepare()
    folder_hub.faults.add("commit", Fault(status=429, headers={"retry-after": "600"}), times=9)
    with pytest.raises(RateLimited, match="600 s"):
        push.commit("Merge", SMALL)


def test_a_result_can_go_to_a_branch(client: Clients, folder_hub: FolderHub, root: Path) -> None:
    push = Push(client(), REPO, revision="v2", job_id="job_1")
    push.commit("Merge", SMALL)
    assert names(client()) == [] and not list((root / REPO).iterdir())
    assert len(client().pin(REPO, "v2").files) == 3


@pytest.mark.parametrize("path", ["../x", "/x", "a\\b", ".git/config"])
def test_unsafe_names_are_not_pushed(client: Clients, shards: list[Path], path: str) -> None:
    push = Push(client(), REPO, job_id="job_1")
    with pytest.raises(NameRefused):
        push.add_file(path, shards[0])
    with pytest.raises(NameRefused):
        push.add_uploaded(path, "0" * 64, 10)
    with pytest.raises(NameRefused, match="sha256"):
        push.add_uploaded("model.safetensors", "0" * 63, 10)
    with pytest.raises(NameRefused):
        push.commit("Merge", {path: b"x"})


@pytest.mark.parametrize("repo", ["result", "../x/y", "a/b/c"])
def test_a_target_needs_an_owner_and_a_name(client: Clients, repo: str) -> None:
    with pytest.raises(NameRefused):
        Push(client(), repo, job_id="job_1")
