"""Layer swapping: the outer layers of one model around the inner layers of another.

With n layers, the share of the donor L in layer l is c = 1 for l < bottom and for l >= n - top, 0
between; x = host + c (donor - host). Beside each block lie ``transition`` layers in which c goes down in
equal steps: c = 1 - j / (u + 1) for j = 1 to u above the bottom, the same mirrored below the top.
``auto``: with r_l = |donor - base|^2 / (|donor - base|^2 + |host - base|^2) over layer l, the two borders
between which the inner and the outer layers differ most in r: the largest n_in n_out (mean_out - mean_in)^2.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Literal

from torch import Tensor

from merge.arch.roles import place_of, tower_and_layer
from merge.contract.by_tensor import Squares
from merge.contract.ends import Ends, transitions
from merge.contract.groups import TensorGroup
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params

Borders = tuple[int, int]
"""How many layers of the donor there are at the bottom and at the top."""


@params
class LayerSwap:
    borders: Literal["given", "auto"] = knob(
        "given",
        "auto: find the borders where what the donor changed most meets what the host changed most (needs a "
        "base); bottom and top then play no part.",
    )
    bottom: int = knob(-1, "Layers of the donor at the bottom; -1: a fifth of all.", ge=-1)
    top: int = knob(-1, "Layers of the donor at the top; -1: a tenth of all.", ge=-1)
    transition: int = knob(
        1, "Layers beside each of the donor's blocks in which the two are mixed; 1 is a plain average.", ge=0
    )


class Found(Squares):
    """The borders of every tower: tuples of the path of its layers, bottom and top."""

    def told(self, sums: dict[str, list[float]], p: LayerSwap) -> tuple[tuple[str, int, int], ...]:  # noqa: ARG002
        """From the sums of squares of both models' changes."""
        return tuple((tower, *best_borders(donor)) for tower, donor in _donor_shares(sums).items())


def _both(group: TensorGroup, p: LayerSwap) -> Sequence[Tensor]:  # noqa: ARG001
    return group.deltas


ENDS = Ends("bottom", "top", "transition", 0.2, 0.1, unless={"borders": "auto"})
FOUND = Found(_both, when=("borders", ("auto",)), scope="borders", everywhere="auto", by_place=True)


@method(
    title="Layer swapping",
    kind=Kind.COMBINE,
    elementwise=True,
    version=2,
    paper="arXiv:2410.01335",
    needs=Needs(base="optional", sources=(2, 2), stats=(FOUND,), base_for={"borders": ("auto",)}, ends=ENDS),
    breaks={"order": "the first source is the host, the second the donor"},
)
def layer_swap(group: TensorGroup, p: LayerSwap) -> Tensor:
    """Puts the bottom and top layers of the donor (the second source: a language expert, say) around the
    middle layers of the host (the first: a task expert). Rests on where tuning acts: a new language moves the
    outer layers most, a skill such as maths the inner ones. Embeddings go with the bottom, final norm and
    head with the top block. Transitions that leave no layer to the host are left out, the upper one first,
    and the plan says so. Layers outside the transitions are copied to the bit. Weights play no part.
    """
    host, donor = group.sources
    share = _share(group, p)
    if share in (0.0, 1.0):
        return (donor if share else host).clone()
    return (donor - host).mul_(share).add_(host)


def _share(group: TensorGroup, p: LayerSwap) -> float:
    """The donor's part of this tensor."""
    found = tower_and_layer(group.name)
    measured = group.stat(FOUND) if p.borders == "auto" else ()
    borders: dict[str, Borders] = {tower: (bottom, top) for tower, bottom, top in measured}
    if found is None:
        given = ENDS.counts(group.site.deepest, p.bottom, p.top)
        largest = max(borders.values(), key=sum, default=given)
        place = place_of(group.name, group.role)
        return float(largest[place == "after"] != 0)
    layers = group.site.layers
    bottom, top = ENDS.counts(layers, *borders.get(found[0], (p.bottom, p.top)))
    return shares(layers, bottom, top, p.transition)[found[1]]


def shares(layers: int, bottom: int, top: int, transition: int) -> list[float]:
    """The donor's part of every layer."""
    steps = [1 - step / (transition + 1) for step in range(1, transition + 1)]
    below, above = transitions(layers, bottom, top, transition)
    inner = [0.0] * (layers - bottom - top - below - above)
    mixed = [*steps[:below], *inner, *steps[::-1][:above]]
    return ([1.0] * min(bottom, layers) + mixed + [1.0] * top)[:layers]


def _donor_shares(sums: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """r of every layer of every tower; 1/2 where nobody changed anything."""
    towers: dict[str, dict[int, list[float]]] = {}
    for name, (host, donor) in sums.items():
        found = tower_and_layer(name)
        if found is not None:
            layer = towers.setdefault(found[0], {}).setdefault(found[1], [0.0, 0.0])
            layer[0] += host
            layer[1] += donor
    return {
        tower: [
            layers[at][1] / sum(layers[at]) if at in layers and sum(layers[at]) > 0 else 0.5
            for at in range(max(layers) + 1)
        ]
        for tower, layers in towers.items()
    }


def best_borders(donor: Sequence[float]) -> Borders:
    """Where to cut so that the outer layers are the donor's most; nothing of the donor where no cut helps."""
    count = len(donor)
    upto = [0.0, *accumulate(donor)]
    best, found = 0.0, (0, 0)
    for bottom in range(count):
        for top in range(count - bottom):
            inner = count - bottom - top
            if inner == count:
                continue
            middle = upto[count - top] - upto[bottom]
            gap = (upto[count] - middle) / (count - inner) - middle / inner
            contrast = inner * (count - inner) * gap * gap
            if gap > 0 and contrast > best + 1e-12:
                best, found = contrast, (bottom, top)
    return found
