"""What can be chosen about each search method, and what it is by default. Loads without numpy."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from search.space import Name, Part

Share = Annotated[float, Field(ge=0, le=1)]


class Settings(Part):
    """Settings of one search method. ``version`` goes up where a method asks for other candidates than it
    did before.
    """

    version: ClassVar[int] = 1


class GridSettings(Settings):
    """Every combination of evenly spaced values; of choices, all."""

    levels: int = Field(5, ge=2, le=1000, description="Values of each number")


class LineSettings(Settings):
    """One number: an even sweep first, then ever closer around the best value seen."""

    sweep: int = Field(7, ge=3, le=1000, description="Values of the first sweep")
    rounds: int = Field(3, ge=0, le=32, description="Refinements, of up to three values each")


class CmaEsSettings(Settings):
    """Covariance matrix adaptation (Hansen): a Gaussian that learns its own shape."""

    population: int | None = Field(None, ge=4, le=1000, description="Default: 4 + 3 ln(numbers)")
    sigma: float = Field(0.2, gt=0, le=1, description="First spread, as a share of each range")


class TpeSettings(Settings):
    """Tree-structured Parzen estimators (Bergstra et al.): good values are modelled apart from bad ones."""

    startup: int = Field(10, ge=1, le=1000, description="Random candidates first")
    batch: int = Field(4, ge=1, le=64, description="Candidates at a time")


class NsgaSettings(Settings):
    """Non-dominated sorting genetic search (Deb): a population moves towards the front."""

    population: int = Field(20, ge=4, le=1000)
    variant: Literal["nsga2", "nsga3"] = Field("nsga2", description="nsga3 for more than two objectives")


class MapSettings(Settings):
    """Amortised Pareto fronts by quadratic surrogates (arXiv:2406.07529)."""

    version: ClassVar[int] = 2
    mode: Literal["plain", "bayesian", "nested"] = "plain"
    samples: int | None = Field(
        None, ge=3, le=10_000, description="Default: twice the unknowns of a surrogate"
    )
    link: Literal["identity", "sigmoid", "softplus"] = Field(
        "identity", description="sigmoid for shares between 0 and 1, softplus for losses"
    )
    verify: int = Field(8, ge=0, le=1000, description="Points of the predicted front that are measured")
    rounds: int = Field(
        3, ge=1, le=100, description="Fits in turn with measuring points of the front; bayesian: samples too"
    )


class GenomeSettings(Settings):
    """GENOME and GENOME+ (arXiv:2503.01155) on the settings of a recipe."""

    population: int = Field(10, ge=3, le=1000)
    crossover: Share = Field(0.8, description="Chance of each draw of two parents to have a child")
    mutation: Share = Field(0.3, description="Chance of each individual to leave a changed copy")
    gene_mutation: Share = Field(0.3, description="Chance of each number of that copy to change")
    sigma: float = Field(0.1, gt=0, le=1, description="Spread of a change, as a share of the range")
    elites: int = Field(1, ge=1, le=1000, description="Best individuals that always stay")
    tournament: int = Field(3, ge=2, le=100)
    plus: bool = Field(False, description="GENOME+: a particle-swarm move before each generation")
    inertia: float = Field(0.2, ge=0, description="plus: say of the last move")
    own: float = Field(0.2, ge=0, description="plus: pull of an individual's own best")
    best: float = Field(0.2, ge=0, description="plus: pull of the best of all")
    worst: float = Field(0.1, ge=0, description="plus: push away from the worst")
    step: float = Field(0.5, gt=0, description="plus: length of the first move")
    decay: float = Field(0.95, gt=0, le=1, description="plus: factor on the length, each generation")


class EvoMergingSettings(Settings):
    """Evo-Merging (arXiv:2509.12951): first how much of each source is kept, then how far each is scaled."""

    denoise: Annotated[tuple[Name, ...], Field(min_length=1)] = Field(
        description="Dimensions of the first stage, such as densities; the others are the second's"
    )
    population: int = Field(20, ge=4, le=1000)
    sigma: float = Field(0.05, gt=0, le=1, description="First spread, as a share of each range")
    first_share: float = Field(1 / 3, gt=0, lt=1, description="Share of the evaluations for the first stage")
    penalty: float = Field(0.05, ge=0, description="Taken off the score for each unit of mean |value|")


class M2n2Settings(Settings):
    """M2N2 (arXiv:2508.16204): natural niches by competition for examples, and mates that attract."""

    archive: int = Field(20, ge=2, le=1000)
    alpha: float = Field(1.0, ge=0, le=10, description="1: examples are shared out fully; 0: no niches")
    mutation: float = Field(0.0, ge=0, le=1, description="Spread of a change, as a share of the range")
    batch: int = Field(1, ge=1, le=64, description="Children at a time; 1 is the published steady state")


class GreedySoupSettings(Settings):
    """Greedy soup (arXiv:2203.05482): from the best single one, each next stays only if it helps."""

    tolerance: float = Field(0.0, ge=0, description="How much worse it may get and still count as help")


class ExpertSubsetSettings(Settings):
    """Which sources help: one in or out at a time, from all or from the best, until nothing helps."""

    begin: Literal["all", "best"] = Field("best", description="All sources, or the best single one")
    rounds: int = Field(8, ge=1, le=64)


class SelfPositioningSettings(Settings):
    """Self Positioning (arXiv:2410.15035): gradient steps on shares of the sources and one scale.

    Slopes are taken by differences, so a step costs one evaluation a number and one more; choose a metric
    that changes smoothly.
    """

    steps: int = Field(30, ge=1, le=10_000)
    difference: float = Field(0.02, gt=0, le=0.5, description="Of slopes, as a share of each range")
    rate: float = Field(0.05, gt=0, le=10, description="Step length of Adam")
    scale: Name | None = Field(None, description="Dimension of the common scale; without it the scale is 1")


BY_METHOD: dict[str, type[Settings]] = {
    "cma_es": CmaEsSettings,
    "evo_merging": EvoMergingSettings,
    "expert_subset": ExpertSubsetSettings,
    "genome": GenomeSettings,
    "greedy_soup": GreedySoupSettings,
    "grid": GridSettings,
    "line": LineSettings,
    "m2n2": M2n2Settings,
    "map": MapSettings,
    "nsga": NsgaSettings,
    "self_positioning": SelfPositioningSettings,
    "tpe": TpeSettings,
}
