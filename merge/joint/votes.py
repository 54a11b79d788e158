"""Votes on every entry of one model, text by text, against what another one knows (RCP, arXiv:2508.03140).

With g_k the gradient of the loss of the domain model D on its text k, F the mean of (gradient times weight)
squared of the prior model R on its own texts: score_k = g_k theta_D + lambda F (theta_R - theta_D)^2 says how
much the loss grows when D's entry is left out and R's is lost. A text votes 1 (take D's change) where its
score is not above zero, else -1.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from merge.learn.skeleton import Skeleton, Weights

Zero = Literal["keep", "take"]


class Votes:
    """Sums of votes over texts, by parameter. ``penalty`` is lambda F (theta_R - theta_D)^2 by the names of
    the checkpoint; ``zero`` says how a text votes on an entry of which it says nothing (a score of zero).
    """

    def __init__(self, skeleton: Skeleton, penalty: Weights, zero: Callable[[str], Zero]) -> None:
        self._skeleton = skeleton
        self._penalty = penalty
        self._zero = zero
        self._penalties: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}

    def add(self, _: int, name: str, gradient: Tensor, value: Tensor) -> None:
        """One text's votes on one parameter."""
        if name not in self._penalties:
            self._penalties |= self._skeleton.values([name], self._penalty)
        score = gradient.float() * value.float() + self._penalties[name].to(value.device)
        vote = votes(score, self._zero(name))
        held = self.sums.get(name)
        self.sums[name] = vote if held is None else held.add_(vote)

    def take(self) -> dict[str, Tensor]:
        """What has gathered, which is forgotten here."""
        found, self.sums, self._penalties = self.sums, {}, {}
        return found


def votes(score: Tensor, zero: Zero) -> Tensor:
    """1 where a score is not above zero, else -1; with ``keep`` a score of zero is no vote."""
    if zero == "keep":
        return -torch.sign(score)
    return torch.where(score <= 0, 1.0, -1.0)


def penalty(fisher: Tensor | None, prior: Tensor, domain: Tensor, factor: float) -> Tensor:
    """lambda F (theta_R - theta_D)^2, float32; zero where nothing was measured."""
    if fisher is None:
        return torch.zeros_like(domain)
    return fisher.mul_(factor).mul_((prior - domain).square_())


def zero_by(skeleton: Skeleton, settings: Mapping[str, Zero]) -> Callable[[str], Zero]:
    """How parameters are voted on, from the settings of the tensors that they are made of."""

    def of(parameter: str) -> Zero:
        return next((settings[name] for name in skeleton.makers_of(parameter) if name in settings), "keep")

    return of
