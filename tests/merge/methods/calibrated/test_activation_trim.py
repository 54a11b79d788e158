"""Activation trim: entries are kept by change times the strength of their input."""

from typing import Any

import torch
from torch import Tensor

from tests.merge.informed import Held
from tests.merge.whole import merge_one


def trimmed(delta: Tensor, energy: Tensor | None, **p: Any) -> Tensor:
    values = {"input_second_moment/other": torch.ones(1)}
    if energy is not None:
        values["input_second_moment/w"] = energy
    steps = [("activation_trim", p), ("task_arithmetic", {})]
    return merge_one(
        steps, torch.zeros_like(delta), [delta], statistics={"base": Held({}), "m0": Held(values)}
    )


def test_the_score_is_change_times_root_mean_square_of_the_input() -> None:
    delta = torch.tensor([[1.0, -0.4, 0.1], [-2.0, 0.6, 0.2]])
    energy = torch.tensor([0.01, 1.0, 9.0])  # scores .1 .4 .3 / .2 .6 .6
    assert torch.equal(trimmed(delta, energy, density=0.5), torch.tensor([[0.0, -0.4, 0], [0, 0.6, 0.2]]))
    assert torch.equal(trimmed(delta, energy, density=1.0), delta)


def test_channels_alike_or_unknown_are_plain_trimming_by_size() -> None:
    delta = torch.randn(7, 9)
    plain = merge_one([("trim", {"density": 0.3}), ("task_arithmetic", {})], torch.zeros_like(delta), [delta])
    assert torch.equal(trimmed(delta, torch.full((9,), 0.25), density=0.3), plain)
    assert torch.equal(trimmed(delta, None, density=0.3), plain)


def test_the_norm_can_be_restored() -> None:
    delta, energy = torch.randn(7, 9), torch.rand(9)
    for norm, order in (("l1", 1), ("l2", 2)):
        found = trimmed(delta, energy, density=0.2, rescale=norm)
        assert torch.isclose(torch.linalg.vector_norm(found, order), torch.linalg.vector_norm(delta, order))
