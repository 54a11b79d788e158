"""The sum of what LoRA adapters change, as one adapter: factors side by side, then cut by two QRs and a small
SVD.

D = sum w_i s_i B_i A_i = [w_1 s_1 B_1 | ..] [A_1; ..] = Q_B (R_B R_A') Q_A'; the SVD of the middle factor is
that of D, and no (m, n) matrix is ever formed. x = base + scale * D.
"""

from merge.contract.factors import FactorGroup, Factors, joined
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.kernels.spectral import decompose_product
from merge.kernels.truncation import Wanted


@params
class CatSvd:
    scale: float = knob(1.0, "Factor on the merged change.", by_depth=True)
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
    parts = [each for each in group.weighted if each.rank]
    if not parts:
        return group.nothing()
    whole = joined(parts).times(p.scale / sum(group.weights) if p.normalize else p.scale)
    if not p.rank and not p.error:
        return whole
    wanted = Wanted(p.rank or whole.rank, p.error or None)
    low = decompose_product([whole.left], [whole.right], wanted)
    return Factors(low.left, low.right, low.error * low.norm)
