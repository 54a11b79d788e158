"""Task negation: take the change back that taught a model something unwanted.

With the sources to be removed f and those to be kept r:
x = base + sum w_r tau_r - strength * sum w_f m_f tau_f; m_f = 1 where |tau_f| is among the largest ``top`` of
its tensor (or of the model) and, if ``protect`` is above 0, |w_f tau_f| > protect * max_r |w_r tau_r|, or 0.
"""

import functools
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from merge.contract.groups import TensorGroup
from merge.contract.limits import Caution
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params
from merge.contract.stats import Threshold
from merge.kernels.signs import below
from merge.kernels.sums import scaled, total

OUTSIDE = frozenset({"embed", "head", "norm", "bias"})
"""Classes that carry little of a skill, and break a model when they are moved backwards."""
LEAST = Threshold(share="top")


@params
class Unlearn:
    strength: float = knob(
        0.5, "How much of the unwanted change is taken back; above 1 goes beyond it.", ge=0, by_depth=True
    )
    keep: tuple[bool, ...] = knob(
        False,
        "Whether this source is a skill to be kept, added as it is, not one to be removed.",
        by_source=True,
    )
    top: float = knob(1.0, "Share of each unwanted change that is taken back, largest first.", gt=0, le=1)
    scope: Literal["tensor", "global"] = knob(
        "tensor", "Rank magnitudes within each tensor, or over the whole model."
    )
    protect: float = knob(
        0.0,
        "Take back only where the unwanted change is more than this times the largest change that a kept "
        "source made; 0 protects nothing.",
        ge=0,
    )
    tensors: Literal["matrices", "all"] = knob(
        "matrices", "What is taken back: nothing in embeddings, heads, norms and biases, or everywhere."
    )


@method(
    title="Task negation (unlearning)",
    kind=Kind.COMBINE,
    elementwise=True,
    paper="arXiv:2212.04089",
    needs=Needs(
        base=True,
        stats=(LEAST,),
        cautions=(
            Caution(
                "this reduces what was learnt, it does not delete it: score the unwanted behaviour and the "
                "skills to be kept before you rely on the result"
            ),
        ),
    ),
)
def unlearn(group: TensorGroup, p: Unlearn) -> Tensor:
    """Reduces an unwanted behaviour (toxicity, a style, a set of facts): each source is a model tuned on it
    from the base, and its change is subtracted. It reduces, and does not delete: knowledge may remain
    and can be brought back. To treat another model than the base, add that model as a source with
    ``keep: true``. Start at a small strength, and stop where the skills that you want to keep suffer. By
    default embeddings, head, norms and biases are left alone. Weights multiply the changes. Costs
    nothing beside the reading.
    """
    moves = scaled(group.deltas, group.weights)
    kept = [move for move, keep in zip(moves, p.keep, strict=True) if keep]
    taken = [] if p.tensors == "matrices" and group.role in OUTSIDE else _unwanted(group, p, moves)
    result = total([group.base, *kept])
    if p.protect > 0 and kept:
        shield = functools.reduce(torch.maximum, [move.abs() for move in kept]) * p.protect
        taken = [torch.where(move.abs() > shield, move, torch.zeros_like(move)) for move in taken]
    return result.sub_(total(taken).mul_(p.strength)) if taken else result


def _unwanted(group: TensorGroup, p: Unlearn, moves: list[Tensor]) -> list[Tensor]:
    """The largest entries of what is to be removed."""
    found = []
    for delta, move, least, keep in zip(group.deltas, moves, group.stat(LEAST), p.keep, strict=True):
        if not keep:
            chosen = move if least <= 0 else move * hardshrink(delta, below(least)).ne(0).to(move.dtype)
            found.append(chosen)
    return found
