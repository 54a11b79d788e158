"""How fast output becomes durable: our writer and the best of plain ways to write as many bytes, in turns.

``python -m bench.durable`` prints what each way reaches (write and fsync, nothing read) and our share of the
best; ``python -m bench.engine`` does so after its merges, with theirs. Plain ways write one file from its
begin to its end: in blocks of several sizes, as the kernel writes them back, or asked to begin early, or past
the page cache. Ours are shards of 500 MB as the engine writes them without digests: one after another, each
made durable while the next is written.
"""

import argparse
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from bench.family import SHARD_BYTES
from bench.memory import Filler
from merge.checkpoint.layout import plan_shards
from merge.checkpoint.writer import ShardWriter, start_writeback
from merge.planning.sizing import MOST_BLOCK_ELEMENTS

STEP = 64 << 20
"""Bytes are counted in steps of this size, the largest block."""
BLOCKS = (1 << 20, 8 << 20, STEP)
OURS = "our writer"
EARLY = 64 << 20
"""Bytes between two askings to begin writing back."""
BAR = 0.8


@dataclass(frozen=True)
class Durable:
    """GB/s of every run of each way, plain ones and ours."""

    size: int
    plain: Mapping[str, list[float]]
    ours: list[float]

    @property
    def best(self) -> float:
        """The best run of any plain way."""
        return max(max(runs) for runs in self.plain.values())

    @property
    def usual(self) -> float:
        """The best median of a plain way."""
        return max(median(runs) for runs in self.plain.values())

    def lines(self, merges: Mapping[str, float]) -> Iterator[str]:
        """A table: best and median of the runs, for ours beside the best of each that a plain way has;
        ``merges`` are the median GB/s that whole merges wrote.
        """
        told = f"GB/s: best, median; shares of the best of the plain ways' (bar {BAR})"
        yield f"durable writing of {self.size / 1e9:.2f} GB, {told}"
        for name, runs in self.plain.items():
            yield f"  {name:38}{max(runs):6.2f}{median(runs):6.2f}"
        most, usual = max(self.ours), median(self.ours)
        shares = f"{most / self.best:8.2f}{usual / self.usual:6.2f}"
        yield f"  {OURS:38}{most:6.2f}{usual:6.2f}{shares}"
        for method, rate in merges.items():
            yield f"  {f'merge by {method}, reading too':38}{rate:12.2f}{rate / self.usual:14.2f}"


def measured(folder: Path, size: int, memory: Filler, rounds: int = 3) -> Durable:
    """Every way once a round, in a folder made for it."""
    with tempfile.TemporaryDirectory(prefix="durable-", dir=folder) as name:
        return _measured(Path(name), size, memory, rounds)


def _measured(folder: Path, size: int, memory: Filler, rounds: int) -> Durable:
    size = max(STEP, size // STEP * STEP)
    block = mmap.mmap(-1, STEP)
    block.write(os.urandom(STEP))
    numbers = torch.frombuffer(block, dtype=torch.bfloat16)
    plain = _plain(folder / "one", block, size)
    ways = plain | {OURS: partial(_write_shards, folder, numbers, size)}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            memory.fill()
            begin = time.perf_counter()
            try:
                way()
                rates[name].append(size / (time.perf_counter() - begin) / 1e9)
            except OSError:  # a file system without O_DIRECT
                rates[name].append(0.0)
            for file in folder.iterdir():
                file.unlink()
            memory.fill()
            os.sync()
    return Durable(size, {name: rates[name] for name in plain}, rates[OURS])


def _plain(path: Path, block: mmap.mmap, size: int) -> dict[str, Callable[[], None]]:
    found: dict[str, Callable[[], None]] = {}
    for length in BLOCKS:
        for early in (False, True):
            name = f"blocks of {length >> 20} MiB{', early writeback' if early else ''}"
            found[name] = partial(_write, path, block, size, length, early=early)
    if hasattr(os, "O_DIRECT"):
        name = f"blocks of {STEP >> 20} MiB past the page cache"
        found[name] = partial(_write, path, block, size, STEP, flags=os.O_DIRECT)
    return found


def _write(path: Path, block: mmap.mmap, size: int, length: int, early: bool = False, flags: int = 0) -> None:
    piece = memoryview(block)[:length]
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flags, 0o644)
    try:
        for done in range(0, size, length):
            written = 0
            while written < length:
                written += os.write(fd, piece[written:])
            if early and (done + length) % EARLY == 0:
                start_writeback(fd, done + length - EARLY, EARLY)
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_shards(folder: Path, numbers: Tensor, size: int) -> None:
    specs = [(f"t{place}", "BF16", (numbers.numel(),)) for place in range(size // STEP)]
    with ThreadPoolExecutor(1) as closer:
        finishing = []
        for layout in plan_shards(specs, SHARD_BYTES):
            writer = ShardWriter(folder / layout.file, layout, digest=False)
            for name in layout.entries:
                for first in range(0, numbers.numel(), MOST_BLOCK_ELEMENTS):
                    writer.write_at(name, first, numbers[first : first + MOST_BLOCK_ELEMENTS])
            finishing.append(closer.submit(writer.finish))
        for done in finishing:
            done.result()


def main() -> None:
    """Parses arguments and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bytes", type=float, default=2.08e9, help="how many each way writes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="where the temporary folder is made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mergery-bench-", dir=options.dir) as name:
        found = measured(Path(name), int(options.bytes), Filler(Path(name)), options.rounds)
    print(*found.lines({}), sep="\n")


if __name__ == "__main__":
    main()
