"""The sum of what LoRA adapters change, as one adapter: factors side by side, then cut by two QRs and a small
SVD.

D = sum w_i s_i B_i A_i = [w_1 s_1 B_1 | ..] [A_1; ..] = Q_B (R_B R_A') Q_A'; the SVD of the middle factor is
that of D, and no (m, n) matrix is ever formed. x = base + scale * D.

With a density, A_i is trimmed to its largest entries first, as in Evo-Merging (arXiv:2509.12951). There, A
and B are added up apart, so that products of different adapters join and no weight can subtract; here it can.
"""

import torch

from merge.contract.factors import FactorGroup, Factors, joined
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.kernels.spectral import decompose_product
from merge.kernels.truncation import Wanted


@params
class CatSvd:
    scale: float = knob(1.0, "Factor on the merged change.", by_depth=True)
    density: tuple[float, ...] = knob(
        1.0, "Share of the entries of an adapter's A kept, largest first.", ge=0, le=1, by_source=True
    )
    normalize: bool = knob(False, "Divide by the sum of the weights, which makes the sum a mean.")
    rank: int = knob(0, "Directions kept of a module's change; 0 keeps all.", ge=0, le=16384)
    error: float = knob(
        0.0, "Instead: the fewest directions whose relative Frobenius error is at most this.", ge=0, lt=1
    )


@method(
    title="Concatenation and SVD of adapters",
    kind=Kind.COMBINE,
    granularity="row",
    needs=Needs(base=True, factors=True, weight_sum="normalize"),
)
def cat_svd(group: FactorGroup, p: CatSvd) -> Factors:
    """The weighted sum of LoRA adapters, product by product: A of one is never multiplied with B of another.
    Exact, whatever their ranks and scalings; `rank` or `error` then keeps its strongest directions, and an
    adapter result tells how much that loses in each module. PEFT's `cat` and `svd` without their full
    matrices. The sources must be adapters over the base. Costs two QRs and an SVD as large as the ranks
    together.
    """
    parts = [trimmed(each, share) for each, share in zip(group.weighted, p.density, strict=True) if each.rank]
    if not parts:
        return group.nothing()
    whole = joined(parts).times(p.scale / sum(group.weights) if p.normalize else p.scale)
    if not p.rank and not p.error:
        return whole
    wanted = Wanted(p.rank or whole.rank, p.error or None)
    low = decompose_product([whole.left], [whole.right], wanted)
    return Factors(low.left, low.right, low.error * low.norm)


def trimmed(change: Factors, share: float) -> Factors:
    """The change with this share of the entries of its right factor, the largest and ties; one, or none."""
    if share == 1:
        return change
    sizes = change.right.abs()
    count = max(1, round(share * sizes.numel())) if share else 0
    limit = sizes.flatten().kthvalue(sizes.numel() - count + 1).values if count else torch.inf
    return Factors(change.left, torch.where(sizes >= limit, change.right, 0.0), change.lost)
