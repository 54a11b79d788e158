"""Random numbers that depend on a key and a flat index alone: no state, so no order, block or thread can
matter.

Every index is mixed with the two halves of a 64-bit key by multiply-and-shift rounds on 32 bits (wrapping
integer arithmetic, equal on every device).
"""

import hashlib
from math import pi

import torch
from torch import Tensor

ROUNDS = ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 0x31848BAB), (14, 0x2C1B3C6D))


def key_of(*parts: object) -> int:
    """A 64-bit key from anything that has a stable text."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class Draws:
    """Draws for the entries ``first`` to ``first + count`` of one tensor of one source.

    ``stream`` separates several draws of one method for the same entries.
    """

    def __init__(
        self, key: int, first: int, shape: tuple[int, ...], device: torch.device | str = "cpu"
    ) -> None:
        self._key = key
        self._first = first
        self._shape = shape
        self._device = device

    def bernoulli(self, share: float, stream: int = 0) -> Tensor:
        """float32 1.0 with probability ``share`` (to within 2^-32), else 0.0: multiply with it; shape of the
        block.
        """
        kept = torch.ones(self._shape, dtype=torch.float32, device=self._device)
        if share >= 1:
            return kept
        return torch.lt(self.bits(stream), limit_of(share), out=kept)

    def uniform(self, stream: int = 0) -> Tensor:
        """float32 in [0, 1) with 24 bits; shape of the block."""
        return ((self.bits(stream) >> 8) & 0xFFFFFF).to(torch.float32) * 2.0**-24

    def normal(self, stream: int = 0) -> Tensor:
        """float64 of a standard normal distribution (Box and Muller, 1958); shape of the block. Takes the
        uniform numbers of ``stream`` and of the one after it.
        """
        radius = torch.sqrt(-2 * torch.log1p(-self.uniform(stream).double()))
        return radius.mul_(torch.cos(2 * pi * self.uniform(stream + 1).double()))

    def bits(self, stream: int = 0) -> Tensor:
        """Uniform int32 values; shape of the block."""
        count = 1
        for length in self._shape:
            count *= length
        values = torch.empty(count, dtype=torch.int32, device=self._device)
        done = 0
        while done < count:
            high, low = divmod(self._first + done, 1 << 32)
            size = min(count - done, (1 << 32) - low)
            mix(values[done : done + size], low, stream_key(self._key, stream, high))
            done += size
        return values.view(self._shape)


def limit_of(share: float) -> int:
    """The int32 that a share of all uniform int32 values lie below."""
    return min(round(share * (1 << 32)), (1 << 32) - 1) - (1 << 31)


def stream_key(key: int, stream: int, high: int) -> int:
    """The key under which the indices from ``high`` times 2^32 on are mixed."""
    return key_of(key, stream, high)


def mix(out: Tensor, low: int, key: int) -> None:
    """Fills ``out`` with the hash of the 32-bit counters ``low``, ``low + 1``, ... under ``key``."""
    halves = (key & 0xFFFFFFFF, key >> 32)
    torch.arange(out.numel(), out=out)
    out.add_(_signed(low + halves[0]))
    shifted = torch.empty_like(out)
    for number, (shift, factor) in enumerate(ROUNDS):
        torch.bitwise_right_shift(out, shift, out=shifted)
        shifted.bitwise_and_((1 << (32 - shift)) - 1)
        out.bitwise_xor_(shifted).mul_(_signed(factor))
        if number == 1:
            out.add_(_signed(halves[1]))
    torch.bitwise_right_shift(out, 15, out=shifted)
    out.bitwise_xor_(shifted.bitwise_and_((1 << 17) - 1))


def _signed(value: int) -> int:
    """The int32 with the bits of ``value`` modulo 2^32."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value
