"""What the modules of a stage are given, measured while it runs on every batch."""

import torch

from merge.learn.findings import Findings
from merge.learn.observe import Observers, SharingBroken
from merge.learn.skeleton import Skeleton
from merge.learn.walk import Stage


def observed(
    skeleton: Skeleton, stage: Stage, kinds: frozenset[str], device: torch.device, *, keep: bool = True
) -> Findings:
    """Runs a filled stage and gives the statistics of its inputs; with ``keep`` what leaves it goes into the
    next one. Raises ``NotFinite``.
    """
    try:
        return _observed(skeleton, stage, kinds, device, keep, share=True)
    except SharingBroken:
        return _observed(skeleton, stage, kinds, device, keep, share=False)


def _observed(
    skeleton: Skeleton, stage: Stage, kinds: frozenset[str], device: torch.device, keep: bool, *, share: bool
) -> Findings:
    seen = Observers(skeleton, stage.modules, kinds, device=device, share=share)
    with seen:
        stage.run(keep=keep, after=lambda _, output: seen.after_batch(output))
    return seen.findings(stage.tensors, stage.path)
