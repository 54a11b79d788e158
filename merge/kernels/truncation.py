"""How many singular values to keep, by which algorithm, and how much memory that takes: plain arithmetic.

The choice depends on the shape and on what is asked alone, never on memory or threads, so that it cannot
change a byte. Loads no torch.
"""

from dataclasses import dataclass
from typing import Literal

Way = Literal["svd", "gram", "projection"]

SVD_ENTRIES = 1 << 16
"""Up to so many entries the matrix is decomposed as it is."""
GRAM_SIDE = 1024
"""Up to this length of its shorter side, the Gram matrix of that side is decomposed: every singular value."""
BLOCK_ENTRIES = 1 << 20
"""Entries of one block of whole rows."""
OVERSAMPLE = 16
FIRST_WIDTH = 80
DOUBLE = 8
USUAL_PASSES = 6
"""Over a matrix, until its projection has settled."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A rank, or the least rank whose relative Frobenius error is at most ``error``, but at most ``rank``;
    with ``share`` at most that part of the full rank, rounded down, and at least 1.
    """

    rank: int
    error: float | None = None
    share: float | None = None

    def most(self, rows: int, columns: int) -> int:
        """The largest rank that can come out for a matrix of this shape."""
        full = min(rows, columns)
        most = self.rank if self.share is None else max(1, int(self.share * full + 1e-9))
        return min(most, full)


def way_of(rows: int, columns: int, width: int) -> Way:
    """How a (rows, columns) matrix is decomposed where ``width`` directions are followed."""
    if rows * columns <= SVD_ENTRIES:
        return "svd"
    short = min(rows, columns)
    return "gram" if short <= GRAM_SIDE or 3 * width >= short else "projection"


def width_of(most: int, wanted: Wanted) -> int:
    """Directions that a projection starts with: some more than are kept."""
    return most + OVERSAMPLE if wanted.error is None else min(most + OVERSAMPLE, FIRST_WIDTH)


def wider(width: int, most: int, rows: int, columns: int) -> int:
    """Directions to follow after ``width`` were too few for the error: twice as many, in the end all."""
    return min(2 * width, most + OVERSAMPLE) if width < most + OVERSAMPLE else min(rows, columns)


def block_rows(columns: int) -> int:
    """Rows of one block: fixed by the shape, so that sums over blocks come out the same everywhere."""
    return max(1, BLOCK_ENTRIES // max(1, columns))


def bytes_of(rows: int, columns: int, wanted: Wanted, entry: int) -> int:
    """Peak bytes of ``spectral.decompose`` with its blocks; ``entry`` bytes for an entry of a block."""
    most = wanted.most(rows, columns)
    block = min(rows, block_rows(columns)) * columns * (entry + 2 * DOUBLE)
    factors = 3 * most * (rows + columns) * DOUBLE
    widths = {width_of(most, wanted), most + OVERSAMPLE}
    return block + factors + max(_held(rows, columns, width, entry) for width in widths)


def product_bytes(rows: int, columns: int, ranks: int, most: int) -> int:
    """Peak bytes of ``spectral.decompose_product`` for factors with ``ranks`` columns together."""
    return DOUBLE * (4 * ranks * (rows + columns) + 6 * ranks * ranks + 2 * most * (rows + columns))


def products_of(rows: int, columns: int, wanted: Wanted) -> float:
    """How many products of numbers ``spectral.decompose`` takes, roughly."""
    width, short = width_of(wanted.most(rows, columns), wanted), min(rows, columns)
    if way_of(rows, columns, width) == "projection":
        return 2.0 * USUAL_PASSES * rows * columns * width
    return 2.0 * rows * columns * short + short**3


def _held(rows: int, columns: int, width: int, entry: int) -> int:
    way, short = way_of(rows, columns, width), min(rows, columns)
    if way == "svd":
        return rows * columns * (entry + 4 * DOUBLE)
    if way == "gram":
        whole = rows * columns * entry if rows < columns else 0
        return whole + 4 * short * short * DOUBLE
    return (4 * columns * width + 4 * width * width) * DOUBLE
