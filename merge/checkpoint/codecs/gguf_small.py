"""GGUF's blocks of 32 numbers: uint8 (n, bytes of a block) to float32 (n, 32)."""

from functools import lru_cache

import torch
from torch import Tensor

from merge.checkpoint.codecs.parts import E2M1

IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The sixteen values of the non-linear four-bit types."""


def half(blocks: Tensor, at: int) -> Tensor:
    """The 16-bit float at byte ``at`` of every block, float32 (n, 1)."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def halves(codes: Tensor, out: Tensor) -> None:
    """Bytes (n, k) to their low halves, then their high ones: (n, 2 k)."""
    width = codes.shape[1]
    out[:, :width].copy_(codes & 15)
    out[:, width:].copy_(codes >> 4)


def fifth_bits(blocks: Tensor, at: int) -> Tensor:
    """The bits of the 32-bit word at byte ``at``, times 16: uint8 (n, 32)."""
    return bits(blocks[:, at : at + 4]) << 4


def bits(codes: Tensor) -> Tensor:
    """Bytes (n, k) to their bits from the lowest: uint8 (n, 8 k)."""
    return (codes[:, :, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten(1)


def q4_0(blocks: Tensor, out: Tensor) -> None:
    """scale * (code - 8); scale, 16 bytes of codes."""
    halves(blocks[:, 2:], out)
    out.sub_(8).mul_(half(blocks, 0))


def q4_1(blocks: Tensor, out: Tensor) -> None:
    """scale * code + least; scale, least, 16 bytes of codes."""
    halves(blocks[:, 4:], out)
    out.mul_(half(blocks, 0)).add_(half(blocks, 2))


def q5_0(blocks: Tensor, out: Tensor) -> None:
    """scale * (code - 16); scale, fifth bits, 16 bytes of codes."""
    halves(blocks[:, 6:], out)
    out.add_(fifth_bits(blocks, 2)).sub_(16).mul_(half(blocks, 0))


def q5_1(blocks: Tensor, out: Tensor) -> None:
    """scale * code + least; scale, least, fifth bits, 16 bytes of codes."""
    halves(blocks[:, 8:], out)
    out.add_(fifth_bits(blocks, 4)).mul_(half(blocks, 0)).add_(half(blocks, 2))


def q8_0(blocks: Tensor, out: Tensor) -> None:
    """scale * code; scale, 32 signed bytes."""
    out.copy_(blocks[:, 2:].view(torch.int8)).mul_(half(blocks, 0))


def iq4_nl(blocks: Tensor, out: Tensor) -> None:
    """scale * value of the code; scale, 16 bytes of codes."""
    looked_up(blocks[:, 2:], out)
    out.mul_(half(blocks, 0))


def mxfp4(blocks: Tensor, out: Tensor) -> None:
    """2 to the power of (byte - 127), times a four-bit float; that byte, 16 bytes of codes."""
    codes = torch.cat((blocks[:, 1:] & 15, blocks[:, 1:] >> 4), 1)
    out.copy_(_e2m1()[codes.int()]).mul_(torch.exp2(blocks[:, :1].float() - 127))


def looked_up(codes: Tensor, out: Tensor) -> None:
    """The non-linear values of bytes (..., k): of their low halves, then of their high ones: (..., 2 k)."""
    out.copy_(_iq4()[torch.cat((codes & 15, codes >> 4), -1).int()])


@lru_cache(maxsize=1)
def _iq4() -> Tensor:
    return torch.tensor(IQ4, dtype=torch.float32)


@lru_cache(maxsize=1)
def _e2m1() -> Tensor:
    return torch.tensor([*E2M1, *(-value for value in E2M1)])
