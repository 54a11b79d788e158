"""What a loop makes is written to its file by the loop itself, while it is in the cache."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge.running.blocks import Buffers
from merge.running.fused.loop import Target
from merge.running.fused.loops import Loops
from merge.running.fused.spans import Writing
from tests.merge.running.fused.stand_ins import Memory, chain_of, entries, output_of

BF16 = torch.bfloat16
COLUMNS = 4096
SHAPE = (150, COLUMNS)
"""More than twice what is written together, and a rest; several blocks of rows that are ranked."""
BEFORE = 1001

pytestmark = pytest.mark.usefixtures("small_jobs_too")


def writing_of(steps: Any, dtype: str) -> Writing:
    stored = entries(SHAPE, [BF16] * 3)
    chain = chain_of(steps, SHAPE, 2)
    loop = Loops(Memory(stored), Buffers(), chain.entries, True).writing(  # type: ignore[arg-type]
        chain, output_of(SHAPE, stored, True, dtype)
    )
    assert loop is not None
    return loop


def of_file(path: Path, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(path.read_bytes()[BEFORE:]), dtype=dtype)


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("prepare", ["dare", "della"])
def test_the_file_holds_what_the_memory_holds(tmp_path: Path, prepare: str, dtype: str) -> None:
    loop = writing_of([(prepare, {"density": 0.5}), ("task_arithmetic", {})], dtype)
    path, first = tmp_path / "out", 2 * COLUMNS
    with path.open("wb+") as file:
        made = loop.made(first, loop.chain.entries - first, None, Target(file.fileno(), BEFORE))
    assert made is not None
    assert made.count_nonzero()
    assert torch.equal(of_file(path, made.dtype), made)


@pytest.mark.parametrize("prepare", ["dare", "della"])
def test_a_file_that_cannot_be_written_is_left_to_who_can_say_why(tmp_path: Path, prepare: str) -> None:
    loop = writing_of([(prepare, {"density": 0.5}), ("task_arithmetic", {})], "BF16")
    (tmp_path / "out").touch()
    fd = os.open(tmp_path / "out", os.O_RDONLY)
    try:
        assert loop.made(0, loop.chain.entries, None, Target(fd, 0)) is None
    finally:
        os.close(fd)
