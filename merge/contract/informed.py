"""Statistics measured on data: what a method may ask for of a model that was run on texts. Loads no torch.

A method declares ``Statistic``s in ``Needs(statistics=(...))`` and reads each as ``group.statistic(KEY)``.
They are measured before a run (``merge.learn``) and lie in folders; ``merge.statistics`` reads them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from merge.errors import MethodMalformed

Layout = Literal["channel", "square", "entry", "other"]


@dataclass(frozen=True)
class StatisticKind:
    """One thing that can be measured. By ``layout`` there is one number for each input channel of a weight,
    a matrix over its input channels, one number for each of its entries, or something else.
    ``gradients`` says whether measuring it takes a backward pass.
    """

    about: str
    layout: Layout
    gradients: bool = False


KINDS: Mapping[str, StatisticKind] = {
    "mean_abs_input": StatisticKind("Mean magnitude of each input channel.", "channel"),
    "input_second_moment": StatisticKind("Mean square of each input channel.", "channel"),
    "gram": StatisticKind("X'X / tokens of the inputs X.", "square"),
    "fisher": StatisticKind("Diagonal Fisher information.", "entry", gradients=True),
    "grad_weight": StatisticKind("Mean of (gradient times weight) squared.", "entry", gradients=True),
    "routing_counts": StatisticKind("How often each expert was chosen.", "other"),
    "activation_norm": StatisticKind("Norm of what a block gives out.", "other"),
}


@dataclass(frozen=True)
class Statistic:
    """A statistic of the base, or one of each source, of the tensor at hand.

    With ``relative`` the numbers of a channel are divided by the greatest one of their module, so that they
    are 0 to 1 (0 where nothing was ever active); with ``root`` their square roots are taken. With ``head`` it
    is that of the output head which shares this tensor, where there is one, and of no other tensor. ``when``
    names a knob and the values of it that make the statistic necessary; otherwise it is not asked for.
    """

    kind: str
    of: Literal["base", "sources"] = "base"
    relative: bool = False
    root: bool = False
    head: bool = False
    when: tuple[str, tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS or KINDS[self.kind].layout == "other":
            raise MethodMalformed(f"no statistic of a tensor is called {self.kind!r}")
        if (self.relative or self.root) and KINDS[self.kind].layout != "channel":
            raise MethodMalformed(f"{self.kind} has no channels, and no numbers of them")

    def needed(self, settings: Mapping[str, Any]) -> bool:
        """Whether these settings make use of it."""
        return self.when is None or settings[self.when[0]] in self.when[1]

    def describe(self) -> dict[str, Any]:
        """What the catalogue says of it."""
        told: dict[str, Any] = {"kind": self.kind, "of": self.of}
        return told | ({"when": {self.when[0]: list(self.when[1])}} if self.when else {})


@dataclass(frozen=True)
class Matrix:
    """A statistic that is a matrix over the input channels: ``values`` (channels, channels), symmetric; one
    for each expert where the tensor is a stack of them.

    ``axis`` is the one of the tensor along which its input channels lie: the last where it is stored (out,
    in), the last but one where (in, out).
    """

    values: Any
    axis: int
