"""The input files of a run: there and of the planned sizes at its start, and the same at its end."""

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from merge.checkpoint.places import safe_path
from merge.errors import InputChanged
from merge.file_errors import FileMissing
from merge.plan import Plan
from merge.recipe.stages import ADAPTER, key_in, of_stage, stage_of


@dataclass(frozen=True)
class Stamp:
    """One file as it was: its size, when it was last written, and which file it is; ``key`` is that of its
    folder.
    """

    key: str
    label: str
    file: str
    path: Path
    facts: tuple[int, int, int]

    def check(self) -> None:
        """Raises ``InputChanged`` where it is not the same any more."""
        if _facts(self.path) != self.facts:
            raise InputChanged(
                f"{self.file} of {self.label} was changed while it was read, so what was merged is of two "
                "minds; run again when nobody writes to it."
            )


def input_stamps(plan: Plan, folders: Mapping[str, Path]) -> list[Stamp]:
    """Every file that is read, of the size the plan was made from; raises ``FileMissing`` and
    ``InputChanged``.
    """
    found = []
    for index_label, key, file, size in _wanted(plan):
        if key not in folders:
            raise FileMissing(f"The folder of {key} was not given.")
        path = safe_path(folders[key], file)
        facts = _facts(path)
        if facts is None or facts[0] != size:
            raise InputChanged(f"{file} of {index_label} is not the file that was planned with; plan again.")
        found.append(Stamp(key, index_label, file, path, facts))
    for name, stage in plan.staged.stages.items():
        inner = input_stamps(stage.plan, of_stage(folders, name))
        found += (replace(stamp, key=key_in(name, stamp.key)) for stamp in inner)
    return found


def last_written(stamps: Iterable[Stamp], pinned: Container[str]) -> dict[str, int]:
    """When each file was last written, in nanoseconds, without folders that are ``pinned`` to something
    better: samples alone would miss a change of a few tensors.
    """
    return {f"{each.key}/{each.file}": each.facts[1] for each in stamps if each.key not in pinned}


def _wanted(plan: Plan) -> Iterator[tuple[str, str, str, int]]:
    """Label of the model, key of the folder, name and size of each file."""
    for key in dict.fromkeys(
        (plan.reference, *plan.rows, *(i.model for o in plan.outputs for i in o.inputs))
    ):
        index = plan.models[key]
        if stage_of(index.label) is not None:
            continue
        for file in plan.weight_files(key):
            yield index.label, key, file, index.files[file]
        if index.adapter is not None:
            for file in index.adapter.weights:
                yield index.label, key + ADAPTER, file, index.adapter.files[file]


def _facts(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns, found.st_ino) if path.is_file() else None
