"""Four-bit codes of bitsandbytes (NF4, FP4): sixteen values from a table, times the scale of a block.

Two codes a byte, the first in its high half; blocks run over the matrix row by row, whatever its rows are.
A scale is stored as it is, or itself as a byte: table[byte] * (scale of a block of scales) + offset. Parts:
``codes``, ``map``, ``absmax``, ``state`` (see ``merge.checkpoint.four_bits``) and, for coded scales,
``nested_map`` and ``nested_absmax``. Settings: ``rows`` and ``columns``, ``block``, ``nested``.
"""

from math import prod

import torch
from torch import Tensor

from merge.checkpoint.codecs.parts import Parts, nibbles
from merge.checkpoint.four_bits import LEVELS, TABLE, State, state_of
from merge.checkpoint.header import Coded
from merge.file_errors import QuantizationMalformed


def rows(coded: Coded, first: int, out: Tensor, parts: Parts) -> None:
    """Decodes whole rows; see ``merge.checkpoint.codecs``."""
    state, flat, block = _state(coded, parts), out.view(-1), coded.settings["block"]
    begin = first * coded.settings["columns"]
    end = begin + flat.numel()
    codes = parts.read(coded.parts["codes"], begin // 2, -(-end // 2) - begin // 2)
    pairs = _pairs(parts.read(coded.parts["map"], 0, LEVELS))
    if begin % 2 or end % 2:
        values = torch.index_select(pairs, 0, codes.int()).view(torch.float32)
        flat.copy_(values[begin % 2 : begin % 2 + flat.numel()])
    else:
        torch.index_select(pairs, 0, codes.int(), out=flat.view(torch.float64))
    low, high = begin // block, -(-end // block)
    scales = _scales(coded, low, high, state, parts)
    if begin % block or flat.numel() % block:
        at = begin - low * block
        flat.mul_(scales.repeat_interleave(block)[at : at + flat.numel()])
    else:
        flat.view(-1, block).mul_(scales[:, None])


def _pairs(table: Tensor) -> Tensor:
    """For each byte the two values in it, the high half first, as one eight-byte entry."""
    halves = nibbles(torch.arange(256, dtype=torch.uint8)[:, None]).flip(1).int()
    return table[halves].view(torch.float64).view(-1)


def _scales(coded: Coded, low: int, high: int, state: State, parts: Parts) -> Tensor:
    stored = parts.read(coded.parts["absmax"], low, high - low)
    nested = coded.settings["nested"]
    if not nested:
        return stored
    begin, end = low // nested, -(-high // nested)
    each = parts.read(coded.parts["nested_absmax"], begin, end - begin).repeat_interleave(nested)
    table = parts.read(coded.parts["nested_map"], 0, TABLE)
    at = low - begin * nested
    return table[stored.int()].mul_(each[at : at + high - low]).add_(state.offset)


def _state(coded: Coded, parts: Parts) -> State:
    """The state of this very matrix, which must be what the plan took it for."""
    said, of = coded.parts["state"], coded.settings
    state = state_of(said.name, parts.read(said, 0, said.numel).numpy().tobytes())
    planned = (of["rows"] * of["columns"], of["columns"], of["block"], of["nested"])
    if (prod(state.shape), state.shape[-1], state.block, state.nested) != planned:
        raise QuantizationMalformed(
            f"{said.name} says {list(state.shape)} in blocks of {state.block}; matrices of this place and "
            f"size in other layers are [{of['rows']}, {of['columns']}] in blocks of {of['block']}."
        )
    return state
