"""WUDI-Merging: the change that does to each task's inputs what that task's own change does to them.

The rows of a task vector t_i (outputs, inputs) span the inputs its task has seen, so that the interference of
a merged M with it is |(M - t_i) t_i'|^2 / |t_i|^2. M minimises the sum over the sources: with
G_i = t_i' t_i / |t_i|^2 and C = sum G_i = Q E Q', M = M0 + [sum (t_i - M0) G_i] Q h(E)/E Q' from a start M0
(see ``merge.kernels.rowspace``). x = base + scale * M.

h = 1 is the minimum. Noise in small changes makes it longer than their sum, so unless told otherwise h is 1
on as many directions as take part in the spectrum ((sum y)^2 / sum y^2, y the roots of E), the strongest, and
0 on the others, in which the result is the mean.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.matrices import by_matrix
from merge.contract.method import Iteration, Kind, Needs, Workspace, method
from merge.contract.params import knob, params
from merge.kernels import rowspace
from merge.kernels.rowspace import Pull, Response
from merge.kernels.sums import wide_total


@params
class Wudi:
    scale: float = knob(1.0, "Factor on the merged task vector.", by_depth=True)
    solver: Literal["closed", "adam"] = knob(
        "closed", "The exact minimum, or the published iteration, which stops on its way there."
    )
    start: Literal["sum", "mean", "zero"] = knob(
        "mean",
        "What the result is in directions that are not taken or that no task vector has a hold on, and where "
        "an iteration begins (the published one at the sum).",
    )
    filter: Literal["none", "flow", "share", "auto"] = knob(
        "auto",
        "How much of the closed form is taken: all; as much as gradient flow does in `time`; the `keep` "
        "share of its directions; or as many as take part in the spectrum.",
    )
    keep: float = knob(0.85, "Share of the directions, for the filter `share`.", gt=0, le=1, by_depth=True)
    time: float = knob(300.0, "Time of the gradient flow, for the filter `flow`.", gt=0, by_depth=True)
    steps: int = knob(300, "Steps of the iteration, for the solver `adam`.", ge=0, le=500)
    rate: float = knob(1e-5, "Learning rate of the iteration, for the solver `adam`.", ge=0, le=1e-3)


@method(
    title="WUDI-Merging",
    kind=Kind.COMBINE,
    scaled=True,
    granularity="tensor",
    version=4,
    paper="arXiv:2503.08099",
    needs=Needs(base=True),
    workspace=Workspace(4.0, 1.5, 3.5),
    iteration=Iteration("steps", 1.0, when=("solver", ("adam",))),
    stacked="rows",
    classes={"embed": "mean", "head": "mean"},
)
def wudi(group: TensorGroup, p: Wudi) -> Tensor:
    """Finds the matrix that interferes least with every source on the inputs that source was tuned on, judged
    by the task vectors alone: no data needed. For a few fully tuned experts of one base that disagree. The
    published iteration moves every entry by its learning rate a step, whatever the size of the weights; the
    closed form (`filter: none`) is where it would end; noise makes that longer than the sum of small changes,
    so directions that hardly take part keep the mean. Tasks with separate inputs are added up, as far as
    their directions are taken; copies of one source give that source. Weights multiply the task vectors.
    Vectors and kernels are averaged; embeddings and heads too, unless `classes` says otherwise. Costs an
    eigendecomposition as large as the inputs, or as all sources' outputs together where those are fewer; the
    solution of as many equations without a filter.
    """
    return by_matrix(group, lambda deltas: _merged(deltas, p)).mul_(p.scale).add_(group.base)


def _merged(deltas: Sequence[Tensor], p: Wudi) -> Tensor:
    lengths = [float(torch.linalg.vector_norm(delta, dtype=torch.float64)) for delta in deltas]
    pulls = [_pull(delta, length) for delta, length in zip(deltas, lengths, strict=True) if length > 0]
    start = wide_total(deltas)
    if p.start != "sum":
        start *= 0.0 if p.start == "zero" else 1 / max(1, len(pulls))  # who changed nothing has no say
    if p.solver == "adam":
        return rowspace.descended(pulls, start, "adam", p.rate, p.steps)
    return rowspace.closed(pulls, start, _response(p))


def _pull(delta: Tensor, length: float) -> Pull:
    def target() -> Tensor:
        return delta.to(torch.float64, copy=True)

    return Pull(delta, length, target, lambda rows: target() @ rows.T)


def _response(p: Wudi) -> Response:
    if p.filter == "flow":
        return rowspace.flow(p.time)
    if p.filter == "share":
        return rowspace.leading(p.keep)
    return rowspace.participating if p.filter == "auto" else rowspace.whole
