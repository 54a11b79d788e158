"""What every method that needs weights alone makes of one source, of copies, of a source that changed nothing
and of task vectors of low rank: one row a method, so that none is without an answer.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from merge.contract.method import Kind, registered
from merge.methods import load
from tests.merge.methods.adapters.made import change, drawn, nothing, product
from tests.merge.whole import merge_all, merge_one

load()
SHAPE = (12, 20)
COUNTS = (1, 2, 8)

Known = Callable[[Tensor, int], Tensor]
"""From one task vector and the number of its copies to the merged one."""


def itself(delta: Tensor, _: int) -> Tensor:
    return delta


def summed(delta: Tensor, count: int) -> Tensor:
    return delta * count


def unified(delta: Tensor, count: int) -> Tensor:
    """One singular value for all directions of the sum."""
    left, values, right = torch.linalg.svd(delta * count, full_matrices=False)
    merged: Tensor = values.mean() * left @ right
    return merged


def leading(delta: Tensor, count: int) -> Tensor:
    """The N-th part of the singular directions."""
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    kept = min(delta.shape) // count
    merged: Tensor = left[:, :kept] * values[:kept] @ right[:kept]
    return merged


def largest(delta: Tensor, _: int) -> Tensor:
    """A quarter of the entries."""
    least = delta.abs().flatten().sort(descending=True).values[delta.numel() // 4 - 1]
    return delta * (delta.abs() >= least)


def all_but_least(delta: Tensor, _: int) -> Tensor:
    """The last entry that is let in has a share of 0."""
    return delta * (delta.abs() > delta.abs().min())


def negated(delta: Tensor, count: int) -> Tensor:
    return -delta * count


COPIES: Mapping[str, tuple[dict[str, Any], Known]] = {
    "arcee_fusion": ({"reach": 1e9}, lambda delta, _: delta * 0),
    "consensus_ta": ({"threshold": 0.1, "scale": 1.0}, summed),
    "emr": ({}, itself),
    "expo": ({"alpha": 0.5}, lambda delta, _: 1.5 * delta),
    "iso_c": ({}, unified),
    "iso_cts": ({"common": 1.0}, unified),
    "karcher": ({}, itself),
    "knots": ({"density": 1.0}, itself),
    "layer_swap": ({}, itself),
    "linear": ({}, itself),
    "localize_and_stitch": ({"sparsity": 0.25}, largest),
    "magmax": ({}, itself),
    "model_stock": ({}, itself),
    "multislerp": ({}, itself),
    "multislerp_flat": ({}, itself),
    "nearswap": ({"t": 1e9}, itself),
    "nuslerp": ({}, itself),
    "opcm": ({}, itself),
    "optmerge": ({"tuned": "lora"}, itself),
    "passthrough": ({}, itself),
    "pcb": ({"density": 1.0, "scale": 1.0, "clip": 0.0}, all_but_least),
    "ram": ({}, itself),
    "ramplus_tl": ({"r": 0.0}, itself),
    "sce": ({}, itself),
    "slerp": ({}, itself),
    "task_arithmetic": ({"scale": 1.0}, summed),
    "ties": ({"density": 0.25}, largest),
    "tsv_m": ({}, leading),
    "unlearn": ({"strength": 1.0}, negated),
    "widen": ({"normalize": True}, itself),
    "wudi": ({}, itself),
}
"""By method: settings, and what N copies of one task vector give under them. DOGE has no such sentence: its
result depends on how far the descent came (``test_doge.py``).
"""
SPECTRAL = ("doge", "iso_c", "iso_cts", "knots", "opcm", "optmerge", "tsv_m", "wudi")
PLAIN: Mapping[str, dict[str, Any]] = {"doge": {"density": 1.0, "steps": 3}, "knots": {"density": 1.0}}
UNHEARD: Mapping[str, dict[str, Any]] = {
    "consensus_ta": {"agree": 2},
    "emr": {},
    "iso_c": {},
    "knots": {"density": 1.0},
    "localize_and_stitch": {"sparsity": 0.25},
    "magmax": {},
    "ram": {},
    "sce": {},
    "task_arithmetic": {},
    "ties": {"density": 0.25},
    "wudi": {},
}
"""Methods, with settings, to which a source that changed nothing makes no difference. To the others it does
by what they are: they count sources (means, ranks shared out, mean lengths) or rank them against each other.
"""

TURNED = (
    "consensus_ta", "emr", "iso_c", "iso_cts", "knots", "localize_and_stitch", "magmax", "opcm", "optmerge",
    "ram", "ramplus_tl", "task_arithmetic", "ties", "tsv_m", "unlearn", "wudi",
)  # fmt: skip
"""Methods to which a task vector times its weight is all there is of a source, whatever the weight's sign."""
QUARTER: Mapping[str, dict[str, Any]] = {
    "breadcrumbs": {"density": 0.25, "gamma": 0.1},
    "localize_and_stitch": {"sparsity": 0.25},
    "ties": {"density": 0.25},
    "trim": {"density": 0.25},
    "unlearn": {"top": 0.25},
}
"""Methods, with settings, that keep a quarter of one task vector's entries."""


