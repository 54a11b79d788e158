"""A row for an unknown token from the shared tokens nearest to it in the donor's space."""

import torch
from torch import Tensor

from merge.tokenizer.approximate import ENOUGH, Combination, Rows, relative


def nearest_rows(
    targets: Tensor,
    atoms: Rows,
    sizes: Tensor,
    k: int,
    distance: str = "euclidean",
    weighting: str = "inverse_distance",
) -> Combination:
    """The ``k`` nearest atoms of each target (targets, width), by Euclidean ``distance`` or by ``cosine``;
    ``sizes`` are the atoms' lengths.

    Amounts by ``inverse_distance`` are one over it (Shepard, 1968), with ``cosine`` the cosine itself;
    ``barycentric`` ones add up to 1 and ``least_squares`` ones need not: both come nearest to the target, the
    smallest amounts where several do. An atom that is the target itself stands alone.
    """
    goals = targets.to(torch.float64)
    chosen = _nearest(targets, atoms, sizes, k, distance)
    picked = torch.stack(
        [atoms.take(chosen[:, place].tolist()).to(torch.float64) for place in range(chosen.shape[1])], dim=1
    )
    if weighting == "inverse_distance":
        amounts = _cosines(goals, picked) if distance == "cosine" else _shares(goals, picked)
    else:
        amounts = torch.stack(
            [_fitted(goal, points, weighting) for goal, points in zip(goals, picked, strict=True)]
        )
    made = torch.zeros_like(goals)
    for place in range(picked.shape[1]):
        made += picked[:, place] * amounts[:, place : place + 1]
    return Combination(chosen, amounts, relative(goals - made, goals.norm(dim=1)))


def _nearest(targets: Tensor, atoms: Rows, sizes: Tensor, k: int, distance: str) -> Tensor:
    """int64 (targets, at most k) positions of the nearest atoms, the nearest first."""
    best = torch.full((len(targets), 0), torch.inf)
    chosen = torch.zeros(len(targets), 0, dtype=torch.int64)
    for first, tile in atoms.tiles():
        size = sizes[first : first + len(tile)]
        products = targets @ tile.T
        if distance == "cosine":
            near = -products / torch.where(size > 0, size, torch.inf)[None]
        else:
            near = (size * size)[None] - 2 * products
        best = torch.cat([best, near], dim=1)
        chosen = torch.cat([chosen, torch.arange(first, first + len(tile)).expand(len(targets), -1)], dim=1)
        best, at = best.topk(min(k, best.shape[1]), dim=1, largest=False)
        chosen = chosen.gather(1, at)
    return chosen


def _shares(goals: Tensor, picked: Tensor) -> Tensor:
    """One over the distance, adding up to 1."""
    far = torch.stack([(goals - picked[:, place]).norm(dim=1) for place in range(picked.shape[1])], dim=1)
    exact = far <= ENOUGH * goals.norm(dim=1, keepdim=True)
    weights = torch.where(exact.any(dim=1, keepdim=True), exact.to(torch.float64), 1 / far.clamp(min=1e-300))
    shares: Tensor = weights / weights.sum(dim=1, keepdim=True)
    return shares


def _cosines(goals: Tensor, picked: Tensor) -> Tensor:
    """Cosines above 0, adding up to 1; all alike where there are none."""
    lengths = goals.norm(dim=1, keepdim=True) * picked.norm(dim=2)
    products = torch.bmm(picked, goals.unsqueeze(2)).squeeze(2)
    found = (products / torch.where(lengths > 0, lengths, torch.inf)).clamp_(min=0)
    total = found.sum(dim=1, keepdim=True)
    return torch.where(total > 0, found / total, 1 / found.shape[1])


def _fitted(goal: Tensor, points: Tensor, weighting: str) -> Tensor:
    """Amounts (k) of points (k, width) that come nearest to the goal (width), the smallest ones that do."""
    even = 1 / len(points) if weighting == "barycentric" else 0.0
    start = points.mean(dim=0) if weighting == "barycentric" else torch.zeros_like(goal)
    columns = (
        points - start
    ).T.contiguous()  # those of a barycentre are dependent: their amounts add up to 0
    found = torch.linalg.lstsq(columns, (goal - start).unsqueeze(1), driver="gelsd").solution
    amounts: Tensor = found.squeeze(1) + even
    return amounts
