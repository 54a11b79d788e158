"""How much memory reading a model takes beside the blocks that are read: for codes, and for factors of
adapters. Plain arithmetic. Loads no torch.
"""

from collections.abc import Iterable
from heapq import nlargest
from math import ceil
from typing import TYPE_CHECKING

from merge.checkpoint.header import Coded, TensorInfo

if TYPE_CHECKING:
    from merge.checkpoint.index import ModelIndex

CACHED_PAIRS = 4
"""Factors of so many tensors are kept of an adapter."""
FACTOR_BYTES = 8
"""Of a number in them: float64, or float32 as it is and as the compiled loop takes it."""
PIECE_ELEMENTS = 1 << 18
"""Entries that are decoded at a time."""
WORKING = 6
"""Numbers of 4 bytes for each of them, while they are decoded."""
WHOLE_BYTES = 1 << 20
"""A part as small as this is read as a whole."""
STRIP_BYTES, MOST_BYTES, LEAST_COLUMNS = 8 << 20, 4096, 64
"""Of other parts about so many bytes, at most so many of a line, but at least so many columns."""
TURNED_ELEMENTS, TURNED_STRIPS = 1 << 21, 16
"""Of a matrix that is stored the other way round: entries of a strip, unless that made more strips."""
_BY_COLUMNS = frozenset({"gptq", "awq", "awq_gemv_fast", "mxfp4", "reversible"})


def strip_columns(lines: int, entry: int) -> int:
    """Columns of a strip of a part with so many lines, of ``entry`` bytes each."""
    return max(LEAST_COLUMNS, min(MOST_BYTES // entry, STRIP_BYTES // max(lines * entry, 1)))


def strip_rows(height: int, width: int) -> int:
    """Rows of a strip of a matrix that is stored the other way round."""
    return max(1, TURNED_ELEMENTS // width, -(-height // TURNED_STRIPS))


def kept_bytes(model: "ModelIndex") -> int:
    """Bytes of the factors that are kept of a model's adapter, and of those that take their place."""
    return FACTOR_BYTES * sum(nlargest(CACHED_PAIRS + 1, _factors(model)))


def reading_bytes(models: Iterable["ModelIndex"]) -> int:
    """Bytes that each thread takes to read these models: for the factors of a tensor that it makes, and for
    the codes of each model.
    """
    found = [(max(_factors(model), default=0), _decoding(model.tensors.values())) for model in models]
    making = FACTOR_BYTES * max((factors for factors, _ in found), default=0)
    codes = sum(each for _, each in found)
    return making + codes + (4 * WORKING * PIECE_ELEMENTS if codes else 0)


def _factors(model: "ModelIndex") -> list[int]:
    """Numbers in the factors of each tensor."""
    pairs = model.adapter.pairs.values() if model.adapter is not None else ()
    return [sum(info.numel for info in pair.factors) for pair in pairs]


def _decoding(tensors: Iterable[TensorInfo]) -> int:
    """Bytes that a thread keeps for decoding tensors one after another."""
    return max((_held(info, info.coded) for info in tensors if info.coded is not None), default=0)


def _held(info: TensorInfo, coded: Coded) -> int:
    columns, strip = info.shape[-1] if info.shape else 1, 0
    if "transposed" in coded.settings:
        strip, columns = 4 * min(info.numel, strip_rows(*info.shape) * columns), info.shape[0]
    piece = max(PIECE_ELEMENTS, columns * coded.align)
    share = min(1.0, piece / max(1, info.numel))
    by_columns = coded.scheme in _BY_COLUMNS
    parts = (_strip_bytes(part) if by_columns else part.nbytes * share for part in info.stored)
    return 4 * piece + ceil(sum(parts)) + strip


def _strip_bytes(part: TensorInfo) -> int:
    lines = part.numel // max(1, part.shape[-1])
    return min(part.nbytes, STRIP_BYTES, max(WHOLE_BYTES, lines * MOST_BYTES))
