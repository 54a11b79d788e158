"""The folder Hub as any client of the protocol sees it."""

import hashlib
import json
import os
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from hub.folder_errors import ConfigInvalid, RangeInvalid
from hub.folder_http import parse_range
from hub.folder_server import FolderHub, main
from tests.hub.conftest import HEADER, TOKENS, WEIGHTS, write_model


def get(hub: FolderHub, path: str, token: str | None = "hf_alice", **headers: str) -> httpx2.Response:
    sent = {"Authorization": f"Bearer {token}", **headers} if token else headers
    return httpx2.get(hub.url + path, headers=sent)


def post(hub: FolderHub, path: str, body: object, token: str | None = "hf_alice") -> httpx2.Response:
    headers = {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx2.post(hub.url + path, content=content, headers=headers)


def commit(hub: FolderHub, *lines: dict[str, object], parent: str | None = None) -> httpx2.Response:
    header = {"key": "header", "value": {"summary": "test", "parentCommit": parent}}
    body = b"\n".join(json.dumps(line).encode() for line in (header, *lines))
    return post(hub, "/api/models/team/model/commit/main", body)


def new_file(path: str, content: str = "x") -> dict[str, object]:
    return {"key": "file", "value": {"path": path, "content": content, "encoding": "utf-8"}}


def resolve(path: str, revision: str = "main") -> str:
    return f"/team/model/resolve/{revision}/{path}"


def test_the_real_client_reads_info_tree_and_user(folder_hub: FolderHub) -> None:
    api = HfApi(endpoint=folder_hub.url, token="hf_alice")
    info = api.model_info("team/model", files_metadata=True)
    assert info.sha == folder_hub.head("team/model")
    assert "license:mit" in (info.tags or [])
    files = {file.path: file for file in api.list_repo_tree("team/model", recursive=True)}
    large = getattr(files["model.safetensors"], "lfs", None)
    assert large is not None and large.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert api.whoami()["name"] == "alice"
    assert [file.path for file in api.get_paths_info("team/model", ["config.json", "absent"])] == [
        "config.json"
    ]
    assert [branch.name for branch in api.list_repo_refs("team/model").branches] == ["main"]


def test_datasets_are_served_under_their_own_prefix(folder_hub: FolderHub) -> None:
    api = HfApi(endpoint=folder_hub.url, token=False)
    assert api.dataset_info("team/texts").sha == folder_hub.head("team/texts", "dataset")
    reply = get(folder_hub, "/datasets/team/texts/resolve/main/test.jsonl", None)
    assert reply.text == '{"text": "hello"}\n'
    assert get(folder_hub, "/api/models/datasets/team", None).headers["x-error-code"] == "RepoNotFound"


def test_a_range_returns_exactly_its_bytes_and_names_the_commit(folder_hub: FolderHub) -> None:
    reply = get(folder_hub, resolve("model.safetensors"), Range="bytes=8-20")
    assert (reply.status_code, reply.content) == (206, WEIGHTS[8:21])
    assert reply.headers["content-range"] == f"bytes 8-20/{len(WEIGHTS)}"
    assert reply.headers["etag"] == f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
    assert reply.headers["x-repo-commit"] == folder_hub.head("team/model")
    assert get(folder_hub, resolve("model.safetensors"), Range="bytes=9999-").status_code == 416


def test_head_tells_size_and_digest_without_a_body(folder_hub: FolderHub) -> None:
    reply = httpx2.head(folder_hub.url + resolve("model.safetensors"))
    assert reply.headers["content-length"] == reply.headers["x-linked-size"] == str(len(WEIGHTS))
    assert not folder_hub.stats.bytes


@pytest.mark.parametrize(
    ("header", "span"),
    [
        (None, None), ("bytes=0-4", (0, 5)), ("bytes=5-", (5, 10)), ("bytes=-3", (7, 10)),
        ("bytes=-30", (0, 10)),
        ("bytes=2-99", (2, 10)), ("bytes=0-1,3-4", None), ("lines=0-1", None), ("bytes=-", None),
        ("bytes=0-" + "9" * 5000, None), ("bytes=\N{ARABIC-INDIC DIGIT THREE}-", None),
    ],
)  # fmt: skip
def test_ranges_are_read_as_the_standard_says(header: str | None, span: tuple[int, int] | None) -> None:
    assert parse_range(header, 10) == span


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=5-4", "bytes=-0"])
def test_ranges_outside_the_file_are_refused(header: str) -> None:
    with pytest.raises(RangeInvalid):
        parse_range(header, 10)


def test_bytes_are_counted_by_kind(folder_hub: FolderHub) -> None:
    get(folder_hub, resolve("model.safetensors"))
    get(folder_hub, resolve("config.json"))
    assert folder_hub.stats.bytes == {"header": 8 + len(HEADER), "weight": 16, "text": 23}


ESCAPES = [
    "/team/model/resolve/main/../../../secret",
    "/team/model/resolve/main/%2e%2e/%2e%2e/%2e%2e/secret",
    "/team/model/resolve/main/..%2f..%2f..%2fsecret",
    "/team/model/resolve/main//etc/passwd",
    "/team/model/resolve/main/link",
    "/team/model/resolve/main/.hidden",
    "/../root/resolve/main/secret",
    "/team/..%2fteam/resolve/main/config.json",
    "/.mergery-hub/objects/resolve/main/x",
    "/api/models/..%2f..%2fetc/tree/main",
    "/api/models/team/model/tree/..%2f..",
]


def test_no_path_leads_out_of_a_repository(folder_hub: FolderHub, root: Path) -> None:
    (root.parent / "secret").write_text("top-secret")
    (root / "team/model/link").symlink_to(root.parent / "secret")
    (root / "team/model/.hidden").write_text("top-secret")
    with httpx2.Client() as client:
        for path in ESCAPES:
            request = httpx2.Request("GET", folder_hub.url)
            request.url = request.url.copy_with(raw_path=path.encode())
            reply = client.send(request)
            assert reply.status_code in (401, 404) and "top-secret" not in reply.text, path


def test_links_that_lead_out_or_nowhere_are_not_even_listed(folder_hub: FolderHub, root: Path) -> None:
    (root.parent / "outside").mkdir()
    (root.parent / "outside/secret.txt").write_text("top-secret")
    (root / "team/model/file").symlink_to(root.parent / "outside/secret.txt")
    (root / "team/model/folder").symlink_to(root.parent / "outside")
    (root / "team/model/inside").symlink_to(root / "team/model/config.json")
    (root / "team/model/circle").symlink_to("circle")
    rows = get(folder_hub, "/api/models/team/model/tree/main?recursive=true").json()
    listed = {row["path"] for row in rows}
    assert listed == {"README.md", "config.json", "inside", "model.safetensors"}


def test_trees_come_in_pages_and_folders(root: Path) -> None:
    for number in range(7):
        (root / "team/model" / f"part{number % 2}").mkdir(exist_ok=True)
        (root / "team/model" / f"part{number % 2}" / f"{number}.txt").write_text(str(number))
    hub = FolderHub(root, page_size=4)
    with hub.serve():
        api = HfApi(endpoint=hub.url, token=False)
        every = [entry.path for entry in api.list_repo_tree("team/model", recursive=True)]
        top = [entry.path for entry in api.list_repo_tree("team/model")]
        below = [entry.path for entry in api.list_repo_tree("team/model", "part1")]
    hub.close()
    assert len(every) == 3 + 7 + 2 and len(set(every)) == 12
    assert top == ["README.md", "config.json", "model.safetensors", "part0", "part1"]
    assert below == ["part1/1.txt", "part1/3.txt", "part1/5.txt"]


def test_private_repositories_look_absent_to_everybody_else(folder_hub: FolderHub) -> None:
    folder_hub.mark("team/model", private=True)
    for token in (None, "hf_bob"):
        for path in ("/api/models/team/model", "/api/models/team/model/tree/main", resolve("config.json")):
            reply = get(folder_hub, path, token)
            assert reply.headers["x-error-code"] == "RepoNotFound"
            assert reply.status_code == (404 if token else 401)
            assert reply.content.find(b"llama") < 0
    assert get(folder_hub, resolve("config.json"), "hf_carol").status_code == 200
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=folder_hub.url, token="hf_bob").model_info("team/model")


