"""Measures what takes several models at once: for RegMean++, RCP and the trained regions of
Localize-and-Stitch.

Like ``merge.learn.collect`` it leaves a folder of statistics for each model, which appears whole or not at
all and is found again by its digest; a run that was stopped goes on from the last finished block (gradients:
from the last finished group of sequences).
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch

from merge.checkpoint.reader import TensorReader
from merge.errors import BudgetTooSmall
from merge.joint.job import Job, OnProgress
from merge.joint.merging import go_through
from merge.joint.training import train
from merge.joint.voting import vote
from merge.learn.samples import Samples
from merge.learn.statistics import Manifest, read_manifest
from merge.learn.turns import only_one
from merge.methods import load as load_methods
from merge.plan import Plan
from merge.planning.together import THROUGH
from merge.recipe.stages import ADAPTER
from merge.running.statistics import open_statistics


def measure_joint(
    plan: Plan,
    folders: Mapping[str, Path],
    samples: Mapping[str, Samples],
    statistics: Mapping[str, Path],
    outs: Mapping[str, Path],
    weights: Mapping[str, str],
    *,
    device: str = "cpu",
    memory_bytes: int | None = None,
    on_progress: OnProgress = lambda *_: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Manifest]:
    """Measures ``plan.statistics.joint`` into the folders ``outs``, by model key; those that are there stay.

    ``folders`` are those of all models (and ``<key>+adapter``), ``statistics`` of what
    ``plan.statistics.needed`` names; ``weights`` are the digests of all models' weights. Raises what
    ``merge.learn.collect.collect`` raises.
    """
    load_methods()
    _check_memory(plan, memory_bytes)
    with ExitStack() as stack:
        readers = {
            key: stack.enter_context(TensorReader(folders[key], plan.models[key], folders.get(key + ADAPTER)))
            for key in _used(plan)
        }
        needed = {key: kinds for key, kinds in plan.statistics.needed.items() if key in statistics}
        known = {key: stack.enter_context(each) for key, each in open_statistics(needed, statistics).items()}
        job = Job(
            plan,
            folders,
            readers,
            known,
            samples,
            outs,
            weights,
            torch.device(device),
            memory_bytes,
            on_progress,
            should_stop,
        )
        for out in sorted(each for each in outs.values() if not each.exists()):
            stack.enter_context(only_one(out, job.check))
        _measure(job)
    return {key: read_manifest(outs[key]) for key in plan.statistics.joint}


def _measure(job: Job) -> None:
    kinds = {kind for own in job.plan.statistics.joint.values() for kind in own}
    if THROUGH in kinds:
        go_through(job)
        return
    for key, own in job.plan.statistics.joint.items():
        (vote if "votes" in own else train)(job, key)


def _used(plan: Plan) -> Iterable[str]:
    return dict.fromkeys(each.model for output in plan.outputs for each in output.inputs)


def _check_memory(plan: Plan, memory: int | None) -> None:
    needed = plan.statistics.memory_bytes
    if memory is not None and needed > memory:
        raise BudgetTooSmall(
            f"Running the models beside each other takes about {needed >> 20} MiB for the largest block, but "
            f"{memory >> 20} MiB are allowed; allow more."
        )
