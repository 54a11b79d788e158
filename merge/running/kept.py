"""What the candidates of a search have in common: worked out for the first, kept for the next.

The random bits of a tensor depend on nothing that a search varies. A merged change before its factor does
not depend on the factor, and what a method finds in the task vectors alone, such as their singular vectors,
not on the weights of sources. All are kept as long as they fit into a bound, and give the very bits that
working them out again would give.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from merge.contract.groups import Held, Holds
from merge.kernels.keyed import Draws


@dataclass
class Kept:
    """What was made, by its place, each with all that it depends on; no more than ``most_bytes`` of it."""

    most_bytes: int
    _held: dict[Hashable, tuple[Hashable, Any]] = field(default_factory=dict, repr=False)
    _bytes: int = 0
    _counting: Lock = field(default_factory=Lock, repr=False)

    def knows(self, place: Hashable, facts: Hashable) -> bool:
        """Whether what is at this place depends on these very facts."""
        return place in self._held and self._held[place][0] == facts

    def holds(self, place: Hashable) -> bool:
        """Whether anything is at this place."""
        return place in self._held

    def recall(self, place: Hashable, facts: Hashable, make: Callable[[], Held]) -> Held:
        """What is at the place, which nobody may write to; made where it is not there or was made of other
        facts.
        """
        if self.knows(place, facts):
            known: Held = self._held[place][1]
            return known
        made = make()
        with self._counting:
            self._bytes -= self._held.pop(place, (None, _NOTHING))[1].nbytes
            if self._bytes + made.nbytes <= self.most_bytes:
                self._held[place] = (facts, made)
                self._bytes += made.nbytes
        return made

    def draws(
        self, key: int, first: int, shape: tuple[int, ...], device: torch.device | str = "cpu"
    ) -> Draws:
        """As ``Draws``; what was drawn once is recalled."""
        return _Recalled(self, key, first, shape, device)


_NOTHING: Holds = torch.empty(0)


class _Recalled(Draws):
    def __init__(
        self, kept: Kept, key: int, first: int, shape: tuple[int, ...], device: torch.device | str
    ) -> None:
        super().__init__(key, first, shape, device)
        self._kept, self._place = kept, (key, first, shape, str(device))

    def bits(self, stream: int = 0) -> Tensor:
        return self._kept.recall((*self._place, stream), None, partial(super().bits, stream))
