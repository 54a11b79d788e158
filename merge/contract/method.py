"""What a method is: one decorated function with declared needs. Files under ``merge/methods`` register
themselves.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeVar, get_type_hints

from merge.catalog import Granularity
from merge.contract.ends import Ends
from merge.contract.groups import Site, Stats
from merge.contract.informed import Statistic
from merge.contract.limits import Caution, Limit, conflicts
from merge.contract.params import build, schema_of
from merge.contract.stats import Stat
from merge.errors import MethodMalformed, SettingInvalid, UnknownMethod

LAWS = ("equal_to_base", "order", "zero_delta", "determinism", "inputs_untouched", "shape", "parts")
F = TypeVar("F", bound=Callable[..., Any])


class Kind(StrEnum):
    """Who calls the function and what comes back."""

    PREPARE = "prepare"
    COMBINE = "combine"
    ADJUST = "adjust"


@dataclass(frozen=True)
class Needs:
    """What a method must be given: a base, so many sources (least, most), stats measured beforehand.

    A base that is ``"optional"`` is read where the recipe names one; ``base_for`` names a knob and values of
    it that cannot do without. ``weight_sum`` names a knob that, when true, divides by the sum of the sources'
    weights, or is true where the method always does, so that the plan can refuse weights that add up to zero.
    ``limits`` are what settings demand of each other, ``cautions`` what the plan warns of. ``statistics`` are
    measured on data, by running models. A combine with ``factors`` is handed the sources' LoRA factors
    (``merge.contract.factors``) and gives back factors: every source must be an adapter over the base.
    ``ends`` are settings that count layers, of which the plan tells what has no room.
    """

    base: bool | Literal["optional"] = False
    sources: tuple[int, int | None] = (1, None)
    stats: tuple[Stat | type[Stat], ...] = ()
    weight_sum: str | Literal[True] | None = None
    limits: tuple[Limit, ...] = ()
    statistics: tuple[Statistic, ...] = ()
    cautions: tuple[Caution, ...] = ()
    base_for: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    factors: bool = False
    ends: Ends | None = None


@dataclass(frozen=True)
class Workspace:
    """What a method on rows or whole tensors holds at its peak beyond its inputs and their differences:
    float64 numbers for each entry of the block or tensor, ``entries`` of them and ``each`` more for every
    source; and for each entry of the square over the shorter side of what it decomposes, ``square`` and
    ``square_each``.
    """

    entries: float
    each: float = 0.0
    square: float = 0.0
    square_each: float = 0.0

    def told(self) -> list[float]:
        """Plain numbers."""
        return [self.entries, self.each, self.square, self.square_each]


When = tuple[str, tuple[str, ...]]
"""A knob, and its values with which something holds."""


@dataclass(frozen=True)
class Lines:
    """What a method measures of each of the ``rows`` of a tensor or of its ``columns``, or of the columns of
    every matrix in a stack of experts (``matrices``, whose columns may stand in rows): float64 numbers at its
    peak, ``numbers`` of them and ``each`` more for every source.
    """

    of: Literal["rows", "columns", "matrices"]
    numbers: float
    each: float = 0.0
    when: When | None = None

    def told(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"of": self.of, "numbers": self.numbers, "each": self.each, **_told(self.when)}


def _told(when: When | None) -> dict[str, Any]:
    return {"when": {when[0]: list(when[1])}} if when else {}


Stacked = Literal["rows", "columns"]


@dataclass(frozen=True)
class Iteration:
    """Steps that a method on matrices takes with whole matrices, as many as the knob ``steps`` says: each
    takes so many ``products`` of numbers for every entry of a matrix and row of its shorter side. ``when``
    names a knob and the values of it with which it iterates.
    """

    steps: str
    products: float
    when: When | None = None

    def told(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"steps": self.steps, "products": self.products, **_told(self.when)}


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What a method's file says of it.

    ``granularity="element"`` promises that an entry of the output depends on the same entry of the inputs, on
    plain numbers and on declared stats alone; ``"row"`` the same for whole rows. ``linear`` promises
    that it is a sum of the inputs with factors that depend on weights and settings alone, ``scaled`` that it
    is the base and a change of the deltas times the setting ``scale``, multiplied and added in this order,
    and that nothing else depends on either: a search that varies the scale works the change out once.
    ``version`` goes up whenever the bytes of an output change. ``classes`` are policies for tensor classes
    that a recipe does not speak of, ``breaks`` maps laws to the reason. ``workspace`` is the memory of a
    method that takes more than a few copies of a tensor, ``lines`` what it measures of rows or columns,
    ``iteration`` what its steps take; ``stacked`` are the rows or columns of all task vectors, where a method
    on matrices decomposes them as one. ``state`` gives settings with which a later run goes on from this
    one's result as its first source, from what was measured over all tensors; none where it cannot.
    """

    title: str
    kind: Kind
    granularity: Granularity = "tensor"
    linear: bool = False
    scaled: bool = False
    paper: str | None = None
    needs: Needs = field(default_factory=Needs)
    version: int = 1
    classes: Mapping[str, str] = field(default_factory=dict)
    breaks: Mapping[str, str] = field(default_factory=dict)
    workspace: Workspace | None = None
    lines: Lines | None = None
    iteration: Iteration | None = None
    stacked: Stacked | None = None
    state: Callable[[Stats, Any, Site], Mapping[str, float]] | None = None


