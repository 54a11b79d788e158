"""mergekit's methods in our words: the chain each one is, and what its parameters are called here.

Defaults and meanings are those of mergekit 0.1.5. Where its method of a name computes something else than
ours of that name, the one that computes the same is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Base = Literal["ignored", "first", "optional", "required"]
"""What ``base_model`` is: another input, the first source, or where differences are (may be) taken from."""

_REQUIRED = object()
_WORDS: Mapping[bool, str] = {True: "l1", False: "none"}


@dataclass(frozen=True)
class Parameter:
    """One of mergekit's parameters: the setting of one of our steps, or a source's weight (``step`` None).

    ``by_source`` ones may be given by every model. ``words`` are our values for true and false.
    """

    name: str
    step: int | None
    setting: str
    default: Any = _REQUIRED
    by_source: bool = False
    is_flag: bool = False
    words: Mapping[bool, str] | None = None

    @property
    def required(self) -> bool:
        """Whether mergekit stops where it is not given."""
        return self.default is _REQUIRED

    @property
    def usual(self) -> Any:
        """The default in our words."""
        return self.words[self.default] if self.words else self.default


@dataclass(frozen=True)
class Method:
    """A method of mergekit: our steps with what is fixed in them, and its parameters.

    ``least`` and ``most`` count the models besides the base; for methods that ignore the base, all models.
    """

    steps: tuple[tuple[str, Mapping[str, Any]], ...]
    parameters: tuple[Parameter, ...]
    base: Base = "ignored"
    least: int = 1
    most: int | None = None
    notes: tuple[str, ...] = ()

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of that name, if it has any effect here."""
        return next((known for known in self.parameters if known.name == name), None)


WEIGHT = Parameter("weight", None, "weight", by_source=True)
_DENSITY = Parameter("density", 0, "density", 1.0, by_source=True)
_ELECTED: Mapping[str, Any] = {
    "scope": "tensor", "elect": "weighted_sum", "on_tie": "plus", "aggregate": "sum"
}  # fmt: skip
TRIMMED = (
    "Each task vector is trimmed tensor by tensor (scope: tensor), keeping max(1, int(density * n)) entries "
    "and all that equal the smallest of these; mergekit breaks such ties arbitrarily."
)
_MASKS = "Which entries are dropped differs from mergekit: draws are keyed by seed, source and tensor."
_L1 = (
    "What is kept of a task vector is scaled to the L1 norm it had before the drop (rescale: l1), as "
    "mergekit does; {} (rescale: expectation)."
)


def _lambda(step: int) -> Parameter:
    return Parameter("lambda", step, "scale", 1.0)


def _flag(name: str, step: int, default: bool, words: Mapping[bool, str] | None = None) -> Parameter:
    return Parameter(name, step, name, default, is_flag=True, words=words)


def _sparse(
    step: str,
    last: str,
    *own: Parameter,
    fixed: Mapping[str, Any] | None = None,
    normalize: bool = False,
    rescale: bool = True,
    notes: tuple[str, ...] = (),
) -> Method:
    """A method that drops entries in a step of its own, then adds or elects."""
    parameters = (
        WEIGHT,
        _DENSITY,
        *own,
        _flag("rescale", 0, rescale, _WORDS),
        _flag("normalize", 1, normalize),
        _lambda(1),
    )
    then: Mapping[str, Any] = {"density": 1.0, **_ELECTED} if last == "ties" else {}
    return Method(((step, fixed or {}), (last, then)), parameters, "required", notes=notes)


_EPSILON = Parameter("epsilon", 0, "epsilon", 0.15, by_source=True)
_GAMMA = Parameter("gamma", 0, "gamma", 0.01, by_source=True)
_DARE_NOTES = (_L1.format("the paper divides by the density"), _MASKS)
_DELLA_NOTES = (_L1.format("the paper divides each entry by its own probability"), _MASKS)
_CRUMBS: Mapping[str, Any] = {"overlap": "shrink_gamma"}
_CRUMBS_NOTES = (
    "Where density and gamma add up to more than 1, fewer of the largest entries are dropped "
    "(overlap: shrink_gamma), as mergekit does.",
)

