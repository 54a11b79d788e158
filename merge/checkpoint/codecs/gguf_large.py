"""GGUF's blocks of 256 numbers, scaled by 16 or 32: uint8 (n, bytes of a block) to float32 (n, 256)."""

import torch
from torch import Tensor

from merge.checkpoint.codecs.gguf_small import bits, half, looked_up


def q2_k(blocks: Tensor, out: Tensor) -> None:
    """16 bytes of 4-bit scales and leasts, 64 of codes, scale of scales, scale of leasts."""
    scales, codes = blocks[:, :16], blocks[:, 16:80]
    _two_bits(codes, out)
    by16 = out.view(-1, 16, 16)
    by16.mul_((half(blocks, 80) * (scales & 15))[:, :, None])
    by16.sub_((half(blocks, 82) * (scales >> 4))[:, :, None])


def q3_k(blocks: Tensor, out: Tensor) -> None:
    """32 bytes of third bits, 64 of codes, 12 of 6-bit scales, scale of scales."""
    _two_bits(blocks[:, 32:96], out)
    third = bits(blocks[:, :32]).view(-1, 32, 8).transpose(1, 2).reshape(-1, 256)
    out.add_(third << 2).sub_(4)
    low, high = blocks[:, 96:104], blocks[:, 104:108]
    fours = torch.cat((low & 15, low >> 4), 1)
    twos = torch.cat([high >> shift & 3 for shift in (0, 2, 4, 6)], 1)
    scales = (fours | twos << 4).float() - 32
    out.view(-1, 16, 16).mul_((half(blocks, 108) * scales)[:, :, None])


def q4_k(blocks: Tensor, out: Tensor) -> None:
    """Scale of scales, scale of leasts, 12 bytes of 6-bit scales and leasts, 128 of codes."""
    codes = blocks[:, 16:].view(-1, 4, 32)
    by32 = out.view(-1, 4, 2, 32)
    by32[:, :, 0].copy_(codes & 15)
    by32[:, :, 1].copy_(codes >> 4)
    _scale_and_least(blocks, out)


def q5_k(blocks: Tensor, out: Tensor) -> None:
    """As ``q4_k`` with 32 bytes of fifth bits before the codes."""
    codes = blocks[:, 48:].view(-1, 4, 32)
    fifth = bits(blocks[:, 16:48]).view(-1, 32, 4, 2).permute(0, 2, 3, 1) << 4
    by32 = out.view(-1, 4, 2, 32)
    by32[:, :, 0].copy_(codes & 15)
    by32[:, :, 1].copy_(codes >> 4)
    by32.add_(fifth)
    _scale_and_least(blocks, out)


def q6_k(blocks: Tensor, out: Tensor) -> None:
    """128 bytes of low halves, 64 of upper bits, 16 signed scales, scale of scales."""
    low, high = blocks[:, :128].view(-1, 2, 2, 32), blocks[:, 128:192].view(-1, 2, 32)
    by32 = out.view(-1, 2, 2, 2, 32)
    by32[:, :, 0].copy_(low & 15)
    by32[:, :, 1].copy_(low >> 4)
    upper = torch.stack([high >> shift & 3 for shift in (0, 2, 4, 6)], 2)
    out.view(-1, 2, 4, 32).add_(upper << 4).sub_(32)
    scales = blocks[:, 192:208].view(torch.int8).float()
    out.view(-1, 16, 16).mul_((half(blocks, 208) * scales)[:, :, None])


def iq4_xs(blocks: Tensor, out: Tensor) -> None:
    """Scale of scales, 2 bytes of upper and 4 of lower bits of 8 scales, 128 bytes of codes of ``IQ4``."""
    looked_up(blocks[:, 8:].view(-1, 8, 16), out.view(-1, 8, 32))
    upper = torch.stack([blocks[:, 2:4] >> shift & 3 for shift in (0, 2, 4, 6)], 2).flatten(1)
    lower = torch.stack((blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4), 2).flatten(1)
    scales = half(blocks, 0) * ((lower | upper << 4).float() - 32)
    out.view(-1, 8, 32).mul_(scales[:, :, None])


def _two_bits(codes: Tensor, out: Tensor) -> None:
    """64 bytes to 256 codes: in each half of the block the lowest bits of its 32 bytes come first."""
    halves = codes.view(-1, 2, 1, 32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).view(4, 1)
    out.view(-1, 2, 4, 32).copy_(halves >> shifts & 3)


def _scale_and_least(blocks: Tensor, out: Tensor) -> None:
    """Applies eight 6-bit scales and leasts: four whole, four in the spare bits of the others."""
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat((first & 63, third & 15 | first >> 6 << 4), 1)
    leasts = torch.cat((second & 63, third >> 4 | second >> 6 << 4), 1)
    by32 = out.view(-1, 8, 32)
    by32.mul_((half(blocks, 0) * scales)[:, :, None])
    by32.sub_((half(blocks, 2) * leasts)[:, :, None])
