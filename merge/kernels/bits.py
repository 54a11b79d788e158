"""One bit an entry, eight to a byte, the first in the lowest bit."""

from functools import lru_cache

import torch
from torch import Tensor


def pack(bits: Tensor) -> Tensor:
    """uint8 (ceil(n / 8),) of a flat tensor of booleans; what is left of the last byte is zero."""
    size = -(-bits.numel() // 8)
    padded = torch.zeros(size * 8, dtype=torch.uint8, device=bits.device)
    padded[: bits.numel()] = bits
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=bits.device)
    return padded.view(size, 8).mul_(powers).sum(dim=1, dtype=torch.uint8)


def unpack(packed: Tensor, out: Tensor) -> None:
    """Bytes (k,) to ones and zeros in ``out``, float32 of 8 k entries."""
    torch.index_select(_table(), 0, packed.int(), out=out.view(-1, 8))


@lru_cache(maxsize=1)
def _table() -> Tensor:
    codes = torch.arange(256, dtype=torch.int32)[:, None]
    return ((codes >> torch.arange(8, dtype=torch.int32)) & 1).float()
