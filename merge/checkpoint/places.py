"""Files of a model's folder: where a name leads, and single tensors of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from merge.checkpoint.header import TensorInfo, check_file_name
from merge.file_errors import FileOutsideFolder, FileUnreadable

NAMED_TEMPLATES = "additional_chat_templates/"
"""The folder of the chat templates beside the usual one, each a Jinja file: for tools, say."""

Pieces = Callable[[Sequence[TensorInfo]], Mapping[str, bytes]]
"""Gives the bytes of stored tensors by their names."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_PLAIN_PICKLES = (".pkl", ".pickle")
_NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "optimizer.bin", "scheduler.bin")


def safe_path(folder: Path, name: str) -> Path:
    """The real path of a file of a model folder; links may not leave it, but for the Hub cache's blobs."""
    check_file_name(name)
    inside = folder.resolve()
    target = (folder / name).resolve()
    if not any(target.is_relative_to(place) for place in (inside, *_blobs_of(inside))):
        raise FileOutsideFolder(f"{name} is a link that leads out of {folder}.")
    return target


def _blobs_of(inside: Path) -> list[Path]:
    """Where the Hub cache keeps the files of a snapshot, or of a folder in one."""
    return [
        place.parent.parent / "blobs"
        for place in (inside, *inside.parents)
        if place.parent.name == "snapshots"
        and (place == inside or place.parent.parent.name.startswith("models--"))
    ]


def pickles_among(file_names: Iterable[str]) -> list[str]:
    """The files that may be pickled weights, which ``merge.convert`` makes safetensors of; by the endings of
    any pickle only where no file has one that weights have.
    """
    names = sorted(name for name in file_names if name.rpartition("/")[2] not in _NO_WEIGHTS)
    usual = [name for name in names if name.endswith(_PICKLES)]
    return usual or [name for name in names if name.endswith(_PLAIN_PICKLES)]


def pieces_in(path: Path) -> Pieces:
    """Reads whole tensors of a folder (or of the folder in which a weight file lies)."""
    folder = path if path.is_dir() else path.parent

    def read(wanted: Sequence[TensorInfo]) -> dict[str, bytes]:
        found = {}
        for info in wanted:
            try:
                with safe_path(folder, info.file).open("rb") as file:
                    file.seek(info.begin)
                    found[info.name] = file.read(info.end - info.begin)
            except OSError as error:
                raise FileUnreadable(f"{info.file} cannot be read: {error.strerror}.") from error
        return found

    return read
