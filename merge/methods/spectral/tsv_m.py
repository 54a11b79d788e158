"""TSV-Merge: the leading singular triplets of every task vector, made orthogonal to each other's.

k = floor(min(m, n) / N), or a share of min(m, n) that is chosen, at least 1; t_i = U_i S_i V_i' cut to k
triplets; U = [U_1 .. U_N], V likewise; U and V replaced by their nearest matrices with orthonormal columns;
x = base + scale * U S V'. A source's weight multiplies its S_i, which is what a task vector times the weight
would have: neither U nor V depends on weights, except that sources with weight 0 have no columns there.

``reweighted_experimental`` follows the idea of R-TSVM (arXiv:2502.06876, RESM in its third version: outliers
are weighed, ranks go by sparsity), whose equations we could not read; these are our own. With mu and sigma
over the entries of |t_i|, the score of row j is the sum of its entries above mu + 3 sigma; row j of t_i is
multiplied by its score over the mean of all sources' (by 1 where none has any). With z_i the share of entries
below a thousandth of the largest, and m_i the mean of 1 - z_i over all matrices, source i keeps
k_i = floor(k (1 - z_i) / m_i) triplets, at least 1 and at most 2 k; all together at most min(m, n), or N k
where that is more.
"""

import itertools
from collections.abc import Sequence
from decimal import Decimal
from math import floor
from typing import Literal

import torch
from torch import Tensor

from merge.contract.by_tensor import Squares
from merge.contract.groups import TensorGroup
from merge.contract.matrices import by_matrix, is_matrix, mean, weighted_deltas
from merge.contract.method import Kind, Needs, Workspace, method
from merge.contract.params import knob, params
from merge.kernels.sums import scaled
from merge.kernels.thin import NULL, untangled


@params
class TsvM:
    scale: float = knob(1.0, "Factor on the merged task vector.", by_depth=True)
    rank_share: float = knob(
        0.0,
        "Share of a matrix's singular triplets kept of each of N sources, rounded down, at least one; 0 "
        "stands for one N-th, 1 for all.",
        ge=0,
        le=1,
        by_depth=True,
    )
    null: float = knob(
        NULL, "Directions with a singular value below this share of the largest are left out.", gt=0, lt=1
    )
    variant: Literal["base", "reweighted_experimental"] = knob(
        "base",
        "reweighted_experimental: rows with outliers weigh more, and dense matrices keep more triplets. Our "
        "own reading of R-TSVM's idea, not its equations; one more pass over all sources.",
    )


class Dense(Squares):
    """For each matrix, by name, how dense each source's change is there beside its mean over all."""

    def told(self, sums: dict[str, list[float]], p: TsvM) -> tuple[tuple[str, tuple[float, ...]], ...]:  # noqa: ARG002
        """From the shares of entries that are not small."""
        known = {name: shares for name, shares in sums.items() if shares}
        means = [sum(column) / len(known) for column in zip(*known.values(), strict=True)]
        return tuple(
            (name, tuple(share / mean if mean else 1.0 for share, mean in zip(shares, means, strict=True)))
            for name, shares in known.items()
        )


def _not_small(group: TensorGroup, p: TsvM) -> Sequence[Tensor]:  # noqa: ARG001
    """Entries whose squares add up to the share of those that are not below a thousandth of the largest."""
    if not is_matrix(group):
        return []
    sizes = [delta.abs().double() for delta in group.deltas]
    return [(size >= SMALL * size.max()).double() / size.numel() ** 0.5 for size in sizes]


REWEIGHTED = "reweighted_experimental"
SMALL = 1e-3
OUTLYING = 3.0
DENSE = Dense(_not_small, when=("variant", (REWEIGHTED,)), scope="variant", everywhere=REWEIGHTED)


