"""Methods on factors, called as the engine calls them; for tests."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from merge.contract.factors import FactorGroup, Factors
from merge.contract.groups import Site
from merge.contract.method import get
from merge.methods import load

load()


def drawn(count: int, shape: tuple[int, int], rank: int, seed: int = 0) -> list[Factors]:
    """Adapters with random factors of one rank."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    return [Factors(draw(shape[0], rank), draw(rank, shape[1])) for _ in range(count)]


def group_of(parts: Sequence[Factors], weights: Sequence[float] | None = None) -> FactorGroup:
    shape = (parts[0].left.shape[0], parts[0].right.shape[1])
    names = tuple(f"m{place}" for place in range(len(parts)))
    return FactorGroup(Site("w", "linear", shape, names), parts, tuple(weights or [1.0] * len(parts)))


def factors(
    name: str, parts: Sequence[Factors], weights: Sequence[float] | None = None, **settings: Any
) -> Factors:
    method = get(name)
    found = method.function(group_of(parts, weights), method.settings(settings, len(parts)))
    assert isinstance(found, Factors)
    return found


def change(
    name: str, parts: Sequence[Factors], weights: Sequence[float] | None = None, **settings: Any
) -> Tensor:
    return product(factors(name, parts, weights, **settings))


def product(part: Factors) -> Tensor:
    return part.left @ part.right


def unit(b: Sequence[float], a: Sequence[float]) -> Factors:
    """One rank-one piece."""
    return Factors(torch.tensor(b).double()[:, None], torch.tensor(a).double()[None])


def nothing(like: Factors) -> Factors:
    return Factors(like.left[:, :0], like.right[:0])


def close(found: Tensor, wanted: Tensor, within: float = 1e-9) -> bool:
    return bool(torch.allclose(found, wanted, rtol=within, atol=within))
