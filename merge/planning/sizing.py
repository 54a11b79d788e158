"""How much memory and time a merge takes, by plain arithmetic; shared by the plan (which promises) and the
run.
"""

from dataclasses import dataclass

PIECE_ELEMENTS = 1 << 16
MOST_BLOCK_ELEMENTS = 1 << 18
COUNTERS_BYTES = 1 << 19
MEASURED_BYTES = 64 << 20
FIXED_BYTES = 24 << 20
READ_BYTES_PER_SECOND = 2.0e9
WRITE_BYTES_PER_SECOND = 0.8e9
TENSOR_SECONDS = 5e-4
PRODUCTS_PER_SECOND = 2.5e10


@dataclass(frozen=True)
class Sizes:
    """``block`` entries at a time on each of ``threads`` threads; ``batch`` tensors measured together."""

    block: int
    threads: int
    batch: int
    peak_bytes: int


@dataclass(frozen=True)
class Demand:
    """What a merge must hold in memory. ``models`` tensors of a block's size come in at once, of numbers of
    ``compute_bytes`` each; ``whole`` entries must be together (1 for elementwise methods, a row, or the
    largest tensor) because of the ``tensor`` of that name. For each entry a method holds ``workspace`` bytes
    besides, and ``lines`` bytes are measured of the rows or columns of a tensor. Beside the blocks each
    thread holds ``each`` bytes, and all together ``kept``.
    """

    models: int
    compute_bytes: int
    whole: int = 1
    workspace: int = 0
    lines: int = 0
    tensor: str = ""
    each: int = 0
    kept: int = 0

    @property
    def entry_bytes(self) -> int:
        """Bytes held for one entry of the output while it is computed: inputs, deltas, copies of both,
        temporaries; or inputs, deltas, a copy of them, the result, and the workspace, where one is told.
        """
        if not self.workspace:
            return self.compute_bytes * (4 * self.models + 10)
        return self.compute_bytes * (3 * self.models + 2) + self.workspace

    @property
    def block(self) -> int:
        """The fewest entries that are computed at a time."""
        return max(PIECE_ELEMENTS, self.whole)

    @property
    def batch(self) -> int:
        """How many tensors are measured together."""
        return max(1, min(16, MEASURED_BYTES // self._measured))

    @property
    def fixed_bytes(self) -> int:
        """Bytes held whatever the number of threads: among them what is measured of a batch."""
        return FIXED_BYTES + self.batch * self._measured + self.kept

    @property
    def _measured(self) -> int:
        return self.models * COUNTERS_BYTES + self.lines

    @property
    def least_budget(self) -> int:
        """The smallest budget that ``sizes`` accepts, in bytes."""
        return self.fixed_bytes + self.lines + self.each + self.entry_bytes * self.block


def sizes(demand: Demand, threads: int, budget: int, beside: int = 0) -> Sizes | None:
    """Block size and threads that stay under ``budget`` bytes, or ``None`` where even the smallest does not;
    ``beside`` are bytes that each thread holds besides.
    """
    beside += demand.lines + demand.each
    for crew in range(threads, 0, -1):
        room = (budget - demand.fixed_bytes - crew * beside) // (crew * demand.entry_bytes)
        if room >= demand.block:
            most = max(demand.block, min(MOST_BLOCK_ELEMENTS, room))
            block = most if demand.whole > PIECE_ELEMENTS else most // PIECE_ELEMENTS * PIECE_ELEMENTS
            peak = demand.fixed_bytes + crew * (demand.entry_bytes * block + beside)
            return Sizes(block, crew, demand.batch, peak)
    return None


def seconds(read_bytes: int, passes: int, written_bytes: int, tensors: int = 0, products: float = 0) -> float:
    """A cautious guess at the time of a merge on a local disk, downloads apart; ``products`` are those of
    numbers that decomposing its matrices takes, and iterating over them.
    """
    moving = read_bytes * passes / READ_BYTES_PER_SECOND + written_bytes / WRITE_BYTES_PER_SECOND
    return 1.0 + moving + tensors * passes * TENSOR_SECONDS + products / PRODUCTS_PER_SECOND
