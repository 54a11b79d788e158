"""What is searched, how, for what, and for how long; checked as far as no model is needed."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, model_validator

from search.choice import check_preference, names_of
from search.errors import SearchInvalid, WrongAt
from search.settings import (
    BY_METHOD,
    CmaEsSettings,
    EvoMergingSettings,
    ExpertSubsetSettings,
    GenomeSettings,
    GreedySoupSettings,
    GridSettings,
    LineSettings,
    M2n2Settings,
    MapSettings,
    NsgaSettings,
    SelfPositioningSettings,
    Settings,
)
from search.space import MOST_DIMENSIONS, Dimension, Name, Part, Space

MOST_EVALUATIONS = 100_000
SEVERAL = ("map", "nsga", "grid", "tpe")
"""Methods that look for a front where there are several objectives."""
MOST_DIRECTIONS = 16
"""Numbers of a space whose directions bayesian ``map`` can tell apart: each doubles them."""
NO_HALVING = {
    "m2n2": "m2n2 needs the score of every example: no halving",
    "self_positioning": "self_positioning takes differences over all examples: no halving",
}


class Objective(Part):
    """A number to make large (or small): ``metric`` of the evaluation set ``set``.

    ``weight`` is its say where a method wants one number only. Of a bundle, ``member`` is scored, or every
    member, of which the mean counts.
    """

    set: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    metric: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = Field(
        None,
        description="Default: the first metric of the set's kind. A built-in task of lm_eval has no default",
    )
    goal: Literal["max", "min"] | None = Field(None, description="Default: the metric's own")
    weight: float = Field(1.0, gt=0, le=1e6)
    member: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = Field(
        None, description="Of a bundle: the source that is given back and scored. Default: the mean of all"
    )


class Budget(Part):
    """Where a search ends. ``evaluations`` count a candidate on all examples as one, on a quarter of them as
    a quarter; whichever limit comes first ends it.
    """

    evaluations: int = Field(50, ge=1, le=MOST_EVALUATIONS)
    seconds: float | None = Field(None, gt=0)
    gpu_seconds: float | None = Field(None, gt=0)


class Halving(Part):
    """Successive halving: all of a batch are scored on ``begin`` of the examples, the best ``1/factor`` of
    them on ``factor`` times as many, until some were scored on all.
    """

    begin: float = Field(0.25, gt=0, lt=1, description="Share of the examples in the first round")
    factor: int = Field(2, ge=2, le=16)


class SearchOrder(Part):
    """A whole search but for the recipe and the evaluation sets."""

    method: str
    settings: dict[str, Any] = Field(default={})
    space: dict[Name, Dimension]
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1, max_length=8)]
    budget: Budget = Budget()
    halving: Halving | None = None
    preference: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(max_length=8)] | None = Field(
        None, description="Says of the objectives, by which one point of a front is chosen"
    )
    reference: (
        Annotated[tuple[Annotated[float, Field(allow_inf_nan=False)], ...], Field(max_length=8)] | None
    ) = Field(
        None,
        description="Scores (losses negative) over which a front counts, one an objective, such as the "
        "base's: for the hypervolume, and for where `map` measures. Default: the worst that was seen",
    )
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0

    @model_validator(mode="after")
    def _goes_together(self) -> "SearchOrder":
        try:
            check(self)
        except SearchInvalid as error:
            raise WrongAt(str(error), error.pointer) from None
        return self

    @property
    def spaces(self) -> Space:
        """The space."""
        return Space(dimensions=self.space)

    @property
    def several(self) -> bool:
        """Whether a front is looked for, not one best point."""
        return len(self.objectives) > 1 and self.method in SEVERAL

    def chosen(self) -> Settings:
        """The method's settings, with what is not said by default. Raises ``SearchInvalid``."""
        if self.method not in BY_METHOD:
            raise SearchInvalid(
                f"there is no search method {self.method!r}; there are {', '.join(BY_METHOD)}", "/method"
            )
        try:
            return BY_METHOD[self.method].model_validate(self.settings)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ["settings", *map(str, first["loc"])]
            said = first["msg"]
            if first["type"] == "extra_forbidden":
                known = ", ".join(BY_METHOD[self.method].model_fields)
                said = f"{self.method} has no such setting; it has {known}"
            raise SearchInvalid(f"{'.'.join(place)}: {said}", f"/{'/'.join(place)}") from None


def check(order: SearchOrder) -> None:
    """Raises ``SearchInvalid`` where method, space, objectives and budget do not go together."""
    if not order.space:
        raise SearchInvalid("the space is empty: name at least one thing that may vary", "/space")
    if len(order.space) > MOST_DIMENSIONS:
        said = f"the space has {len(order.space)} dimensions, and at most {MOST_DIMENSIONS} are searched"
        raise SearchInvalid(said, "/space")
    settings, space = order.chosen(), order.spaces
    _fits(order, settings, space)
    needed = least(settings, space, len(order.objectives))
    if order.budget.evaluations < needed:
        raise SearchInvalid(
            f"{order.method} needs at least {needed} evaluations here, the budget has "
            f"{order.budget.evaluations}",
            "/budget/evaluations",
        )
    if order.preference is not None:
        check_preference(order.preference, names_of(each.model_dump() for each in order.objectives))
    if order.reference is not None and len(order.reference) != len(order.objectives):
        raise SearchInvalid("reference needs one score an objective", "/reference")