def combining() -> list[str]:
    """Methods that merge by weights alone."""
    return [
        name
        for name, method in registered().items()
        if method.kind is Kind.COMBINE and method.family in ("elementwise", "spectral")
    ]


def deltas_of(count: int, seed: int = 0, rank: int | None = None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if rank is None:
        return [torch.randn(SHAPE, generator=generator).double() for _ in range(count)]
    sides = [torch.randn(SHAPE[0] + SHAPE[1], rank, generator=generator).double() for _ in range(count)]
    return [side[: SHAPE[0]] @ side[SHAPE[0] :].T for side in sides]


def merged(name: str, deltas: list[Tensor], settings: Mapping[str, Any], **more: Any) -> Tensor:
    """Over a base of zeros, as tensor of a middle layer where that matters."""
    return merge_one([(name, dict(settings))], torch.zeros(SHAPE).double(), deltas, **more)


def test_every_method_is_in_the_tables() -> None:
    wanted = set(combining())
    assert COPIES.keys() == wanted - {"doge"}
    assert set(SPECTRAL) == {name for name in wanted if registered()[name].family == "spectral"}
    assert UNHEARD.keys() <= wanted


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("count", COUNTS)
def test_one_source_and_its_copies_give_what_the_method_says(name: str, count: int) -> None:
    least, most = registered()[name].needs.sources
    if not least <= count <= (most or count):
        count = least
    settings, known = COPIES[name]
    (delta,) = deltas_of(1, seed=4)
    assert torch.allclose(merged(name, [delta] * count, settings), known(delta, count), atol=1e-6)


@pytest.mark.parametrize("name", UNHEARD)
def test_a_source_that_changed_nothing_is_not_heard(name: str) -> None:
    deltas = deltas_of(2, seed=5)
    zero = torch.zeros(SHAPE).double()
    without = merged(name, deltas, UNHEARD[name])
    for place in range(3):
        among = [*deltas[:place], zero, *deltas[place:]]
        assert torch.allclose(merged(name, among, UNHEARD[name]), without, atol=1e-8), place


@pytest.mark.parametrize("name", QUARTER)
@pytest.mark.parametrize(("entries", "kept"), [(240, 60), (3, 1)])
def test_as_many_float64_entries_as_said_are_kept(name: str, entries: int, kept: int) -> None:
    """Though float32 magnitudes are ranked; at least one."""
    delta = torch.rand(entries, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    steps = [(name, QUARTER[name])]
    if registered()[name].kind is Kind.PREPARE:
        steps.append(("task_arithmetic", {"scale": 1.0}))
    found = merge_one(steps, torch.zeros(entries).double(), [delta])
    assert int(found.count_nonzero()) == kept


@pytest.mark.parametrize("name", TURNED)
def test_a_negative_weight_turns_a_task_vector_round(name: str) -> None:
    deltas, settings = deltas_of(3, seed=9), UNHEARD.get(name, {})
    turned = merged(name, [*deltas[:2], -deltas[2]], settings, weights=[1.0, 0.5, 2.0])
    assert bool(turned.any())
    assert torch.allclose(merged(name, deltas, settings, weights=[1.0, 0.5, -2.0]), turned, atol=1e-8)


@pytest.mark.parametrize("name", combining())
def test_eight_sources_of_which_some_are_zeros_copies_and_opposites(name: str) -> None:
    least, most = registered()[name].needs.sources
    first, second = deltas_of(2, seed=6)
    every = [first, torch.zeros(SHAPE).double(), second, first, -second, first * 1e-6, second, -first]
    found = merged(name, every[: max(least, most or 8)], PLAIN.get(name, {}))
    assert found.shape == SHAPE and bool(torch.isfinite(found).all())
    assert float(found.abs().max()) <= 40 * float(first.abs().max())


@pytest.mark.parametrize("name", SPECTRAL)
@pytest.mark.parametrize("count", [1, 2, 8])
def test_task_vectors_of_low_rank_bring_no_direction_of_their_own(name: str, count: int) -> None:
    """Nothing is written where no source has anything: neither rows nor columns of others appear."""
    low = [torch.zeros(SHAPE).double() for _ in range(count)]
    for each, small in zip(low, deltas_of(count, seed=7, rank=1), strict=True):
        each[:6, :9] = small[:6, :9]
    found = merged(name, low, PLAIN.get(name, {}))
    assert bool(found.any())
    assert float(found[6:].abs().max()) < 1e-9 and float(found[:, 9:].abs().max()) < 1e-9
    values = torch.linalg.svdvals(found)
    assert int((values > 1e-9 * values[0]).sum()) <= (6 if name == "doge" else min(count, 6))


@pytest.mark.parametrize("name", SPECTRAL)
@pytest.mark.parametrize("shape", [(270, 330), (330, 270), (300, 300)], ids=str)
def test_float32_is_as_good_as_its_inputs(name: str, shape: tuple[int, int]) -> None:
    """Products in float32 beside an eigendecomposition in float64 lose no more than rounding the sources."""
    generator = torch.Generator().manual_seed(8)
    falling = torch.linspace(3, 0.1, shape[1])
    deltas = [torch.randn(shape, generator=generator) * falling for _ in range(3)]
    base = torch.zeros(shape)
    settings = PLAIN.get(name, {})
    wide = merge_one([(name, settings)], base.double(), [delta.double() for delta in deltas])
    narrow = merge_one([(name, settings)], base, deltas)
    assert narrow.dtype == torch.float32
    off = torch.linalg.vector_norm(narrow.double() - wide) / torch.linalg.vector_norm(wide)
    assert float(off) < 2e-5


@pytest.mark.parametrize("name", ["cat_svd", "core_space", "lora_lego", "rmm"])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_copies_of_an_adapter_give_it_back(name: str, count: int) -> None:
    (part,) = drawn(1, SHAPE, 3)
    special: dict[str, dict[str, Any]] = {
        "cat_svd": {"normalize": True},
        "core_space": {"rule": "ties", "density": 1.0},
    }
    settings = special.get(name, {})
    assert torch.allclose(change(name, [part] * count, **settings), product(part), atol=1e-8)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_sum_of_adapters_hears_no_adapter_of_zeros(count: int) -> None:
    parts = drawn(count, SHAPE, 3)
    wanted = sum((product(part) for part in parts), torch.zeros(SHAPE).double())
    assert torch.allclose(change("cat_svd", [*parts, nothing(parts[0])]), wanted, atol=1e-9)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_stitching_agrees_with_an_independent_float64_reference(count: int) -> None:
    """Regions over two tensors together, weights and all."""
    first, second = deltas_of(count, seed=1), deltas_of(count, seed=2)
    weights = [1.0 + place / 2 for place in range(count)]
    flat = np.stack(
        [np.concatenate([a.numpy().ravel(), b.numpy().ravel()]) for a, b in zip(first, second, strict=True)]
    )
    kept = flat.shape[1] // 10
    masks = np.zeros_like(flat)
    for mask, row in zip(masks, flat, strict=True):
        mask[np.argsort(-np.abs(row), kind="stable")[:kept]] = 1.0
    shares = masks * np.array(weights)[:, None]
    wanted = (shares * flat).sum(0) / np.where(shares.sum(0) > 0, shares.sum(0), 1.0)
    base = torch.zeros(SHAPE).double()
    steps = [("localize_and_stitch", {"sparsity": 0.1, "scope": "global"})]
    found = merge_all(steps, {"x": (base, first), "y": (base, second)}, weights=weights)
    made = np.concatenate([found["x"].numpy().ravel(), found["y"].numpy().ravel()])
    assert np.abs(made - wanted).max() < 1e-12


@pytest.mark.parametrize("bottom", [0, 1, 3])
@pytest.mark.parametrize("top", [0, 2])
def test_swapping_agrees_with_an_independent_float64_reference(bottom: int, top: int) -> None:
    """Shares of the donor by layer, as the card has them, with one layer of transition."""
    layers, every = 9, {}
    host, donor = deltas_of(layers, seed=1), deltas_of(layers, seed=2)
    for layer in range(layers):
        every[f"model.layers.{layer}.mlp.up_proj.weight"] = (None, [host[layer], donor[layer]])
    shares = [1.0 if layer < bottom or layer >= layers - top else 0.0 for layer in range(layers)]
    if bottom:
        shares[bottom] = 0.5
    if top:
        shares[layers - top - 1] = 0.5
    settings = {"bottom": bottom, "top": top, "transition": 1}
    found = merge_all([("layer_swap", settings)], every)
    for layer, (name, share) in enumerate(zip(every, shares, strict=True)):
        wanted = share * donor[layer].numpy() + (1 - share) * host[layer].numpy()
        assert np.abs(found[name].numpy() - wanted).max() < 1e-12, layer