METHODS: Mapping[str, Method] = {
    "linear": Method((("linear", {}),), (WEIGHT, _flag("normalize", 0, True))),
    "slerp": Method((("slerp", {}),), (Parameter("t", 0, "t"),), "first"),
    "nuslerp": Method((("nuslerp", {}),), (WEIGHT,), "optional", 2, 2),
    "multislerp": Method(
        (("multislerp_flat", {}),),
        (WEIGHT, Parameter("normalize_weights", 0, "normalize", True, is_flag=True)),
        "optional",
        notes=(
            "What mergekit calls multislerp is multislerp_flat here: our multislerp goes on to the mean.",
        ),
    ),
    "karcher": Method(
        (("karcher", {}),),
        (Parameter("max_iter", 0, "max_iter", 10), Parameter("tol", 0, "tol", 1e-5)),
        notes=("All models count the same in karcher, as in mergekit; here each may have a weight.",),
    ),
    "passthrough": Method(
        (("passthrough", {}),), (Parameter("scale", 0, "scale", 1.0, by_source=True),), most=1
    ),
    "task_arithmetic": Method(
        (("task_arithmetic", {}),), (WEIGHT, _flag("normalize", 0, False), _lambda(0)), "required"
    ),
    "ties": Method(
        (("ties", _ELECTED),),
        (WEIGHT, _DENSITY, _flag("normalize", 0, True), _lambda(0)),
        "required",
        notes=(TRIMMED,),
    ),
    "dare_linear": _sparse("dare", "task_arithmetic", notes=_DARE_NOTES),
    "dare_ties": _sparse("dare", "ties", notes=_DARE_NOTES),
    "breadcrumbs": _sparse(
        "breadcrumbs", "task_arithmetic", _GAMMA, fixed=_CRUMBS, rescale=False, notes=_CRUMBS_NOTES
    ),
    "breadcrumbs_ties": _sparse(
        "breadcrumbs", "ties", _GAMMA, fixed=_CRUMBS, rescale=False, notes=_CRUMBS_NOTES
    ),
    "della": _sparse("della", "ties", _EPSILON, normalize=True, notes=_DELLA_NOTES),
    "della_linear": _sparse("della", "task_arithmetic", _EPSILON, notes=_DELLA_NOTES),
    "sce": Method(
        (("sce", {"scale": 1.0, "on_tie": "plus", "equal_below": 1e-6}),),
        (Parameter("select_topk", 0, "density", 1.0),),
        "required",
    ),
    "ram": Method((("ram", {"scale": 1.0}),), (Parameter("epsilon", 0, "epsilon", 1e-5),), "required"),
    "ramplus_tl": Method(
        (("ramplus_tl", {"scale": 1.0, "scope": "tensor"}),),
        (
            Parameter("r", 0, "r", 0.1),
            Parameter("alpha", 0, "alpha", 0.2),
            Parameter("epsilon", 0, "epsilon", 1e-5),
        ),
        "required",
    ),
    "model_stock": Method(
        (("model_stock", {}),),
        (Parameter("filter_wise", 0, "along", False, is_flag=True, words={True: "rows", False: "tensor"}),),
        "required",
        2,
        notes=(
            "Where task vectors point away from each other (a negative mean cosine) model_stock stays at the "
            "base; mergekit goes past it.",
        ),
    ),
    "nearswap": Method((("nearswap", {}),), (Parameter("t", 0, "t"),), "required", 1, 1),
    "arcee_fusion": Method(
        (("arcee_fusion", {"reach": 1.5}),),
        (),
        "required",
        1,
        1,
        notes=("Quartiles are exact here; mergekit estimates them from a random sample on large tensors.",),
    ),
}

RESCALED_TIES = _sparse("trim", "ties", normalize=True, rescale=False, notes=(TRIMMED,))
"""``ties`` with ``rescale: true``: the trim is a step of its own, which gives back the L1 norm."""

NUSLERP_FLAGS = ("nuslerp_flatten", "nuslerp_row_wise")
"""Two parameters of nuslerp that are one setting here."""

IDLE = frozenset(
    {known.name for method in METHODS.values() for known in method.parameters}
    | {"rescale", "int8_mask", "eps", *NUSLERP_FLAGS}
)
"""Parameters of some method: where another one does not have them, mergekit ignores them."""


def along(flatten: bool, row_wise: bool) -> str:
    """nuslerp's setting for its two flags."""
    return "tensor" if flatten else ("columns" if row_wise else "rows")
