"""SLERP: along the arc between two models instead of the chord.

With the angle theta between the two tensors seen as vectors, x = (sin((1-t) theta) a + sin(t theta) b) /
sin(theta); where they are almost parallel, x = (1-t) a + t b.
"""

import math

from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.contract.stats import Gram, sources_of
from merge.kernels.sums import weighted_sum

ANGLES = Gram(sources_of)


@params
class Slerp:
    t: float = knob(0.5, "Place on the arc: 0 is the first source, 1 the second.", ge=0, le=1, by_depth=True)
    parallel: float = knob(0.9995, "Above this |cosine| the chord is taken instead of the arc.", gt=0, lt=1)


@method(
    title="SLERP",
    kind=Kind.COMBINE,
    elementwise=True,
    paper="Shoemake 1985, Animating rotation with quaternion curves",
    needs=Needs(sources=(2, 2), stats=(ANGLES,)),
    breaks={"order": "t runs from the first source to the second"},
)
def slerp(group: TensorGroup, p: Slerp) -> Tensor:
    """Spherical interpolation of exactly two sources, each tensor on its own arc; weights play no part. The
    lengths of the two tensors are interpolated along with their directions.
    """
    (aa, ab), (_, bb) = group.stat(ANGLES)
    length = math.sqrt(aa) * math.sqrt(bb)
    cosine = max(-1.0, min(1.0, ab / length)) if length else 1.0
    if abs(cosine) > p.parallel:
        first, second = 1 - p.t, p.t
    else:
        angle = math.acos(cosine)
        first, second = (math.sin(part * angle) / math.sin(angle) for part in (1 - p.t, p.t))
    return weighted_sum(group.sources, (first, second))
