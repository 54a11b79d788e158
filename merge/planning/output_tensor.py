"""One tensor of the result, as planned: what it is made from and how."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from merge.contract.informed import Statistic
from merge.recipe.parts import Role


@dataclass(frozen=True, slots=True)
class Input:
    """A tensor that an output is made from: ``model`` is a key of the plan's models, ``tensor`` the name in
    that model, ``rows`` the name of a row table where the vocabulary is rearranged.
    """

    model: str
    tensor: str
    rows: str | None = None


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor to be written. ``policy`` is ``method``, ``mean``, ``base``, ``source:<id>`` or ``equal``.

    ``settings`` holds the resolved settings of every step (shared between tensors that have the same),
    ``weights`` the weight of each of its sources, ``inputs`` what is read, the base first where it is read;
    ``ids`` are the sources that a method merges, also where one is given a tensor of another model; ``stack``
    is the shape in which they see it, where that is another.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: Role
    layer: int | None
    policy: str
    settings: tuple[Mapping[str, Any], ...]
    weights: tuple[float, ...]
    inputs: tuple[Input, ...]
    ids: tuple[str, ...] = ()
    stack: tuple[int, ...] = ()

    @property
    def seen(self) -> tuple[int, ...]:
        """The shape in which methods see it."""
        return self.stack or self.shape

    @property
    def base(self) -> Input | None:
        """What the method takes differences from, where it does."""
        return self.inputs[0] if self.policy == "method" and len(self.inputs) > len(self.weights) else None

    @property
    def sources(self) -> tuple[Input, ...]:
        """The inputs without the base, one for each of ``weights`` where a method merges them."""
        return self.inputs if self.base is None else self.inputs[1:]

    def source_names(self) -> tuple[str, ...]:
        """A name for each source that no other source of this tensor has; keyed draws are made by it.

        It is the model's key; with the tensor's name where that is another than the output's, and with a
        count where one tensor is there twice.
        """
        plain = [
            source.model if source.tensor == self.name else f"{source.model}:{source.tensor}"
            for source in self.sources
        ]
        counts = [plain[:place].count(name) for place, name in enumerate(plain)]
        return tuple(f"{name}#{count}" if count else name for name, count in zip(plain, counts, strict=True))


def asked(output: OutputTensor, statistic: Statistic) -> tuple[Input, ...]:
    """The tensors of which an output needs a statistic: the base's, those of all sources, or of one of
    them.
    """
    if statistic.of == "base":
        return () if output.base is None else (output.base,)
    if statistic.of == "sources":
        return output.sources
    place = ("first", "second").index(statistic.of)
    return output.sources[place : place + 1]


def tensors_read(outputs: Iterable[OutputTensor]) -> dict[str, frozenset[str]]:
    """The tensors of each model that these outputs are made from, by model key."""
    found: dict[str, set[str]] = {}
    for output in outputs:
        for source in output.inputs:
            found.setdefault(source.model, set()).add(source.tensor)
    return {key: frozenset(names) for key, names in found.items()}


def rearranged(outputs: Iterable[OutputTensor]) -> list[tuple[str, str, tuple[int, ...]]]:
    """Model, tensor and shape in the result of everything that is read by a row table, each once."""
    return list(
        dict.fromkeys((i.model, i.tensor, o.shape) for o in outputs for i in o.inputs if i.rows is not None)
    )


def most_sources(outputs: Iterable[OutputTensor]) -> int:
    """The greatest number of sources that any output has."""
    return max((len(output.weights) for output in outputs), default=1)
