"""NSGA-II and NSGA-III, of optuna: Mergenetic's role."""

import warnings

from search.sampler import Sampled
from search.settings import NsgaSettings
from search.space import Space
from search.trial import Found, Search, Task


def search(space: Space, p: NsgaSettings, task: Task) -> Search:
    """Generations of one population; the front is what was measured."""
    import optuna

    make = optuna.samplers.NSGAIIISampler if p.variant == "nsga3" else optuna.samplers.NSGAIISampler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of NSGA-III
        sampler = make(population_size=p.population, seed=task.seed)
    yield from Sampled(space, sampler, task, several=True).batches(p.population)
    return Found()
