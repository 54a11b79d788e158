"""Makes rmm bundles: the factors of several LoRA adapters as their mean, directions and coefficients
(Reversible Model Merging, arXiv:2510.14163), tensor by tensor.

Factors are defined only up to an invertible matrix between them, so each product is first brought into the
form that all its pairs share (``merge.kernels.reversible.balanced``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from merge.checkpoint.dtype import torch_dtype
from merge.checkpoint.writer import ShardWriter
from merge.kernels.reduce import in_order
from merge.kernels.reversible import Shared, balanced, shared
from merge.planning.forms.bundle import BundlePlan, Kept
from merge.results.adapter import product_entries
from merge.results.merging import Merging
from merge.running.blocks import cast_out
from merge.running.chain import Block, Chain, LoadBlock

SUMS = 2
"""Of every tensor and member: the squared norm of its change, and of what is lost of it."""
Pair = tuple[Tensor, Tensor]
"""Factors (rows, r) and (r, columns) of a change."""
Merged = Callable[[int, int], Tensor]
"""Entries of what a bundle gives back: the first one, and how many."""


@dataclass(frozen=True)
class Directions:
    """The arithmetic of tensors that are kept as directions of factors."""

    bundle: BundlePlan
    work: Merging
    note: Callable[[dict[str, list[float]]], None] = lambda _: None
    """Told what the merge report says of every tensor: of its members' changes, and of their mean, from a
    base of zeros.
    """

    def make(self, writer: ShardWriter, each: Kept) -> list[float]:
        """Writes what is kept of one tensor; gives the ``SUMS`` of every member, one after another."""
        self.work.meter.check()
        pairs = [self._pair(each, member) for member in self.bundle.members]
        sides = [torch.stack([left for left, _ in pairs]), torch.stack([right.T for _, right in pairs])]
        names = iter(each.names)
        stored: list[Shared] = []
        for side in sides:
            found = shared(side, self.bundle.asked.setting("components"))
            parts = [
                self._write(writer, next(names), part)
                for part in (found.mean, found.basis, found.coefficients)
            ]
            stored.append(Shared(*parts))
        given_back = [(stored[0].restored(place), stored[1].restored(place).T) for place in range(len(pairs))]
        mean, load = _told(pairs, given_back)
        watch = self.work.watch(each.output, load)
        for first, count in watch.pieces:
            watch.saw(first, mean(first, count))
        self.note(watch.told())
        both = zip(pairs, given_back, strict=True)
        return [number for pair, again in both for number in _squares(*pair, *again)]

    def _pair(self, each: Kept, member: str) -> Pair:
        rows, columns = each.output.shape
        reader = self.work.readers[member]
        adapter = reader.index.adapter
        if adapter is None or each.output.name not in adapter.pairs:
            return torch.zeros(rows, each.rank).double(), torch.zeros(each.rank, columns).double()
        return balanced(*reader.factors(each.output.name, torch.float64), each.rank)

    def _write(self, writer: ShardWriter, name: str, part: Tensor) -> Tensor:
        tensor = name.partition("/")[2].rpartition(".")[0]
        stored = next(dtype for own, dtype, _ in self.bundle.kept[tensor].stored if own == name)
        dtype = torch_dtype(stored, name)
        rounded = cast_out(name, part.contiguous(), dtype, self.work.buffers)
        writer.write_at(name, 0, rounded)
        return rounded.double().view(part.shape)


def _told(pairs: Sequence[Pair], given_back: Sequence[Pair]) -> tuple[Merged, LoadBlock]:
    """What the bundle gives back on average, and what its members are."""

    def mean(first: int, count: int) -> Tensor:
        parts = [product_entries(*pair, first, count) for pair in given_back]
        return torch.stack(parts).mean(dim=0)

    def load(chain: Chain, first: int, count: int) -> Block:
        shape = chain.block_shape(count)
        parts = [product_entries(*pair, first, count).view(shape) for pair in pairs]
        return Block(first, shape, torch.zeros(shape), parts)

    return mean, load


def _squares(left: Tensor, right: Tensor, again_left: Tensor, again_right: Tensor) -> tuple[float, float]:
    """Squared Frobenius norms of left @ right, and of its difference from the other product."""
    lefts = torch.cat([left - again_left, again_left], dim=1)
    rights = torch.cat([right, right - again_right], dim=0)
    whole = float(((left.T @ left) * (right @ right.T)).sum())
    lost = float(((lefts.T @ lefts) * (rights @ rights.T)).sum())
    return max(0.0, whole), max(0.0, lost)


def members_of(bundle: BundlePlan, facts: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """What the manifest tells of every member: the relative ``error`` of its change."""
    told: dict[str, dict[str, float]] = {}
    for place, member in enumerate(bundle.members):
        whole, lost = (
            in_order([facts[name][SUMS * place + at] for name in bundle.kept]) for at in range(SUMS)
        )
        told[member] = {"error": float(f"{sqrt(lost / whole) if whole else 0.0:.6g}")}
    return told
