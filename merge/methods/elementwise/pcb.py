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
from merge.kernels.curves import decay, tanh
from merge.kernels.sums import total

LEAST = 2.0**-100


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


def _scores(group: TensorGroup, p: Pcb) -> list[Tensor]:
    """float32 scores of all sources, each times exp(-N) so that none overflows; only ratios matter."""
    count = len(group.deltas)
    edges = group.stat(EDGES)
    sizes = [_normalized(delta, *each[1:]) for delta, each in zip(group.deltas, edges, strict=True)]
    agreement = _agreement(group.deltas, sizes, [each[0] for each in edges], p)
    return [
        decay((1 - size * size) * count, count).mul_(inter).to(torch.float32)
        for size, inter in zip(sizes, agreement, strict=True)
    ]


def _normalized(delta: Tensor, largest: float, smallest: float) -> Tensor:
    """Clipped magnitudes from 0 to 1; 1 where all are the same, 0 where all are 0."""
    if largest > smallest:
        return _divided(delta.abs().clamp_(smallest, largest).sub_(smallest), largest - smallest)
    return torch.zeros_like(delta) if largest <= 0 else torch.ones_like(delta)


def _agreement(
    deltas: Sequence[Tensor], sizes: list[Tensor], largest: Sequence[float], p: Pcb
) -> list[Tensor]:
    """``largest`` are the largest magnitudes of the deltas."""
    if p.inter == "products":
        together, most = total(deltas), sum(largest)
        return [tanh(delta * together, own * most) for delta, own in zip(deltas, largest, strict=True)]
    signed = [size * delta.sign() for size, delta in zip(sizes, deltas, strict=True)]
    if p.inter == "mixed":
        together, most = total(signed), float(len(signed))
        return [tanh(delta * together, own * most) for delta, own in zip(deltas, largest, strict=True)]
    return [total([tanh(one * other) for other in signed]) for one in signed]


def _positive_scores(group: TensorGroup, p: Pcb) -> Sequence[Tensor]:
    return [score.clamp_(min=0) for score in _scores(group, p)]


def _competing(p: Pcb, entries: int) -> tuple[int, int]:
    """Ranks of the best score and of the first that is out."""
    return 1, max(1, entries - floor((1 - Decimal(repr(p.density))) * entries))


SCORES = Ranked(_positive_scores, _competing, after=(EDGES,), scope="scope", share="density")


@method(
    title="PCB-Merging",
    kind=Kind.COMBINE,
    elementwise=True,
    paper="arXiv:2410.02396",
    version=3,
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
    merged = torch.zeros_like(group.base)
    shares = torch.zeros_like(group.base)
    rivals = zip(
        group.deltas, _scores(group, p), group.stat(SCORES), group.stat(EDGES), group.weights, strict=True
    )
    for delta, score, (best, least), (_, largest, smallest), weight in rivals:
        share = _share(score, best, least).to(delta.dtype)
        clipped = delta.abs().clamp_(smallest, largest).mul_(delta.sign())
        merged += clipped.mul_(share * weight)
        shares += share.mul_(abs(weight))
    shares += shares == 0
    return merged.div_(shares).mul_(p.scale).add_(group.base)


def _share(score: Tensor, best: float, least: float) -> Tensor:
    """Scores from 0 to 1. Where one score is all there is, it has all of it."""
    if best <= least:
        return torch.ge(score, best).logical_and_(score > 0).to(score.dtype)
    return _divided(score.clamp(min=least).sub_(least), best - least)


def _divided(parts: Tensor, whole: float) -> Tensor:
    """In place. Multiplication takes a fraction of the time of division; what is tiny has no reciprocal."""
    return parts.mul_(1 / whole) if whole > LEAST else parts.div_(whole)
