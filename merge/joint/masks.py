"""Regions that are trained (Localize-and-Stitch, arXiv:2408.13656): which entries of a task vector do its
work.

Each entry has a score S; the model that is run is base + sigmoid(S) tau. Every epoch the mean gradient g of
the loss over all texts moves the scores: S <- S - (rate g tau + sparsify) sigmoid'(S), which lowers the
loss and, with ``sparsify``, the sum of sigmoid(S). In the end S > 0 is the region. The published code has
the sign of the second term turned around, which rewards large regions; ours is the gradient of the
objective in the paper.

Scores lie in files and the model is run block by block, so memory is that of one block.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from merge.joint.weights import Made, Scores
from merge.kernels import radix
from merge.learn.skeleton import Weights

Pair = Callable[[str], tuple[Tensor, Tensor]]
"""Gives the base's and the source's values of a tensor, float32."""


@dataclass(frozen=True)
class Training:
    """Settings of one tensor."""

    sparsity: float
    epochs: int
    rate: float
    sparsify: float
    bias: float


class Sums:
    """Sums of gradients over texts, by parameter."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, _: int, name: str, gradient: Tensor, value: Tensor) -> None:  # noqa: ARG002
        """One text's gradient of one parameter."""
        held = self.sums.get(name)
        self.sums[name] = gradient.float().clone() if held is None else held.add_(gradient)

    def take(self) -> dict[str, Tensor]:
        """What has gathered, which is forgotten here."""
        found, self.sums = self.sums, {}
        return found


def start(scores: Scores, pair: Pair, of: Mapping[str, Training]) -> None:
    """Scores before the first epoch: ``bias`` at the largest ``sparsity`` of all changes, else ``-bias``."""
    least = largest_share(lambda: (_change(pair, name) for name in scores.shapes), first(of).sparsity)
    for name in scores.shapes:
        size = _change(pair, name).abs()
        bias = of[name].bias
        scores[name].copy_(torch.where((size >= least) & (size > 0), bias, -bias))


def largest_share(tensors: Callable[[], Iterator[Tensor]], share: float) -> float:
    """The magnitude that the largest ``share`` of all entries have at least; exact, in two passes."""
    high, count = torch.zeros(radix.HIGH_BINS, dtype=torch.int64), 0
    for tensor in tensors():
        high += radix.count_high(tensor.reshape(-1))
        count += tensor.numel()
    bin_, rank = radix.find_bin(high, max(1, ceil(share * count)))
    low = torch.zeros(radix.LOW_BINS, dtype=torch.int64)
    for tensor in tensors():
        low += radix.count_low(tensor.reshape(-1), bin_)
    return radix.as_float(bin_, radix.find_bin(low, rank)[0])


def masked(scores: Scores, pair: Pair, own: Weights) -> Made:
    """The weights base + sigmoid(S) tau."""

    def at(name: str) -> Callable[[], Tensor]:
        def made() -> Tensor:
            base, source = pair(name)
            return (source - base).mul_(torch.sigmoid(scores[name])).add_(base)

        return made

    return Made({name: at(name) for name in scores.shapes}, own)


def step(before: Tensor, gradient: Tensor, change: Tensor, p: Training) -> Tensor:
    """The scores after an epoch; all of one shape."""
    share = torch.sigmoid(before)
    slope = share * (1 - share)
    return before - (gradient * change * p.rate + p.sparsify) * slope


def first(of: Mapping[str, Training]) -> Training:
    """The settings of any tensor; those of the training as a whole are the same for all."""
    return next(iter(of.values()))


def _change(pair: Pair, name: str) -> Tensor:
    base, source = pair(name)
    return source - base
