"""What a method is handed: one tensor (or a block of it) of every model, and numbers that belong to it."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Protocol, TypeVar

from torch import Tensor

from merge.contract.informed import Statistic
from merge.errors import MethodMalformed
from merge.kernels.keyed import Draws
from merge.recipe.parts import Role

StatKey = Any
"""A ``Stat`` class (its default form) or the very instance that the method declared."""


@dataclass(frozen=True)
class Site:
    """Which tensor of which models this is: ``shape`` is that of the whole tensor, ``models`` the sources'
    ids; ``turned`` where a weight is stored as (inputs, outputs); ``layers`` how many its tower has, 0 for a
    tensor outside the layers; ``stands_for`` of how many models each source is a merge already; ``deepest``
    how many layers the longest tower of the model has.
    """

    name: str
    role: Role
    shape: tuple[int, ...]
    models: tuple[str, ...]
    turned: bool = False
    layers: int = 0
    stands_for: tuple[int, ...] = ()
    deepest: int = 0

    @property
    def stacked(self) -> bool:
        """Whether this is a stack of experts' matrices."""
        return self.role == "expert" and len(self.shape) == 3

    @property
    def flat(self) -> bool:
        """Whether it is a vector, or biases of experts or their routers, each row of which is one."""
        biases = self.role in ("expert", "router") and self.name.endswith("bias")
        return len(self.shape) < 2 or (biases and len(self.shape) == 2)

    @property
    def columns(self) -> int:
        """Entries of one row: of a vector all, of a kernel all that one output unit reads."""
        if self.stacked:
            return max(1, self.shape[2])
        return max(1, prod(self.shape[1:]) if len(self.shape) > 1 else prod(self.shape))

    @property
    def merged(self) -> int:
        """Of how many models this is a merge, counting those that went into the sources."""
        return sum(self.stands_for) if self.stands_for else len(self.models)


class Holds(Protocol):
    """What takes memory: a tensor, or several."""

    @property
    def nbytes(self) -> int: ...


Held = TypeVar("Held", bound=Holds)


class Recall(Protocol):
    """Gives what ``make`` would make, which nobody may write to: made for an earlier candidate of a search
    and kept, or made now. For each ``place`` the last one is kept.
    """

    def __call__(self, place: Hashable, facts: Hashable, make: Callable[[], Held], /) -> Held: ...


def made_now(place: Hashable, facts: Hashable, make: Callable[[], Held], /) -> Held:  # noqa: ARG001
    """Recalls nothing."""
    return make()


@dataclass(frozen=True)
class Stats:
    """Measured values by declared stat; ``read`` explains a missing declaration to the method's author."""

    values: Mapping[Any, Any] = field(default_factory=dict)

    def read(self, key: StatKey) -> Any:
        """The value of a declared stat: one entry a measured quantity, in order."""
        try:
            return self.values[key]
        except KeyError:
            raise MethodMalformed(
                f"the stat {key} is used but not declared in needs=Needs(stats=...)"
            ) from None


Statistics = Mapping[Statistic, Any]
"""What was measured on data of the tensor at hand, lined up with the block, by what a method declares."""


def _read(statistics: Statistics, key: Statistic) -> Any:
    try:
        return statistics[key]
    except KeyError:
        raise MethodMalformed(f"{key} is used but not declared in needs=Needs(statistics=...)") from None


@dataclass
class DeltaGroup:
    """What a ``prepare`` may know besides the delta itself: ``rng`` draws by flat index, ``base`` lines up
    with it.
    """

    site: Site
    model: str
    base: Tensor
    weight: float
    rng: Draws
    stats: Stats = field(default_factory=Stats)
    statistics: Statistics = field(default_factory=dict)

    def stat(self, key: StatKey) -> Any:
        """Values of a declared stat, one a quantity measured on this source's delta."""
        return self.stats.read(key)

    def statistic(self, key: Statistic) -> Any:
        """A declared statistic measured on data, of the base or of this source; see ``TensorGroup``."""
        found = _read(self.statistics, key)
        return found[self.site.models.index(self.model)] if key.of == "sources" else found


@dataclass
class TensorGroup:
    """The same entries of every model, in compute dtype, lined up: all tensors here have one shape.

    For granularity ``element`` that shape is flat and may be any part of the tensor; for ``row`` it is
    (rows, columns) with whole rows; for ``tensor`` it is the tensor's own. Nothing in it may be written to.
    """

    site: Site
    read_sources: Sequence[Tensor]
    read_base: Tensor | None
    weights: tuple[float, ...]
    prepared: Sequence[Tensor] | None = None
    stats: Stats = field(default_factory=Stats)
    statistics: Statistics = field(default_factory=dict)
    recall: Recall = made_now
    """For what depends on the task vectors and on nothing but ``facts`` besides: not on the weights."""

    @property
    def base(self) -> Tensor:
        """The base model's entries; the method must declare ``Needs(base=True)``."""
        if self.read_base is None:
            raise MethodMalformed(
                "group.base or group.deltas is used, but needs=Needs(base=True) is not declared"
            )
        return self.read_base

    @cached_property
    def deltas(self) -> Sequence[Tensor]:
        """Each source minus the base, after the ``prepare`` steps."""
        return (
            self.prepared
            if self.prepared is not None
            else [source - self.base for source in self.read_sources]
        )

    @cached_property
    def sources(self) -> Sequence[Tensor]:
        """Each source's entries; after ``prepare`` steps, the base plus the prepared delta."""
        return self.read_sources if self.prepared is None else [self.base + delta for delta in self.prepared]

    @property
    def points(self) -> Sequence[Tensor]:
        """The deltas where a base is read, else the sources; for a method whose base is ``"optional"``."""
        return self.sources if self.read_base is None else self.deltas

    @property
    def name(self) -> str:
        """Name of the tensor."""
        return self.site.name

    @property
    def role(self) -> Role:
        """Class of the tensor: linear, norm, embed, ..."""
        return self.site.role

    def stat(self, key: StatKey) -> Any:
        """Values of a declared stat, one a measured quantity (one a source unless it says otherwise)."""
        return self.stats.read(key)

    def statistic(self, key: Statistic) -> Any:
        """A declared statistic measured on data: of the base, or a tuple with one of each source.

        It has the shape of the entries at hand and their dtype, one number for each (the same along a
        channel); a matrix over the channels comes whole, as ``Matrix``. ``None`` stands where the tensor has
        none: embeddings and biases have no input channels, norms no matrix, and rows of a rearranged
        vocabulary no entries of their own.
        """
        return _read(self.statistics, key)
