"""CMA-ES, mergekit-evolve's role: a Gaussian over all numbers that learns its centre and shape."""

from search.evolution import evolve
from search.settings import CmaEsSettings
from search.space import Space
from search.trial import Found, Search, Task


def search(space: Space, p: CmaEsSettings, task: Task) -> Search:
    """Generations from the space's start until the evaluations are used up or the Gaussian has shrunk to a
    point.
    """
    yield from evolve(
        space.vector(space.first), space.point, task.value, evaluations=task.evaluations,
        sigma=p.sigma, population=p.population, seed=task.seed,
    )  # fmt: skip
    return Found()
