"""OPCM: one source after another, of each only what is new to the merge so far.

T_1 = t_1. With T_{j-1} = U diag(s) V' and Q = U' t_j V: the diagonal of Q is removed, and the block of its
leading r rows and columns, r the least count of singular values that make up more than ``alpha`` of their
sum; P(t_j) = U Q V' on that span, all of t_j beyond it; T_j = T_{j-1} + P(t_j). What is no matrix is added
up. x = base + scale * (mean |t_i| / |T_N|) T_N, norms over the whole model.

The published recursion divides T_j by lambda_j = |T_j| / mean |t_i| at every step and multiplies the next by
it again; neither singular vectors nor shares change by that, so one division at the end does the same.

An earlier result x' is gone on from: T' = (x' - base) / (scale * f'), f' and the lengths so far being told.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from merge.contract.groups import Site, Stats, TensorGroup
from merge.contract.limits import Limit
from merge.contract.matrices import by_matrix, weighted_deltas
from merge.contract.method import Kind, Needs, Workspace, method
from merge.contract.params import knob, params
from merge.contract.stats import Norm
from merge.kernels.sums import wide_total
from merge.kernels.thin import NULL, Thin, thin


@params
class Opcm:
    alpha: float = knob(
        0.5,
        "Share of the singular values' sum whose directions count as taken: there a source that joins adds "
        "nothing.",
        ge=0,
        le=1,
        by_depth=True,
    )
    block: Literal["least", "published"] = knob(
        "least",
        "How many directions that is: the least that make up the share, or, as the published code has it, "
        "one fewer (and none at alpha 1).",
    )
    scope: Literal["global", "tensor"] = knob(
        "global", "Take the norms for the length of the result over the whole model, or of each tensor."
    )
    scale: float = knob(1.0, "Factor on the merged task vector.", by_depth=True)
    lengths_so_far: float = knob(
        0.0,
        "Where the first source is an earlier result: the lengths of its task vectors added up "
        "(`merge_state.json`).",
        ge=0,
    )
    factor_so_far: float = knob(
        0.0,
        "Where the first source is an earlier result: what its merged task vector was multiplied by, besides "
        "`scale` (`merge_state.json`); 0 where it is a model like the others.",
        ge=0,
    )


def _lengths(group: TensorGroup, p: Opcm) -> Sequence[Tensor]:
    return (_joined(group, p), *weighted_deltas(group))


def _so_far(stats: Stats, p: Opcm, site: Site) -> Mapping[str, float]:
    """What a later run has to know of this one; nothing where every tensor has a length of its own, or where
    what was merged is not in the result.
    """
    if p.scope != "global" or not p.scale:
        return {}
    length, lengths = _measured(stats.read(LENGTHS), p)
    return {"lengths_so_far": lengths, "factor_so_far": lengths / site.merged / length if length else 0.0}


def _measured(values: Sequence[float], p: Opcm) -> tuple[float, float]:
    """|T_N|, and the sum of all |t_i|, of which an earlier result brings its own."""
    length, *own = values
    return length, p.lengths_so_far + sum(own[1:] if p.factor_so_far else own)


EARLIER = Limit({"lengths_so_far": 1, "factor_so_far": 1}, unless={"scope": "global"})
LENGTHS = Norm(_lengths, scope="scope", when=("scope", ("global",)))


@method(
    title="OPCM",
    kind=Kind.COMBINE,
    granularity="tensor",
    version=3,
    paper="arXiv:2501.09522",
    needs=Needs(base=True, stats=(LENGTHS,), limits=(EARLIER,)),
    state=_so_far,
    workspace=Workspace(1.5, 0.5, 13.5, 1.0),
    classes={"embed": "mean", "head": "mean"},
    breaks={"order": "sources join one after another, and each finds the place taken by those before it"},
)
def opcm(group: TensorGroup, p: Opcm) -> Tensor:
    """Lets the sources join in the recipe's order: of each task vector, what lies along the directions that
    the merge so far has is left out, the rest is added, and the result is as long as the task vectors are on
    average. For collections that grow. Weights multiply the task vectors. Norms, biases and kernels are
    added up; embeddings and heads are averaged, unless `classes` says otherwise, and do not count in the
    lengths then. One source gives that source. Costs one eigendecomposition of the shorter side for each
    source after the first, twice: the lengths are measured first.
    """
    joined = _joined(group, p)
    if p.scope == "global":
        values = group.stat(LENGTHS)
    else:
        each = (joined, *weighted_deltas(group))
        values = [float(torch.linalg.vector_norm(one, dtype=torch.float64)) for one in each]
    length, lengths = _measured(values, p)
    factor = p.scale * lengths / group.site.merged / length if length > 0 else 0.0
    return joined.mul_(factor).add_(group.base)


def _joined(group: TensorGroup, p: Opcm) -> Tensor:
    """T_N. Of an earlier result, its own T is what it changed over the factor it was multiplied by."""
    shrunk = p.factor_so_far * p.scale or 1.0

    def first(deltas: Sequence[Tensor]) -> Tensor:
        return deltas[0].double() / shrunk

    return by_matrix(
        group,
        lambda deltas: reduce(_joining(p), deltas[1:], first(deltas)),
        lambda deltas: wide_total([first(deltas), *deltas[1:]]),
    )


def _joining(p: Opcm) -> Callable[[Tensor, Tensor], Tensor]:
    def join(so_far: Tensor, delta: Tensor) -> Tensor:
        taken = thin(so_far, null=NULL, dtype=delta.dtype)
        count = taken_count(taken, p.alpha, p.block)
        return so_far.add_(delta).sub_(_known(taken.to(delta), delta, count))

    return join


def _known(taken: Thin, delta: Tensor, count: int) -> Tensor:
    """What is left out of a task vector: its part along every pair of singular vectors, and along all pairs
    of the leading ``count``.
    """
    seen = taken.left.T @ delta
    along = (seen * taken.right.T).sum(dim=1, keepdim=True)
    block = seen[:count] @ taken.right[:, :count]
    block.diagonal().zero_()
    left_out = along * taken.right.T
    left_out[:count] += block @ taken.right[:, :count].T
    return taken.left @ left_out


def taken_count(taken: Thin, alpha: float, block: Literal["least", "published"]) -> int:
    """Directions that make up more than ``alpha`` of the sum of the singular values; all where none do."""
    if not taken.rank:
        return 0
    above = (taken.values.cumsum(0) > alpha * float(taken.values.sum())).nonzero()
    if alpha >= 1 or not above.numel():
        return taken.rank if block == "least" else 0
    first = int(above[0])
    return first + 1 if block == "least" else first
