"""Where a name in a recipe leads: to a Hub repository, or to a folder inside the operator's allowed roots."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jobs.errors import ModelNameInvalid
from merge.checkpoint.gguf.parts import part_stem
from merge.file_errors import FileUnreadable

HUB_NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95})"
    r"(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{0,254}))?"
)
INSIDE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}(?:/[A-Za-z0-9_][A-Za-z0-9._-]{0,254}){0,8}")
JOB_NAME = re.compile(rf"(?P<job>job_[0-9A-HJKMNP-TV-Z]{{26}})(?::(?P<inside>{INSIDE.pattern}))?")
MODEL_NAME = re.compile(rf"{HUB_NAME.pattern}(?::(?P<inside>{INSIDE.pattern}))?")
WEIGHTS = (".safetensors", ".gguf")


@dataclass(frozen=True)
class HubPlace:
    """A repository; without a revision its default branch. ``inside`` is a folder of it, or a weight file,
    which then is the whole model.
    """

    repo: str
    revision: str | None
    inside: str = ""


@dataclass(frozen=True)
class FolderPlace:
    """A folder (or a weight file) on this service's disk, links resolved, inside an allowed root."""

    path: Path


def find_model(
    name: str, roots: Sequence[Path], made_by: Callable[[str], str | Path] | None = None
) -> HubPlace | FolderPlace:
    """``org/name[@revision][:folder or file]`` is the Hub's; ``job_01K…[:folder]`` is what that job has made,
    where ``made_by`` tells the repository or folder; ``/absolute``, ``./relative`` and any other form is a
    folder, or a weight file, in a root.

    One name never means two things: what has the Hub's form is never looked for on disk. Raises
    ``ModelNameInvalid``.
    """
    job = JOB_NAME.fullmatch(name)
    if made_by is not None and job is not None:
        made, inside = made_by(job["job"]), job["inside"]
        if isinstance(made, Path):
            return FolderPlace(made if inside is None else find_inside(inside, (made,), folder=True))
        name = made if inside is None else f"{made}:{inside}"
    found = MODEL_NAME.fullmatch(name)
    if found is not None:
        return HubPlace(found["repo"], found["revision"], found["inside"] or "")
    return FolderPlace(find_inside(name, roots, folder=not name.endswith(WEIGHTS)))


def prefix_of(inside: str) -> str:
    """What stands before the names of a model's files in its repository: empty, or a folder and a slash."""
    folder = str(PurePosixPath(inside).parent) if inside.endswith(WEIGHTS) else inside
    return "" if folder in ("", ".") else f"{folder}/"


def files_inside(files: Mapping[str, int], inside: str) -> dict[str, int]:
    """The files of the model, without the prefix: all of a repository's, a folder's, or one weight file with
    the other parts of its split.
    """
    prefix = prefix_of(inside)
    return {
        name.removeprefix(prefix): size
        for name, size in files.items()
        if (part_stem(name) == part_stem(inside) if inside.endswith(WEIGHTS) else name.startswith(prefix))
    }


def find_inside(name: str, roots: Sequence[Path], *, folder: bool) -> Path:
    """The folder or file of that name in a root, links resolved; a relative name is looked for in each root
    in turn.

    Raises ``ModelNameInvalid``; it does not tell whether something exists outside the roots.
    """
    what = "folder" if folder else "file"
    if "\0" not in name and not name.startswith("~"):
        for root in (each.resolve() for each in roots):
            # No file can be called so, a folder is closed, or links go in circles.
            with suppress(OSError, ValueError, RuntimeError):
                path = (root / name).resolve()
                if path.is_relative_to(root) and (path.is_dir() if folder else path.is_file()):
                    return path
    if not roots:
        raise ModelNameInvalid(
            f"{name!r} is no Hub repository (org/name or org/name@revision), "
            "and this service allows no folders (MERGERY_MODEL_ROOTS names those that it may read)."
        )
    allowed = ", ".join(str(root) for root in roots)
    hint = "no Hub repository (org/name or org/name@revision) and " if folder else ""
    raise ModelNameInvalid(f"{name!r} is {hint}no {what} inside the allowed roots ({allowed}).")


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Around a look into what ``find_inside`` has found: raises ``FileUnreadable`` where the operating system
    does not let this service.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or "a file of it"
        raise FileUnreadable(f"{name}: {where} cannot be read: {error.strerror}.") from error
