"""RegMean: worked numbers, identities and limits, the normal equations, and that nothing near is better."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from merge.kernels.regression import system_of
from tests.merge.informed import Held
from tests.merge.whole import merge_one


def merged(
    sources: Sequence[Tensor],
    inputs: Sequence[Tensor | None],
    weights: Sequence[float] | None = None,
    axis: int = 1,
    **p: Any,
) -> Tensor:
    """RegMean of layers by the inputs (tokens, channels) of each."""
    known = {}
    for place, x in enumerate(inputs):
        grams = {} if x is None else {"gram/w": x.T @ x / x.shape[0]}
        known[f"m{place}"] = Held({"gram/other": torch.ones(1, 1), **grams}, {"w": axis})
    return merge_one([("regmean", p)], None, sources, statistics=known, weights=weights)


def layers(
    count: int, seed: int = 0, out: int = 5, inner: int = 4, tokens: int = 40
) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return [draw(out, inner) for _ in range(count)], [draw(tokens, inner) for _ in range(count)]


def test_the_worked_example() -> None:
    sources = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    inputs = [torch.diag(torch.tensor([1.0, 2.0])), torch.diag(torch.tensor([2.0, 1.0]))]
    assert torch.allclose(merged(sources, inputs, alpha=1.0), torch.tensor([[0.2, 0.2]]), atol=1e-5)


def test_it_is_the_normal_equations() -> None:
    sources, inputs = layers(3)
    for alpha in (0.1, 0.9, 1.0):
        grams = [(x.T @ x / len(x)).numpy().astype(np.float32).astype(float) for x in inputs]
        grams = [alpha * g + (1 - alpha) * np.diag(np.diag(g)) for g in grams]
        weights = [1.0, 0.5, 2.0]
        right = sum(c * g @ w.numpy().T for c, g, w in zip(weights, grams, sources, strict=True))
        wanted = np.linalg.solve(sum(c * g for c, g in zip(weights, grams, strict=True)), right).T
        assert np.allclose(
            merged(sources, inputs, weights, alpha=alpha, ridge=1e-12).numpy(), wanted, atol=1e-8
        )


def test_nothing_near_it_has_a_smaller_loss() -> None:
    sources, inputs = layers(3, seed=2)
    found = merged(sources, inputs, alpha=1.0, ridge=1e-12)

    def loss(w: Tensor) -> float:
        return float(sum(((x @ (w - s).T) ** 2).sum() for x, s in zip(inputs, sources, strict=True)))

    generator = torch.Generator().manual_seed(9)
    for _ in range(20):
        nearby = found + 1e-2 * torch.randn(found.shape, generator=generator, dtype=torch.float64)
        assert loss(nearby) > loss(found)


def test_identical_models_return_themselves_even_where_data_is_scarce() -> None:
    (source, *_), _ = layers(1)
    scarce = [torch.randn(2, 4, dtype=torch.float64) for _ in range(3)]
    assert torch.equal(merged([source.clone() for _ in range(3)], scarce), source)


def test_directions_without_data_keep_the_mean() -> None:
    sources, inputs = layers(2)
    for x in inputs:
        x[:, 1] = 0
    found = merged(sources, inputs, [1.0, 3.0], alpha=1.0)
    assert torch.allclose(found[:, 1], (sources[0][:, 1] + 3 * sources[1][:, 1]) / 4)
    dead = merged(sources, [torch.zeros(3, 4, dtype=torch.float64)] * 2)
    assert torch.allclose(dead, (sources[0] + sources[1]) / 2)


def test_where_a_gram_matrix_cannot_be_solved_the_ridge_grows_tenfold_to_the_mean_of_its_diagonal() -> None:
    """Rounding alone leaves one of few directions with eigenvalues below zero."""
    rounded = torch.tensor([[1.0, 1.0002], [1.0002, 1.0]], dtype=torch.float64)
    factor = system_of([rounded], [1.0], alpha=1.0, ridge=1e-6).factor
    assert factor is not None
    assert torch.allclose(factor @ factor.T, rounded + 1e-3 * torch.eye(2).double(), atol=1e-12)
    assert system_of([torch.tensor([[1.0, 5.0], [5.0, 1.0]])], [1.0], alpha=1.0, ridge=1.0).factor is None


def test_gram_matrices_that_are_the_identity_give_the_mean() -> None:
    sources, _ = layers(3)
    even = [torch.eye(4, dtype=torch.float64) * 2 for _ in sources]
    found = merged(sources, even, [1.0, 2.0, 1.0], alpha=1.0)
    assert torch.allclose(found, (sources[0] + 2 * sources[1] + sources[2]) / 4)


def test_alpha_zero_weighs_each_channel_by_its_energy() -> None:
    sources, inputs = layers(3)
    energy = torch.stack([(x**2).mean(0) for x in inputs])
    wanted = sum(e * s for e, s in zip(energy, sources, strict=True)) / energy.sum(0)
    assert torch.allclose(merged(sources, inputs, alpha=0.0), wanted, atol=1e-5)


def test_the_scale_of_everybodys_data_does_not_matter() -> None:
    sources, inputs = layers(3)
    assert torch.allclose(merged(sources, inputs), merged(sources, [x * 30 for x in inputs]), atol=1e-6)


def test_weights_stored_as_in_by_out_and_tensors_without_data() -> None:
    sources, inputs = layers(2)
    turned = merged([s.T.contiguous() for s in sources], inputs, axis=0)
    assert torch.allclose(turned.T, merged(sources, inputs), atol=1e-12)
    assert torch.allclose(merged(sources, [inputs[0], None]), (sources[0] + sources[1]) / 2)


def test_each_expert_of_a_stack_is_solved_on_its_own() -> None:
    sources, inputs = layers(4)
    stacks = [torch.stack(sources[:2]), torch.stack(sources[2:])]
    grams = [torch.stack([x.T @ x / len(x) for x in pair]) for pair in (inputs[:2], inputs[2:])]
    for axis in (2, 1):
        known = {f"m{i}": Held({"gram/w": gram}, {"w": axis}) for i, gram in enumerate(grams)}
        for held in known.values():
            held.twins["gram/w"] = "gram/v"  # so that what was worked out from it could be kept
        given = stacks if axis == 2 else [stack.mT.contiguous() for stack in stacks]
        found = merge_one([("regmean", {})], None, given, statistics=known)
        for place in range(2):
            alone = merged([sources[place], sources[place + 2]], [inputs[place], inputs[place + 2]])
            assert torch.allclose(found[place] if axis == 2 else found[place].T, alone, atol=1e-12)


def test_steep_inputs_are_solved_exactly_at_any_width() -> None:
    """A spectrum over eight decades, as activations have: float32 solves are off by a tenth and more."""
    generator = torch.Generator().manual_seed(3)
    steep = torch.logspace(0, -4, 96, dtype=torch.float64)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    turn, _ = torch.linalg.qr(draw(96, 96))
    sources, inputs = [draw(8, 96) for _ in range(2)], [draw(400, 96) * steep @ turn for _ in range(2)]
    found = merged([each.float() for each in sources], inputs, alpha=1.0, ridge=1e-6)
    grams = [(x.T @ x / len(x)).float().double() for x in inputs]
    given = [each.float().double() for each in sources]
    total = sum(grams[1:], grams[0])
    total = total + torch.eye(96) * total.diagonal().mean() * 1e-6
    mean = (given[0] + given[1]) / 2
    right = sum((w - mean) @ g for w, g in zip(given, grams, strict=True))
    wanted = mean + torch.linalg.solve(total, right.T).T  # type: ignore[union-attr]
    assert float((found.double() - wanted).norm() / (wanted - mean).norm()) < 1e-5
