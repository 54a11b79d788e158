"""Several models side by side, layer by layer through what they are merged to (RegMean++, arXiv:2508.03121).

Each model is run on its own data. A block of a model is measured on what comes out of the merged blocks
before it; when all models have been measured there, the block is merged, and every model's data goes on
through the merged one. What is outside the blocks (embeddings, the last norm) is merged before. One block of
one model is in memory at a time; what leaves a block waits in files.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from merge.errors import ModelNotRun
from merge.learn.batches import Batches
from merge.learn.calling import NotByBlocks
from merge.learn.findings import Findings
from merge.learn.observed import observed
from merge.learn.partial import Partial
from merge.learn.skeleton import Skeleton, Weights
from merge.learn.walk import REST, Stage, Walk

KIND = "gram_merged"
Merge = Callable[[Mapping[str, Path], Mapping[str, Sequence[str]]], Mapping[str, Weights]]
"""Merges the tensors of a block (by model, the names it has there), given each model's file of statistics;
what it gives is read before it is called again.
"""
OnBlock = Callable[[str, int, int, int], None]
"""Called with a block that is done, how many are, of how many, and how many of them now."""


@dataclass(frozen=True)
class Traveller:
    """A model on its way: its own weights, and the merged ones of what lies outside its blocks, by its
    names.
    """

    skeleton: Skeleton
    own: Weights
    outside: Weights
    batches: Batches
    partial: Partial


def through(
    models: Mapping[str, Traveller],
    merge: Merge,
    *,
    device: torch.device,
    check: Callable[[], None],
    on_block: OnBlock,
) -> None:
    """Leaves ``gram_merged`` of every model in its partial folder, a file for each block; goes on after the
    last block that was finished there. Raises ``ModelNotRun`` where a model cannot be run by blocks, and
    ``NotFinite``.
    """
    journal = next(iter(models.values())).partial
    if journal.facts.get("done", [])[-1:] == [REST]:
        return
    with ExitStack() as stack:
        walks = {
            key: stack.enter_context(
                Walk(
                    each.skeleton,
                    each.outside,
                    each.batches.every,
                    each.partial.folder / "states",
                    device=device,
                    check=check,
                )
            )
            for key, each in models.items()
        }
        try:
            _travel(models, walks, merge, journal, device, on_block)
        except NotByBlocks as reason:
            label = models[next(iter(models))].skeleton.index.label
            raise ModelNotRun(f"{label} cannot be run layer by layer: {reason}.") from reason
    for each in models.values():
        shutil.rmtree(each.partial.folder / "states", ignore_errors=True)


def _travel(
    models: Mapping[str, Traveller],
    walks: Mapping[str, Walk],
    merge: Merge,
    journal: Partial,
    device: torch.device,
    on_block: OnBlock,
) -> None:
    done = _resumed(models, walks, journal)
    rounds = zip(*(walk.stages() for walk in walks.values()), strict=True)
    for now, stages in enumerate(rounds, 1):
        path, place = stages[0].path, len(done)
        if any(stage.path != path for stage in stages):
            raise NotByBlocks("the models call their blocks in different orders")
        here = dict(zip(models, stages, strict=True))
        files = {key: _measure(models[key], here[key], place, device) for key in models}
        if path != REST:
            merged = merge(files, {key: stage.tensors for key, stage in here.items()})
            for key, stage in here.items():
                stage.fill(merged[key])
                stage.run()
                stage.close()
        done.append(path)
        journal.note(done=done, states={key: walk.snapshot() for key, walk in walks.items()})
        on_block(path, len(done), walks[next(iter(walks))].count, now)


def _measure(model: Traveller, stage: Stage, place: int, device: torch.device) -> Path:
    """The block's own weights on what the merged blocks give; where that was done already, its file."""
    path = model.partial.stage_file(_name(place))
    if not path.is_file():
        stage.fill(model.own)
        found = observed(model.skeleton, stage, frozenset({"gram"}), device, keep=False)
        stage.close()
        model.partial.save(_name(place), _renamed(found))
    return path


def _renamed(found: Findings) -> Findings:
    found.tensors = {f"{KIND}/{name.partition('/')[2]}": value for name, value in found.tensors.items()}
    return found


def _resumed(models: Mapping[str, Traveller], walks: Mapping[str, Walk], journal: Partial) -> list[str]:
    """The blocks that need not be run again; everything is begun anew where any file of them is gone."""
    done: list[str] = list(journal.facts.get("done", []))
    states: Mapping[str, Any] = journal.facts.get("states", {})
    there = all(
        each.partial.stage_file(_name(place)).is_file()
        for each in models.values()
        for place in range(len(done))
    )
    if there and (not done or all(walk.resume(done, states[key]) for key, walk in walks.items())):
        return done
    for key, each in models.items():
        for path in each.partial.folder.glob("*.stage"):
            path.unlink()
        walks[key].done = []
    return []


def _name(place: int) -> str:
    return f"input-{place:04}"