def _fits(order: SearchOrder, settings: Settings, space: Space) -> None:
    if searched := _searched_instead(order.method, space):
        raise SearchInvalid(f"{order.method} searches {searched}", "/space")
    match settings:
        case EvoMergingSettings():
            _known(settings.denoise, space, "denoise")
        case SelfPositioningSettings():
            _shares_out(settings, space)
        case MapSettings():
            _can_map(settings, space, len(order.objectives))
    if order.halving is not None and order.method in NO_HALVING:
        raise SearchInvalid(NO_HALVING[order.method], "/halving")


def _searched_instead(method: str, space: Space) -> str | None:
    """What a method searches, where that is another kind of space."""
    match method:
        case "line" if space.width != 1 or not space.numeric:
            return "one number: give one dimension"
        case "cma_es" if space.width < 2 or not space.numeric:
            return "two numbers or more; for one, take line"
        case "map" | "genome" | "m2n2" | "evo_merging" | "self_positioning" if not space.numeric:
            return "numbers only"
        case "greedy_soup" | "expert_subset" if not all(e.switches for e in space.dimensions.values()):
            return "sources: every dimension must be at sources.<id>"
    return None


def _shares_out(settings: SelfPositioningSettings, space: Space) -> None:
    if settings.scale is not None:
        _known((settings.scale,), space, "scale")
    shares = [each for name, each in space.dimensions.items() if name != settings.scale]
    if space.width > len(space.dimensions) or any((each.low or 0) > 0 for each in shares):
        raise SearchInvalid(
            "self_positioning shares out weights from 0 on: give single numbers (no points), each with "
            "low: 0, and name the common scale in settings.scale",
            "/space",
        )


def _can_map(settings: MapSettings, space: Space, objectives: int) -> None:
    if settings.mode == "nested" and not len(space.dimensions) == objectives == space.width:
        raise SearchInvalid(
            "nested map pairs dimensions with objectives: give the weight of one source an objective, "
            "in the same order",
            "/space",
        )
    if settings.mode == "bayesian" and space.width > MOST_DIRECTIONS:
        raise SearchInvalid(
            f"bayesian map looks in every direction, of which {space.width} numbers have too many: give at "
            f"most {MOST_DIRECTIONS} numbers, or take its plain mode",
            "/space",
        )


def _known(names: tuple[str, ...], space: Space, field: str) -> None:
    unknown = [name for name in names if name not in space.dimensions]
    if unknown:
        raise SearchInvalid(f"settings.{field} names {unknown[0]!r}, which is not in the space", "/settings")
    if len(set(names)) == len(space.dimensions):
        raise SearchInvalid(f"settings.{field} leaves no dimension for the rest", "/settings")


def most(order: SearchOrder) -> int:
    """Evaluations that it comes to at most: the budget's, or those of a whole grid where these are fewer."""
    settings, allowed = order.chosen(), order.budget.evaluations
    if isinstance(settings, GridSettings) and order.halving is None:
        return min(allowed, combinations(settings, order.spaces))
    return allowed


def unknowns(width: int) -> int:
    """Coefficients of a full quadratic in so many numbers."""
    return (width + 1) * (width + 2) // 2


def combinations(settings: GridSettings, space: Space) -> int:
    """Points of a grid."""
    return math.prod(
        len(each.choices) if each.choices is not None else settings.levels**each.width
        for each in space.dimensions.values()
    )


def least(settings: Settings, space: Space, objectives: int) -> int:
    """Evaluations without which the method has nothing to say."""
    match settings:
        case GridSettings():
            return combinations(settings, space)
        case LineSettings():
            return settings.sweep
        case MapSettings(mode="nested"):
            return (objectives - 1) * max(settings.samples or 0, unknowns(2)) + 1
        case MapSettings():
            return unknowns(space.width)
        case CmaEsSettings():
            return settings.population or 4 + math.floor(3 * math.log(space.width))
        case GenomeSettings() | NsgaSettings():
            return settings.population
        case EvoMergingSettings():
            second = settings.population / (1 - settings.first_share)
            return max(2 * settings.population, math.ceil(round(second, 6)))
        case M2n2Settings():
            return 2
        case SelfPositioningSettings():
            return space.width + 1
        case GreedySoupSettings():
            return len(space.dimensions)
        case ExpertSubsetSettings():
            return len(space.dimensions) + (settings.begin == "all")
        case _:
            return 1