def test_gated_repositories_show_themselves_but_not_their_files(folder_hub: FolderHub) -> None:
    folder_hub.mark("team/model", gated=True)
    api = HfApi(endpoint=folder_hub.url, token="hf_bob")
    assert api.model_info("team/model").gated == "manual"
    with pytest.raises(GatedRepoError):
        api.auth_check("team/model")
    assert get(folder_hub, resolve("config.json"), "hf_bob").status_code == 403
    folder_hub.mark("team/model", gated=True, allowed=("bob",))
    assert get(folder_hub, resolve("config.json"), "hf_bob").status_code == 200


def test_repos_yaml_is_read_again_when_it_changes(folder_hub: FolderHub, root: Path) -> None:
    (root / "repos.yaml").write_text("team/model: {private: true}\n")
    assert get(folder_hub, resolve("config.json"), None).status_code == 401
    (root / "repos.yaml").write_text("team/model: {private: false, gated: false}\n")
    assert get(folder_hub, resolve("config.json"), None).status_code == 200
    (root / "repos.yaml").write_text("team/model: {privat: true}\n")
    assert get(folder_hub, resolve("config.json"), None).status_code == 500


def test_an_unknown_or_revoked_token_is_told_so(folder_hub: FolderHub) -> None:
    folder_hub.tokens.revoke("hf_alice")
    reply = get(folder_hub, "/api/models/team/model")
    assert reply.status_code == 401
    assert reply.headers["x-error-message"] == "Invalid credentials in Authorization header"


