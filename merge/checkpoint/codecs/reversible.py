"""A factor of one LoRA among several that are kept as their mean, shared directions and coefficients
(``merge.kernels.reversible``).

At every position the factor is mean + basis times the member's coefficients. Parts: ``mean`` (positions, r),
``basis`` (positions, r, p), ``coefficients`` (positions, p, members). Settings: ``member``, and ``turned``
where the factor is (r, positions) instead of (positions, r).
"""

from dataclasses import replace

from torch import Tensor

from merge.checkpoint.codecs.parts import Parts
from merge.checkpoint.header import Coded


def rows(coded: Coded, first: int, out: Tensor, parts: Parts) -> None:
    """Decodes whole rows; see ``merge.checkpoint.codecs``."""
    (count, width), last = out.shape, first + out.shape[0]
    mean, basis, coefficients = (coded.parts[name] for name in ("mean", "basis", "coefficients"))
    turned, ranks = coded.settings["turned"], basis.shape[2]
    if turned:
        out.copy_(parts.columns(mean, first, last).T)
    else:
        out.copy_(parts.read(mean, first * width, count * width).view(count, width))
    if not basis.numel:
        return
    own = parts.read(coefficients, 0, coefficients.numel).view(coefficients.shape)
    own = own[:, :, coded.settings["member"]].clone()  # the next part may be read into the same memory
    if turned:
        lying = replace(basis, shape=(basis.shape[0], basis.shape[1] * ranks))
        directions = parts.columns(lying, first * ranks, last * ranks).reshape(-1, count, ranks)
    else:
        directions = parts.read(basis, first * width * ranks, count * width * ranks).view(count, width, ranks)
        own = own[first:last]
    for place in range(ranks):
        if turned:
            out.add_(directions[:, :, place].T * own[:, place])
        else:
            out.add_(directions[:, :, place] * own[:, place, None])
