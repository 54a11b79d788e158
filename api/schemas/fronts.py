"""Bodies of fronts."""

from typing import Any, Literal

from pydantic import Field

from api.schemas.common import Out


class FrontPointOut(Out):
    """One point of a front. ``values``: one an objective, higher is better (losses are negative)."""

    place: int = Field(description="By which it is merged for good; the measured points come first")
    kind: Literal["measured", "predicted"] = Field(
        description="Whether candidates were scored there, or a model of the scores says so (method `map`)"
    )
    number: int | None = Field(description="Of the trial; null for a predicted point")
    point: dict[str, Any] = Field(
        description="Values by name; empty for the recipe as it was sent if that lies outside the space"
    )
    values: list[float]
    recipe: dict[str, Any] = Field(description="The whole recipe, models pinned")


class HypervolumeOut(Out):
    """How much of the space of scores the measured front covers, over ``reference``."""

    value: float
    reference: list[float]


class ChosenOut(FrontPointOut):
    """The point that suits a preference."""

    among: Literal["measured", "predicted"]
    preference: list[float]
    scaled: list[float] = Field(
        description="Where it stands in each objective among these points: 0 the worst of them, 1 the best"
    )
    score: float = Field(description="The mean of `scaled`, weighted by the preference: the largest of all")
    why: str


class ObjectiveOut(Out):
    """What one of the values is."""

    set: str
    metric: str | None = Field(description="null: the first metric of the set's kind")
    member: str | None


class FrontOut(Out):
    """The front of a search. At most 256 measured points are listed, those far from each other and the best,
    and 64 predicted ones; `search.json` has all measured ones.
    """

    objectives: list[ObjectiveOut]
    data: list[FrontPointOut]
    measured_total: int = Field(description="Points of the measured front, listed or not")
    hypervolume: HypervolumeOut | None
    chosen: ChosenOut | None = Field(description="Only where a `preference` was asked for")