@pytest.mark.parametrize("tokens", [["a"], {"t": {"role": "read"}}, {"t": {"name": "x", "role": "admin"}}])
def test_a_tokens_file_that_is_not_understood_is_refused(root: Path, tokens: object) -> None:
    (root.parent / "tokens.yaml").write_text(json.dumps(tokens))
    with pytest.raises(ConfigInvalid):
        FolderHub(root, root.parent / "tokens.yaml")


def test_tokens_are_read_from_yaml(root: Path) -> None:
    (root.parent / "tokens.yaml").write_text("tok: {name: dora, role: write}\n")
    hub = FolderHub(root, root.parent / "tokens.yaml")
    with hub.serve():
        assert HfApi(endpoint=hub.url, token="tok").whoami()["name"] == "dora"
    hub.close()


@pytest.mark.parametrize("token", [None, "hf_bob", "hf_carol"])
def test_only_owners_with_a_write_token_may_write(folder_hub: FolderHub, token: str | None) -> None:
    head = folder_hub.head("team/model")
    body = b'{"key": "header", "value": {"summary": "x"}}\n' + json.dumps(new_file("a")).encode()
    for path, content in (
        ("/api/models/team/model/commit/main", body),
        ("/api/models/team/model/preupload/main", {"files": []}),
        ("/api/models/team/model/branch/dev", {}),
        ("/team/model.git/info/lfs/objects/batch", {"operation": "upload", "objects": []}),
        ("/api/repos/create", {"name": "new", "organization": "team"}),
    ):
        assert post(folder_hub, path, content, token).status_code in (401, 403), path
    assert get(folder_hub, "/api/models/team/model/xet-write-token/main", token).status_code in (401, 403)
    assert folder_hub.head("team/model") == head


