"""Runs a chain of methods on tensors in memory, in blocks of any size, as the engine would; for tests."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from merge import passes
from merge.blocks import Crew
from merge.chain import Block, Bound, Chain
from merge.contract.groups import Site
from merge.contract.method import Kind, get
from merge.methods import load

load()
Steps = Sequence[tuple[str, Mapping[str, Any]]]


def merge_all(
    steps: Steps,
    tensors: Mapping[str, tuple[Tensor | None, Sequence[Tensor]]],
    *,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    block: int = 1 << 16,
    threads: int = 1,
    models: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """Merges several tensors (name -> base, sources) by the same steps, global stats measured over all."""
    chains = {}
    for name, (_, sources) in tensors.items():
        ids = tuple(models or (f"m{place}" for place in range(len(sources))))
        site = Site(name, "linear", tuple(sources[0].shape), ids)
        chains[name] = Chain(site, _bound(steps, len(sources)), tuple(weights or [1.0] * len(sources)), seed)

    def read(chain: Chain, first: int, count: int) -> Block:
        base, sources = tensors[chain.site.name]
        shape = chain.block_shape(count)
        cut = [tensor.reshape(-1)[first : first + count].view(shape) for tensor in sources]
        start = None if base is None else base.reshape(-1)[first : first + count].view(shape)
        return Block(first, shape, start, cut)

    every = list(chains.values())
    passes.share_global(every)
    with Crew(threads) as crew:
        for level in range(1, max(chain.levels for chain in every) + 1):
            passes.measure(every, level, read, crew, block)
            passes.close_shared(every, level)
    merged = {}
    for name, chain in chains.items():
        parts = [chain.compute(read(chain, *span)).reshape(-1) for span in chain.spans(block)]
        merged[name] = torch.cat(parts).view(chain.site.shape)
    return merged


def merge_one(steps: Steps, base: Tensor | None, sources: Sequence[Tensor], **more: Any) -> Tensor:
    """As ``merge_all``, for a single tensor called ``w``."""
    return merge_all(steps, {"w": (base, sources)}, **more)["w"]


def _bound(steps: Steps, sources: int) -> tuple[Bound, ...]:
    found = []
    for place, (name, settings) in enumerate(steps):
        method = get(name)
        single = method.kind is Kind.PREPARE
        params = [method.settings(settings, sources, p) for p in (range(sources) if single else [None])]
        found.append(Bound(method, tuple(params), f"{name}#{[n for n, _ in steps[:place]].count(name)}"))
    return tuple(found)
