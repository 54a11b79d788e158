"""PCB-Merging: sources compete for every entry, by how much it matters to them and how well they agree on it.

clipped_i = tau_i with its magnitudes held between the ``clip`` smallest and largest; n_i = |clipped_i|,
brought to 0 to 1 by its least and greatest, v_i = sign(tau_i) n_i. score_i = exp(N n_i^2) * inter_i, where
inter_i by ``inter`` is
  products    tanh(tau_i sum_j tau_j)     (pcb-merging.py of the authors)
  mixed       tanh(tau_i sum_j v_j)       (their pcb.py)
  normalized  sum_j tanh(v_i v_j)         (their pcb_ES.py)
share_i = score_i brought to 0 to 1 between the score at rank ceil(density n), or 0 if that is negative, and
the greatest, 0 below; x = base + scale * (sum w_i share_i clipped_i) / (sum |w_i| share_i).
"""

from collections.abc import Sequence
from decimal import Decimal
from math import floor
from typing import Literal

import torch
from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.contract.ranked import Ranked
from merge.kernels.curves import peak, tanh
from merge.kernels.sums import total

LEAST = 2.0**-100
TINY = 2.0**-126
"""Divides where no source has a share; hardly any that has one has a smaller one."""


@params
class Pcb:
    density: float = knob(
        0.1, "Share of each task vector that competes, best scores first (pcb_ratio).", gt=0, le=1
    )
    scale: float = knob(1.2, "Factor on the merged task vector.", by_depth=True)
    inter: Literal["products", "mixed", "normalized"] = knob(
        "products",
        "How agreement between sources is scored, as in the authors' three programs: by products of task "
        "vectors, of a task vector and normalised ones, or of normalised ones (as in the paper, nearly).",
    )
    clip: float = knob(
        1e-4,
        "Share of the smallest and of the largest magnitudes that is clipped first; without it a single "
        "outlier sets the scale of all scores. The authors' other two programs take 0.01.",
        ge=0,
        lt=0.5,
    )
    scope: Literal["global", "tensor"] = knob(
        "global", "Compete over the whole model (the paper), or within each tensor, which is another method."
    )


def _edges(p: Pcb, entries: int) -> tuple[int, int, int]:
    """Ranks of the largest magnitude, and of the largest and the smallest one that are not clipped."""
    clipped = floor(Decimal(repr(p.clip)) * entries)
    return 1, 1 + clipped, entries - clipped


def _deltas(group: TensorGroup, p: Pcb) -> Sequence[Tensor]:  # noqa: ARG001
    return group.deltas


EDGES = Ranked(_deltas, _edges, scope="scope", share="clip")


def _scores(group: TensorGroup, sizes: Sequence[Tensor], p: Pcb) -> list[Tensor]:
    """float32 scores of all sources from their clipped ``sizes``, each times exp(-N) so that none overflows;
    only ratios matter.
    """
    count = len(group.deltas)
    edges = group.stat(EDGES)
    normal = [_normalized(size, *each[1:]) for size, each in zip(sizes, edges, strict=True)]
    agreement = _agreement(group.deltas, normal, [each[0] for each in edges], p)
    return [
        peak(each * each, count).mul_(inter).to(torch.float32)
        for each, inter in zip(normal, agreement, strict=True)
    ]


def _sizes(group: TensorGroup) -> list[Tensor]:
    """Clipped magnitudes. Where the smallest are 0, with their signs: that takes less, and what is made of
    them does not mind.
    """
    edges = [each[1:] for each in group.stat(EDGES)]
    if _from_zero(group):
        return [delta.clamp(-most, most) for delta, (most, _) in zip(group.deltas, edges, strict=True)]
    return [delta.abs().clamp_(least, most) for delta, (most, least) in zip(group.deltas, edges, strict=True)]


def _from_zero(group: TensorGroup) -> bool:
    return all(smallest == 0 for _, _, smallest in group.stat(EDGES))


def _normalized(size: Tensor, largest: float, smallest: float) -> Tensor:
    """Clipped magnitudes from 0 to 1; 1 where all are the same, 0 where all are 0."""
    if largest > smallest:
        return _divided(size - smallest if smallest else size.clone(), largest - smallest)
    return torch.zeros_like(size) if largest <= 0 else torch.ones_like(size)


def _agreement(
    deltas: Sequence[Tensor], sizes: list[Tensor], largest: Sequence[float], p: Pcb
) -> list[Tensor]:
    """``largest`` are the largest magnitudes of the deltas."""
    if p.inter == "products":
        together, most = total(deltas), sum(largest)
        return [tanh(delta * together, own * most) for delta, own in zip(deltas, largest, strict=True)]
    signed = [size.abs() * delta.sign() for size, delta in zip(sizes, deltas, strict=True)]
    if p.inter == "mixed":
        together, most = total(signed), float(len(signed))
        return [tanh(delta * together, own * most) for delta, own in zip(deltas, largest, strict=True)]
    return [total([tanh(one * other) for other in signed]) for one in signed]


def _positive_scores(group: TensorGroup, p: Pcb) -> Sequence[Tensor]:
    return [score.clamp_(min=0) for score in _scores(group, _sizes(group), p)]


def _competing(p: Pcb, entries: int) -> tuple[int, int]:
    """Ranks of the best score and of the first that is out."""
    return 1, max(1, entries - floor((1 - Decimal(repr(p.density))) * entries))


SCORES = Ranked(_positive_scores, _competing, after=(EDGES,), scope="scope", share="density")


@method(
    title="PCB-Merging",
    kind=Kind.COMBINE,
    elementwise=True,
    paper="arXiv:2410.02396",
    version=4,
    needs=Needs(base=True, stats=(EDGES, SCORES)),
)
def pcb(group: TensorGroup, p: Pcb) -> Tensor:
    """Parameter competition balancing: every entry of every source gets a score, high where the source
    changed it most and the others pull the same way; the worst drop out and the rest are averaged by score.
    Needs no data. The result is a mean and does not grow with the number of sources. An entry that pulls
    against the sum is never kept; the last one in has a share of 0, as published. Fragile where a few
    entries changed far more than all others: see clip. Weights multiply the shares. For experts whose
    changes compete. Costs two more readings of all models, up to four without a compiler.
    """
    sizes = _sizes(group)
    scores = _scores(group, sizes, p)
    rivals = zip(scores, group.stat(SCORES), group.weights, strict=True)
    shares = [_share(*each).to(group.base.dtype) for each in rivals]
    if not _from_zero(group):
        sizes = [torch.copysign(size, delta) for size, delta in zip(sizes, group.deltas, strict=True)]
    merged = total([size.mul_(share) for size, share in zip(sizes, shares, strict=True)])
    voices = [share if w >= 0 else share.neg_() for share, w in zip(shares, group.weights, strict=True)]
    return merged.div_(total(voices).clamp_(min=TINY)).mul_(p.scale).add_(group.base)


def _share(score: Tensor, ends: tuple[float, float], weight: float) -> Tensor:
    """Scores from 0 to 1, times the weight. Where one score is all there is, it has all of it."""
    best, least = ends
    if best <= least:
        return torch.ge(score, best).logical_and_(score > 0).to(score.dtype).mul_(weight)
    return _divided(score.clamp_(min=least).sub_(least), best - least, weight)


def _divided(parts: Tensor, whole: float, factor: float = 1.0) -> Tensor:
    """In place, and times a factor. Multiplication takes a fraction of the time of division; what is tiny has
    no reciprocal.
    """
    return parts.mul_(factor / whole) if whole > abs(factor) * LEAST else parts.div_(whole).mul_(factor)
