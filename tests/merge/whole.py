"""Runs a chain of methods on tensors in memory, in blocks of any size, as the engine would; for tests."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from merge.arch.roles import Towers
from merge.contract.groups import Site
from merge.contract.method import Kind, get
from merge.methods import load
from merge.planning.output_tensor import Input, OutputTensor
from merge.running import passes
from merge.running.chain import Block, Bound, Chain
from merge.running.crew import Crew
from merge.running.statistics import NOTHING, Informed, Measured, OutputStatistics
from tests.merge import informed

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
    statistics: Mapping[str, Measured] | None = None,
    role: str = "linear",
    turned: bool = False,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Merges several tensors (name -> base, sources) by the same steps, global stats measured over all.
    ``statistics`` are those of each model (``base`` and the sources' ids); by default synthetic ones. What
    was measured on the CPU is merged on the ``device``.
    """
    chains, known = {}, {}
    towers = Towers.of(tensors)
    for name, (_, sources) in tensors.items():
        ids = tuple(models or (f"m{place}" for place in range(len(sources))))
        layers, longest = towers.length(name), towers.longest
        site = Site(name, role, tuple(sources[0].shape), ids, turned, layers, deepest=longest)
        chains[name] = Chain(site, bound(steps, len(sources)), tuple(weights or [1.0] * len(sources)), seed)
        known[name] = known_for(chains[name], tensors[name][0] is not None, steps, statistics)

    def read(chain: Chain, first: int, count: int, device: str = "cpu") -> Block:
        base, sources = tensors[chain.site.name]
        shape = chain.block_shape(count)
        cut = [tensor.reshape(-1)[first : first + count].view(shape).to(device) for tensor in sources]
        start = None if base is None else base.reshape(-1)[first : first + count].view(shape).to(device)
        return Block(first, shape, start, cut, statistics=known[chain.site.name].at(first, shape, cut[0]))

    every = list(chains.values())
    passes.share_global(every)
    with Crew(threads) as crew:
        for level in range(1, max(chain.levels for chain in every) + 1):
            passes.measure(every, level, read, crew, block)
            passes.close_shared(every, level)
    merged = {}
    for name, chain in chains.items():
        parts = [chain.compute(read(chain, *span, device)).reshape(-1) for span in chain.spans(block)]
        merged[name] = torch.cat(parts).view(chain.site.shape)
    return merged


def known_for(
    chain: Chain, based: bool, steps: Steps, statistics: Mapping[str, Measured] | None = None
) -> OutputStatistics:
    """What the steps need measured on data of one tensor; synthetic where it is not given."""
    site = chain.site
    inputs = tuple(Input(model, site.name) for model in (*(("base",) if based else ()), *site.models))
    settings = tuple(dict(values) for _, values in steps)
    output = OutputTensor(
        site.name, "F32", site.shape, site.role, None, "method", settings, chain.weights, inputs
    )
    methods = [get(name) for name, _ in steps]
    if not any(method.needs.statistics for method in methods):
        return NOTHING
    given = statistics or informed.held(("base", *site.models), {site.name: site.shape})
    return Informed(given, {}).of(output, zip(methods, settings, strict=True))


def merge_one(steps: Steps, base: Tensor | None, sources: Sequence[Tensor], **more: Any) -> Tensor:
    """As ``merge_all``, for a single tensor called ``w``."""
    return merge_all(steps, {"w": (base, sources)}, **more)["w"]


def bound(steps: Steps, sources: int) -> tuple[Bound, ...]:
    found = []
    for place, (name, settings) in enumerate(steps):
        method = get(name)
        single = method.kind is Kind.PREPARE
        params = [method.settings(settings, sources, p) for p in (range(sources) if single else [None])]
        found.append(Bound(method, tuple(params), f"{name}#{[n for n, _ in steps[:place]].count(name)}"))
    return tuple(found)