@dataclass(frozen=True, kw_only=True)
class Method(Declared):
    """A registered method. ``function`` takes what its kind is handed."""

    name: str
    family: str
    about: str
    params: type
    function: Callable[..., Any]

    def settings(self, values: Mapping[str, Any], sources: int, position: int | None = None) -> Any:
        """The method's params from resolved values; a prepare gets the ones of the source at ``position``.

        ``None`` in a tuple stands for the default. Raises ``SettingInvalid``.
        """
        defaults = {name: body["default"] for name, body in schema_of(self.params)["properties"].items()}
        for sentence in conflicts(self.needs.limits, defaults, values):
            raise SettingInvalid(f"{self.name}: {sentence}")
        ready = {}
        for name, value in values.items():
            if isinstance(value, tuple) and position is not None:
                value = value[position]
            if isinstance(value, tuple):
                value = tuple(defaults.get(name) if entry is None else entry for entry in value)
            if value is not None:
                ready[name] = value
        return build(self.params, ready, sources)

    def declared(self) -> dict[Any, Stat]:
        """The stats by the key under which the method reads them (a class stands for its default form)."""
        found: dict[Any, Stat] = {}
        for key in self.needs.stats:
            for needed in (*_instance(key).after, key):
                found.setdefault(needed, _instance(needed))
        return found

    def describe(self) -> dict[str, Any]:
        """The catalogue entry: plain JSON."""
        needs = self.needs
        return {
            "name": self.name,
            "title": self.title,
            "kind": str(self.kind),
            "family": self.family,
            "about": self.about,
            "paper": self.paper,
            "version": self.version,
            "granularity": self.granularity,
            **_given(
                linear=self.linear,
                workspace=self.workspace and self.workspace.told(),
                lines=self.lines and self.lines.told(),
                iteration=self.iteration and self.iteration.told(),
                stacked=self.stacked,
                continues=self.state is not None,
            ),
            "needs": {
                "base": needs.base,
                "sources": list(needs.sources),
                "stats": [stat.describe() for stat in self.declared().values()],
                "weight_sum": needs.weight_sum,
                "limits": [limit.as_dict() for limit in needs.limits],
                **_given(
                    statistics=[each.describe() for each in needs.statistics],
                    cautions=[each.as_dict() for each in needs.cautions],
                    base_for={name: list(values) for name, values in needs.base_for.items()},
                    factors=needs.factors,
                    ends=needs.ends and needs.ends.as_dict(),
                ),
            },
            "schema": schema_of(self.params),
            "classes": dict(self.classes),
            "breaks": dict(self.breaks),
        }


def _given(**facts: Any) -> dict[str, Any]:
    """Those that most methods have nothing to say of, where one does."""
    return {name: fact for name, fact in facts.items() if fact}


def _instance(stat: Stat | type[Stat]) -> Stat:
    return stat() if isinstance(stat, type) else stat


_REGISTRY: dict[str, Method] = {}


@dataclass(frozen=True, kw_only=True)
class method(Declared):  # noqa: N801 (a decorator)
    """Registers the decorated function under its name; the file must bear the same one.

    ``elementwise`` is short for ``granularity="element"``. The last parameter must be annotated with a
    ``@params`` class. Raises ``MethodMalformed`` at import.
    """

    elementwise: bool = False

    def __call__(self, function: F) -> F:
        """The function itself."""
        path = function.__module__.split(".")
        said = dict(vars(self))
        if said.pop("elementwise"):
            said["granularity"] = "element"
        made = Method(
            name=function.__name__,
            family=path[-2] if len(path) > 1 else "",
            about=" ".join((inspect.getdoc(function) or "").split()),
            params=get_type_hints(function)[list(inspect.signature(function).parameters)[-1]],
            function=function,
            **said,
        )
        _check(made, path[-1])
        _REGISTRY[made.name] = made
        return function


def _check(made: Method, file: str) -> None:
    known = _REGISTRY.get(made.name)
    wrong = [
        ("has no docstring, and its docstring is what users read", not made.about),
        (f"stands in {file}.py, which must bear its name", made.name != file),
        ("is registered twice", known is not None and known.function.__module__ != made.function.__module__),
        (f"breaks an unknown law; laws are {', '.join(LAWS)}", not set(made.breaks) <= set(LAWS)),
    ]
    for sentence, is_wrong in wrong:
        if is_wrong:
            raise MethodMalformed(f"the method {made.name} {sentence}")


def registered() -> dict[str, Method]:
    """All methods that have been imported, by name in alphabetical order; see ``merge.methods.load``."""
    return dict(sorted(_REGISTRY.items()))


def get(name: str) -> Method:
    """One registered method; raises ``UnknownMethod``."""
    if name not in _REGISTRY:
        raise UnknownMethod(f"there is no code for the method {name!r}")
    return _REGISTRY[name]
