"""Statistics measured on data: what a method may ask for of a model that was run on texts. Loads no torch.

A method declares ``Statistic``s in ``Needs(statistics=(...))`` and reads each as ``group.statistic(KEY)``.
They are measured before a run (``merge.learn``) and lie in folders; ``merge.running.statistics`` reads them.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar

from merge.errors import MethodMalformed

Layout = Literal["channel", "square", "entry", "other"]
Of = Literal["base", "sources", "first", "second"]
JOINT = "+joint"
"""What is added to a model's key for the folder of its statistics that take other models too."""
T = TypeVar("T")


@dataclass(frozen=True)
class StatisticKind:
    """One thing that can be measured. By ``layout`` there is one number for each input channel of a weight,
    a matrix over its input channels, one number for each of its entries, or something else.
    ``gradients`` says whether measuring it takes a backward pass, ``joint`` whether it depends on other
    models and on the recipe's settings too.
    """

    about: str
    layout: Layout
    gradients: bool = False
    joint: bool = False


KINDS: Mapping[str, StatisticKind] = {
    "mean_abs_input": StatisticKind("Mean magnitude of each input channel.", "channel"),
    "input_second_moment": StatisticKind("Mean square of each input channel.", "channel"),
    "gram": StatisticKind("X'X / tokens of the inputs X.", "square"),
    "fisher": StatisticKind("Diagonal Fisher information.", "entry", gradients=True),
    "fisher_argmax": StatisticKind("The same, of the likeliest labels alone.", "entry", gradients=True),
    "fisher_exact": StatisticKind("The same, of all labels by their probability.", "entry", gradients=True),
    "grad_weight": StatisticKind("Mean of (gradient times weight) squared.", "entry", gradients=True),
    "routing_counts": StatisticKind("How often each expert was chosen.", "other"),
    "activation_norm": StatisticKind("Norm of what a block gives out.", "other"),
    "gram_merged": StatisticKind(
        "X'X / tokens of the inputs X that come through the blocks merged before.", "square", joint=True
    ),
    "votes": StatisticKind(
        "Mean over texts of 1 where taking the entry helps, -1 where not.",
        "entry",
        gradients=True,
        joint=True,
    ),
    "mask": StatisticKind("1 in the source's trained region.", "entry", gradients=True, joint=True),
}


def folder_key(kind: str, model: str) -> str:
    """Under which key the folder of a model's statistic is handed to a run."""
    return model + JOINT if KINDS[kind].joint else model


@dataclass(frozen=True)
class Statistic:
    """A statistic of the base, of the first or the second source, or one of each source, of the tensor at
    hand.

    With ``relative`` the numbers of a channel are divided by the greatest one of their module, so that they
    are 0 to 1 (0 where nothing was ever active); with ``root`` their square roots are taken. With ``head`` it
    is that of the output head which shares this tensor, where there is one, and of no other tensor. ``when``
    names a knob and the values of it that make the statistic necessary; otherwise it is not asked for.
    ``after`` are statistics that it is measured from, which the method is not handed; ``knobs`` name the
    method's settings that measuring depends on.
    """

    kind: str
    of: Of = "base"
    relative: bool = False
    root: bool = False
    head: bool = False
    when: tuple[str, tuple[str, ...]] | None = None
    after: tuple["Statistic", ...] = ()
    knobs: tuple[str, ...] = ()

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
        told |= {"when": {self.when[0]: list(self.when[1])}} if self.when else {}
        told |= {"after": [each.describe() for each in self.after]} if self.after else {}
        return told | ({"knobs": list(self.knobs)} if self.knobs else {})


class Memo:
    """What was worked out last, for those who need the same again; any number of threads may ask."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._held: OrderedDict[Hashable, _Once] = OrderedDict()

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` gives, made by one thread and kept until ``most`` others were asked for since."""
        with self._lock:
            found = self._held.setdefault(key, _Once())
            self._held.move_to_end(key)
            while len(self._held) > self._most:
                self._held.popitem(last=False)
        with found.lock:
            if not found.made:
                found.value, found.made = make(), True
            value: T = found.value
            return value


@dataclass
class _Once:
    lock: Any = field(default_factory=threading.Lock)
    made: bool = False
    value: Any = None


@dataclass(frozen=True)
class Matrix:
    """A statistic that is a matrix over the input channels: ``values`` (channels, channels), symmetric, read
    when they are asked for; one for each expert where the tensor is a stack of them.

    ``axis`` is the one of the tensor along which its input channels lie: the last where it is stored (out,
    in), the last but one where (in, out). Where several tensors have the same inputs, ``name`` tells the
    matrix from others and ``memo`` keeps what was worked out from it.
    """

    read: Callable[[], Any]
    axis: int
    name: Hashable = None
    memo: Memo | None = None

    @cached_property
    def values(self) -> Any:
        """The matrix."""
        return self.read()
