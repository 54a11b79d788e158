"""RCP: the worked numbers, where it takes and where it keeps, and its limits."""

from typing import Any

import pytest
import torch
from torch import Tensor

from merge.joint.votes import penalty, votes
from tests.merge.informed import Held
from tests.merge.whole import merge_one

BASE = torch.tensor([0.9, 0.9, 1.5, 0.7])
PRIOR = torch.tensor([1.1, 0.8, 1.0, 1.0])
DOMAIN = torch.tensor([1.0, 1.0, 2.0, 1.0])
GRADIENT = torch.tensor([-0.2, 0.3, -0.05, 0.0])
FISHER = torch.tensor([1e-3, 1e-3, 1e-3, 0.0])


def merged(found: Tensor | None, **p: Any) -> Tensor:
    values = {"votes/other": torch.ones(1), **({} if found is None else {"votes/w": found})}
    return merge_one([("rcp", p)], BASE, [PRIOR, DOMAIN], statistics={"m1+joint": Held(values)})


def scores(factor: float) -> Tensor:
    return GRADIENT * DOMAIN + penalty(FISHER.clone(), PRIOR.clone(), DOMAIN, factor)


def test_the_worked_example() -> None:
    score = scores(1000.0)
    assert torch.allclose(score, torch.tensor([-0.19, 0.34, 0.9, 0.0]), atol=1e-6)
    found = votes(score, "take")
    assert torch.equal(found, torch.tensor([1.0, -1.0, -1.0, 1.0]))
    assert torch.allclose(merged(found), torch.tensor([1.2, 0.8, 1.0, 1.3]))


def test_an_entry_that_no_text_says_anything_of_is_kept_by_default() -> None:
    found = votes(scores(1000.0), "keep")
    assert torch.equal(found, torch.tensor([1.0, -1.0, -1.0, 0.0]))
    assert torch.allclose(merged(found), torch.tensor([1.2, 0.8, 1.0, 1.0]))


def test_without_a_limit_to_protection_only_what_the_prior_does_not_use_is_taken() -> None:
    assert torch.equal(votes(scores(1e12), "take"), torch.tensor([-1.0, -1.0, -1.0, 1.0]))


@pytest.mark.parametrize(("zero", "wanted"), [("keep", PRIOR), ("take", PRIOR + DOMAIN - BASE)])
def test_tensors_without_votes(zero: str, wanted: Tensor) -> None:
    assert torch.allclose(merged(None, zero=zero), wanted, atol=1e-6)


def test_limits() -> None:
    every = torch.ones(4)
    assert torch.allclose(merged(every, scale=0.5), PRIOR + 0.5 * (DOMAIN - BASE))
    assert torch.equal(merged(-every), PRIOR) and torch.equal(merged(every, scale=0.0), PRIOR)
    known = {"m1+joint": Held({"votes/w": every})}
    same = merge_one([("rcp", {})], BASE, [PRIOR, BASE.clone()], statistics=known)
    assert torch.equal(same, PRIOR), "a domain model that is the base adds nothing"
    alone = merge_one([("rcp", {})], BASE, [BASE.clone(), DOMAIN], statistics=known)
    assert torch.allclose(alone, DOMAIN), "a prior that is the base gives the domain model"
