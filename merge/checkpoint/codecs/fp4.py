"""Four-bit floats (E2M1) with scales for small groups: MXFP4 and NVFP4.

Two numbers a byte, the low half first. MXFP4: a group of 32 shares the scale 2 to the power of (byte - 127);
as gpt-oss stores it the stored rows are the columns of the tensor. NVFP4: a group of 16 shares an eight-bit
float, times (or, in compressed-tensors, divided by) one number for the whole tensor.
"""

from dataclasses import replace

import torch
from torch import Tensor

from merge.checkpoint.codecs.parts import Parts, e2m1, powers_of_two
from merge.checkpoint.header import Coded, TensorInfo

MX_GROUP = 32


def transposed_rows(coded: Coded, first: int, out: Tensor, parts: Parts) -> None:
    """MXFP4. Parts ``blocks`` (experts, columns, groups, 16) and ``scales`` (experts, columns, groups)."""
    blocks, scales = (coded.parts[name] for name in ("blocks", "scales"))
    columns, groups = scales.shape[1:]
    per_expert, half = groups * MX_GROUP, MX_GROUP // 2
    done = 0
    while done < len(out):
        expert, row = divmod(first + done, per_expert)
        count = min(len(out) - done, per_expert - row)
        begin, end = row // MX_GROUP, (row + count) // MX_GROUP
        numbers = torch.empty(columns, count)
        codes = parts.columns(_of_expert(blocks, expert, groups * half), begin * half, end * half)
        e2m1(codes.reshape(-1), numbers.view(-1))
        shared = parts.columns(_of_expert(scales, expert, groups), begin, end)
        numbers.view(columns, -1, MX_GROUP).mul_(powers_of_two(shared)[:, :, None])
        out[done : done + count].copy_(numbers.T)
        done += count


def _of_expert(part: TensorInfo, expert: int, width: int) -> TensorInfo:
    """One expert's bytes (columns, width)."""
    size = part.shape[1] * width
    begin = part.begin + expert * size
    return replace(part, shape=(part.shape[1], width), begin=begin, end=begin + size)


def rows(coded: Coded, first: int, out: Tensor, parts: Parts) -> None:
    """Rows as they are. Parts ``packed`` (rows, columns / 2), ``scale`` (rows, groups) and, of NVFP4,
    ``global`` (one number). Settings: ``group``, ``divide``.
    """
    (count, columns), size = out.shape, coded.settings["group"]
    half, groups = columns // 2, columns // size
    e2m1(parts.read(coded.parts["packed"], first * half, count * half), out.view(-1))
    stored = parts.read(coded.parts["scale"], first * groups, count * groups)
    scale = powers_of_two(stored) if stored.dtype == torch.uint8 else stored.float()
    if "global" in coded.parts:
        whole = parts.read(coded.parts["global"], 0, 1).float()
        scale = scale / whole if coded.settings["divide"] else scale * whole
    out.view(count, groups, size).mul_(scale.view(count, groups, 1))
