"""Reversible Model Merging on adapters: the mean of their factors, shared directions, and any one given back.

Every adapter's product is written as U sqrt(S) times sqrt(S) V' (factors alone are defined only up to R and
its inverse). For each row of the left factors, and each column of the right ones, the N vectors of length r
are their mean plus p shared directions times coefficients (``merge/kernels/reversible.py``). The merged
adapter is the product of the two means; with coefficients put in, that of one source.
"""

import torch

from merge.contract.factors import FactorGroup, Factors
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.kernels.reversible import balanced, shared


@params
class Rmm:
    restore: tuple[bool, ...] = knob(
        False,
        "Give this source back instead of the mean (set it at the source); of several, their mean.",
        by_source=True,
    )
    components: int = knob(
        3, "Shared directions p; one fewer than there are sources loses nothing.", ge=0, le=31
    )
    balance: bool = knob(
        True,
        "Write every adapter's factors in one common way first; otherwise as they are stored, which depends "
        "on how each was trained.",
    )
    scale: float = knob(1.0, "Factor on the change.", by_depth=True)


@method(
    title="Reversible Model Merging",
    kind=Kind.COMBINE,
    granularity="row",
    paper="arXiv:2510.14163",
    needs=Needs(base=True, factors=True),
)
def rmm(group: FactorGroup, p: Rmm) -> Factors:
    """Keeps several LoRA adapters as one mean, a few shared directions and small coefficients, from which any
    of them is given back: `restore: true` at a source shows what of it survives `components` directions.
    Without it the merged adapter is the mean of the factors, which has cross terms: as a merge `cat_svd` is
    better. The bundle `rmm` is what stores mean, directions and coefficients. Weights multiply the sources.
    The sources must be adapters over the base. Costs a small SVD for each row and column of a module.
    """
    if not group.most:
        return group.nothing()
    rank = group.most
    pairs = [_written(each, rank, p.balance) for each in group.weighted]
    lefts = torch.stack([left for left, _ in pairs])
    rights = torch.stack([right.T for _, right in pairs])
    wanted = [place for place, is_wanted in enumerate(p.restore) if is_wanted]
    if not wanted:
        return Factors(lefts.mean(dim=0), rights.mean(dim=0).T).times(p.scale)
    found = [shared(vectors, p.components) for vectors in (lefts, rights)]
    parts = [[side.restored(place) for side in found] for place in wanted]
    left = torch.cat([left for left, _ in parts], dim=1)
    right = torch.cat([right.T for _, right in parts])
    return Factors(left, right).times(p.scale / len(wanted))


def _written(each: Factors, rank: int, balance: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors with ``rank`` columns and rows, the missing ones zero."""
    if balance:
        return balanced(each.left, each.right, rank)
    left = each.left.new_zeros(each.left.shape[0], rank)
    right = each.right.new_zeros(rank, each.right.shape[1])
    left[:, : each.rank], right[: each.rank] = each.left, each.right
    return left, right
