"""DARE: drop entries of a task vector at random, then rescale what is left.

kept = m tau with m ~ Bernoulli(density) for every entry; then by ``rescale``
expectation: kept / density; l1, l2: kept times |tau| / |kept|, norms of the whole tensor; none: kept.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from merge.contract.groups import DeltaGroup
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.contract.stats import Sum
from merge.kernels import rescale


@params
class Dare:
    density: float = knob(
        0.5,
        "Probability of an entry to stay (1 minus the drop rate).",
        gt=0,
        le=1,
        by_depth=True,
        by_source=True,
    )
    rescale: Literal["expectation", "l1", "l2", "none"] = knob(
        "expectation", "Divide by density, or restore the tensor's L1 or L2 norm, or leave it."
    )


def _powers(delta: Tensor, own: DeltaGroup, p: Dare) -> Sequence[Tensor]:
    return rescale.powers(delta, delta * own.rng.bernoulli(p.density), p.rescale)


MASS = Sum(_powers, when=("rescale", ("l1", "l2")))


@method(
    title="DARE",
    kind=Kind.PREPARE,
    elementwise=True,
    paper="arXiv:2311.03099",
    needs=Needs(base=True, stats=(MASS,)),
)
def dare(delta: Tensor, own: DeltaGroup, p: Dare) -> Tensor:
    """Drops entries of every task vector at random, each source with its own draws, and rescales the rest.
    The draws depend on the recipe's seed, the source's id and the tensor's name alone. Only safe where
    task vectors are small beside the weights: at density 0.1 an entry's spread is three times its size.
    """
    if p.density >= 1:
        return delta
    kept = delta * own.rng.bernoulli(p.density)
    if p.rescale == "expectation":
        return kept.div_(p.density)
    if p.rescale == "none":
        return kept
    return kept.mul_(rescale.factor(own.stat(MASS), p.rescale))
