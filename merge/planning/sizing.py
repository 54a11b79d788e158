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


def entry_bytes(models: int, compute_bytes: int, workspace: int = 0) -> int:
    """Bytes held for one entry of the output while it is computed: inputs, deltas, copies of both,
    temporaries; or inputs, deltas, a copy of them, the result, and the ``workspace`` that a method has
    declared, in bytes.
    """
    return max(compute_bytes * (4 * models + 10), compute_bytes * (3 * models + 2) + workspace)


def sizes(
    models: int,
    compute_bytes: int,
    whole: int,
    threads: int,
    budget: int,
    workspace: int = 0,
    beside: int = 0,
    lines: int = 0,
) -> Sizes | None:
    """Block size and threads that stay under ``budget`` bytes, or ``None`` where even the smallest does not.

    ``models`` counts the base. ``whole`` is the number of entries that must be together (1 for elementwise
    methods, a row, or the largest tensor), ``workspace`` as in ``entry_bytes``; ``beside`` are bytes that
    each thread holds besides, ``lines`` those that are measured of the rows or columns of a tensor.
    """
    each = entry_bytes(models, compute_bytes, workspace)
    batch, measured = _measured(models, lines)
    fixed, beside = FIXED_BYTES + measured, beside + lines
    least = PIECE_ELEMENTS if whole <= PIECE_ELEMENTS else whole
    for crew in range(threads, 0, -1):
        room = (budget - fixed - crew * beside) // (crew * each)
        if room >= least:
            most = max(least, min(MOST_BLOCK_ELEMENTS, room))
            block = most if whole > PIECE_ELEMENTS else most // PIECE_ELEMENTS * PIECE_ELEMENTS
            return Sizes(block, crew, batch, fixed + crew * (each * block + beside))
    return None


def needed_budget(models: int, compute_bytes: int, whole: int, workspace: int = 0, lines: int = 0) -> int:
    """The smallest budget that ``sizes`` accepts, in bytes."""
    least = max(PIECE_ELEMENTS, whole)
    each = entry_bytes(models, compute_bytes, workspace)
    return FIXED_BYTES + _measured(models, lines)[1] + lines + each * least


def _measured(models: int, lines: int) -> tuple[int, int]:
    """How many tensors are measured together, and what is held of them."""
    each = models * COUNTERS_BYTES + lines
    batch = max(1, min(16, MEASURED_BYTES // each))
    return batch, batch * each


def seconds(read_bytes: int, passes: int, written_bytes: int, tensors: int = 0, products: int = 0) -> float:
    """A cautious guess at the time of a merge on a local disk, downloads apart; ``products`` are those of
    numbers that decomposing its matrices takes.
    """
    moving = read_bytes * passes / READ_BYTES_PER_SECOND + written_bytes / WRITE_BYTES_PER_SECOND
    return 1.0 + moving + tensors * passes * TENSOR_SECONDS + products / PRODUCTS_PER_SECOND
