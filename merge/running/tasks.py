"""What must be measured of a tensor, or of all, before it can be merged, and how far that has come."""

from dataclasses import dataclass
from typing import Any

from merge.contract.stats import Part, Stat


@dataclass
class Shared:
    """A stat over all tensors, while it is measured: parts of single tensors are absorbed in their order."""

    part: Part
    elements: int = 0
    rounds_done: int = 0
    so_far: Any = None


@dataclass
class Task:
    """One stat of one tensor (of one source, in a prepare). Round r is measured in the pass ``first_level`` +
    r.
    """

    stage: int
    position: int | None
    key: Any
    stat: Stat
    params: Any
    first_level: int
    shared: Shared | None = None
    part: Part | None = None
    rounds_done: int = 0
    so_far: Any = None

    @property
    def measured(self) -> bool:
        """Whether the value is there."""
        return (self.shared or self).rounds_done == self.stat.rounds

    @property
    def value(self) -> Any:
        """Result of the last round."""
        return (self.shared or self).so_far

    def due(self, level: int) -> bool:
        """Whether the pass of this level is one of its rounds, and still to come."""
        return not self.measured and level == self.first_level + (self.shared or self).rounds_done