def test_a_commit_changes_the_folder_and_keeps_the_old_revision(folder_hub: FolderHub, root: Path) -> None:
    before = folder_hub.head("team/model")
    reply = commit(
        folder_hub,
        new_file("config.json", "{}"),
        new_file("deep/er/note.txt", "note"),
        {"key": "deletedFile", "value": {"path": "model.safetensors"}},
        parent=before,
    )
    after = reply.json()["commitOid"]
    assert folder_hub.head("team/model") == after != before
    assert (root / "team/model/config.json").read_text() == "{}"
    assert (root / "team/model/deep/er/note.txt").read_text() == "note"
    assert not (root / "team/model/model.safetensors").exists()
    assert get(folder_hub, resolve("model.safetensors", before)).content == WEIGHTS
    assert get(folder_hub, resolve("config.json", before)).text == '{"model_type": "llama"}'
    assert get(folder_hub, resolve("model.safetensors", after)).headers["x-error-code"] == "EntryNotFound"


def test_a_deleted_folder_takes_its_files_along(folder_hub: FolderHub, root: Path) -> None:
    commit(folder_hub, new_file("sub/a"), new_file("sub/b"))
    commit(folder_hub, {"key": "deletedFolder", "value": {"path": "sub/"}})
    assert not (root / "team/model/sub").exists()


def test_a_stale_parent_is_refused(folder_hub: FolderHub) -> None:
    head = folder_hub.head("team/model")
    assert commit(folder_hub, new_file("a"), parent=head).status_code == 200
    reply = commit(folder_hub, new_file("b"), parent=head)
    assert reply.status_code == 412
    assert get(folder_hub, resolve("b")).status_code == 404


UNSAFE = ["../x", "/x", "a/../../x", "a//b", "a\\b", ".git/config", "c:/x", "a\nb", ".mergery-hub/x", ""]


def test_commits_with_unsafe_names_are_refused(folder_hub: FolderHub) -> None:
    head = folder_hub.head("team/model")
    for path in UNSAFE:
        assert commit(folder_hub, new_file("good"), new_file(path)).status_code == 400, path
    assert folder_hub.head("team/model") == head


def test_broken_commits_are_refused(folder_hub: FolderHub) -> None:
    for body in (b"", b"not json", b'{"key": "file"}', b"[" * 100_000, b'{"key":"header","value":{}}'):
        assert post(folder_hub, "/api/models/team/model/commit/main", body).status_code == 400, body[:20]


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/api/models/team/model/preupload/main", {"files": {"path": "a", "size": 1}}),
        ("/api/models/team/model/preupload/main", {"files": ["a"]}),
        ("/api/models/team/model/preupload/main", {"files": [{"path": "\ud800", "size": 1}]}),
        ("/api/models/team/model/paths-info/main", {"paths": [["config.json"]]}),
        ("/team/model.git/info/lfs/objects/batch", {"operation": "upload", "objects": [None]}),
        ("/api/models/team/model/commit/main", {"key": "header", "value": {"summary": "\ud800"}}),
    ],
)
def test_json_of_another_form_is_refused(folder_hub: FolderHub, route: str, body: object) -> None:
    assert post(folder_hub, route, body).status_code == 400


def test_a_name_that_no_header_can_hold_is_missing_like_any_other(folder_hub: FolderHub) -> None:
    for path in ("/api/models/team/model/tree/main/a%0D%0AX-Evil:%201", "/api/models/team/model/tree/%00"):
        reply = get(folder_hub, path)
        assert reply.status_code == 404 and "x-evil" not in reply.headers


def test_a_file_cannot_also_be_a_folder(folder_hub: FolderHub) -> None:
    assert commit(folder_hub, new_file("a"), new_file("a/b")).status_code == 400


