"""DELLA (MagPrune): drop entries at random, small ones more often than large ones.

With the rank r_i of |tau_i| in its row of n (0 the smallest, equal ones share the mean of their ranks)
p_i = density - epsilon + 2 epsilon r_i / (n - 1), kept_i = m_i tau_i with m_i ~ Bernoulli(p_i); then by
``rescale`` expectation: kept_i / p_i; l1, l2: kept times |tau| / |kept|, norms of the whole tensor; none:
kept.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from merge.contract.groups import DeltaGroup
from merge.contract.limits import Limit
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.contract.stats import Sum
from merge.kernels import rescale
from merge.kernels.row_ranks import row_ranks

LEAST = 2.0**-24
"""Below this no draw can keep an entry."""


@params
class Della:
    density: float = knob(
        0.5, "Mean probability of an entry to stay.", gt=0, le=1, by_depth=True, by_source=True
    )
    epsilon: float = knob(
        0.1,
        "How far the probabilities of the smallest and the largest entry of a row are from density.",
        ge=0,
        lt=1,
        by_depth=True,
        by_source=True,
    )
    rescale: Literal["expectation", "l1", "l2", "none"] = knob(
        "expectation",
        "Divide every entry by its own probability, or restore the tensor's L1 (mergekit) or L2 norm, "
        "or leave it.",
    )


def _chances(delta: Tensor, p: Della) -> Tensor:
    """The probability of every entry to stay: float32, of the shape of the rows."""
    if p.epsilon == 0 or delta.shape[1] == 1:
        return torch.full_like(delta, p.density, dtype=torch.float32)
    return row_ranks(delta).mul_(2 * p.epsilon / (delta.shape[1] - 1)).add_(p.density - p.epsilon)


def _powers(delta: Tensor, own: DeltaGroup, p: Della) -> Sequence[Tensor]:
    kept = delta if p.density >= 1 else (own.rng.uniform() < _chances(delta, p)) * delta
    return rescale.powers(delta, kept, p.rescale)


MASS = Sum(_powers, when=("rescale", ("l1", "l2")))


@method(
    title="DELLA",
    kind=Kind.PREPARE,
    granularity="row",
    paper="arXiv:2406.11617",
    version=2,
    needs=Needs(
        base=True,
        stats=(MASS,),
        limits=(
            Limit({"density": 1, "epsilon": 1}, 1, {"density": 1}),
            Limit({"epsilon": 1, "density": -1}, 0, {"density": 1}),
        ),
    ),
)
def della(delta: Tensor, own: DeltaGroup, p: Della) -> Tensor:
    """Drops entries of every task vector at random; within a row (all that one output unit reads) the
    probability to stay grows with the rank of an entry's size, from density - epsilon to density + epsilon.
    The expected share kept is density; with epsilon 0 this is DARE with other draws. At density 1 nothing is
    dropped. The draws depend on the recipe's seed, the source's id and the tensor's name alone. Weights that
    are stored as inputs and outputs (GPT-2's) have rows for inputs.
    """
    if p.density >= 1:
        return delta
    chances = _chances(delta, p)
    kept = (own.rng.uniform() < chances) * delta
    if p.rescale == "none":
        return kept
    if p.rescale == "expectation":
        return kept.div_(chances.clamp_(min=LEAST))
    return kept.mul_(rescale.factor(own.stat(MASS), p.rescale))
