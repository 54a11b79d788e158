"""Sums of every tensor of a model, by name: for methods that decide by layers."""

from abc import abstractmethod
from typing import Any

from merge.contract.stats import Norm, Part, Pieces


class Squares(Norm):
    """The sum of squares of each quantity of each tensor, by name, of which ``told`` makes the value."""

    def close(self, part: Any, p: Any, elements: int, so_far: Any) -> Any:  # noqa: ARG002
        """What ``told`` makes of the sums."""
        return self.told(part.by_name, p)

    @abstractmethod
    def told(self, sums: dict[str, list[float]], p: Any) -> Any:
        """The value; of numbers, texts and tuples of them alone, since an interrupted merge keeps it."""

    def part(self) -> Part:
        """Pieces of one tensor, sums of all."""
        return _Named()


class _Named(Pieces):
    def __init__(self) -> None:
        super().__init__()
        self.by_name: dict[str, list[float]] = {}

    def absorb(self, other: Pieces) -> None:
        self.by_name[other.tensor] = other.totals()
