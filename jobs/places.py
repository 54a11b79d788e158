"""Where a name in a recipe leads: to a Hub repository, or to a folder inside the operator's allowed roots."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import ModelNameInvalid

HUB_NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95})"
    r"(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{0,254}))?"
)


@dataclass(frozen=True)
class HubPlace:
    """A repository; without a revision its default branch."""

    repo: str
    revision: str | None


@dataclass(frozen=True)
class FolderPlace:
    """A folder on this service's disk, links resolved, inside an allowed root."""

    path: Path


def find_model(name: str, roots: Sequence[Path]) -> HubPlace | FolderPlace:
    """``org/name[@revision]`` is the Hub's; ``/absolute``, ``./relative`` and any other form is a folder in
    a root.

    One name never means two things: what has the Hub's form is never looked for on disk. Raises
    ``ModelNameInvalid``.
    """
    found = HUB_NAME.fullmatch(name)
    if found is not None:
        return HubPlace(found["repo"], found["revision"])
    return FolderPlace(find_inside(name, roots, folder=True))


def find_inside(name: str, roots: Sequence[Path], *, folder: bool) -> Path:
    """The folder or file of that name in a root, links resolved; a relative name is looked for in each root
    in turn.

    Raises ``ModelNameInvalid``; it does not tell whether something exists outside the roots.
    """
    what = "folder" if folder else "file"
    if "\0" not in name and not name.startswith("~"):
        for root in (each.resolve() for each in roots):
            path = (root / name).resolve()
            if path.is_relative_to(root) and (path.is_dir() if folder else path.is_file()):
                return path
    if not roots:
        raise ModelNameInvalid(
            f"{name!r} is no Hub repository (org/name or org/name@revision), "
            "and this service allows no folders."
        )
    allowed = ", ".join(str(root) for root in roots)
    hint = "no Hub repository (org/name or org/name@revision) and " if folder else ""
    raise ModelNameInvalid(f"{name!r} is {hint}no {what} inside the allowed roots ({allowed}).")
