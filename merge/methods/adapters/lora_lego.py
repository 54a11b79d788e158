"""LoRA-LEGO: the rank-one pieces of all adapters, alike ones together, one piece of each group.

Piece k of source i is B_i[:, k] A_i[k, :], its scaling and the source's weight in it. k-means makes K groups;
the piece of a group is the rank-one matrix nearest to the mean of its members, as long (``reweight``) as they
are on average; the sum of the K pieces is multiplied by sqrt(r / K), r the largest rank of a source.

The published code clusters [A[k, :], B[:, k]] and takes its mean, which knows (a, b) from (-a, -b) and
(c a, b / c), though these are the same change: two such pieces cancel. ``features: normalized`` is that
version.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from merge.contract.factors import FactorGroup, Factors
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.kernels.reversible import balanced
from merge.kernels.units import alike, alike_by_parts, columns_of, grouped, leading_pair, lengths_of


@params
class LoraLego:
    rank: int = knob(
        0, "Pieces K of the result's modules; 0 stands for the largest rank of a source.", ge=0, le=16384
    )
    features: Literal["gauge_free", "normalized"] = knob(
        "gauge_free", "Compare pieces as matrices, or, as published, their two vectors side by side."
    )
    reweight: Literal["fro", "maxnorm", "off"] = knob(
        "fro",
        "Make each new piece as long as its members are on average: in the Frobenius norm, in the largest "
        "entry of its vectors (published), or not at all.",
    )
    output_reweight: bool = knob(True, "Multiply the result by the root of a source's rank over K.")
    units: Literal["given", "singular"] = knob(
        "given", "Pieces are those of the stored factors, or the singular triplets of each adapter's change."
    )
    rounds: int = knob(50, "Rounds of k-means at most.", ge=1, le=1000)
    scale: float = knob(1.0, "Factor on the merged change.", by_depth=True)


@method(
    title="LoRA-LEGO",
    kind=Kind.COMBINE,
    granularity="row",
    paper="arXiv:2409.16167",
    needs=Needs(base=True, factors=True),
)
def lora_lego(group: FactorGroup, p: LoraLego) -> Factors:
    """Takes LoRA adapters apart into rank-one pieces, groups pieces that do alike, and makes a new adapter
    with one piece of each group. For adapters of one base for different tasks, also of different ranks; with
    a single source it prunes that one. Copies of an adapter give that adapter. With K at least the number of
    all pieces nothing is grouped, and the result is the sum (times the root of r / K, unless that is
    switched off). Weights multiply the sources first. The sources must be adapters over the base. Costs a
    few products of all pieces with each other: next to nothing.
    """
    parts = [each for each in group.weighted if each.rank]
    if not parts:
        return group.nothing()
    pairs = [_units(each, p) for each in parts]
    left, right = columns_of(pairs)
    if not left.shape[1]:
        return group.nothing()
    count = min(p.rank or group.most, left.shape[1])
    if count < left.shape[1]:
        left, right = _regrouped(left, right, count, p)
    factor = (group.most / left.shape[1]) ** 0.5 if p.output_reweight else 1.0
    return Factors(left, right).times(factor * p.scale)


def _units(part: Factors, p: LoraLego) -> tuple[Tensor, Tensor]:
    if p.units == "given":
        return part.left, part.right
    return balanced(part.left, part.right, min(part.rank, part.left.shape[0], part.right.shape[1]))


def _regrouped(left: Tensor, right: Tensor, count: int, p: LoraLego) -> tuple[Tensor, Tensor]:
    likeness = (alike if p.features == "gauge_free" else alike_by_parts)(left, right)
    groups = grouped(likeness, lengths_of(left, right), count, p.rounds)
    made = [_centre(left[:, group], right[group], p) for group in groups]
    return torch.stack([b for b, _ in made], dim=1), torch.stack([a for _, a in made])


def _centre(left: Tensor, right: Tensor, p: LoraLego) -> tuple[Tensor, Tensor]:
    """The two vectors of a group's new piece."""
    if p.features == "gauge_free":
        b, a = leading_pair(left, right)
    else:
        b, a = left.mean(dim=1), right.mean(dim=0)
    if p.reweight == "off":
        return b, a
    if p.reweight == "fro":
        length, wanted = float(b.norm() * a.norm()), float(lengths_of(left, right).mean())
        root = (wanted / length) ** 0.5 if length else 0.0
    else:
        length = _largest([b, a])
        own = [_largest([left[:, k], right[k]]) for k in range(left.shape[1])]
        root = sum(own) / len(own) / length if length else 0.0
    return b * root, a * root


def _largest(vectors: Sequence[Tensor]) -> float:
    return max(float(vector.abs().max()) for vector in vectors)
