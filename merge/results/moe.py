"""What a mixture has beyond copies: experts with noise or another scale, and the routers. A router has one
row an expert, drawn by a key or taken from what prompts look like inside.

A row made from prompts is the mean of the positive prompts' vectors minus that of the negative ones', scaled
to length 1, so that a token is sent where its own vector points. Vectors are the embeddings of all tokens of
the prompts (``cheap_embed``: the same row in every layer; either side scaled to length 1 first), or what the
guide model holds where a layer begins: the mean over the tokens (``hidden``, ``hidden_avg``) or the last
token's (``hidden_last``).
"""

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor

from merge.checkpoint.reader import TensorReader
from merge.kernels.keyed import Draws, key_of
from merge.plan import Plan
from merge.planning.forms.moe import MoePlan, Router
from merge.planning.outputs import OutputTensor
from merge.results.hidden import embedded, in_batches, layer_inputs, tokens_of

Texts = tuple[list[Tensor], list[Tensor]]
"""Token ids of the positive and of the negative prompts of one source."""


def make_routers(
    plan: Plan, readers: Mapping[str, TensorReader], folders: Mapping[str, Path], check: Callable[[], None]
) -> dict[str, Tensor]:
    """Every router of the plan by name, float32 (rows, width). ``check`` is called now and then.

    Raises ``GateUnsupported`` where the guide's tokenizer or layers cannot be used.
    """
    assert plan.moe is not None
    gate = plan.moe.asked.gate
    if gate.endswith("random"):
        return {router.output.name: _drawn(router, plan.recipe.seed, gate) for router in plan.moe.routers}
    reader, folder = readers[plan.moe.guide], folders[plan.moe.guide]
    routed = {name for router in plan.moe.routers for name in router.sources}
    texts = {
        source.id: (
            tokens_of(reader.index, folder, source.prompts),
            tokens_of(reader.index, folder, source.negative_prompts),
        )
        for source in plan.recipe.sources
        if source.id in routed
    }
    if gate == "cheap_embed":
        rows = {
            name: _row(*([_direction(reader, side)] if side else [] for side in sides))
            for name, sides in texts.items()
        }
        return {
            router.output.name: torch.stack([rows[name] for name in router.sources])
            for router in plan.moe.routers
        }
    return _from_hidden(plan.moe, reader, folder, texts, check)


def _drawn(router: Router, seed: int, gate: str) -> Tensor:
    rows, width = router.output.shape
    draws = Draws(key_of(seed, router.output.name, gate), 0, (rows, width))
    return (draws.uniform() * 2 - 1) / sqrt(width) if gate == "uniform_random" else draws.normal().float()


def changed_expert(plan: Plan, output: OutputTensor, merged: Tensor, first: int) -> Tensor:
    """Entries ``first`` onwards of an expert with what the recipe adds to a plain copy; as they are where it
    adds nothing. The noise is keyed by seed, source and the output's name.
    """
    change = plan.moe.changed.get(output.name) if plan.moe is not None else None
    if change is None:
        return merged
    flat = merged.reshape(-1)
    if change.noise:
        key = key_of(plan.recipe.seed, change.source, output.name, "noise")
        normal = Draws(key, first, (flat.numel(),), flat.device).normal()
        flat = flat + normal.mul_(change.noise).to(flat.dtype)
    return flat * change.scale


def _from_hidden(
    moe: MoePlan,
    reader: TensorReader,
    folder: Path,
    texts: Mapping[str, Texts],
    check: Callable[[], None],
) -> dict[str, Tensor]:
    """Rows by source and layer, the sources some at a time so that their hidden states fit."""
    last = moe.asked.gate == "hidden_last"
    width = moe.routers[0].output.shape[1]
    rows: dict[tuple[str, int], Tensor] = {}
    sizes = {name: sum(ids.numel() for side in sides for ids in side) for name, sides in texts.items()}
    for names in in_batches(texts, sizes.__getitem__, width):
        flat = [ids for name in names for side in texts[name] for ids in side]
        for layer, states in enumerate(layer_inputs(reader, folder, flat, check)):
            vectors = iter([state[-1] if last else state.mean(0) for state in states])
            for name in names:
                positive, negative = ([next(vectors) for _ in side] for side in texts[name])
                rows[name, layer] = _row(positive, negative)
    return {
        router.output.name: torch.stack([rows[name, router.layer] for name in router.sources])
        for router in moe.routers
    }


def _direction(reader: TensorReader, texts: Sequence[Tensor]) -> Tensor:
    """Which way the embeddings of all tokens of some prompts point together: of length 1, float64."""
    total = torch.cat([embedded(reader, ids) for ids in texts]).double().sum(0)
    return total.div(torch.linalg.vector_norm(total).clamp(min=1e-8))


def _row(positive: Sequence[Tensor], negative: Sequence[Tensor]) -> Tensor:
    row = torch.stack(list(positive)).double().mean(0)
    if negative:
        row = row - torch.stack(list(negative)).double().mean(0)
    length = torch.linalg.vector_norm(row).clamp(min=1e-8)
    return row.div(length).float()
