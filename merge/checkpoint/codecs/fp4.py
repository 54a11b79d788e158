"""Four-bit floats (E2M1) with scales for small groups: MXFP4 as gpt-oss stores it, NVFP4.

Two numbers a byte, the low half first. MXFP4: a group of 32 shares the scale 2 to the power of (byte - 127);
the stored rows are the columns of the tensor. NVFP4: a group of 16 shares an eight-bit float, times (or, in
compressed-tensors, divided by) one number for the whole tensor.
"""

import torch
from torch import Tensor

from merge.checkpoint.codecs.parts import Parts, e2m1, powers_of_two
from merge.checkpoint.header import Coded

MX_GROUP = 32
NV_GROUP = 16


def transposed_rows(coded: Coded, first: int, out: Tensor, parts: Parts) -> None:
    """MXFP4. Parts ``blocks`` (experts, columns, groups, 16) and ``scales`` (experts, columns, groups)."""
    blocks, scales = (parts.mapped(coded.parts[name]) for name in ("blocks", "scales"))
    columns, groups = scales.shape[1:]
    per_expert = groups * MX_GROUP
    done = 0
    while done < len(out):
        expert, row = divmod(first + done, per_expert)
        count = min(len(out) - done, per_expert - row)
        span = slice(row // MX_GROUP, (row + count) // MX_GROUP)
        numbers = torch.empty(columns, count)
        e2m1(blocks[expert, :, span].reshape(-1), numbers.view(-1))
        numbers.view(columns, -1, MX_GROUP).mul_(powers_of_two(scales[expert, :, span])[:, :, None])
        out[done : done + count].copy_(numbers.T)
        done += count


def rows(coded: Coded, first: int, out: Tensor, parts: Parts) -> None:
    """NVFP4. Parts ``packed`` (rows, columns / 2), ``scale`` (rows, groups) and ``global`` (one number)."""
    count, columns = out.shape
    half, groups = columns // 2, columns // NV_GROUP
    e2m1(parts.read(coded.parts["packed"], first * half, count * half), out.view(-1))
    scale = parts.read(coded.parts["scale"], first * groups, count * groups).float()
    whole = parts.read(coded.parts["global"], 0, 1).float()
    scale = scale / whole if coded.settings["divide"] else scale * whole
    out.view(count, groups, NV_GROUP).mul_(scale.view(count, groups, 1))