def upload_link(hub: FolderHub, content: bytes, repo: str = "team/model") -> str | None:
    oid = hashlib.sha256(content).hexdigest()
    body = {"operation": "upload", "objects": [{"oid": oid, "size": len(content)}]}
    answer = post(hub, f"/{repo}.git/info/lfs/objects/batch", body).json()["objects"][0]
    return answer["actions"]["upload"]["href"] if "actions" in answer else None


def test_an_upload_counts_only_if_it_is_what_was_announced(folder_hub: FolderHub) -> None:
    link = upload_link(folder_hub, b"honest bytes")
    assert link is not None
    for body in (b"hostile byte", b"honest", b"honest bytes and more"):
        assert httpx2.put(link, content=body).status_code == 400
    assert httpx2.put(link.replace("size=12", "size=13"), content=b"honest bytes!").status_code == 403
    assert httpx2.put(link.split("?")[0], content=b"honest bytes").status_code == 403
    assert httpx2.put(link, content=b"honest bytes").status_code == 200
    assert upload_link(folder_hub, b"honest bytes") is None
    assert not list((folder_hub.store.home / "incoming").iterdir())


def test_knowing_a_digest_does_not_give_the_content_to_another_repository(folder_hub: FolderHub) -> None:
    secret = b"secret weights"
    link = upload_link(folder_hub, secret)
    assert link is not None and httpx2.put(link, content=secret).status_code == 200
    post(folder_hub, "/api/repos/create", {"name": "thief", "organization": "bob"}, "hf_bob")
    claim = {
        "path": "w.bin",
        "algo": "sha256",
        "oid": hashlib.sha256(secret).hexdigest(),
        "size": len(secret),
    }
    lines = [{"key": "header", "value": {"summary": "x"}}, {"key": "lfsFile", "value": claim}]
    body = b"\n".join(json.dumps(line).encode() for line in lines)
    assert post(folder_hub, "/api/models/bob/thief/commit/main", body, "hf_bob").status_code == 400


def test_files_are_hashed_once_even_over_a_restart(root: Path) -> None:
    hub = FolderHub(root)
    before = hub.head("team/model")
    hub.close()
    path = root / "team/model/model.safetensors"
    status = path.stat()
    path.write_bytes(WEIGHTS[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    again = FolderHub(root)
    assert again.head("team/model") == before
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert again.head("team/model") != before
    again.close()


def test_the_same_files_have_the_same_commit_id_on_every_machine(root: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "other/team/model")
    one, two = FolderHub(root), FolderHub(tmp_path / "other")
    assert one.head("team/model") == two.head("team/model")
    one.close()
    two.close()


def test_content_that_left_the_folder_is_missing_rather_than_wrong(folder_hub: FolderHub, root: Path) -> None:
    before = folder_hub.head("team/model")
    (root / "team/model/model.safetensors").write_bytes(WEIGHTS[::-1])
    assert get(folder_hub, resolve("model.safetensors", before)).status_code == 404
    assert get(folder_hub, resolve("model.safetensors")).content == WEIGHTS[::-1]


def test_create_answers_409_with_the_address_when_it_exists(folder_hub: FolderHub) -> None:
    api = HfApi(endpoint=folder_hub.url, token="hf_alice")
    api.create_repo("team/new", private=True)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("team/new")
    assert api.create_repo("team/new", exist_ok=True).repo_id == "team/new"
    assert api.model_info("team/new").private is True
    assert post(folder_hub, "/api/repos/create", {"name": "../x", "organization": "team"}).status_code == 400


def test_xet_is_not_offered_where_it_is_switched_off(root: Path) -> None:
    hub = FolderHub(root, TOKENS, xet=False)
    with hub.serve():
        reply = get(hub, "/api/models/team/model/xet-read-token/main")
    hub.close()
    assert reply.status_code == 404 and "HF_HUB_DISABLE_XET" in reply.json()["error"]


def test_the_command_refuses_what_is_not_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent")]) == 2
    assert "is not a folder" in capsys.readouterr().err
