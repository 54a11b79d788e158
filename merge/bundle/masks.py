"""Makes tall and emr bundles: one task vector and a bit an entry and member, tensor by tensor, in one pass.

With x the merge and x_0 the base, T = x - x_0 and tau_i = x_i - x_0. A tall bundle's member i has an entry of
T where |tau_i| > threshold |T - tau_i| (TALL masks, arXiv:2405.07813), an emr bundle's where tau_i T > 0, and
then times a rescaler (EMR-Merging, arXiv:2405.17461): sum |tau_i| / sum |its part of T|.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod, sqrt

import torch
from torch import Tensor

from merge.checkpoint.dtype import torch_dtype
from merge.checkpoint.writer import ShardWriter
from merge.kernels.bits import pack
from merge.kernels.reduce import in_order, piece_sums
from merge.planning.forms.bundle import BundlePlan, Kept
from merge.planning.outputs import Input
from merge.planning.sizing import PIECE_ELEMENTS
from merge.results.merging import Merging
from merge.running.blocks import cast_out

SUMS = 6
"""Of every tensor and member: |tau|, |part|, tau^2, tau part, part^2, and how many bits are set."""


@dataclass(frozen=True)
class Masks:
    """The arithmetic of tensors that are kept as a vector and masks."""

    bundle: BundlePlan
    work: Merging
    note: Callable[[dict[str, list[float]]], None] = lambda _: None
    """Told what the merge report says of every tensor."""

    def make(self, writer: ShardWriter, each: Kept) -> list[float]:
        """Writes what is kept of one tensor; gives the ``SUMS`` of every member, one after another."""
        vector, *masks = each.names
        piece = self._piece(each)
        watch = self.work.watch(each.output)
        sums: list[list[list[float]]] = [[[] for _ in range(SUMS)] for _ in self.bundle.members]
        for first, count in self._spans(each, piece):
            self.work.meter.check()
            merged, base = (block.clone() for block in self._blocks(each, first, count))
            watch.saw(first, merged)
            change = merged.sub_(base)
            dtype = torch_dtype(each.output.dtype, vector)
            stored = cast_out(each.output.name, change, dtype, self.work.buffers).clone()
            writer.write_at(vector, first, stored)
            kept = stored.to(base.dtype)
            for place, (name, source) in enumerate(zip(masks, each.members, strict=True)):
                tau = self._tau(source, base, first, count)
                bits = self._bits(tau, change)
                writer.write_at(name, first // 8, pack(bits))
                for found, values in zip(sums[place], _moments(tau, kept * bits), strict=False):
                    found += piece_sums(values, piece).tolist()
                sums[place][-1].append(float(bits.sum()))
        self.note(watch.told())
        return [in_order(values) for member in sums for values in member]

    def _blocks(self, each: Kept, first: int, count: int) -> Iterator[Tensor]:
        yield self.work.merged(each.output, first, count)
        yield self.work.read(each.base, first, count)

    def _tau(self, source: Input | None, base: Tensor, first: int, count: int) -> Tensor:
        return torch.zeros_like(base) if source is None else self.work.read(source, first, count) - base

    def _bits(self, tau: Tensor, change: Tensor) -> Tensor:
        if self.bundle.kind == "emr":
            return tau * change.sign() > 0
        threshold: float = self.bundle.asked.setting("threshold")
        return tau.abs() > (change - tau).abs_().mul_(threshold)

    def _piece(self, each: Kept) -> int:
        """Entries of one piece of a sum: whole rows where the merge needs them, and whole bytes of a mask."""
        chain = self.work.chain(each.output)
        piece = chain.piece if chain.granularity == "row" else PIECE_ELEMENTS
        return piece if piece % 8 == 0 else 8 * piece

    def _spans(self, each: Kept, piece: int) -> Iterator[tuple[int, int]]:
        total = prod(each.output.shape)
        whole = self.work.chain(each.output).granularity == "tensor"
        step = max(1, total) if whole else max(1, self.work.sizes.block // piece) * piece
        for first in range(0, total, step):
            yield first, min(step, total - first)


def _moments(tau: Tensor, part: Tensor) -> tuple[Tensor, ...]:
    """What is added up over a tensor."""
    return tau.abs(), part.abs(), tau * tau, tau * part, part * part


def members_of(bundle: BundlePlan, facts: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """What the manifest tells of every member, from the sums of all tensors: ``scale``, the ``share`` of
    entries it takes, and the relative ``error`` of its task vector.
    """
    told: dict[str, dict[str, float]] = {}
    entries = sum(prod(each.output.shape) for each in bundle.kept.values())
    for place, member in enumerate(bundle.members):
        rows = {name: facts[name][SUMS * place : SUMS * (place + 1)] for name in bundle.kept}
        totals = [in_order([row[at] for row in rows.values()]) for at in range(SUMS)]
        scale = _scale(bundle, rows, totals)
        squared = totals[2] - 2 * scale * totals[3] + scale * scale * totals[4]
        error = sqrt(max(0.0, squared) / totals[2]) if totals[2] else 0.0
        told[member] = {"scale": scale, "share": _short(totals[5] / max(1, entries)), "error": _short(error)}
    return told


def _scale(bundle: BundlePlan, rows: dict[str, list[float]], totals: list[float]) -> float:
    way = bundle.asked.setting("rescale") if bundle.kind == "emr" else "none"
    if way == "none":
        return 1.0
    over, under = totals[0], totals[1]
    if way == "tensors":
        sizes = {name: max(1, prod(bundle.kept[name].output.shape)) for name in rows}
        over = in_order([row[0] / sizes[name] for name, row in rows.items()])
        under = in_order([row[1] / sizes[name] for name, row in rows.items()])
    return over / under if under else 1.0


def _short(value: float) -> float:
    return float(f"{value:.6g}")
