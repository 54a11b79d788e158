"""What steps are handed when they are not to work but to be written down."""

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from merge.contract.rows import Aligned
from merge.kernels.keyed import limit_of

if TYPE_CHECKING:
    from merge.running.fused.trace import Program


class Notes(Protocol):
    """Gives stand-ins for whatever belongs to entries, and knows later what became of them."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the stand-ins."""

    @property
    def program(self) -> "Program":
        """What was written down."""

    def input(self, place: int) -> Tensor:
        """A float32 stand-in for the entries of one input."""

    def draw(self, op: str, key: int, stream: int, limit: int) -> Tensor:
        """A float32 stand-in for keyed draws."""

    def draws(self, key: int, *_: Any) -> "TracedDraws":
        """Takes the place of ``Draws``."""

    def aligned(self, value: Aligned, first: int, shape: tuple[int, ...]) -> Any:
        """Takes the place of ``Aligned.at``: numbers of rows are followed."""

    def node_of(self, value: Any, kind: str | None = None) -> int:
        """The node of a tensor or plain number, cast to ``kind``."""


class TracedDraws:
    """Stands in for ``Draws``: notes the draw instead of making it."""

    def __init__(self, notes: Notes, key: int) -> None:
        self._notes = notes
        self._key = key

    def bernoulli(self, share: float, stream: int = 0) -> Tensor:
        """As ``Draws.bernoulli``."""
        if share >= 1:
            return torch.ones(self._notes.shape)
        return self._notes.draw("bernoulli", self._key, stream, limit_of(share))

    def uniform(self, stream: int = 0) -> Tensor:
        """As ``Draws.uniform``."""
        return self._notes.draw("uniform", self._key, stream, 0)

    def bits(self, stream: int = 0) -> Tensor:
        """Whole numbers are not followed."""
        raise ValueError(f"draws of bits (stream {stream})")
