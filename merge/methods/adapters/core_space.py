"""Core space: LoRA adapters merged as small matrices between directions that all of them share.

U_B are the left singular vectors of the B_i side by side, V_A the right ones of the A_i below each other;
M_i = (U_B' B_i) (A_i V_A), at most as large as the ranks together, and U_B M_i V_A' = B_i A_i. A rule makes
one M of the M_i, each times its weight w_i; x = base + scale * U_B M V_A'.

``sum``: M = sum w_i M_i, the sum of the products. ``tsv``: the leading k = floor(min(m, n) / N) singular
triplets of every w_i M_i; [U_1 .. U_N] and [V_1 .. V_N] replaced by their nearest matrices with orthonormal
columns; M = U S V'. ``iso``: sum w_i M_i = U S V', M = mean(S) U V'. ``tsv_iso``: that of the M of ``tsv``.
These do not see bases: they are ``tsv_m`` and ``iso_c`` of the products, m, n and N being theirs, and means
taken over the directions that there are. ``ties``: the largest entries of every M_i, a sign for each entry by
the sum of what is left times w_i, and the sum of those terms that have it over the sum of their |w_i|.

``ties`` depends on the bases, and these on how a product is split in factors: (c B, A / c) is the same change
and gives others. So every pair is first written as U sqrt(S), sqrt(S) V' of its own product (``balance``);
then only the signs of the bases' vectors are open, and they turn a row or column of all M_i and of M
together. Equal singular values of a stack would leave more open.
"""

from collections.abc import Sequence
from decimal import Decimal
from math import floor
from typing import Literal

import torch
from torch import Tensor

from merge.contract.factors import FactorGroup, Factors
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.kernels.reversible import balanced
from merge.kernels.spectral import NOTHING
from merge.kernels.sums import scaled, total
from merge.kernels.thin import NULL, column_basis, evened, untangled

EVEN = 1e-9
"""Entries that differ by less than this share are of one size, and votes below it of what votes are even."""


@params
class CoreSpace:
    rule: Literal["tsv", "ties", "iso", "tsv_iso", "sum"] = knob(
        "tsv",
        "What merges core matrices: `tsv_m`, `ties`, `iso_c`, `iso_c` of what `tsv_m` gives, or a sum.",
    )
    density: tuple[float, ...] = knob(
        0.2,
        "For ties: share of the entries of a core matrix kept, largest first.",
        gt=0,
        le=1,
        by_depth=True,
        by_source=True,
    )
    balance: bool = knob(
        True,
        "For ties: write every adapter's factors in one common way first; otherwise, as published, take them "
        "as they are stored, which depends on how each was trained.",
    )
    scale: float = knob(1.0, "Factor on the merged change, to be tuned.", by_depth=True)


@method(
    title="Core space merging",
    kind=Kind.COMBINE,
    granularity="row",
    paper="arXiv:2509.17786",
    needs=Needs(base=True, factors=True),
)
def core_space(group: FactorGroup, p: CoreSpace) -> Factors:
    """Merges LoRA adapters in the few directions that they have, where nothing of them is lost and the rules
    for whole matrices cost next to nothing: `tsv` and `iso` give what `tsv_m` and `iso_c` give of the
    products, `sum` is the exact sum, and `ties` votes where entries of different adapters mean the same
    directions. Ranks may differ. N copies of an adapter give it back by `ties` with a density of 1, and as
    far as its rank is at most an N-th of the shorter side by `tsv`. Weights multiply the adapters, after the
    trim of `ties`. Directions below 1e-12 of the largest are left out, of an adapter's own and of those
    shared. The sources must be adapters over the base. Costs two QRs and an SVD for each adapter, and two
    SVDs as wide as the ranks together.
    """
    heard = [
        (*_written(each, p.balance), weight, share)
        for each, weight, share in zip(group.factors, group.weights, p.density, strict=True)
        if each.rank and weight
    ]
    if not heard:
        return group.nothing()
    left = column_basis([b for b, *_ in heard], NOTHING)
    right = column_basis([a.T for _, a, *_ in heard], NOTHING)
    if not left.shape[1] or not right.shape[1]:
        return group.nothing()
    cores = [(left.T @ b) @ (a @ right) for b, a, *_ in heard]
    weights = [weight for *_, weight, _ in heard]
    if p.rule == "ties":
        merged = _voted(cores, weights, [share for *_, share in heard])
    else:
        merged = _turned(scaled(cores, weights), p.rule, min(len(left), len(right)), len(group.factors))
    return Factors(left @ merged, right.T).times(p.scale)


def _written(each: Factors, balance: bool) -> tuple[Tensor, Tensor]:
    """The factors, in the common way without directions that are rounding."""
    if not balance:
        return each.left, each.right
    left, right = balanced(each.left, each.right, min(each.rank, each.left.shape[0], each.right.shape[1]))
    roots = torch.linalg.vector_norm(right, dim=1)
    kept = int((roots > NOTHING**0.5 * roots.max()).sum()) if roots.numel() else 0
    return left[:, :kept], right[:kept]


def _turned(cores: Sequence[Tensor], rule: str, side: int, sources: int) -> Tensor:
    """By the rules that do not depend on the bases; ``side`` is the shorter one of the weights' own shape."""
    merged = total(cores)
    if rule in ("tsv", "tsv_iso"):
        kept = side // sources
        found = untangled(cores, [kept] * len(cores), NULL) if kept else None
        merged = merged / sources if found is None else found.total([1.0] * len(cores))
    return evened(merged, NULL) if rule in ("iso", "tsv_iso") else merged


def _voted(cores: Sequence[Tensor], weights: Sequence[float], shares: Sequence[float]) -> Tensor:
    """By TIES; where votes are even to rounding, nobody wins."""
    trimmed = [_trimmed(core, share) for core, share in zip(cores, shares, strict=True)]
    terms = scaled(trimmed, weights)
    votes = total(terms)
    counted = votes.abs() > EVEN * total([term.abs() for term in terms])
    elected = torch.where(counted, votes.sign(), 0.0)
    agreeing = [(term * elected).clamp(min=0) for term in terms]
    voters = total([(term > 0) * abs(weight) for term, weight in zip(agreeing, weights, strict=True)])
    return elected * total(agreeing) / torch.where(voters > 0, voters, 1.0)


def _trimmed(core: Tensor, share: float) -> Tensor:
    """The largest entries, all that equal the least of them, none that is rounding; at least one."""
    sizes = core.abs()
    count = max(1, floor(Decimal(repr(share)) * sizes.numel()))
    limit = sizes.flatten().kthvalue(sizes.numel() - count + 1).values * (1 - EVEN)
    return torch.where(sizes >= torch.maximum(limit, NOTHING * sizes.max()), core, 0.0)
