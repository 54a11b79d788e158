"""Who may see, fetch and change what of a folder Hub, and what is refused rather than guessed."""

from pathlib import Path
from typing import Any

import pytest

from hub.folder_access import Marks, MarksFile, Tokens, User, check_files, check_visible, check_write
from hub.folder_errors import (
    AccessDenied,
    ConfigInvalid,
    FolderError,
    GatedRefused,
    RepoMissing,
    TokenRefused,
)
from hub.names import is_repo_part, is_safe_path

OWNER, MEMBER = User("org", "write"), User("ann", "read", ("club", "org"))
GUEST, STRANGER = User("guest", "read"), User("eve", "write", ("others",))
CALLERS = {"owner": OWNER, "member": MEMBER, "guest": GUEST, "stranger": STRANGER, "nobody": None}


def let_in(check: Any, **marks: Any) -> set[str]:
    def passes(user: User | None) -> bool:
        try:
            check(user, "org", Marks(**marks, allowed=("guest",)))
        except (RepoMissing, GatedRefused) as error:
            assert error.http_status == (
                401 if user is None else 404 if isinstance(error, RepoMissing) else 403
            )
            return False
        return True

    return {name for name, user in CALLERS.items() if passes(user)}


@pytest.mark.parametrize(
    ("marks", "sees", "reads"),
    [
        ({}, set(CALLERS), set(CALLERS)),
        ({"private": True}, {"owner", "member", "guest"}, {"owner", "member", "guest"}),
        ({"gated": True}, set(CALLERS), {"owner", "member", "guest"}),
        ({"private": True, "gated": True}, {"owner", "member", "guest"}, {"owner", "member", "guest"}),
    ],
)
def test_private_hides_and_gated_keeps_back_the_files(
    marks: dict[str, bool], sees: set[str], reads: set[str]
) -> None:
    assert let_in(check_visible, **marks) == sees
    assert let_in(check_files, **marks) == reads


@pytest.mark.parametrize(
    ("user", "refusal"),
    [
        (OWNER, None),
        (MEMBER, AccessDenied),
        (STRANGER, AccessDenied),
        (GUEST, AccessDenied),
        (None, TokenRefused),
    ],
)
def test_only_a_writing_member_writes(user: User | None, refusal: type[FolderError] | None) -> None:
    if refusal is None:
        check_write(user, "org")
        return
    with pytest.raises(refusal):
        check_write(user, "org")


def test_a_token_is_known_by_all_of_it_and_by_its_scheme() -> None:
    tokens = Tokens({"hf_good": OWNER})
    assert tokens.identify("bearer  hf_good ") == OWNER
    assert tokens.identify(None) is None and tokens.identify("") is None
    for header in (
        "Bearer hf_goo",
        "Bearer hf_goods",
        "Bearer ",
        "Basic hf_good",
        "hf_good",
        "Bearer hf_g\xf6",
    ):
        with pytest.raises(TokenRefused):
            tokens.identify(header)


@pytest.mark.parametrize(
    "text",
    [
        "a/b: {private: 'yes'}",
        "a/b: {gated: 1}",
        "a/b: {privat: true}",
        "a/b: private",
        "a/b:",
        "a/b: {allowed: eve}",
        "a/b: {allowed: [1]}",
        "- a/b",
        "a/b: {private: [",
    ],
)
def test_marks_that_are_not_understood_are_refused_and_not_served_in_public(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "repos.yaml").write_text(text)
    file = MarksFile(tmp_path / "repos.yaml")
    for _ in range(2):
        with pytest.raises(ConfigInvalid):
            file.get("c/d")
    (tmp_path / "repos.yaml").write_text("a/b: {private: true, allowed: [eve]}")
    assert file.get("a/b") == Marks(private=True, allowed=("eve",)) and file.get("c/d") is None
    (tmp_path / "repos.yaml").write_text("# nothing is private any more")
    assert file.get("a/b") is None


@pytest.mark.parametrize("entry", [None, "alice", {"role": "read"}, {"name": "a", "role": "admin"}])
@pytest.mark.parametrize("orgs", [None, "team", [1]])
def test_tokens_that_are_not_understood_are_refused(entry: Any, orgs: Any) -> None:
    told = {**entry, "orgs": orgs} if isinstance(entry, dict) else entry
    with pytest.raises(ConfigInvalid):
        Tokens.load({"hf_x": told})
    if orgs is not None:
        with pytest.raises(ConfigInvalid):
            Tokens.load({"hf_x": {"name": "a", "orgs": orgs}})


def test_a_tokens_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_bytes(b"\xff")
    for name in ("tokens", "absent"):
        with pytest.raises(ConfigInvalid, match=name):
            Tokens.load(tmp_path / name)


UNSAFE = """
    . .. a/../b a/./b a//b /a a/ a\\b C:a a/c:/b .git/config a/.GIT/b a/.git
"""


@pytest.mark.parametrize(
    "path", [*UNSAFE.split(), "", "a\nb", "a\x7fb", "\ud800", "é" * 128, "a/" * 512 + "b"]
)
def test_no_unsafe_path_is_a_name_of_a_file(path: str) -> None:
    assert not is_safe_path(path)


def test_usual_names_are_names_of_files_and_repositories() -> None:
    for path in ("a", ".gitattributes", "a/b.c", "…", "é" * 127, "x" * 255, "a b", "a..b", "ab:c"):
        assert is_safe_path(path), path
    assert all(map(is_repo_part, ("a", "A.b-c_d", "x" * 96)))
    assert not any(map(is_repo_part, ("", ".a", "a.", "a..b", "a.git", "a/b", "a\n", "x" * 97, "-a")))