@method(
    title="TSV-Merge",
    kind=Kind.COMBINE,
    scaled=True,
    granularity="tensor",
    version=5,
    paper="arXiv:2412.00081",
    needs=Needs(base=True, stats=(DENSE,)),
    workspace=Workspace(3.0, 0.0, 11.5),
    classes={"embed": "mean", "head": "mean"},
)
def tsv_m(group: TensorGroup, p: TsvM) -> Tensor:
    """Keeps the strongest singular directions of every task vector and turns them so that the sources' no
    longer overlap, which is where tasks interfere; the singular values stay. For several experts of one
    base, also many of them, where averaging blurs all. Weights multiply the task vectors. N copies of one
    source give its part of rank k, also where the published code fills directions that nobody has with
    arbitrary vectors. Vectors, kernels and matrices with fewer rows or columns than there are sources are
    averaged; embeddings and heads too, unless `classes` says otherwise. Costs one eigendecomposition of the
    shorter side for each source, and two of the kept directions.
    """
    found = _reweighted(group, p) if p.variant == REWEIGHTED else _plain(group, p)
    return found.mul_(p.scale).add_(group.base)


def _plain(group: TensorGroup, p: TsvM) -> Tensor:
    heard = [place for place, weight in enumerate(group.weights) if weight]
    weights, places = [group.weights[place] for place in heard], itertools.count()

    def merge(deltas: Sequence[Tensor]) -> Tensor:
        kept = _kept(deltas, p)
        if not kept:
            return mean(scaled(deltas, group.weights))
        parts, facts = [deltas[place] for place in heard], (tuple(heard), kept, p.null)
        counts, dtype = [kept] * len(parts), parts[0].dtype
        made = group.recall(next(places), facts, lambda: untangled(parts, counts, p.null, dtype))
        return made.total(weights)

    if not heard:
        return torch.zeros_like(group.base)
    return by_matrix(group, merge, lambda _: mean(weighted_deltas(group)), weighted=False)


def _reweighted(group: TensorGroup, p: TsvM) -> Tensor:
    density = dict(group.stat(DENSE)).get(group.name)

    def merge(deltas: Sequence[Tensor]) -> Tensor:
        kept = _kept(deltas, p)
        if not kept:
            return mean(deltas)
        counts = [kept] * len(deltas)
        if density is not None:
            deltas, counts = reweighted(deltas), ranks(min(deltas[0].shape), kept, density)
        return untangled(deltas, counts, p.null, deltas[0].dtype).total([1.0] * len(deltas))

    return by_matrix(group, merge)


def _kept(deltas: Sequence[Tensor], p: TsvM) -> int:
    """How many triplets of each source."""
    side = min(deltas[0].shape)
    if not p.rank_share:
        return side // len(deltas)
    return max(1, floor(Decimal(repr(p.rank_share)) * side))


def reweighted(deltas: Sequence[Tensor]) -> list[Tensor]:
    """Every row times its outliers' sum over the mean of the sources' sums."""
    scores = torch.stack([_outliers(delta) for delta in deltas])
    whole = scores.sum(dim=0)
    shares = torch.where(
        whole > 0, len(deltas) * scores / whole.where(whole > 0, torch.ones_like(whole)), 1.0
    )
    return [delta * share.to(delta)[:, None] for delta, share in zip(deltas, shares, strict=True)]


def _outliers(delta: Tensor) -> Tensor:
    """The sum of each row's entries that are far above the mean size."""
    sizes = delta.abs().double()
    bound = sizes.mean() + OUTLYING * sizes.std(correction=0)
    return (sizes * (sizes > bound)).sum(dim=1)


def ranks(side: int, kept: int, density: Sequence[float]) -> list[int]:
    """Triplets of each source, at most ``side`` (where ``kept`` of each are) together."""
    wanted = [min(max(1, floor(kept * share + 1e-9)), 2 * kept) for share in density]
    room, whole = max(side, kept * len(density)), sum(wanted)
    return wanted if whole <= room else [max(1, count * room // whole) for count in wanted]
