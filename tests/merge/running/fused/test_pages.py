"""Inputs that are read more than once lie in this process's addresses as long as they are wanted."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor

from merge.checkpoint import files
from merge.checkpoint.files import OpenFiles, Stretch
from merge.checkpoint.pages import Pages
from merge.contract.method import get
from merge.file_errors import FileSizeMismatch
from merge.planning.outputs import Input
from merge.run import run
from merge.running import passes
from merge.running.blocks import Buffers
from merge.running.fused.loops import Loops
from merge.running.places import IN_PAGES, Lying, Place
from merge.work import Work
from tests.merge import exact
from tests.merge.every import steps_of
from tests.merge.references import CHAINS, planned, tensors_digest
from tests.merge.running.fused.stand_ins import (
    BF16,
    Memory,
    bits,
    block_of,
    chain_of,
    entries,
    measure_both,
    output_of,
)

pytestmark = pytest.mark.usefixtures("small_jobs_too")

GIB = 1 << 30


@pytest.fixture(autouse=True)
def mapped(monkeypatch: pytest.MonkeyPatch) -> list[ref[Pages]]:
    """Every job and tensor is large enough; what is mapped is noted here."""
    found: list[ref[Pages]] = []

    class Noted(Pages):
        def __init__(self, *facts: int) -> None:
            super().__init__(*facts)
            found.append(ref(self))

    monkeypatch.setattr(files, "Pages", Noted)
    monkeypatch.setattr(passes, "AT_ONCE", 0)
    return found


def followed(stored: Sequence[Tensor], first: int) -> list[Place]:
    """The entries where numbers follow that are none."""
    found = []
    for values in stored:
        held = torch.cat([values, torch.full((100,), torch.nan, dtype=values.dtype)])
        found.append(Place(IN_PAGES, 0, held[first:].data_ptr(), held))
    return found


@pytest.mark.parametrize("shape", [(150_001,), (65_600,), (1024, 70), (512, 64), (512, 100)], ids=str)
@pytest.mark.parametrize("step", ["slerp", "ties", "sce", "widen", "della"])
def test_what_follows_the_entries_is_not_looked_at(step: str, shape: tuple[int, ...]) -> None:
    based = step != "slerp"
    stored = entries(shape, [BF16] * (2 + based))
    chain = chain_of(steps_of(get(step), {"t": 0.3} if step == "slerp" else {}), shape, 2)
    output = output_of(shape, stored, based, "BF16")
    made = Loops(Memory(stored), Buffers(), chain.entries, True)  # type: ignore[arg-type]
    for level in range(1, chain.levels + 1):
        tasks = [task for task in chain.tasks if task.due(level)]
        measuring = made.measuring(chain, output, tasks)
        for first, size in chain.spans(chain.piece) if measuring is not None else ():
            ours = measuring._measured(followed(stored, first), first, size)
            theirs = chain.measure(block_of(chain, stored, based, first, size), tasks)
            assert ours is not None
            for mine, yours in zip(ours, theirs, strict=True):
                assert all(torch.equal(bits(a), bits(b)) for a, b in zip(mine, yours, strict=True))
        measure_both(made, chain, output, stored, based, level)
    writing = made.writing(chain, output)
    assert writing is not None or (step in ("della", "widen") and len(shape) == 1), made.reasons
    for first, size in chain.spans(chain.piece) if writing is not None else ():
        merged = writing._made(followed(stored, first), first, size)
        theirs = chain.compute(block_of(chain, stored, based, first, size)).reshape(-1).to(BF16)
        assert merged is not None
        assert torch.equal(bits(merged), bits(theirs))


@pytest.mark.parametrize("chain", ["slerp", "ties"])
def test_what_is_measured_and_merged_is_mapped_and_given_back(
    folders: Mapping[str, Path], tmp_path: Path, chain: str, mapped: list[ref[Pages]]
) -> None:
    plan = planned(folders, *CHAINS[chain])
    run(plan, folders, tmp_path / "out", budget_bytes=GIB, threads=2)
    assert mapped
    assert not any(pages() for pages in mapped)


def test_what_is_read_once_is_not_mapped(
    folders: Mapping[str, Path], tmp_path: Path, mapped: list[ref[Pages]]
) -> None:
    run(planned(folders, *CHAINS["linear"]), folders, tmp_path / "out", budget_bytes=GIB, threads=2)
    assert not mapped


def test_bytes_are_the_same_where_nothing_can_be_mapped(
    folders: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: list[ref[Pages]]
) -> None:
    plan = planned(folders, *CHAINS["ties"])
    run(plan, folders, tmp_path / "mapped", budget_bytes=GIB, threads=2)
    assert mapped

    def refused(*_: int) -> None:
        raise OSError("not here")

    monkeypatch.setattr(files, "Pages", refused)
    run(plan, folders, tmp_path / "read", budget_bytes=GIB, threads=2)
    assert tensors_digest(tmp_path / "read") == tensors_digest(tmp_path / "mapped")


def test_a_file_cut_short_after_it_was_measured_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: list[ref[Pages]]
) -> None:
    """Reading what is no longer there would kill the process."""
    own = exact.family(tmp_path / "family", shards=2)
    plan = planned(own, *CHAINS["slerp"])
    write = Work._write_items

    def cut(self: Work, *what: Any) -> None:
        for path in own["a"].glob("*.safetensors"):
            with path.open("r+b") as file:
                file.truncate(4096)
        write(self, *what)

    monkeypatch.setattr(Work, "_write_items", cut)
    with pytest.raises(FileSizeMismatch, match="cut short while it was read"):
        run(plan, own, tmp_path / "out", budget_bytes=GIB, threads=2)
    assert mapped


def test_a_tensor_s_pages_go_when_it_is_written_not_when_all_are(
    folders: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: list[ref[Pages]]
) -> None:
    held: list[int] = []
    forget = Work.forget

    def counted(self: Work, *what: Any) -> None:
        held.append(sum(pages() is not None for pages in mapped))
        forget(self, *what)

    monkeypatch.setattr(Work, "forget", counted)
    run(planned(folders, *CHAINS["slerp"]), folders, tmp_path / "out", budget_bytes=GIB, threads=2)
    assert mapped and set(held) == {0}


def lying_in(folder: Path) -> Lying:
    """A tensor of 1024 entries in a file."""
    (folder / "file").write_bytes(bytes(4096))
    lies = Stretch(OpenFiles(folder, "model"), "file", 0, 4, 1024, "F32")
    return Lying(SimpleNamespace(stretch=lambda _: lies), [Input("a", "w")])  # type: ignore[arg-type]


def test_nothing_is_mapped_for_a_sample(tmp_path: Path, mapped: list[ref[Pages]]) -> None:
    """One thread would bring all of a tensor while the others wait for it."""
    lying = lying_in(tmp_path)
    with lying.read_again():
        with lying.at(0, 1024, few=True) as (sampled,):
            assert sampled.fd >= 0 and not mapped
        with lying.at(0, 1024) as (place,):
            assert place.fd == IN_PAGES


def test_what_is_still_being_read_stays_mapped(tmp_path: Path, mapped: list[ref[Pages]]) -> None:
    """A thread may be in the middle of it when another ends, or is ended by a signal."""
    lying = lying_in(tmp_path)
    with ExitStack() as reading:
        with lying.read_again():
            (place,) = reading.enter_context(lying.at(0, 1024))
        assert place.fd == IN_PAGES
        assert str(tmp_path) in Path("/proc/self/maps").read_text(encoding="utf-8")
        with lying.at(0, 1024) as (later,):
            assert later.fd >= 0
    del place
    assert not any(pages() for pages in mapped)
