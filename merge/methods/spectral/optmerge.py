"""OptMerge: WUDI's loss with task vectors cut to their strongest directions.

r = floor(min(m, n) / N); t_i = U S V' cut to r triplets. Fully tuned sources: the target is mean + (t_i -
mean) cut to r, the start sum t_i. Sources tuned with LoRA: the target is t_i cut to r, the start their mean.
L(M) = sum |(M - target_i) V_i diag(s_i)|^2 / |t_i|^2, in closed form as in ``merge.kernels.rowspace``. x =
base + scale * M.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.matrices import by_matrix, mean
from merge.contract.method import Iteration, Kind, Needs, Workspace, method
from merge.contract.params import knob, params
from merge.kernels import rowspace
from merge.kernels.rowspace import Pull
from merge.kernels.sums import wide_total
from merge.kernels.thin import NULL, thin


@params
class Optmerge:
    scale: float = knob(1.0, "Factor on the merged task vector, to be tuned.", by_depth=True)
    tuned: Literal["full", "lora"] = knob("full", "How the sources were tuned: all weights, or as adapters.")
    solver: Literal["closed", "iterate"] = knob(
        "closed", "The exact minimum, or the published iteration: Adam for `full`, momentum for `lora`."
    )
    filter: Literal["none", "flow"] = knob(
        "flow", "How much of the closed form is taken: all, or as much as gradient flow does in `time`."
    )
    time: float = knob(300.0, "Time of the gradient flow, for the filter `flow`.", gt=0, by_depth=True)
    steps: int = knob(300, "Steps of the iteration.", ge=0, le=500)
    rate: float = knob(
        0.0,
        "Learning rate of the iteration; 0 stands for the published one: 1e-5 for `full`, 1e-4 for `lora`.",
        ge=0,
        le=1e-3,
    )


@method(
    title="OptMerge",
    kind=Kind.COMBINE,
    granularity="tensor",
    version=4,
    paper="arXiv:2505.19892",
    needs=Needs(base=True),
    workspace=Workspace(8.0, 0.75, 5.0, 1.75),
    iteration=Iteration("steps", 1.0, when=("solver", ("iterate",))),
    classes={"embed": "base", "head": "base", "norm": "base", "bias": "base"},
)
def optmerge(group: TensorGroup, p: Optmerge) -> Tensor:
    """As `wudi`, but it looks at the strongest singular directions of every task vector alone, which is less
    noise and less work. For experts on one base, multimodal ones too; say with `tuned` whether they were
    adapters. Tune `scale`: the authors use 0.1 for fully tuned sources. Weights multiply the task vectors.
    The closed form is not taken whole (`filter: none`) unless asked for: over the few directions that are
    kept its weak ones run away; on our bench A it was 45 to 96 times as long as the sum of task vectors.
    Embeddings, heads, norms and biases stay the base's, as published, unless `classes` says otherwise;
    kernels, and matrices with fewer rows or columns than there are sources, are averaged. Costs an
    eigendecomposition of the shorter side for each source, and one of the directions kept.
    """
    return by_matrix(group, lambda deltas: _merged(deltas, p)).mul_(p.scale).add_(group.base)


def _merged(deltas: Sequence[Tensor], p: Optmerge) -> Tensor:
    rank = min(deltas[0].shape) // len(deltas)
    if rank == 0:
        return mean(deltas)
    together = wide_total(deltas)
    center = together / len(deltas)
    pulls = [pull for delta in deltas if (pull := _pull(delta, center, rank, p)) is not None]
    start = together if p.tuned == "full" else center
    if p.solver == "closed":
        return rowspace.closed(pulls, start, rowspace.flow(p.time) if p.filter == "flow" else rowspace.whole)
    if p.tuned == "full":
        return rowspace.descended(pulls, start, "adam", p.rate or 1e-5, p.steps)
    return rowspace.descended(pulls, start, "momentum", p.rate or 1e-4, p.steps)


def _pull(delta: Tensor, center: Tensor, rank: int, p: Optmerge) -> Pull | None:
    own = thin(delta, rank, NULL)
    if own.rank == 0:
        return None
    kept = own if p.tuned == "lora" else thin(delta.double() - center, rank, NULL)
    length = float(torch.linalg.vector_norm(delta, dtype=torch.float64))

    def target() -> Tensor:
        return kept.product() if p.tuned == "lora" else kept.product().add_(center)

    def seen(rows: Tensor) -> Tensor:
        cut: Tensor = (kept.left * kept.values) @ (kept.right.T @ rows.T)
        return cut if p.tuned == "lora" else cut.add_(center @ rows.T)

    return Pull((own.right * own.values).T, length, target, seen)
