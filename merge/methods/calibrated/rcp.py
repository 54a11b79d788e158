"""RCP: a model that reasons takes over a domain model's changes where the domain's texts need them.

x = theta_R + scale m (theta_D - theta_0), m = 1 where the votes of the domain's texts add up to more than
zero. A text votes for an entry where g theta_D + lambda F (theta_R - theta_D)^2 <= 0
(``merge.joint.votes``), F being how much the reasoning texts of theta_R depend on it.
"""

from typing import Literal

import torch
from torch import Tensor

from merge.contract.groups import TensorGroup
from merge.contract.informed import Statistic
from merge.contract.method import Kind, Needs, method
from merge.contract.params import knob, params

PRIOR = Statistic("grad_weight", of="first")
VOTES = Statistic("votes", of="second", after=(PRIOR,), knobs=("protect", "zero"))


@params
class Rcp:
    protect: float = knob(
        1000.0,
        "Weight of what the prior's texts depend on, against what the domain's gain (lambda).",
        ge=0,
    )
    zero: Literal["keep", "take"] = knob(
        "keep",
        "Where a text says nothing of an entry: no vote and the prior's value, or a vote to take the "
        "domain's change, as published.",
    )
    scale: float = knob(1.0, "Factor on the changes that are taken.", by_depth=True)


@method(
    title="RCP-Merging",
    kind=Kind.COMBINE,
    elementwise=True,
    paper="arXiv:2508.03140",
    needs=Needs(base=True, sources=(2, 2), statistics=(VOTES,)),
    breaks={"order": "the first source is the prior, the second the domain model"},
)
def rcp(group: TensorGroup, p: Rcp) -> Tensor:
    """Keeps the first source (the prior: a reasoning model) and adds the second one's changes (a domain
    model) at the entries where the domain's texts vote for them against what the prior's texts depend on.
    Sources' weights are not used.
    """
    prior, change = group.sources[0], group.deltas[1]
    found: Tensor | None = group.statistic(VOTES)
    if found is None:
        return prior + change * p.scale if p.zero == "take" else prior.clone()
    return torch.where(found > 0, prior + change * p.scale, prior)
