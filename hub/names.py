"""Names that come from a stranger: repositories, revisions and files. Nothing here touches a disk."""

import re

KINDS = ("model", "dataset")
"""What a repository may hold."""
REPO_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
BRANCH = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}"
COMMIT = re.compile(r"[0-9a-f]{40}\Z")
SHA256 = re.compile(r"[0-9a-f]{64}\Z")
MAX_PATH = 1024
MAX_SEGMENT = 255


def is_repo_part(name: str) -> bool:
    """Whether ``name`` can be an owner or a repository name: as the Hub has it, so never a path."""
    doubled = ".." in name or "--" in name
    return bool(re.fullmatch(REPO_PART, name)) and not doubled and not name.endswith((".git", ".", "-"))


def is_branch(name: str) -> bool:
    """Whether ``name`` can be a branch, as git has them."""
    odd = any(part in name for part in ("..", "//", "/.", ".lock/"))
    return bool(re.fullmatch(BRANCH, name)) and not odd and not name.endswith((".", "/", ".lock"))


def is_safe_path(path: str) -> bool:
    """Whether ``path`` is a plain relative path with forward slashes, the same on every system.

    Refused: empty and dot segments, absolute and drive paths, backslashes, control characters, ``.git``
    folders, and anything longer than a file system takes.
    """
    if (
        not path
        or len(path) > MAX_PATH
        or "\\" in path
        or any(ord(char) < 32 or ord(char) == 127 for char in path)
    ):
        return False
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    segments = path.split("/")
    return not any(
        segment in ("", ".", "..")
        or segment.lower() == ".git"
        or len(segment.encode()) > MAX_SEGMENT
        or re.match(r"[A-Za-z]:", segment)
        for segment in segments
    )
